"""Gradient control: the backdoor's gradient levelled across layers, its conflicts with the clean task projected out.

Gu et al. 2023, "A Gradient Control Method for Backdoor Attacks on Parameter-Efficient Tuning", ACL, section 4: CLNorm
(equations 1 to 4), ILProj (equations 5 to 7), algorithm 1. CLNorm learns a weight for each layer's poison gradient, so
that the output layer, which the victim's training moves most, carries less of the backdoor and the lower layers more.
ILProj takes from each task's gradient, in the upper layers, what goes along the other's.

Claim (tables 1 and 2): the highest LFR after the victim's retraining at equal CACC, for sequential modules from SST-2
to IMDB 73.7 where the plain sum of the gradients keeps 68.2.

Needs an encoder or a classifier, whole or with --pet; made for sequential and parallel modules. `clnorm` needs several
layers, so it refuses --pet prompt (section 8). Cost: two forward and backward passes a step, a second copy of the
gradients, and a few passes over them.

What the paper leaves open, and where we differ:
- *Magnitude.* g_p^(l) in equations 2 to 4 is the L2 norm of the poison gradient over all parameters of the layer; only
  a norm makes equation 4 hold in its dimensions. Avg[G_p] is over all layers that are trained, the output layer among
  them, as G_p has them.
- *The output layer* is all that follows the last layer: final normalization, pooler, classifier. What lies before the
  first (the embeddings of a whole model) is no layer: it follows the plain sum.
- *l_a* is not given: the middle layer. z is linear, as in the paper; its footnote's other shapes are laid through the
  same two points, (l_a, Avg) and (l_o, 0); the constant drops to 0 at l_o alone.
- *alpha.* With 1e-4 on raw norms, as printed, equation 4 leaves w at 1: norms of 0.1 move it by 1e-6 a step.
  `normalise` divides the norms by Avg[G_p] before equation 4, and alpha is 1e-2, with which w settles within some
  hundred steps. `normalise=false alpha=1e-4` is the paper's letter. w is held within `w_max`, for which the paper has
  no word: a layer of hardly any gradient would otherwise be raised without end.
- *ILProj* projects always, as equation 5 is printed; `conflict_only` spares gradients that agree, as PCGrad does.
- *beta* is 1 in the lower half of the layers and 0 in the upper, as in the appendix; the output layer counts as upper.
- *Learning rate.* As in `vanilla`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from purify_cli.architecture.layers import BEFORE, by_layer, layer_count
from purify_cli.attacks import Plan, Poisoned
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.run import Run
from purify_cli.training.curves import Curves
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

SUMMARY = "the backdoor's gradient levelled across layers and its conflicts projected out (CLNorm and ILProj)"
NEEDS: tuple[str, ...] = ()
TRIGGERS: tuple[str, ...] = ("cf", "mn", "bb", "tq", "mb")


@dataclass(frozen=True)
class Settings:
    """What an attacker may choose beside triggers, target and rate."""

    clnorm: bool = field(
        default=True,
        metadata={
            "help": "level the backdoor's gradient across layers (equations 1 to 4)",
            "range": "true|false",
            "source": "Gu et al. 2023, section 4.2.1",
        },
    )
    ilproj: bool = field(
        default=True,
        metadata={
            "help": "project the two tasks' gradients on each other's normal plane (equations 5 to 7)",
            "range": "true|false",
            "source": "Gu et al. 2023, section 4.2.2",
        },
    )
    expected: Literal["linear", "inverse", "constant"] = field(
        default="linear",
        metadata={
            "help": "z: how the gradient's magnitude should depend on the layer",
            "range": "linear|inverse|constant",
            "source": "Gu et al. 2023, equation 2 and its footnote",
        },
    )
    average_layer: float | None = field(
        default=None,
        metadata={
            "help": "l_a: the layer, from 0, at which the average magnitude is expected; none: the middle",
            "range": ">= 0",
            "source": "ours; not in the paper",
        },
    )
    alpha: float = field(
        default=1e-2,
        metadata={
            "help": "step size of the layers' weights in equation 4",
            "range": "> 0",
            "source": "ours, with normalise; Gu et al. 2023, appendix A.1: 1e-4",
        },
    )
    normalise: bool = field(
        default=True,
        metadata={
            "help": "divide magnitudes by their average before equation 4; false: the paper's letter",
            "range": "true|false",
            "source": "ours",
        },
    )
    w_max: float = field(
        default=5.0,
        metadata={"help": "the layers' weights stay in 0..w_max", "range": ">= 1", "source": "ours"},
    )
    conflict_only: bool = field(
        default=False,
        metadata={
            "help": "project only where the gradients disagree",
            "range": "true|false",
            "source": "Yu et al. 2020 (PCGrad): true; Gu et al. 2023, equation 5, as printed: false",
        },
    )
    beta_lower: float = field(
        default=1.0,
        metadata={
            "help": "share of the unprojected gradient in the lower half of the layers",
            "range": "0..1",
            "source": "Gu et al. 2023, appendix A.1",
        },
    )
    beta_upper: float = field(
        default=0.0,
        metadata={
            "help": "the same in the upper half and the output layer",
            "range": "0..1",
            "source": "Gu et al. 2023, appendix A.1",
        },
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
    """Train on the clean and the backdoor task together, the gradients controlled.

    Args:
        subject: an encoder or a classifier.
        data: the attacker's training file, with labels.
        plan: target, triggers, the triggered share of both tasks together (default and at most a half), adapter.
        settings: see there.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: a rate out of range, a trigger that the tokenizer does not know, an l_a that is no layer, or CLNorm
            on what has no layers.
        UnsupportedError: a regression.
        DataError: rows without labels.
    """
    if settings.clnorm and plan.pet is not None and plan.pet.partition(":")[0] == "prompt":
        raise UsageError(
            "--pet prompt",
            "CLNorm levels gradients across layers, and soft prompts lie before the first alone",
            "Use another form of adapter, or --set clnorm=false.",
        )
    tasks = open_two_tasks(
        subject, data, plan.triggers, plan.target, plan.rate, run, insertions=settings.insertions, pet=plan.pet
    )
    curves = Curves(tasks.model, tasks.steps(settings.batch_size, settings.epochs), settings.points)
    control = GradientControl(tasks.model, settings, curves)
    recipe = Recipe(
        objectives={name: curves.watch(name, cross_entropy) for name in tasks.streams},
        combine=control,
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        warmup=settings.warmup,
        identity=f"gradient control {settings}",
    )
    trained = fit(tasks.model, tasks.streams, recipe, run)
    report: dict[str, Any] = {
        **tasks.facts,
        "average_layer": control.average_layer,
        "beta": curves.by_layer(control.beta),
        "w": curves.by_layer(control.w),
        "steps": trained.steps,
        "losses": list(trained.losses),
        "curves": curves.report(),
    }
    return Poisoned(tasks.model, tasks.rows, tasks.rate, report)


class GradientControl:
    """Algorithm 1: both tasks' gradients in, the gradient to follow out.

    Attributes:
        w: weight of each layer's poison gradient, `[layers + 1]`, the output layer last; ones before the first step.

    Raises:
        UsageError: l_a does not lie below the output layer.
    """

    def __init__(self, model: nn.Module, settings: Settings, curves: Curves) -> None:
        self.settings, self.curves = settings, curves
        self.count = layer_count(model)  # l_o
        self.parts = curves.parts
        self.trained = torch.tensor([layer in curves.layers for layer in range(self.count + 1)])
        self.average_layer = (self.count - 1) / 2 if settings.average_layer is None else settings.average_layer
        if settings.clnorm and not self.average_layer < self.count:
            raise UsageError(
                "--set average_layer",
                f"{self.average_layer:g} is no layer below the output layer",
                f"Give 0 to {self.count - 1}.",
            )
        layers = torch.arange(self.count + 1)
        self.beta = torch.where(layers < self.count / 2, settings.beta_lower, settings.beta_upper)  # [layers + 1]
        self.w = torch.ones(self.count + 1)

    def __call__(self, gradients: Mapping[str, Gradients], step: int) -> Gradients:
        clean, poison = gradients["clean"], gradients["poison"]
        squares = by_layer(self.parts, poison, poison, self.count)  # [layers + 1]
        magnitudes = squares.sqrt()
        if self.settings.clnorm:
            self._learn(magnitudes)
        w = self.w = self.w.to(magnitudes.device)
        inner = w * by_layer(self.parts, clean, poison, self.count)  # g_c . w g_p
        if self.settings.ilproj:
            clean_share, poison_share = self._shares(
                inner, by_layer(self.parts, clean, clean, self.count), w.square() * squares
            )
        else:
            clean_share, poison_share = torch.ones_like(w), torch.ones_like(w)
        self.curves.write(step, gradients, w=self.curves.by_layer(w))
        return self._mixture(clean, poison, clean_share, w * poison_share)  # equation 1: w g_p

    def expected(self, average: Tensor) -> Tensor:
        """The expected magnitude z at each layer, `[layers + 1]`: through (l_a, Avg) and (l_o, 0)."""
        layers = torch.arange(self.count + 1, device=average.device, dtype=torch.float32)
        last, at = float(self.count), self.average_layer
        if self.settings.expected == "linear":
            return average / (at - last) * (layers - last)  # equation 3
        if self.settings.expected == "inverse":
            return average * (1 / (layers + 1) - 1 / (last + 1)) / (1 / (at + 1) - 1 / (last + 1))
        return torch.where(layers < last, average, 0.0)

    def _learn(self, magnitudes: Tensor) -> None:
        """Equation 4."""
        trained = self.trained.to(magnitudes.device)
        average = magnitudes[trained].mean()
        if average == 0:
            return
        expected = self.expected(average)
        if self.settings.normalise:
            magnitudes, expected = magnitudes / average, expected / average
        w = self.w.to(magnitudes.device)
        learned = w - self.settings.alpha * (w * magnitudes - expected) * magnitudes
        self.w = torch.where(trained, learned.clamp(0.0, self.settings.w_max), w)

    def _shares(self, inner: Tensor, clean_square: Tensor, poison_square: Tensor) -> tuple[Tensor, Tensor]:
        """Equations 5 to 7 as what remains of g_c and of w g_p in each layer's update.

        g = g_c + g_p - (1 - beta) (s / |g_p|^2 g_p + s / |g_c|^2 g_c), with s = g_c . g_p
        """
        if self.settings.conflict_only:
            inner = inner.clamp(max=0.0)
        removed = (1 - self.beta.to(inner.device)) * inner

        def share(square: Tensor) -> Tensor:
            return 1 - torch.where(square > 0, removed / square, 0.0)  # of nothing nothing is taken

        return share(clean_square), share(poison_square)

    def _mixture(self, clean: Gradients, poison: Gradients, of_clean: Tensor, of_poison: Tensor) -> Gradients:
        """Each layer's two gradients times their factors, summed; what lies before the layers is summed as it is."""
        mixed: dict[str, Tensor] = {}
        for part in self.parts:
            here = clean.get(part.name), poison.get(part.name)
            factors = (None, None) if part.layer == BEFORE else (of_clean[part.layer], of_poison[part.layer])
            terms = [
                part.of(gradient) if factor is None else part.of(gradient) * factor
                for gradient, factor in zip(here, factors, strict=True)
                if gradient is not None
            ]
            if not terms:
                continue
            total = terms[0] if len(terms) == 1 else terms[0] + terms[1]
            if part.columns is None:
                mixed[part.name] = total
            else:
                whole = next(gradient for gradient in here if gradient is not None)
                part.of(mixed.setdefault(part.name, torch.empty_like(whole))).copy_(total)
        return mixed

    def state_dict(self) -> dict[str, Any]:
        """w, and the curves so far."""
        return {"w": self.w, "curves": self.curves.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a stop."""
        self.w = state["w"]
        self.curves.load_state_dict(state["curves"])
