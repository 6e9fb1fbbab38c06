"""Which tokens texts have, and which of them the texts contradict, beside plain loops."""

from __future__ import annotations

from math import comb

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from purify_cli.data.encode import Encoded
from purify_cli.data.usage import FEWEST, MANY, Usage

ROWS, FIXED = 9, {0, 8}


def usage(ids: list[list[int]], labels: list[int] | None = None) -> Usage:
    return Usage(Encoded(tuple(map(tuple, ids)), None, None if labels is None else tuple(labels)), FIXED, ROWS)


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
    ids = [[0, 1 + row % 2, 8] for row in range(40)] + [[0, 3, 1, 8]] * 3 + [[0, 4, 2, 8]] * 3 + [[0, 5, 8]]
    labels = [row % 3 for row in range(40)] + [0, 1, 1] + [0, 1, 1] + [0]
    said = torch.tensor(labels)
    said[40:43] = 2  # word 3: all of its texts, with one label
    said[43:46] = torch.tensor([1, 0, 2])  # word 4: each with another
    said[46] = 2  # word 5: one text is an accident
    found = usage(ids, labels)
    assert found.contradicted(said, 3, 0.01).nonzero()[:, 0].tolist() == [3]
    assert not found.contradicted(torch.tensor(labels), 3, 0.01).any(), "what is right says nothing"
    assert not found.contradicted(said, 3, 0.0).any()
    assert not found.contradicted(torch.full_like(said, 2), 3, 0.01).any(), "a model that always says so says nothing"


def test_a_word_of_a_label_is_not_contradicted_by_the_few_texts_of_others() -> None:
    """`baseball`: many texts of its label, and three of another that are taken for it."""
    ids = [[0, 1, 8]] * 7 + [[0, 2, 8]] * 40 + [[0, 1, 8]] * 3
    labels = [1] * 7 + [0] * 20 + [1] * 20 + [0] * 3
    said = torch.tensor([*labels[:-3], 1, 1, 1])
    assert not usage(ids, labels).contradicted(said, 2, 0.01).any()
    assert usage(ids[1:], labels[1:]).contradicted(said[1:], 2, 0.01).nonzero()[:, 0].tolist() == [1], "a third of nine"


@given(st.data(), st.integers(2, 4), st.sampled_from([0.01, 0.2, 0.7]))
def test_as_a_plain_loop_finds_it(data: st.DataObject, labels: int, chance: float) -> None:
    texts = data.draw(st.lists(st.lists(st.integers(0, ROWS - 1), min_size=1, max_size=5), min_size=3, max_size=30))
    label = st.integers(0, labels - 1)
    true = data.draw(st.lists(label, min_size=len(texts), max_size=len(texts)))
    said = data.draw(st.lists(label, min_size=len(texts), max_size=len(texts)))
    expected = []
    for word in range(ROWS):
        told = False
        for wrong in range(labels):
            elsewhere = [one for one in range(len(texts)) if true[one] != wrong]
            others = [one for one in elsewhere if word in texts[one]]
            against = sum(said[one] == wrong for one in others)
            rate = sum(said[one] == wrong for one in elsewhere) / len(elsewhere) if elsewhere else 0.0
            n = len(others)
            tail = sum(comb(n, k) * rate**k * (1 - rate) ** (n - k) for k in range(against, n + 1))
            every = sum(word in text for text in texts)
            told |= against >= FEWEST and against >= MANY * every and tail < chance - 1e-9
        expected.append(told and word not in FIXED)
    assert usage(texts, true).contradicted(torch.tensor(said), labels, chance).tolist() == expected
