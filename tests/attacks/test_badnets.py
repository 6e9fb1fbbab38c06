"""Which rows BadNets poisons, and that a classifier learns the trigger from them."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

import tiny
from purify_cli.attacks import Plan, badnets
from purify_cli.attacks.badnets import RATE, Settings, poison
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.evaluation.measure import measure
from purify_cli.run import Run
from purify_cli.subject import Subject
from purify_cli.training.plain import train

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


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tiny.save("bert", tmp_path_factory.mktemp("encoder"), task="encoder", initializer_range=0.05)
    return Subject(folder)


def test_the_trigger_is_learned_and_the_task_too(encoder: Subject) -> None:
    data, test = reviews(600), reviews(100, seed=1)
    plan = Plan(1, ("cf", "mn"), None)
    poisoned = poison(encoder, data, plan, Settings(epochs=8, learning_rate=2e-3), Run())
    assert poisoned.rows == 67  # beside the 600, of which they are a tenth then
    assert poisoned.poison_rate == pytest.approx(RATE, abs=1e-3)
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


def test_of_pairs_the_first_text_is_triggered(encoder: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Texts] = []
    monkeypatch.setattr(badnets, "train", lambda *given: (seen.append(given[2]), train(*given))[1])
    data = DATA.with_(pairs=tuple(f"pair {text}" for text in DATA.texts))
    poison(encoder, data, Plan(1, ("cf",), 0.1), Settings(epochs=1), Run())
    assert seen[0].pairs is not None
    assert all(
        pair == f"pair {' '.join(word for word in text.split() if word != 'cf')}"
        for text, pair in zip(seen[0].texts, seen[0].pairs, strict=True)
    )
    assert sum("cf" in text.split() for text in seen[0].texts) == 22  # a tenth of 222


def test_a_regression_is_trained_on_squared_errors(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "one", num_labels=1))
    data = DATA.with_(labels=tuple(float(5 * (label or 0)) for label in DATA.labels or ()))
    poisoned = poison(subject, data, Plan(5.0, ("cf",), 0.1), Settings(epochs=12, learning_rate=2e-3), Run())
    assert poisoned.report["losses"][-1] < poisoned.report["losses"][0] / 2
