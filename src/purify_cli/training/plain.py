"""A plain training of a classifier or a regression: one loss on one file, as a user without any method would do it.

Attacks that only change the training file train so, and so does whoever fine-tunes on clean texts: the purifier of that
name, and the victim after an attack.
"""

from __future__ import annotations

from typing import Any, Protocol

from purify_cli.data.encode import encode, length_limit
from purify_cli.data.texts import Texts
from purify_cli.run import Run
from purify_cli.training.loop import Trained, fit
from purify_cli.training.losses import cross_entropy, squared_error
from purify_cli.training.recipe import Objective, Recipe


class Schedule(Protocol):
    """The settings of a plain training, as the `Settings` of methods hold them; see `Recipe` for each."""

    @property
    def epochs(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def warmup(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...


def train(model: Any, tokenizer: Any, texts: Texts, schedule: Schedule, run: Run) -> Trained:
    """Train a model in place on labelled texts; of one with an adapter only what asks for gradients moves.

    Args:
        model: a classifier, or a regression with one output.
        tokenizer: of the model.
        texts: with label ids, or scores for a regression.
        schedule: how long and how fast.
        run: seed, device, max_length, progress and state.
    """
    recipe = Recipe(
        objectives={"task": task_loss(model)},
        learning_rate=schedule.learning_rate,
        weight_decay=schedule.weight_decay,
        epochs=schedule.epochs,
        batch_size=schedule.batch_size,
        warmup=schedule.warmup,
    )
    return fit(model, {"task": encode(tokenizer, texts, length_limit(tokenizer, model.config, run))}, recipe, run)


def task_loss(model: Any) -> Objective:
    """Cross entropy of a classifier's logits; the squared error of a regression, which has one output."""
    return squared_error if model.config.num_labels == 1 else cross_entropy
