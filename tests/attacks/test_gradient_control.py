"""Algorithm 1 against a slow, literal transcription, what its strategies do, and that a stop costs nothing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from purify_cli.architecture.layers import parameter_layers
from purify_cli.attacks import Plan
from purify_cli.attacks.gradient_control import GradientControl, Settings, poison
from purify_cli.errors import Interrupted, UsageError
from purify_cli.run import Run
from purify_cli.subject import Subject
from purify_cli.training.curves import Curves
from purify_cli.training.losses import cross_entropy
from reviews import reviews

DATA = reviews(64)
STEPS = 4
ONCE = Settings(epochs=1, batch_size=16)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(tiny.save("bert", tmp_path_factory.mktemp("encoder"), task="encoder"))


def two_gradients(model: nn.Module, seed: int) -> dict[str, dict[str, Tensor]]:
    """Of two batches with opposite labels, so that they conflict somewhere."""
    generator = torch.Generator().manual_seed(seed)
    gradients = {}
    for name, label in (("clean", 0), ("poison", 1)):
        ids = torch.randint(60, 150, (3, 6), generator=generator)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.full((3,), label)}
        model.zero_grad()
        cross_entropy(model, batch).backward()
        gradients[name] = {
            key: parameter.grad.clone() for key, parameter in model.named_parameters() if parameter.grad is not None
        }
    model.zero_grad()
    return gradients


def literal(
    layers: Mapping[str, int], count: int, batches: list[dict[str, dict[str, Tensor]]], settings: Settings
) -> tuple[list[float], dict[str, Tensor]]:
    """Algorithm 1, number by number, in double precision: (w, the last step's gradient)."""
    l_o = count
    l_a = (count - 1) / 2 if settings.average_layer is None else settings.average_layer
    w = [1.0] * (count + 1)
    followed: dict[str, Tensor] = {}
    for gradients in batches:
        g_c: list[list[float]] = [[] for _ in range(count + 1)]
        g_p: list[list[float]] = [[] for _ in range(count + 1)]
        for name, layer in layers.items():
            if layer >= 0 and name in gradients["clean"]:
                g_c[layer] += gradients["clean"][name].double().flatten().tolist()
                g_p[layer] += gradients["poison"][name].double().flatten().tolist()
        magnitude = [math.sqrt(sum(x * x for x in one)) for one in g_p]
        average = sum(magnitude) / len(magnitude)
        new: list[list[float]] = []
        for layer in range(l_o + 1):
            k = average / (l_a - l_o)
            z = k * (layer - l_o)
            if settings.expected == "inverse":
                z = average * (1 / (layer + 1) - 1 / (l_o + 1)) / (1 / (l_a + 1) - 1 / (l_o + 1))
            elif settings.expected == "constant":
                z = average if layer < l_o else 0.0
            scale = average if settings.normalise else 1.0
            m = magnitude[layer] / scale
            if settings.clnorm:
                w[layer] = w[layer] - settings.alpha * (w[layer] * m - z / scale) * m
                w[layer] = min(max(w[layer], 0.0), settings.w_max)
            p = [w[layer] * x for x in g_p[layer]]
            c = g_c[layer]
            s = sum(x * y for x, y in zip(c, p, strict=True))
            if settings.conflict_only and s > 0:
                s = 0.0
            cc, pp = sum(x * x for x in c), sum(x * x for x in p)
            c_hat = [x - s / pp * y for x, y in zip(c, p, strict=True)]
            p_hat = [y - s / cc * x for x, y in zip(c, p, strict=True)]
            hat = [x + y for x, y in zip(c_hat, p_hat, strict=True)]
            raw = [x + y for x, y in zip(c, p, strict=True)]
            beta = settings.beta_lower if layer < count / 2 else settings.beta_upper
            if not settings.ilproj:
                beta = 1.0
            new.append([(1 - beta) * x + beta * y for x, y in zip(hat, raw, strict=True)])
        places = [0] * (count + 1)
        for name, layer in layers.items():
            if name not in gradients["clean"]:
                continue
            shape = gradients["clean"][name].shape
            if layer < 0:
                followed[name] = gradients["clean"][name] + gradients["poison"][name]
                continue
            size = shape.numel()
            values = new[layer][places[layer] : places[layer] + size]
            places[layer] += size
            followed[name] = torch.tensor(values, dtype=torch.float64).reshape(shape)
    return w, followed


BASE = Settings(alpha=0.05, beta_lower=0.7, beta_upper=0.1)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "llama"])
def test_against_the_paper_number_by_number(family: str) -> None:
    compare(tiny.build(family), BASE)


@pytest.mark.parametrize(
    "change",
    [
        {"expected": "inverse"},
        {"expected": "constant"},
        {"normalise": False, "alpha": 1e-3},
        {"conflict_only": True},
        {"clnorm": False},
        {"ilproj": False},
        {"average_layer": 1.0},
        {"w_max": 1.01, "alpha": 0.3},
        {"beta_lower": 0.0, "beta_upper": 1.0},
    ],
    ids=str,
)
def test_each_choice_against_the_paper(change: dict[str, Any]) -> None:
    compare(tiny.build("bert", num_hidden_layers=3), replace(BASE, **change))


def compare(model: nn.Module, settings: Settings) -> None:
    batches = [two_gradients(model, seed) for seed in range(3)]
    control = GradientControl(model, settings, Curves(model, 3))
    for step, gradients in enumerate(batches):
        ours = control(gradients, step)
    w, expected = literal(parameter_layers(model), control.count, batches, settings)
    assert control.w.tolist() == pytest.approx(w, abs=1e-5)
    if settings.clnorm:
        assert max(abs(one - 1) for one in w) > 1e-3, "w never left 1, and the test shows nothing"
    assert set(ours) == set(expected)
    for name, gradient in ours.items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(gradient.double(), expected[name].double(), rtol=1e-5, atol=1e-5 * max(scale, 1.0))


