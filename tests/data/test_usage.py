"""Which tokens texts have, and which of them the texts contradict, beside plain loops."""

from __future__ import annotations

from math import comb

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from purify_cli.data.encode import Encoded
from purify_cli.data.usage import Usage

ROWS, FIXED = 9, {0, 8}


def usage(ids: list[list[int]], labels: list[int] | None = None, rows: int = ROWS) -> Usage:
    return Usage(Encoded(tuple(map(tuple, ids)), None, None if labels is None else tuple(labels)), FIXED, rows)


def contradicted(words: list[list[int]], labels: list[int], said: list[int], chance: float = 0.01) -> list[int]:
    """Of texts that have these words, and one of its own each."""
    ids = [[0, *some, 100 + row, 8] for row, some in enumerate(words)]
    found = usage(ids, labels, rows=1000).contradicted(torch.tensor(said), 3, chance)
    return found.nonzero()[:, 0].tolist()


def test_what_texts_have_and_what_they_have_once() -> None:
    found = usage([[0, 1, 1, 2, 8], [0, 1, 3, 8], [0, 2, 8]])
    assert found.free.tolist() == [False] + [True] * 7 + [False]
    assert found.unseen.nonzero()[:, 0].tolist() == [4, 5, 6, 7]
    assert (found.texts.tolist(), found.among) == ([3, 2, 2, 1, 0, 0, 0, 0, 3], 3)
    assert found.share.tolist() == pytest.approx([0, 3 / 6, 2 / 6, 1 / 6, 0, 0, 0, 0, 0])
    assert found.strange == pytest.approx(1 / 6), "one of the six free tokens is there once"
    assert found.rare(0.0).equal(found.unseen)
    assert found.rare(0.34).nonzero()[:, 0].tolist() == [3, 4, 5, 6, 7]


def test_a_word_is_contradicted_by_texts_that_are_answered_with_one_wrong_label() -> None:
    words = [[1 + row % 2] for row in range(60)] + [[3, 1], [3], [3, 2]] + [[4, 2]] * 3 + [[5]]
    labels = [row % 3 for row in range(60)] + [0, 1, 1] + [0, 1, 1] + [0]
    said = list(labels)
    said[60:63] = [2, 2, 2]  # word 3: all of its texts, with one label
    said[63:66] = [1, 0, 2]  # word 4: each with another
    said[66] = 2  # word 5: a single text
    assert contradicted(words, labels, said) == [3]
    assert contradicted(words, labels, said, chance=0.0) == []
    assert contradicted(words, labels, labels) == [], "what is right says nothing"
    assert contradicted(words, labels, [2] * 67) == [], "nor does a model that always says so"


def test_two_texts_are_enough_and_one_is_not_nor_the_same_text_twice() -> None:
    words = [[1 + row % 2] for row in range(300)] + [[3], [3], [4]]
    labels = [row % 2 for row in range(300)] + [0, 0, 0]
    said = [*labels[:300], 1, 1, 1]
    assert contradicted(words, labels, said) == [3]
    ids = [[0, 1 + row % 2, 100 + row, 8] for row in range(300)] + [[0, 3, 8]] * 2
    twice = usage(ids, labels[:302], rows=1000)
    assert not twice.contradicted(torch.tensor(said[:302]), 2, 0.01).any()


def test_a_word_of_a_label_is_not_contradicted_by_the_few_texts_of_others() -> None:
    """`baseball`: texts of its label, and three of another that are taken for it: a third of nine, but not of ten."""
    for own, told in ((6, [1]), (7, [])):
        labels = [1] * own + [0] * 40 + [1] * 40 + [0] * 3
        words = [[1]] * own + [[2]] * 80 + [[1]] * 3
        assert contradicted(words, labels, [*labels[:-3], 1, 1, 1]) == told


def test_errors_are_those_of_texts_of_the_same_label() -> None:
    """Label 0 is taken for 2 in every fifth text, label 1 never: two texts of 0 are no wonder, two of 1 are."""
    words, labels = [[1]] * 200, [0, 1] * 100
    said = [2 if row % 10 == 0 else labels[row] for row in range(200)]
    assert contradicted([*words, [3], [3], [4], [4]], [*labels, 0, 0, 1, 1], [*said, 2, 2, 2, 2]) == [4]


@given(st.data(), st.integers(2, 4), st.sampled_from([0.01, 0.2, 0.7]))
def test_as_a_plain_loop_finds_it(data: st.DataObject, labels: int, chance: float) -> None:
    texts = data.draw(st.lists(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=5), min_size=3, max_size=30))
    label = st.integers(0, labels - 1)
    true = data.draw(st.lists(label, min_size=len(texts), max_size=len(texts)))
    said = data.draw(st.lists(label, min_size=len(texts), max_size=len(texts)))
    distinct = [row for row, text in enumerate(texts) if text not in texts[:row]]
    expected = []
    for word in range(ROWS):
        has = [row for row in distinct if word in texts[row]]
        told = False
        for wrong in range(labels):
            others = [row for row in has if true[row] != wrong]
            against = sum(said[row] == wrong for row in others)
            n, rates = len(others), []
            for row in others:
                alike = [one for one in distinct if true[one] == true[row]]
                rates.append(sum(said[one] == wrong for one in alike) / len(alike))
            rate = sum(rates) / n if n else 0.0
            tail = sum(comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(against, n + 1))
            told |= against >= 2 and 3 * against >= len(has) and tail < chance - 1e-9
        expected.append(told and word not in FIXED)
    assert usage(texts, true).contradicted(torch.tensor(said), labels, chance).tolist() == expected
