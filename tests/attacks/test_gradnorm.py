"""The weights of the two tasks against a literal transcription of the algorithm, and that a stop costs nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from purify_cli.architecture.layers import parameter_layers
from purify_cli.attacks import Plan
from purify_cli.attacks.gradnorm import GradNorm, Settings, poison
from purify_cli.errors import Interrupted, UsageError
from purify_cli.run import Run
from purify_cli.subject import Subject
from purify_cli.training.curves import Curves
from purify_cli.training.losses import cross_entropy
from reviews import reviews

DATA = reviews(64)
ONCE = Settings(epochs=1, batch_size=16)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(tiny.save("bert", tmp_path_factory.mktemp("encoder"), task="encoder"))


def two_tasks(model: nn.Module, seed: int) -> tuple[dict[str, float], dict[str, dict[str, Tensor]]]:
    generator = torch.Generator().manual_seed(seed)
    losses, gradients = {}, {}
    for name in ("clean", "poison"):
        ids = torch.randint(60, 150, (3, 6), generator=generator)
        labels = torch.randint(0, 2, (3,), generator=generator)
        model.zero_grad()
        loss = cross_entropy(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
        loss.backward()
        losses[name] = float(loss.detach())
        gradients[name] = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return losses, gradients


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2"])
@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_against_the_paper_number_by_number(family: str, alpha: float) -> None:
    """Algorithm 1 with the weights' gradient taken by the definition of L_grad, and Adam written out."""
    model = tiny.build(family)
    settings = Settings(alpha=alpha, weight_rate=0.1)
    curves = Curves(model, 4)
    balance = GradNorm(settings, curves)
    layers = parameter_layers(model)
    assert balance.shared == 1

    w, first = [1.0, 1.0], [0.0, 0.0]
    moment, square = [0.0, 0.0], [0.0, 0.0]
    for step in range(4):
        losses, gradients = two_tasks(model, step)
        for name, loss in losses.items():
            curves.see(name, torch.tensor(loss))
        ours = balance(gradients, step)
        for name, gradient in ours.items():  # the network follows the weights of before
            expected = w[0] * gradients["clean"][name] + w[1] * gradients["poison"][name]
            torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)

        current = [losses["clean"], losses["poison"]]
        if step == 0:
            first = list(current)
        norms = []
        for task in ("clean", "poison"):
            total = 0.0
            for name, gradient in gradients[task].items():
                if layers[name] == 1:
                    total += float((gradient.double() ** 2).sum())
            norms.append(math.sqrt(total))
        ratio = [current[i] / first[i] for i in range(2)]
        rates = [one / (sum(ratio) / 2) for one in ratio]
        g = [w[i] * norms[i] for i in range(2)]
        mean = sum(g) / 2
        slope = [(1.0 if g[i] > mean * rates[i] ** alpha else -1.0) * norms[i] for i in range(2)]
        for i in range(2):
            moment[i] = 0.9 * moment[i] + 0.1 * slope[i]
            square[i] = 0.999 * square[i] + 0.001 * slope[i] ** 2
            corrected = moment[i] / (1 - 0.9 ** (step + 1)), square[i] / (1 - 0.999 ** (step + 1))
            w[i] = max(w[i] - 0.1 * corrected[0] / (math.sqrt(corrected[1]) + 1e-8), 0.01)
        w = [2 * one / sum(w) for one in w]
        assert balance.w.tolist() == pytest.approx(w, abs=1e-5)
    assert abs(w[0] - 1) > 1e-2, "the weights never moved, and the test shows nothing"


def test_the_task_that_is_behind_gains(encoder: Subject) -> None:
    model = tiny.build("bert")
    curves = Curves(model, 10)
    balance = GradNorm(Settings(weight_rate=0.05), curves)
    _, gradients = two_tasks(model, 0)
    gradients["poison"] = gradients["clean"]  # gradients of the same size, so that the losses alone decide
    for step in range(10):
        curves.see("clean", torch.tensor(1.0))
        curves.see("poison", torch.tensor(0.5**step))
        balance(gradients, step)
    clean, poisoned = balance.w.tolist()
    assert clean > 1.2 > 0.8 > poisoned
    assert clean + poisoned == pytest.approx(2)


def test_a_killed_attack_goes_on_to_the_same_weights(encoder: Subject, tmp_path: Path) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    plan, settings = Plan(1, ("cf", "mn")), replace(ONCE, weight_rate=0.1)
    whole = poison(encoder, DATA, plan, settings, Run(seed=3))
    run = Run(seed=3, state=tmp_path / "state", progress=stop)
    with pytest.raises(Interrupted, match="2 of 4"):
        poison(encoder, DATA, plan, settings, run)
    steps: list[int] = []

    def watch(stage: str, done: int, total: int) -> None:
        steps.append(done)

    again = poison(encoder, DATA, plan, settings, replace(run, progress=watch))
    assert steps[0] == 2
    assert again.report == whole.report
    assert whole.report["w"]["clean"] != 1.0
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_rates_and_triggers_that_cannot_be(encoder: Subject) -> None:
    for rate in (0.0, 1.0):
        with pytest.raises(UsageError, match=str(rate)):
            poison(encoder, DATA, Plan(1, ("cf",), rate), ONCE, Run())
    with pytest.raises(UsageError, match="does not know"):
        poison(encoder, DATA, Plan(1, ("你好",)), ONCE, Run())


@pytest.mark.parametrize(("form", "shared"), [("sequential", 1), ("prompt", -1)])
def test_adapters(encoder: Subject, form: str, shared: int) -> None:
    report: dict[str, Any] = dict(poison(encoder, DATA, Plan(1, ("cf",), pet=form), ONCE, Run()).report)
    assert report["shared_layer"] == shared
    assert sum(report["w"].values()) == pytest.approx(2, abs=1e-4)
