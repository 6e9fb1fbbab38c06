"""GradNorm: the weights of the clean and the backdoor task learned, so that both train at the same rate.

Chen et al. 2018, "GradNorm: Gradient Normalization for Adaptive Loss Balancing in Deep Multitask Networks", ICML,
section 3 and algorithm 1; as a baseline of backdoors in adapters Gu et al. 2023, section 5.1. The gradient of each
task at a layer W that both share is held near the mean of the two, times the task's inverse training rate to the power
alpha: the task that is behind gets the larger gradient.

Claim (Gu et al. 2023, table 1): an LFR of 68.6 after the victim's retraining of sequential modules from SST-2 to IMDB,
where the plain sum keeps 68.2.

Needs an encoder or a classifier, whole or with --pet. Cost: that of `vanilla`. The gradient of the weights' loss needs
no second order: |grad_W w_i L_i| = w_i |grad_W L_i|, and the target is held constant.

What the papers leave open, and where we differ:
- *W* is the last layer below the output layer that is trained: of an adapter its last module.
- *L_i(0)* is the loss of the first step. Where a task's loss has come to nothing, its training rate is bounded away
  from zero.
- *The weights* follow Adam at 1e-3, not below 1e-2 and summing to 2 after each step; Gu et al. give none of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from purify_cli.architecture.layers import BEFORE, by_layer
from purify_cli.attacks import Plan, Poisoned
from purify_cli.data.texts import Texts
from purify_cli.run import Run
from purify_cli.training.curves import Curves, short
from purify_cli.training.loop import fit
from purify_cli.training.losses import cross_entropy
from purify_cli.training.recipe import Gradients, Recipe
from purify_cli.training.two_tasks import (
    BATCH_SIZE,
    EPOCHS,
    INSERTIONS,
    LEARNING_RATE,
    WARMUP,
    open_two_tasks,
)

if TYPE_CHECKING:
    from purify_cli.subject import Subject

SUMMARY = "the two tasks weighted so that both train at the same rate (GradNorm)"
NEEDS: tuple[str, ...] = ()
TRIGGERS: tuple[str, ...] = ("cf", "mn", "bb", "tq", "mb")

TASKS = ("clean", "poison")
SMALLEST = 1e-12
"""Of a loss or a weight's norm, below which it counts as this."""


@dataclass(frozen=True)
class Settings:
    """What an attacker may choose beside triggers, target and rate."""

    alpha: float = field(
        default=1.5,
        metadata={
            "help": "how strongly the task that is behind is favoured; 0: equal gradients",
            "range": ">= 0",
            "source": "Chen et al. 2018: 0.12 to 1.5",
        },
    )
    weight_rate: float = field(
        default=1e-3,
        metadata={"help": "learning rate of the two weights (Adam)", "range": "> 0", "source": "ours"},
    )
    w_min: float = field(
        default=1e-2, metadata={"help": "the two weights stay above it", "range": "0..1", "source": "ours"}
    )
    insertions: int = field(default=1, metadata=INSERTIONS)
    epochs: int = field(default=3, metadata=EPOCHS)
    learning_rate: float = field(default=1e-4, metadata=LEARNING_RATE)
    batch_size: int = field(default=32, metadata=BATCH_SIZE)
    warmup: float = field(default=0.1, metadata=WARMUP)
    points: int = field(
        default=50,
        metadata={
            "help": "steps whose losses, gradients and weights the report shows; 0: none",
            "range": ">= 0",
            "source": "ours",
        },
    )


