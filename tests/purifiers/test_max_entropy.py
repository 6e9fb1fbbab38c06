"""MEFT: its loss against plain loops, and the end of its first phase."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from purify_cli.data.encode import collate, encode, padding_id
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.purifiers import max_entropy
from purify_cli.purifiers.max_entropy import MaximumEntropy, Settings, negative_entropy, purify
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject
from purify_cli.training.loop import Trained
from purify_cli.training.recipe import Recipe

TEXTS = Texts("clean.csv", ("the movie was good", "a dull plot", "so bad", "very fine") * 8, (1, 0, 0, 1) * 8)
RUN = Run(max_length=16)


def test_the_loss_is_the_sum_of_p_log_p() -> None:
    logits = torch.tensor([[0.3, -1.2, 2.0], [5.0, 5.0, 5.0], [-3.0, 0.1, 0.2]])
    expected = 0.0
    for row in logits.tolist():
        total = sum(math.exp(one) for one in row)
        for one in row:
            p = math.exp(one) / total
            expected += p * math.log(p) / 3
    assert negative_entropy(logits).item() == pytest.approx(expected, rel=1e-5)
    assert negative_entropy(torch.zeros(2, 4)).item() == pytest.approx(-math.log(4))
    sure = torch.tensor([[1e4, -1e4]], requires_grad=True)
    negative_entropy(sure).backward()
    assert torch.isfinite(sure.grad).all(), "p = 0 is no fault"


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_the_objective_asks_the_model_without_labels(family: str) -> None:
    tokenizer, model = tiny.tokenizer(family), tiny.build(family)
    batch = collate(encode(tokenizer, TEXTS, 64), range(5), padding_id(tokenizer))
    with torch.no_grad():
        logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    phase = MaximumEntropy(1.0)
    loss = phase.objective(model, batch)
    assert loss.item() == pytest.approx(negative_entropy(logits).item(), rel=1e-4)
    assert phase.first == phase.last == pytest.approx(-loss.item())
    assert not phase.reached


def phases(monkeypatch: pytest.MonkeyPatch, subject: Subject, settings: Settings) -> tuple[Any, dict[str, Any]]:
    """The weights after phase 1, before phase 2 could change them, and the report."""
    kept: dict[str, Any] = {}

    def skipped(model: Any, *rest: Any) -> Trained:
        kept.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return Trained(model, 0, (), 0.0)

    monkeypatch.setattr(max_entropy.plain, "train", skipped)
    report = purify(subject, Evidence(), TEXTS, TEXTS, settings, RUN).report
    return kept, dict(report)


def test_phase_one_raises_the_entropy_and_stops_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x"))
    how = {"entropy_learning_rate": 1e-3, "batch_size": 4, "entropy_epochs": 4}
    _, whole = phases(monkeypatch, subject, Settings(entropy=1.0, **how))
    told = whole["entropy"]
    assert told["steps"] == 32 and not told["bound_reached"]
    assert told["last"] > told["first"] + 0.05
    assert told["highest_possible"] == pytest.approx(math.log(2))
    middle = (told["first"] + told["last"]) / 2 / math.log(2)
    _, early = phases(monkeypatch, subject, Settings(entropy=middle, **how))
    assert early["entropy"]["bound_reached"]
    assert 0 < early["entropy"]["steps"] < 32
    assert early["entropy"]["last"] > middle * math.log(2)


def test_beyond_the_bound_nothing_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a bit, not even by the momentum of the optimizer."""
    subject = Subject(tiny.save("bert", tmp_path / "x"))
    before = subject.open().state_dict()
    after, report = phases(monkeypatch, subject, Settings(entropy=0.0, batch_size=4))
    assert report["entropy"]["steps"] == 0
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_the_end_of_phase_one_is_remembered() -> None:
    phase, again = MaximumEntropy(0.9), MaximumEntropy(0.9)
    phase.first, phase.last, phase.steps, phase.reached = 0.1, 0.66, 7, True
    again.load_state_dict(phase.state_dict())
    assert vars(again) == vars(phase)
    assert again({"task": {"w": torch.ones(1)}}, 8) == {}
    Recipe(objectives={"task": again.objective}, combine=again)


def test_a_bound_out_of_range_is_wrong_use(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x"))
    with pytest.raises(UsageError):
        purify(subject, Evidence(), TEXTS, TEXTS, Settings(entropy=1.5), RUN)
