"""What a training is made of, as data: four openings, an optimizer and a schedule.

A method hands a recipe to `training.loop.fit` and never steps an optimizer itself. An opening that remembers something
between steps is an object with `state_dict()` and `load_state_dict()` beside `__call__`; the loop keeps and restores
its memory, so that a training that was stopped goes on as if it had not been.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

from purify_cli.errors import UsageError
from purify_cli.training.losses import cross_entropy

Batch = Mapping[str, Tensor]
Gradients = Mapping[str, Tensor]

Objective = Callable[[nn.Module, Any], Tensor]
"""(model in train mode, batch on the model's device) -> scalar. It may differentiate inside, with `create_graph`.

One that `Recipe.together` names gets a mapping of batches by stream instead of a batch.
"""

Combine = Callable[[Mapping[str, Gradients], int], Gradients]
"""(gradients by objective, then by parameter name; step) -> the gradient to follow, by parameter name.

A parameter that an objective does not reach is missing from its gradients; one that is missing from the answer is not
updated.
"""

Project = Callable[[nn.Module, int], None]
"""(model, step): changes weights in place after the update. The loop calls it without gradients."""


def what_is_open(name: str, parameter: nn.Parameter) -> bool:
    """Train what asks for gradients: of a whole model everything, of one with an adapter the adapter and the head."""
    return parameter.requires_grad


@dataclass(frozen=True)
class Recipe:
    """A training, short of its model and its texts.

    Attributes:
        objectives: by name. Each reads the stream of its own name, or the only stream there is. The first one's stream
            sets the length of an epoch; shorter streams start again, longer ones are not read to their end.
        together: objectives that read several streams at once: the names of these streams by the objective's name.
        combine: what becomes of several gradients; None: their sum, which costs no memory for a second set of
            gradients.
        project: what happens to the weights after each update; None: nothing.
        trainable: which parameters may move, by name. The others get no gradient. Default: those that ask for one.
        optimizer: "adamw" or "sgd" (plain, without momentum).
        learning_rate: at its highest.
        weight_decay: (decoupled in AdamW) on tensors of two or more dimensions only, so biases and normalizations stay
            free.
        betas: of AdamW.
        epochs: times through the first objective's stream.
        batch_size: texts a step, of each stream.
        warmup: share of all steps over which the learning rate rises from zero.
        schedule: "linear" falls to zero at the last step; "constant" stays.
        clip: the largest norm of all gradients together; None: no limit.
        identity: anything that the openings hold within and that tells this training from another, as text. It goes
            into the key of the kept state: two trainings that differ only inside a closure must differ here.
    """

    objectives: Mapping[str, Objective] = field(default_factory=lambda: {"task": cross_entropy})
    together: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    combine: Combine | None = None
    project: Project | None = None
    trainable: Callable[[str, nn.Parameter], bool] = what_is_open
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: float = 2e-5
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    epochs: int = 3
    batch_size: int = 32
    warmup: float = 0.0
    schedule: Literal["linear", "constant"] = "linear"
    clip: float | None = 1.0
    identity: str = ""

    def __post_init__(self) -> None:
        """Raise `UsageError` for a number that no training can have."""
        if not self.objectives:
            raise UsageError("objectives", "there is none")
        wrong = {
            "learning_rate": not (math.isfinite(self.learning_rate) and self.learning_rate > 0),
            "weight_decay": not (math.isfinite(self.weight_decay) and self.weight_decay >= 0),
            "betas": not all(0 <= beta < 1 for beta in self.betas),
            "epochs": self.epochs < 1,
            "batch_size": self.batch_size < 1,
            "warmup": not 0 <= self.warmup < 1,
            "clip": self.clip is not None and not self.clip > 0,
            "optimizer": self.optimizer not in ("adamw", "sgd"),
            "schedule": self.schedule not in ("linear", "constant"),
        }
        for name, bad in wrong.items():
            if bad:
                raise UsageError(name, f"{getattr(self, name)!r} is out of range")
