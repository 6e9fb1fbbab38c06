"""MEFT: make the suspect unlearn all it believes, by maximum entropy on clean texts, then fine-tune it.

Liu et al. 2023, "Maximum Entropy Loss, the Silver Bullet Targeting Backdoor Attacks in Pre-trained Language Models",
Findings of ACL; a baseline of Zhao, Xu and Yuan 2024 (PURE), whose code has its loss. Claim: a model that is first
brought to answer clean texts with a uniform distribution loses the ties between features and labels, the backdoor's
among them, and ordinary fine-tuning builds only those of the task again.

Phase 1. Minimise, over the texts x of a batch and the classes c,

    mean_x sum_c p(c|x) log p(c|x)

until the mean entropy of a batch is more than `entropy` (0.95) of log C, for one epoch at the most.
Phase 2. Ordinary fine-tuning on the same texts, from there on.

Needs labelled clean texts; the first phase does not look at the labels. Works on classifiers; an encoder's new
classifier knows nothing yet, so its entropy is at its highest before the first step and phase 1 ends at once.
Raises what the training raises; UsageError for a setting out of range.
Cost: at most one epoch more than fine-tuning; none if the bound is reached early.

Where we differ, and why:
- Steps, learning rate and end of phase 1 are not told by the paper as it is at hand; the bound is ours.
- PURE's code sums the loss over the batch and takes log(p), which is not a number at p = 0. It is a mean here, of
  log-softmax, so the learning rate means the same in every batch.
- Once the bound is reached, the rest of the epoch passes without a look at the model and without an update.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from purify_cli.data.encode import encode, length_limit
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.purifiers import Purified
from purify_cli.run import Run
from purify_cli.training import plain
from purify_cli.training.loop import fit
from purify_cli.training.recipe import Batch, Gradients, Recipe
from purify_cli.training.start import open_classifier

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "bring the answers to clean texts to maximum entropy, then fine-tune (MEFT)"
NEEDS: tuple[str, ...] = ("clean",)


@dataclass(frozen=True)
class Settings:
    """Both phases."""

    entropy: float = field(
        default=0.95,
        metadata={
            "help": "phase 1 ends when a batch's mean entropy is more than this share of log C; 1: never early",
            "range": "0..1",
            "source": "ours; not verifiable in the paper",
        },
    )
    entropy_epochs: int = field(
        default=1, metadata={"help": "most times through the texts in phase 1", "range": ">= 1", "source": "ours"}
    )
    entropy_learning_rate: float = field(
        default=2e-5, metadata={"help": "highest learning rate of phase 1", "range": "> 0", "source": "ours"}
    )
    epochs: int = field(
        default=3, metadata={"help": "times through the texts in phase 2", "range": ">= 1", "source": "PURE"}
    )
    learning_rate: float = field(
        default=2e-5, metadata={"help": "highest learning rate of phase 2", "range": "> 0", "source": "PURE"}
    )
    batch_size: int = field(default=32, metadata={"help": "texts a step", "range": ">= 1", "source": "PURE"})
    warmup: float = field(
        default=0.0,
        metadata={
            "help": "share of the steps of phase 2 in which the learning rate rises",
            "range": "0..0.9",
            "source": "PURE",
        },
    )
    weight_decay: float = field(
        default=0.0,
        metadata={"help": "of AdamW, on matrices only", "range": ">= 0", "source": "ours; not given in PURE"},
    )
    fresh_classifier: bool = field(
        default=False,
        metadata={"help": "start with a new classifier even where there is one", "range": "", "source": "PURE: true"},
    )


def purify(subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run) -> Purified:
    """Both phases; see the module's docstring.

    Args:
        subject: a classifier, or an encoder, which gets a new classifier.
        evidence: not used.
        train: clean texts with labels.
        dev: not used.
        settings: see there.
        run: seed, device, max_length, progress and state.
    """
    if not 0 <= settings.entropy <= 1:
        raise UsageError("entropy", f"{settings.entropy!r} is out of range", "Give a share from 0 to 1.")
    model = open_classifier(subject, train, run, fresh=settings.fresh_classifier)
    phase = MaximumEntropy(settings.entropy)
    recipe = Recipe(
        objectives={"task": phase.objective},
        combine=phase,
        learning_rate=settings.entropy_learning_rate,
        epochs=settings.entropy_epochs,
        batch_size=settings.batch_size,
        identity=f"MEFT phase 1: {settings.entropy}",
    )
    limit = length_limit(subject.tokenizer, model.config, run)
    fit(model, {"task": encode(subject.tokenizer, train, limit)}, recipe, run)
    trained = plain.train(model, subject.tokenizer, train, settings, run)
    return Purified(
        model,
        {
            "rows": len(train),
            "entropy": {
                "first": phase.first,
                "last": phase.last,
                "highest_possible": math.log(int(model.config.num_labels)),
                "steps": phase.steps,
                "bound_reached": phase.reached,
            },
            "steps": trained.steps,
            "losses": list(trained.losses),
        },
    )


def preview(
    subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run
) -> dict[str, Any]:
    """What a purification would do, without doing it."""
    steps = -(-len(train) // settings.batch_size)
    new = settings.fresh_classifier or subject.task != "classifier"
    return {
        "rows": len(train),
        "most_entropy_steps": steps * settings.entropy_epochs,
        "steps": steps * settings.epochs,
        "classifier": "new" if new else "kept",
    }


class MaximumEntropy:
    """The objective of phase 1, and as `combine` the end of it: past the bound nothing is updated any more.

    Attributes:
        first, last: mean entropy of the first batch, and of the last one that was looked at, in nats.
        steps: updates made.
        reached: whether the last batch was beyond the bound.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.first: float | None = None
        self.last: float | None = None
        self.steps = 0
        self.reached = False

    def objective(self, model: nn.Module, batch: Batch) -> Tensor:
        """The negative mean entropy of the answers, a scalar; zero once the bound is reached."""
        if self.reached:
            return _smallest_open(model).sum() * 0.0
        logits: Tensor = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
        loss = negative_entropy(logits)
        self.last = -float(loss.detach())
        self.first = self.last if self.first is None else self.first
        self.reached = self.last > self.share * math.log(logits.shape[-1])
        return loss

    def __call__(self, gradients: Mapping[str, Gradients], step: int) -> Gradients:
        """The gradient as it is, and none past the bound."""
        if self.reached:
            return {}
        self.steps += 1
        return gradients["task"]

    def state_dict(self) -> dict[str, Any]:
        """Where the phase stands."""
        return {"first": self.first, "last": self.last, "steps": self.steps, "reached": self.reached}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a stop."""
        self.first, self.last = state["first"], state["last"]
        self.steps, self.reached = state["steps"], state["reached"]


def negative_entropy(logits: Tensor) -> Tensor:
    """mean_x sum_c p log p of logits `[batch, labels]`, a scalar in float32."""
    log_p = logits.float().log_softmax(dim=-1)
    return (log_p.exp() * log_p).sum(dim=-1).mean()


def _smallest_open(model: nn.Module) -> nn.Parameter:
    """The smallest parameter that is trained: something for the loop to differentiate that costs nothing."""
    return min((one for one in model.parameters() if one.requires_grad), key=torch.numel)
