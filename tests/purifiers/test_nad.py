"""NAD and NAD-C: who teaches whom, and which bases are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.purifiers import nad, nad_c
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject
from purify_cli.training import distillation
from purify_cli.training.loop import Trained, fit

TEXTS = Texts("clean.csv", ("the movie was good", "a dull plot", "so bad", "very fine") * 4, (1, 0, 0, 1) * 4)
RUN = Run(max_length=16)
QUERY = "bert.encoder.layer.0.attention.self.query.weight"


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The weights that each training starts from."""
    seen: list[dict[str, Any]] = []

    def watched(model: Any, streams: Any, recipe: Any, run: Run) -> Trained:
        seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return fit(model, streams, recipe, run)

    monkeypatch.setattr(distillation, "fit", watched)
    return seen


def test_nad_teaches_the_suspect_as_it_was(tmp_path: Path, starts: list[dict[str, Any]]) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x"))
    how = nad.Settings(epochs=1, teacher_epochs=2, learning_rate=1e-3, batch_size=8)
    purified = nad.purify(subject, Evidence(), TEXTS, TEXTS, how, RUN)
    before = subject.open().state_dict()
    teacher, student = starts
    for name, tensor in before.items():
        assert torch.equal(teacher[name], tensor) and torch.equal(student[name], tensor)
    assert purified.report["steps"] == 2
    assert len(purified.report["teacher_losses"]) == 2
    assert not torch.equal(purified.model.state_dict()[QUERY], before[QUERY])
    assert all(parameter.requires_grad for parameter in purified.model.parameters())


def test_nad_pulls_towards_the_teacher(tmp_path: Path) -> None:
    """With a large beta the loss falls towards the distance that dropout alone makes; with none it is cross entropy."""
    subject = Subject(tiny.save("bert", tmp_path / "x", initializer_range=0.05))
    losses = [
        nad.purify(
            subject, Evidence(), TEXTS, TEXTS, nad.Settings(epochs=1, batch_size=8, learning_rate=1e-3, beta=beta), RUN
        ).report["losses"][0]
        for beta in (0.0, 1000.0)
    ]
    assert losses[1] > 2 * losses[0]


def test_nad_c_starts_from_the_base_with_a_new_classifier(tmp_path: Path, starts: list[dict[str, Any]]) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x", num_labels=2))
    base = Subject(tiny.save("bert", tmp_path / "base", seed=4, num_labels=2))
    how = nad_c.Settings(epochs=1, teacher_epochs=1, batch_size=8)
    purified = nad_c.purify(subject, Evidence(base=base), TEXTS, TEXTS, how, RUN)
    teacher, student = starts
    assert torch.equal(teacher[QUERY], subject.open().state_dict()[QUERY])
    assert torch.equal(student[QUERY], base.open().state_dict()[QUERY])
    assert not torch.equal(student["classifier.weight"], base.open().state_dict()["classifier.weight"])
    assert not torch.equal(student["classifier.weight"], subject.open().state_dict()["classifier.weight"])
    assert purified.model.config.id2label == {0: "negative", 1: "positive"}
    assert purified.report["student"] == str(base.path)


def test_nad_c_of_an_encoder_as_base(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x", num_labels=3))
    base = Subject(tiny.save("bert", tmp_path / "base", task="encoder", seed=4))
    settings = nad_c.Settings(epochs=1, teacher_epochs=1)
    model = nad_c.purify(subject, Evidence(base=base), TEXTS, TEXTS, settings, RUN).model
    assert model.config.num_labels == 3
    assert model.config.id2label[2] == "neutral"


@pytest.mark.parametrize(
    ("family", "options", "problem"),
    [
        ("bert", {"hidden_size": 16}, "another shape"),
        ("bert", {"num_hidden_layers": 3}, "another depth"),
        ("roberta", {}, "another family"),
    ],
)
def test_a_base_of_another_build_is_refused(tmp_path: Path, family: str, options: dict[str, int], problem: str) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x"))
    base = Subject(tiny.save(family, tmp_path / "base", task="encoder", **options))
    with pytest.raises(UsageError, match=problem) as error:
        nad_c.purify(subject, Evidence(base=base), TEXTS, TEXTS, nad_c.Settings(), RUN)
    assert error.value.where == "--base"


def test_a_base_of_another_vocabulary_is_refused(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x"))
    folder = tiny.save("bert", tmp_path / "base", task="encoder")
    file = folder / "tokenizer.json"
    file.write_text(file.read_text(encoding="utf-8").replace('"movie"', '"moviee"'), encoding="utf-8")
    with pytest.raises(UsageError, match="vocabulary") as error:
        nad_c.purify(subject, Evidence(base=Subject(folder)), TEXTS, TEXTS, nad_c.Settings(), RUN)
    assert error.value.where == "--base"


@pytest.mark.parametrize("module", [nad, nad_c])
def test_a_negative_beta_is_wrong_use(tmp_path: Path, module: Any) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x"))
    with pytest.raises(UsageError):
        module.purify(subject, Evidence(base=subject), TEXTS, TEXTS, module.Settings(beta=-1.0), RUN)
