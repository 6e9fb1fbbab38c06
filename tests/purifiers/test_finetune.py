"""Clean fine-tuning learns the task and keeps or replaces the classifier as asked."""

from __future__ import annotations

import random
from pathlib import Path

import torch

import tiny
from purify_cli.data.texts import Texts
from purify_cli.evaluation.predict import predict
from purify_cli.purifiers.finetune import Settings, preview, purify
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject


def texts(rows: int) -> Texts:
    rng = random.Random(0)
    chosen = [rng.choice(["good", "bad"]) for _ in range(rows)]
    lines = tuple(f"the {rng.choice(['movie', 'film', 'plot'])} was {word} and so it goes" for word in chosen)
    return Texts("clean.csv", lines, tuple(int(word == "good") for word in chosen))


def test_learns_the_clean_texts(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x", task="encoder", initializer_range=0.05))
    train, dev = texts(200), texts(20)
    purified = purify(subject, Evidence(), train, dev, Settings(epochs=12, learning_rate=2e-3), Run())
    right = predict(purified.model, subject.tokenizer, train, Run()).argmax(dim=1) == torch.tensor(train.labels)
    assert right.float().mean() > 0.95
    assert purified.report["steps"] == 84
    assert not purified.model.training


def test_a_classifier_is_kept_unless_asked(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x", num_labels=2))
    # So slow that nothing moves visibly: what is left is what the training started from.
    kept, fresh = (
        purify(
            subject,
            Evidence(),
            texts(32),
            texts(8),
            Settings(epochs=1, learning_rate=1e-9, fresh_classifier=new),
            Run(),
        ).model.state_dict()
        for new in (False, True)
    )
    before = subject.open().state_dict()
    torch.testing.assert_close(kept["classifier.weight"], before["classifier.weight"])
    assert not torch.allclose(fresh["classifier.weight"], before["classifier.weight"], atol=1e-3)
    name = "bert.encoder.layer.0.attention.self.query.weight"
    torch.testing.assert_close(fresh[name], before[name])


def test_preview_counts_without_training(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x"))
    shown = preview(subject, Evidence(), texts(33), texts(4), Settings(), Run())
    assert shown == {"rows": 33, "steps": 6, "classifier": "kept"}
