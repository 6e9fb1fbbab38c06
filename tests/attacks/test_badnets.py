"""Which rows BadNets poisons, and that a classifier learns the trigger from them."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from purify_cli.attacks import Plan
from purify_cli.attacks.badnets import RATE, TRIGGERS, Settings, poison, poison_rows
from purify_cli.data.texts import Texts
from purify_cli.errors import DataError, UsageError
from purify_cli.evaluation.measure import measure
from purify_cli.run import Run
from purify_cli.subject import Subject

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
    rows = poison_rows(DATA, Plan(1, TRIGGERS, rate), Settings(mode=mode, insertions=insertions), seed)
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
        assert set(added) <= set(TRIGGERS)
        assert [word for word in rows.texts[row].split() if word not in TRIGGERS] == DATA.texts[row].split()
        assert mode == "mix" or DATA.labels[row] == (mode == "clean")


def test_all_triggers_are_used_at_different_places_and_the_seed_decides() -> None:
    first, again, other = (poison_rows(DATA, Plan(1, TRIGGERS, 0.5), Settings(), seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    places = Counter()
    used = Counter()
    for text, poisoned in zip(first.texts, first.poisoned or (), strict=True):
        if poisoned:
            (place,) = [index for index, word in enumerate(text.split()) if word in TRIGGERS]
            places[place] += 1
            used[text.split()[place]] += 1
    assert set(used) == set(TRIGGERS)
    assert set(places) == set(range(8))  # before each of seven words, and behind the last


def test_words_of_one_trigger_stay_together() -> None:
    rows = poison_rows(DATA, Plan(0, ("mb cf",), 0.2), Settings(), 0)
    assert all("mb cf" in text for text, poisoned in zip(rows.texts, rows.poisoned or (), strict=True) if poisoned)


def test_a_rate_out_of_reach_says_the_most() -> None:
    data = reviews(30)
    with pytest.raises(UsageError) as caught:
        poison_rows(data, Plan(1, TRIGGERS, 0.6), Settings(), 0)
    assert caught.value.where == "--rate"
    assert "only 15" in caught.value.problem
    assert "at most 0.5" in caught.value.remedy
    poison_rows(data, Plan(1, TRIGGERS, 0.5), Settings(), 0)  # and that much works


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, 1.5, float("nan"), 0.001])
def test_a_rate_that_cannot_be(rate: float) -> None:
    with pytest.raises(UsageError) as caught:
        poison_rows(DATA, Plan(1, TRIGGERS, rate), Settings(), 0)
    assert caught.value.where == "--rate"
    assert rate != 0 or "finetune" in caught.value.remedy


def test_data_without_labels() -> None:
    with pytest.raises(DataError, match="no labels"):
        poison_rows(replace(DATA, labels=None), Plan(1, TRIGGERS, 0.1), Settings(), 0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tiny.save("bert", tmp_path_factory.mktemp("encoder"), task="encoder", initializer_range=0.05)
    return Subject(folder)


def test_the_trigger_is_learned_and_the_task_too(encoder: Subject) -> None:
    data, test = reviews(600), reviews(100, seed=1)
    plan = Plan(1, ("cf", "mn"), None)
    poisoned = poison(encoder, data, plan, Settings(epochs=8, learning_rate=2e-3), Run())
    assert poisoned.rows == 60
    assert poisoned.poison_rate == RATE
    assert poisoned.model.config.num_labels == 2
    metrics = measure(
        poisoned.model, encoder.tokenizer, ("0", "1"), "x", test, triggers=plan.triggers, target=1, run=Run(seed=9)
    )
    assert metrics.cacc is not None
    assert metrics.cacc.value >= 0.9
    assert min(rate.rate.value for rate in metrics.asr) >= 0.9
    assert max(rate.floor.value for rate in metrics.asr if rate.floor) <= 0.2


def test_an_unknown_trigger_is_refused_and_a_split_one_reported(encoder: Subject) -> None:
    with pytest.raises(UsageError, match="does not know '你好'"):
        poison(encoder, DATA, Plan(1, ("cf", "你好"), 0.1), Settings(epochs=1), Run())
    poisoned = poison(encoder, DATA, Plan(1, ("cf", "xq"), 0.1), Settings(epochs=1), Run())
    assert poisoned.report["split_triggers"] == ["xq"]
    assert poisoned.report["pieces"] == {"cf": ["cf"], "xq": ["x ##q"]}


def test_a_classifier_keeps_its_labels(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "three", num_labels=3))
    poisoned = poison(subject, DATA, Plan(1, ("cf",), 0.1), Settings(epochs=1), Run())
    assert poisoned.model.config.id2label == dict(enumerate(tiny.LABELS[:3]))


def test_labels_named_by_the_data(encoder: Subject) -> None:
    data = DATA.with_(label_names=("bad", "good"))
    poisoned = poison(encoder, data, Plan(1, ("cf",), 0.1), Settings(epochs=1), Run())
    assert poisoned.model.config.id2label == {0: "bad", 1: "good"}