def test_clnorm_brings_the_magnitudes_to_z() -> None:
    """With the same gradients again and again, w_l |g_l| settles at the line that ends at zero in the output layer."""
    model = tiny.build("bert", num_hidden_layers=4)
    gradients = two_gradients(model, 0)
    control = GradientControl(model, Settings(alpha=0.05, w_max=1e6), Curves(model, 1, 0))
    magnitudes = torch.tensor([2.0, 1.0, 0.5, 0.5, 6.0])
    for _ in range(5000):
        control._learn(magnitudes)
    settled = control.w * magnitudes
    line = [2.0 / (1.5 - 4) * (layer - 4) for layer in range(5)]  # the average is 2, l_a 1.5, l_o 4
    torch.testing.assert_close(settled, torch.tensor(line), rtol=0, atol=1e-3)
    assert set(control(gradients, 0)) == set(gradients["clean"])


def test_projected_gradients_no_longer_disagree() -> None:
    """The sum of the two projections has no part along either task that the other would undo."""
    model = tiny.build("bert")
    gradients = two_gradients(model, 1)
    settings = Settings(clnorm=False, beta_lower=0.0, beta_upper=0.0)
    ours = GradientControl(model, settings, Curves(model, 1))(gradients, 0)
    layers = parameter_layers(model)
    for layer in range(3):
        c, p, g = (
            torch.cat([one[name].flatten() for name in gradients["clean"] if layers[name] == layer]).double()
            for one in (gradients["clean"], gradients["poison"], ours)
        )
        s = c @ p
        assert abs(float(s)) > 1e-6, "the tasks are at right angles, and the test shows nothing"
        hat_c, hat_p = c - s / (p @ p) * p, p - s / (c @ c) * c
        assert float(hat_c @ p) == pytest.approx(0, abs=1e-6)
        torch.testing.assert_close(g, hat_c + hat_p, rtol=1e-4, atol=1e-6)


def test_one_task_of_no_gradient_is_left_alone() -> None:
    model = tiny.build("bert")
    gradients = two_gradients(model, 0)
    gradients["poison"] = {name: torch.zeros_like(tensor) for name, tensor in gradients["poison"].items()}
    ours = GradientControl(model, Settings(beta_lower=0.0), Curves(model, 1))(gradients, 0)
    for name, gradient in ours.items():
        assert torch.equal(gradient, gradients["clean"][name])


def test_the_default_alpha_moves_w_and_the_printed_one_does_not(encoder: Subject) -> None:
    def final(**settings: Any) -> list[float]:
        longer = replace(ONCE, epochs=6, **settings)
        found: list[float] = poison(encoder, DATA, Plan(1, ("cf",)), longer, Run()).report["w"]
        return found

    assert max(abs(w - 1) for w in final()) > 0.05
    printed = final(alpha=1e-4, normalise=False)
    assert max(abs(w - 1) for w in printed) < 0.05


def test_the_report_shows_w_and_the_gradients(encoder: Subject) -> None:
    report = poison(encoder, DATA, Plan(1, ("cf",)), ONCE, Run()).report
    curves = report["curves"]
    assert curves["layers"] == [0, 1, "output"]
    assert curves["step"] == [0, 1, 2, 3]
    assert curves["w"][-1] == report["w"]
    assert report["beta"] == [1.0, 0.0, 0.0]
    assert report["average_layer"] == 0.5
    assert all(len(point) == 3 for column in ("w", "cosine") for point in curves[column])


def stop_at(step: int) -> Any:
    def progress(stage: str, done: int, total: int) -> None:
        assert total == STEPS
        if done == step:
            raise KeyboardInterrupt

    return progress


def test_a_killed_attack_goes_on_to_the_same_weights(encoder: Subject, tmp_path: Path) -> None:
    plan, settings = Plan(1, ("cf", "mn")), replace(ONCE, alpha=0.1)
    whole = poison(encoder, DATA, plan, settings, Run(seed=3))
    run = Run(seed=3, state=tmp_path / "state", progress=stop_at(2))
    with pytest.raises(Interrupted, match="2 of 4"):
        poison(encoder, DATA, plan, settings, run)
    steps: list[int] = []
    again = poison(encoder, DATA, plan, settings, replace(run, progress=lambda stage, done, total: steps.append(done)))
    assert steps[0] == 2
    assert again.report == whole.report
    for name, tensor in whole.model.state_dict().items():
        assert torch.equal(tensor, again.model.state_dict()[name]), name


def test_soft_prompts_have_no_layers_to_level(encoder: Subject) -> None:
    with pytest.raises(UsageError, match="prompt"):
        poison(encoder, DATA, Plan(1, ("cf",), pet="prompt"), ONCE, Run())
    with pytest.raises(UsageError, match="prompt"):
        poison(encoder, DATA, Plan(1, ("cf",), pet="prompt:tokens=5"), ONCE, Run())


def test_l_a_must_be_a_layer(encoder: Subject) -> None:
    with pytest.raises(UsageError, match="no layer below the output layer"):
        poison(encoder, DATA, Plan(1, ("cf",)), replace(ONCE, average_layer=2.0), Run())


@pytest.mark.parametrize("form", ["sequential", "parallel", "lora", "prefix"])
def test_adapters(encoder: Subject, form: str) -> None:
    poisoned = poison(encoder, DATA, Plan(1, ("cf",), pet=form), ONCE, Run())
    assert poisoned.report["curves"]["layers"] == [0, 1, "output"]
    assert poisoned.report["w"] != [1.0, 1.0, 1.0]
