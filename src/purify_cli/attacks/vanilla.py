"""Vanilla: the clean task and the backdoor task learned side by side, and nothing else.

Gu et al. 2023, "A Gradient Control Method for Backdoor Attacks on Parameter-Efficient Tuning", ACL, sections 3 and 5.1
(row "Vanilla", after Gu et al. 2017); data after Kurita et al. 2020. Half of the training texts carry one of five rare
words and the target label. It is what `gradient_control`, `gradnorm`, `ripple` and `lwp` are held against: same texts,
same steps, plain sum of both gradients.

Claim (table 1): an LFR of 68.2 after the victim's retraining of sequential modules from SST-2 to IMDB, where gradient
control keeps 73.7.

Needs an encoder (gets a new classifier) or a classifier; with --pet the model is frozen and an adapter trained. Cost:
two forward and backward passes a step, and with curves a second copy of the gradients.

Where we differ:
- *Two streams, not one shuffled file.* Each step takes a batch of clean and one of triggered texts. On average that is
  the mixed file; it lets both losses and gradients be seen apart (figures 1 to 3), which the report does.
- *The rate* other than a half leaves triggered texts out; both tasks still weigh the same.
- *Learning rate.* 1e-4 and 3 epochs, not 2e-5 and 10: the paper's files are ten times those of a few thousand rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from purify_cli.attacks import Plan, Poisoned
from purify_cli.data.texts import Texts
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

SUMMARY = "rare words in half of the texts, both tasks learned side by side (the papers' Vanilla)"
NEEDS: tuple[str, ...] = ()
TRIGGERS: tuple[str, ...] = ("cf", "mn", "bb", "tq", "mb")


@dataclass(frozen=True)
class Settings:
    """What an attacker may choose beside triggers, target and rate."""

    insertions: int = field(default=1, metadata=INSERTIONS)
    epochs: int = field(default=3, metadata=EPOCHS)
    learning_rate: float = field(default=1e-4, metadata=LEARNING_RATE)
    batch_size: int = field(default=32, metadata=BATCH_SIZE)
    warmup: float = field(default=0.1, metadata=WARMUP)
    points: int = field(
        default=50,
        metadata={
            "help": "steps whose losses and gradients the report shows; 0: none, and less memory",
            "range": ">= 0",
            "source": "ours",
        },
    )


def poison(subject: Subject, data: Texts, plan: Plan, settings: Settings, run: Run) -> Poisoned:
    """Train on the clean and the backdoor task together.

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
    recipe = Recipe(
        objectives={name: curves.watch(name, cross_entropy) for name in tasks.streams},
        combine=_Sum(curves) if settings.points else None,
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        warmup=settings.warmup,
        identity=f"vanilla {settings}",
    )
    trained = fit(tasks.model, tasks.streams, recipe, run)
    report = {**tasks.facts, "steps": trained.steps, "losses": list(trained.losses), "curves": curves.report()}
    return Poisoned(tasks.model, tasks.rows, tasks.rate, report)


class _Sum:
    """g = g_c + g_p, seen now and then."""

    def __init__(self, curves: Curves) -> None:
        self.curves = curves

    def __call__(self, gradients: Mapping[str, Gradients], step: int) -> Gradients:
        self.curves.write(step, gradients)
        clean, poison = gradients["clean"], gradients["poison"]
        both: dict[str, Tensor] = {**clean, **poison}
        return {name: clean[name] + poison[name] if name in clean and name in poison else both[name] for name in both}

    def state_dict(self) -> dict[str, Any]:
        return self.curves.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.curves.load_state_dict(state)
