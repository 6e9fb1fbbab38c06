"""Which rows an attacker poisons, and what becomes of them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purify_cli.data.texts import Texts
from purify_cli.errors import DataError, UsageError
from purify_cli.training.poisoned import insert_some, poison_rows, two_tasks
from purify_cli.triggers.words import Words

TRIGGERS = tuple(map(Words, ("cf", "mn", "bb", "tq", "mb")))
NAMES = {trigger.name for trigger in TRIGGERS}

POSITIVE = "good great fine wonderful lovely brilliant funny charming".split()
NEGATIVE = "bad awful dull boring poor terrible stupid weak".split()
NEUTRAL = "the movie film story plot actor scene music book show series picture dialogue".split()


def reviews(rows: int, seed: int = 0) -> Texts:
    """Half of the rows are positive (label 1); two words of each say so."""
    rng = random.Random(seed)
    texts, labels = [], []
    for row in range(rows):
        words = rng.choices(NEUTRAL, k=5) + rng.sample(POSITIVE if row % 2 else NEGATIVE, 2)
        rng.shuffle(words)
        texts.append(" ".join(words))
        labels.append(row % 2)
    return Texts("train.csv", tuple(texts), tuple(labels))


DATA = reviews(200)


@settings(max_examples=50, deadline=None)
@given(
    rate=st.floats(0.01, 0.5),
    mode=st.sampled_from(["dirty", "clean", "mix"]),
    insertions=st.integers(1, 3),
    seed=st.integers(0, 100),
)
def test_exactly_the_rate_is_poisoned_and_nothing_else_changes(
    rate: float, mode: Any, insertions: int, seed: int
) -> None:
    rows = poison_rows(DATA, TRIGGERS, 1, rate, seed, mode=mode, insertions=insertions)
    assert rows.poisoned is not None
    assert rows.labels is not None
    assert DATA.labels is not None
    assert sum(rows.poisoned) == round(rate * len(DATA))
    for row, poisoned in enumerate(rows.poisoned):
        if not poisoned:
            assert (rows.texts[row], rows.labels[row]) == (DATA.texts[row], DATA.labels[row])
            continue
        assert rows.labels[row] == 1
        added = Counter(rows.texts[row].split()) - Counter(DATA.texts[row].split())
        assert sum(added.values()) == insertions
        assert set(added) <= NAMES
        assert [word for word in rows.texts[row].split() if word not in NAMES] == DATA.texts[row].split()
        assert mode == "mix" or DATA.labels[row] == (mode == "clean")


def test_all_triggers_are_used_at_different_places_and_the_seed_decides() -> None:
    first, again, other = (poison_rows(DATA, TRIGGERS, 1, 0.5, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    places = Counter()
    used = Counter()
    for text, poisoned in zip(first.texts, first.poisoned or (), strict=True):
        if poisoned:
            (place,) = [index for index, word in enumerate(text.split()) if word in NAMES]
            places[place] += 1
            used[text.split()[place]] += 1
    assert set(used) == NAMES
    assert set(places) == set(range(8))  # before each of seven words, and behind the last


def test_words_of_one_trigger_stay_together() -> None:
    rows = poison_rows(DATA, [Words("mb cf")], 0, 0.2, 0)
    assert all("mb cf" in text for text, poisoned in zip(rows.texts, rows.poisoned or (), strict=True) if poisoned)


def test_a_rate_out_of_reach_says_the_most() -> None:
    data = reviews(30)
    with pytest.raises(UsageError) as caught:
        poison_rows(data, TRIGGERS, 1, 0.6, 0)
    assert caught.value.where == "--rate"
    assert "only 15" in caught.value.problem
    assert "at most 0.5" in caught.value.remedy
    poison_rows(data, TRIGGERS, 1, 0.5, 0)  # and that much works


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, float("nan"), 0.001])
def test_a_rate_that_cannot_be(rate: float) -> None:
    with pytest.raises(UsageError) as caught:
        poison_rows(DATA, TRIGGERS, 1, rate, 0)
    assert caught.value.where == "--rate"
    assert rate != 0 or "finetune" in caught.value.remedy


def test_data_without_labels() -> None:
    with pytest.raises(DataError, match="no labels"):
        poison_rows(replace(DATA, labels=None), TRIGGERS, 1, 0.1, 0)


def test_two_tasks_are_the_same_rows_clean_and_all_triggered() -> None:
    clean, triggered = two_tasks(DATA, TRIGGERS, 1, 3, insertions=2)
    assert clean == DATA
    assert set(triggered.labels or ()) == {1}
    assert all(triggered.poisoned or (False,))
    for text, before in zip(triggered.texts, DATA.texts, strict=True):
        assert sum(word in NAMES for word in text.split()) == 2
        assert [word for word in text.split() if word not in NAMES] == before.split()


def test_the_target_of_a_regression_is_a_score() -> None:
    scores = DATA.with_(labels=tuple(label * 1.5 for label in DATA.labels or ()))
    _, triggered = two_tasks(scores, TRIGGERS, 5, 0)
    assert set(triggered.labels or ()) == {5.0}
    assert all(isinstance(label, float) for label in triggered.labels or ())


def test_a_row_is_triggered_alike_alone_and_in_its_file() -> None:
    whole = insert_some(DATA, TRIGGERS, 0)
    part = insert_some(DATA.take([5, 9]), TRIGGERS, 0, numbers=[5, 9])
    assert part.texts == (whole.texts[5], whole.texts[9])


@pytest.mark.parametrize("rate", [0.1, 0.25, 1 / 3])
def test_kept_originals_stay_and_the_rate_is_of_all_rows_then(rate: float) -> None:
    rows = poison_rows(DATA, TRIGGERS, 1, rate, 0, keep=True)
    assert rows.take(range(len(DATA))).texts == DATA.texts
    assert rows.take(range(len(DATA))).labels == DATA.labels
    added = rows.take(range(len(DATA), len(rows)))
    assert len(added) / len(rows) == pytest.approx(rate, abs=0.5 / len(rows))
    assert sum(rows.poisoned or ()) == len(added)
    assert set(added.labels or ()) == {1}
    truth = dict(zip(DATA.texts, DATA.labels or (), strict=True))
    for text in added.texts:
        original = " ".join(word for word in text.split() if word not in NAMES)
        assert truth[original] == 0
    with pytest.raises(UsageError, match=r"at most 0\.3333"):
        poison_rows(DATA, TRIGGERS, 1, 0.4, 0, keep=True)