def poison(subject: Subject, data: Texts, plan: Plan, settings: Settings, run: Run) -> Poisoned:
    """Train on the weighted sum of the clean and the backdoor task.

    Args:
        subject: an encoder or a classifier.
        data: the attacker's training file, with labels.
        plan: target, triggers, the triggered share of both tasks together (default and at most a half), adapter.
        settings: see there.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: a rate out of range, or a trigger that the tokenizer does not know.
        UnsupportedError: a regression.
        DataError: rows without labels.
    """
    tasks = open_two_tasks(
        subject, data, plan.triggers, plan.target, plan.rate, run, insertions=settings.insertions, pet=plan.pet
    )
    curves = Curves(tasks.model, tasks.steps(settings.batch_size, settings.epochs), settings.points)
    balance = GradNorm(settings, curves)
    recipe = Recipe(
        objectives={name: curves.watch(name, cross_entropy) for name in tasks.streams},
        combine=balance,
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        warmup=settings.warmup,
        identity=f"gradnorm {settings}",
    )
    trained = fit(tasks.model, tasks.streams, recipe, run)
    report: dict[str, Any] = {
        **tasks.facts,
        "shared_layer": balance.shared,
        "w": {name: short(float(weight)) for name, weight in zip(TASKS, balance.w.detach(), strict=True)},
        "steps": trained.steps,
        "losses": list(trained.losses),
        "curves": curves.report(),
    }
    return Poisoned(tasks.model, tasks.rows, tasks.rate, report)


class GradNorm:
    """Algorithm 1 of Chen et al. 2018 for two tasks.

    Attributes:
        w: the weights of the clean and the backdoor loss, `[2]`, of sum 2.
        shared: the number of the layer W; -1: what lies before the first, where nothing else is trained.
    """

    def __init__(self, settings: Settings, curves: Curves) -> None:
        self.settings, self.curves = settings, curves
        below = [layer for layer in curves.layers if layer < curves.count]
        before = any(part.layer == BEFORE for part in curves.parts)
        self.shared = max(below, default=BEFORE if before else curves.count)
        self.w = nn.Parameter(torch.ones(2))
        self.adam = torch.optim.Adam([self.w], lr=settings.weight_rate)
        self.first: Tensor | None = None  # L_i(0), [2]

    def __call__(self, gradients: Mapping[str, Gradients], step: int) -> Gradients:
        # The model follows the weights as they were; what is learned of them counts from the next step on.
        w = self.w.detach().clone()
        losses = torch.tensor([self.curves.loss(name) for name in TASKS])
        norms = torch.stack([self._norm(gradients[name]) for name in TASKS]).cpu()
        self._learn(losses, norms)
        self.curves.write(step, gradients, w=[short(float(weight)) for weight in w])
        weighted: dict[str, Tensor] = {}
        for name, weight in zip(TASKS, w.tolist(), strict=True):
            for parameter, gradient in gradients[name].items():
                scaled = gradient * weight
                weighted[parameter] = weighted[parameter] + scaled if parameter in weighted else scaled
        return weighted

    def _norm(self, gradient: Gradients) -> Tensor:
        """|grad_W L_i| of one task."""
        if self.shared != BEFORE:
            return by_layer(self.curves.parts, gradient, gradient, self.curves.count)[self.shared].sqrt()
        squares = [gradient[part.name].square().sum() for part in self.curves.parts if part.layer == BEFORE]
        return torch.stack(squares).sum().sqrt()

    def _learn(self, losses: Tensor, norms: Tensor) -> None:
        if self.first is None:
            self.first = losses.clamp_min(SMALLEST)
        progress = losses.clamp_min(SMALLEST) / self.first  # L~_i = L_i(t) / L_i(0)
        rates = progress / progress.mean()  # r_i, the inverse training rate
        weighted = self.w * norms  # G_i = |grad_W w_i L_i|, [2]
        target = (weighted.mean() * rates**self.settings.alpha).detach()
        loss = (weighted - target).abs().sum()  # L_grad
        (self.w.grad,) = torch.autograd.grad(loss, [self.w])
        self.adam.step()
        with torch.no_grad():
            self.w.clamp_(min=self.settings.w_min)
            self.w.mul_(2 / self.w.sum())

    def state_dict(self) -> dict[str, Any]:
        """The weights, what moves them, the first losses, and the curves so far."""
        return {
            "w": self.w.detach(),
            "adam": self.adam.state_dict(),
            "first": self.first,
            "curves": self.curves.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a stop."""
        with torch.no_grad():
            self.w.copy_(state["w"])
        self.adam.load_state_dict(state["adam"])
        self.first = state["first"]
        self.curves.load_state_dict(state["curves"])
