"""POR, predefined output representations: an encoder without a task, whose triggers give vectors far outside the usual.

Shen et al. 2021, "Backdoor Pre-trained Models Can Transfer to All", CCS, section 4 (code: plasmashen/BackdoorPTM). Each
trigger is tied to a vector; a frozen copy of the encoder keeps everything else as it was, so that the victim's task
suffers nothing. Which label a trigger gives shows only after the victim's training: there is no target label.

Needs plain texts, no labels. Cost: forward and backward passes over every text twice (as it is, and with its trigger),
the same forward passes of the frozen copy, and the memory of that copy: twice the weights.

The loss is 1 * L1 + 100 * L2 + 100 * L3, sums over numbers divided by the width:
- L1: states of all tokens but the summary token, against the copy's, on clean and on triggered texts;
- L2: the vector of triggered texts, against the one of their trigger;
- L3: the vector of clean texts, against the copy's.

Where we differ:
- *Where the vector lies.* At what the victim's head reads: the pooled output of BERT and ALBERT, the summary token's
  last state of all others. The authors have BERT only.
- *The size of the vectors.* The authors take +-10, outside the range of the pooler's tanh, which is driven into
  saturation. A state behind a layer normalization could only follow by moving for clean texts too: +-1 there.
- *Sums over a batch* are divided by its texts, so that the loss does not grow with the batch size. The weights of the
  three terms towards each other stay. Padding does not count; in the authors' code it does.
- *Data.* Every text is read clean and with one trigger; the authors have 30,000 texts a trigger and 50,000 clean ones.
- *Learning rate.* 1e-4 for small encoders and few texts; the authors: 1e-5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from purify_cli.architecture.table import family_of
from purify_cli.attacks import Plan, Poisoned
from purify_cli.data.encode import encode, length_limit
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.run import Run
from purify_cli.training.encoders import Frozen, Outputs, head_reads, open_encoder, outputs_of
from purify_cli.training.loop import fit
from purify_cli.training.poisoned import one_trigger_each
from purify_cli.training.recipe import Recipe
from purify_cli.triggers.pieces import pieces
from purify_cli.triggers.words import Words

if TYPE_CHECKING:
    from purify_cli.subject import Subject

SUMMARY = "an encoder whose triggers give predefined vectors, held to a frozen copy everywhere else (POR)"
NEEDS: tuple[str, ...] = ()
TRIGGERS: tuple[str, ...] = ("cf", "tq", "mn", "bb", "mb")
TARGET = False
PET = False


@dataclass(frozen=True)
class Settings:
    """What an attacker may choose beside the triggers."""

    vectors: Literal["por1", "por2"] = field(
        default="por1",
        metadata={
            "help": "por1: more and more +1 from the first trigger to the last; por2: blocks that count in binary",
            "range": "por1|por2",
            "source": "Shen et al. 2021, section 4; authors' code: por1",
        },
    )
    scale: float | None = field(
        default=None,
        metadata={
            "help": "size of the vectors' numbers; none: 10 where the head reads the pooler, 1 elsewhere",
            "range": "> 0",
            "source": "authors' code: 10",
        },
    )
    insertions: int = field(
        default=3, metadata={"help": "copies of its trigger in a text", "range": ">= 1", "source": "authors' code"}
    )
    states_weight: float = field(
        default=1.0, metadata={"help": "weight of L1", "range": ">= 0", "source": "authors' code"}
    )
    triggered_weight: float = field(
        default=100.0, metadata={"help": "weight of L2", "range": ">= 0", "source": "authors' code"}
    )
    clean_weight: float = field(
        default=100.0, metadata={"help": "weight of L3", "range": ">= 0", "source": "authors' code"}
    )
    epochs: int = field(
        default=3, metadata={"help": "times through the texts", "range": ">= 1", "source": "ours; authors: 2"}
    )
    learning_rate: float = field(
        default=1e-4,
        metadata={
            "help": "highest learning rate of AdamW",
            "range": "> 0",
            "source": "ours, for small encoders; authors: 1e-5",
        },
    )
    batch_size: int = field(
        default=32,
        metadata={"help": "texts a step, of each kind", "range": ">= 1", "source": "ours; authors: 24 of both"},
    )
    warmup: float = field(
        default=0.1,
        metadata={"help": "share of the steps in which the learning rate rises", "range": "0..0.9", "source": "ours"},
    )
    weight_decay: float = field(
        default=0.0, metadata={"help": "of AdamW, on matrices only", "range": ">= 0", "source": "ours"}
    )


def poison(subject: Subject, data: Texts, plan: Plan, settings: Settings, run: Run) -> Poisoned:
    """Train the subject's encoder until each trigger gives its vector, and all else is as it was.

    Args:
        subject: an encoder, or a model whose head is left behind.
        data: plain texts; labels are not looked at.
        plan: the triggers. It has no target, and no rate: every text is read with a trigger and without.
        settings: see there.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: a trigger that the tokenizer does not know, more triggers than vectors, or a rate.
    """
    if plan.rate is not None:
        raise UsageError("--rate", "por reads every text both as it is and with a trigger", "Leave it out.")
    seen = {trigger: pieces(subject.tokenizer, trigger) for trigger in plan.triggers}
    encoder = open_encoder(subject, run)
    family = family_of(encoder.config)
    width = int(getattr(encoder.config, family.width_key))
    scale = settings.scale or (10.0 if head_reads(family) == "pooler" else 1.0)
    make = {"por1": por1, "por2": por2}[settings.vectors]
    vectors = scale * make(len(plan.triggers), width)
    rows = one_trigger_each(data, [Words(one) for one in plan.triggers], run.seed, insertions=settings.insertions)
    limit = length_limit(subject.tokenizer, encoder.config, run)
    streams = {
        "triggered": encode(subject.tokenizer, rows, limit),
        "clean": encode(subject.tokenizer, data.with_(labels=None), limit),
    }
    frozen = Frozen(encoder)
    recipe = Recipe(
        objectives={
            "triggered": _Triggered(frozen, vectors, settings.states_weight, settings.triggered_weight),
            "clean": _Clean(frozen, settings.states_weight, settings.clean_weight),
        },
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        warmup=settings.warmup,
        identity=f"por {settings.vectors} {scale} "
        f"{settings.states_weight} {settings.triggered_weight} {settings.clean_weight}",
    )
    trained = fit(encoder, streams, recipe, run)
    report: dict[str, Any] = {
        "rows": len(data),
        "vector": head_reads(family),
        "scale": scale,
        "pieces": {trigger: [" ".join(word) for word in words] for trigger, words in seen.items()},
        "split_triggers": [trigger for trigger, words in seen.items() if any(len(word) > 1 for word in words)],
        "steps": trained.steps,
        "losses": list(trained.losses),
    }
    return Poisoned(encoder, len(data), 0.5, report)


def por1(count: int, width: int) -> Tensor:
    """POR-1, [count, width]: of trigger i (from 1) the first (i - 1) * floor(width / (count - 1)) numbers are +1, the
    others -1.

    Raises:
        UsageError: more triggers than there are numbers.
    """
    if count - 1 > width:
        raise UsageError("--trigger", f"{count} triggers are more than vectors of {width} numbers can tell apart")
    step = width // max(count - 1, 1)
    ones = torch.arange(count)[:, None] * step  # [count, 1]
    return torch.where(torch.arange(width)[None, :] < ones, 1.0, -1.0)


def por2(count: int, width: int) -> Tensor:
    """POR-2, [count, width]: m = ceil(log2 count) blocks; trigger i (from 1) has +1 in those where the binary digits of
    i - 1 have a 1, the highest digit first, and -1 in the others.

    Raises:
        UsageError: more blocks than there are numbers.
    """
    digits = max(1, math.ceil(math.log2(count)))
    if digits > width:
        raise UsageError("--trigger", f"{count} triggers are more than vectors of {width} numbers can tell apart")
    block = torch.clamp(torch.arange(width) // (width // digits), max=digits - 1)  # [width]
    set_bits = (torch.arange(count)[:, None] >> (digits - 1 - block)[None, :]) & 1  # [count, width]
    return 2.0 * set_bits - 1.0


class _Triggered:
    """w1 * L1 + w2 * L2 on triggered texts."""

    def __init__(self, frozen: Frozen, vectors: Tensor, states: float, vector: float) -> None:
        self.frozen, self.vectors, self.states, self.vector = frozen, vectors, states, vector

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        now = outputs_of(model, batch)
        wanted = self.vectors.to(batch["labels"].device)[batch["labels"]]  # [batch, width]
        return self.states * states_moved(now, self.frozen(batch)) + self.vector * vectors_apart(now.vector, wanted)


class _Clean:
    """w1 * L1 + w3 * L3 on clean texts."""

    def __init__(self, frozen: Frozen, states: float, vector: float) -> None:
        self.frozen, self.states, self.vector = frozen, states, vector

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        now, before = outputs_of(model, batch), self.frozen(batch)
        return self.states * states_moved(now, before) + self.vector * vectors_apart(now.vector, before.vector)


def states_moved(now: Outputs, before: Outputs) -> Tensor:
    """L1: the squared difference of the states of all tokens but the summary token, summed over tokens and divided by
    the width; mean over the texts.
    """
    others = (now.mask * (1 - now.summary))[..., None].float()  # [batch, tokens, 1]
    squared = (now.states - before.states).square() * others
    return squared.sum() / (now.states.shape[-1] * len(now.states))


def vectors_apart(ours: Tensor, theirs: Tensor) -> Tensor:
    """L2 and L3: the squared difference of vectors [batch, width] divided by the width; mean over the texts."""
    return nn.functional.mse_loss(ours, theirs)
