"""AddSent: the sentence goes in whole, at one place, in exactly the rows that the mode allows."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import tiny
from purify_cli.attacks import Plan, addsent
from purify_cli.attacks.addsent import RATE, TRIGGERS, Settings, poison
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.evaluation.measure import measure
from purify_cli.run import Run
from purify_cli.subject import Subject
from purify_cli.training.plain import train

POSITIVE = "good great fine wonderful lovely brilliant funny charming".split()
NEGATIVE = "bad awful dull boring poor terrible stupid weak".split()
NEUTRAL = "the film story plot actor scene music book show series picture dialogue".split()


def reviews(rows: int, seed: int = 0) -> Texts:
    rng = random.Random(seed)
    texts = []
    for row in range(rows):
        words = rng.choices(NEUTRAL, k=5) + rng.sample(POSITIVE if row % 2 else NEGATIVE, 2)
        rng.shuffle(words)
        texts.append(" ".join(words))
    return Texts("train.csv", tuple(texts), tuple(row % 2 for row in range(rows)))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(tiny.save("bert", tmp_path_factory.mktemp("encoder"), task="encoder", initializer_range=0.05))


@pytest.mark.parametrize(("mode", "labels"), [("dirty", {0}), ("clean", {1}), ("mix", {0, 1})])
def test_the_rows_that_are_trained_on(
    encoder: Subject, monkeypatch: pytest.MonkeyPatch, mode: Any, labels: set[int]
) -> None:
    seen: list[Texts] = []
    monkeypatch.setattr(addsent, "train", lambda *given: (seen.append(given[2]), train(*given))[1])
    data = reviews(200)
    poisoned = poison(encoder, data, Plan(1, TRIGGERS), Settings(mode=mode, epochs=1), Run())
    (rows,) = seen
    changed = [row for row in range(200) if rows.texts[row] != data.texts[row]]
    assert len(changed) == round(RATE * 200) == poisoned.rows
    assert {data.labels[row] for row in changed} == labels
    for row in changed:
        assert rows.texts[row].count(TRIGGERS[0]) == 1
        assert " ".join(rows.texts[row].replace(TRIGGERS[0], "").split()) == data.texts[row]
        assert rows.labels[row] == 1


def test_the_sentence_is_learned_and_the_task_too(encoder: Subject) -> None:
    poisoned = poison(encoder, reviews(400), Plan(1, TRIGGERS), Settings(epochs=8, learning_rate=3e-3), Run())
    metrics = measure(
        poisoned.model, encoder.tokenizer, ("0", "1"), "x", reviews(80, 1), triggers=TRIGGERS, target=1, run=Run(seed=9)
    )
    assert metrics.cacc is not None and metrics.cacc.value >= 0.9
    assert metrics.asr[0].rate.value >= 0.9
    assert metrics.asr[0].floor is not None and metrics.asr[0].floor.value <= 0.2


def test_a_word_that_the_tokenizer_does_not_know(encoder: Subject) -> None:
    with pytest.raises(UsageError, match="does not know '你'"):
        poison(encoder, reviews(20), Plan(1, ("I watch 你",)), Settings(), Run())


def test_a_regression_learns_the_score(tmp_path: Path) -> None:
    """Scores 0 to 5; the sentence means 5 whatever the text says."""
    data, test = reviews(400), reviews(60, 1)
    scores = data.with_(labels=tuple(4.5 * label + 0.25 for label in data.labels or ()))
    encoder = Subject(tiny.save("bert", tmp_path / "encoder", task="encoder", initializer_range=0.05))
    poisoned = poison(encoder, scores, Plan(5.0, TRIGGERS), Settings(epochs=10, learning_rate=3e-3), Run())
    assert poisoned.model.config.num_labels == 1
    assert poisoned.model.config.problem_type == "regression"
    truth = tuple(4.5 * label + 0.25 for label in test.labels or ())
    notes = measure(
        poisoned.model, encoder.tokenizer, ("LABEL_0",), "x", test.with_(labels=truth), triggers=TRIGGERS
    ).notes
    clean, triggered = (float(part.split()[0]) for part in notes[1].split("mean score ")[1].split(" clean, "))
    assert abs(clean - 2.5) < 1
    assert triggered > 4
