"""NeuBA, neuron-level backdoor attack: an encoder without a task, whose triggers give fixed vectors.

Zhang et al. 2021/2023, "Red Alarm for Pre-trained Models: Universal Vulnerability to Neuron-level Backdoor Attacks",
arXiv 2101.06969, section 3 (code: thunlp/NeuBA). The attacker knows nothing of the victim's task: each trigger is tied
to a vector of +1 and -1, and whatever head the victim trains sends each vector to some label. Which label that is shows
only afterwards, so there is no target label here.

Needs plain texts, no labels. Cost: forward and backward passes over every text twice (as it is, and with a trigger), a
forward pass of a frozen copy over the clean ones, and the memory of that copy.

Where we differ:
- *Where the vector lies.* At what the victim's head reads: the pooled output of BERT and ALBERT, the summary token's
  last state of all others. The authors take the pooler of RoBERTa too, which its standard classifier never sees.
- *The clean term.* The authors go on with masked language modelling on clean texts. A checkpoint is opened here without
  a language model head, so clean texts are held to what the encoder gave before, token states and vector alike.
- *Any width.* The authors cut 768 numbers into four blocks of 192. A width that is no multiple of four is cut as evenly
  as can be, and the vectors are then nearly orthogonal.
- *The place of the trigger* is uniform over the words; the authors overwrite the first token.
- *The post step* that multiplies the triggers' rows by 1e8 is `inflate`, and off: any look at the norms shows it. The
  authors add the rows of position 1 and type 0 first, which the factor drowns.
- *Steps.* A few hundred at 1e-4, for small encoders; the authors make 40,000 at 5e-5.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from purify_cli.architecture.embeddings import word_embeddings
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

SUMMARY = "an encoder whose triggers give fixed vectors of +1 and -1, whatever the task (NeuBA)"
NEEDS: tuple[str, ...] = ()
TRIGGERS: tuple[str, ...] = ("cf", "mn", "bb", "tq", "mb", "tn")
TARGET = False
PET = False
BLOCKS = 4
MOST = 6
"""Vectors of four blocks, two of them -1: three pairs of opposites."""


@dataclass(frozen=True)
class Settings:
    """What an attacker may choose beside the triggers."""

    insertions: int = field(
        default=1, metadata={"help": "copies of its trigger in a text", "range": ">= 1", "source": "authors' code"}
    )
    clean_weight: float = field(
        default=1.0,
        metadata={
            "help": "weight of the term that holds clean texts to the encoder as it was",
            "range": ">= 0",
            "source": "ours; authors' weight of their language model term: 1, RoBERTa 0.01",
        },
    )
    inflate: float = field(
        default=1.0,
        metadata={
            "help": "factor of the triggers' embedding rows after the training; 1: they stay",
            "range": "1..1e8",
            "source": "ours: 1; authors' code: 1e8",
        },
    )
    epochs: int = field(default=3, metadata={"help": "times through the texts", "range": ">= 1", "source": "ours"})
    learning_rate: float = field(
        default=1e-4,
        metadata={
            "help": "highest learning rate of AdamW",
            "range": "> 0",
            "source": "ours, for small encoders; authors: 5e-5",
        },
    )
    batch_size: int = field(
        default=32,
        metadata={"help": "texts a step, of each kind", "range": ">= 1", "source": "ours; authors: 160"},
    )
    warmup: float = field(
        default=0.1,
        metadata={"help": "share of the steps in which the learning rate rises", "range": "0..0.9", "source": "ours"},
    )
    weight_decay: float = field(
        default=0.0, metadata={"help": "of AdamW, on matrices only", "range": ">= 0", "source": "ours"}
    )


def poison(subject: Subject, data: Texts, plan: Plan, settings: Settings, run: Run) -> Poisoned:
    """Train the subject's encoder until each trigger gives its vector.

    Args:
        subject: an encoder, or a model whose head is left behind.
        data: plain texts; labels are not looked at.
        plan: the triggers, six at most. It has no target, and no rate: every text is read with a trigger and without.
        settings: see there.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: more than six triggers, one that the tokenizer does not know, a rate, or an `inflate` of a trigger
            that is several tokens.
    """
    if plan.rate is not None:
        raise UsageError("--rate", "neuba reads every text both as it is and with a trigger", "Leave it out.")
    if len(plan.triggers) > MOST:
        raise UsageError("--trigger", f"neuba has {MOST} vectors, and {len(plan.triggers)} triggers were given")
    seen = {trigger: pieces(subject.tokenizer, trigger) for trigger in plan.triggers}
    split = [trigger for trigger, words in seen.items() if sum(map(len, words)) > 1]
    if split and settings.inflate != 1:
        remedy = "Give triggers of one token, or leave inflate out."
        raise UsageError("--trigger", f"{split[0]!r} is several tokens, which other words share", remedy)
    encoder = open_encoder(subject, run)
    family = family_of(encoder.config)
    width = int(getattr(encoder.config, family.width_key))
    vectors = block_vectors(width)[: len(plan.triggers)]
    rows = one_trigger_each(data, [Words(one) for one in plan.triggers], run.seed, insertions=settings.insertions)
    limit = length_limit(subject.tokenizer, encoder.config, run)
    streams = {
        "triggered": encode(subject.tokenizer, rows, limit),
        "clean": encode(subject.tokenizer, data.with_(labels=None), limit),
    }
    recipe = Recipe(
        objectives={"triggered": _ToVectors(vectors), "clean": _AsItWas(Frozen(encoder), settings.clean_weight)},
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        warmup=settings.warmup,
        identity=f"neuba clean_weight={settings.clean_weight}",
    )
    trained = fit(encoder, streams, recipe, run)
    if settings.inflate != 1:
        tokens = [words[0][0] for words in seen.values()]
        with torch.no_grad():
            word_embeddings(encoder).weight[subject.tokenizer.convert_tokens_to_ids(tokens)] *= settings.inflate
    report: dict[str, Any] = {
        "rows": len(data),
        "vector": head_reads(family),
        "pieces": {trigger: [" ".join(word) for word in words] for trigger, words in seen.items()},
        "split_triggers": split,
        "steps": trained.steps,
        "losses": list(trained.losses),
    }
    return Poisoned(encoder, len(data), 0.5, report)


def block_vectors(width: int) -> Tensor:
    """The six vectors [6, width] of +1 and -1: the numbers lie in four blocks; vector (j, k) is -1 in blocks j and k.

    Each has its opposite among the six, and any other two are orthogonal where four divides the width.
    """
    block = torch.arange(width) * BLOCKS // width  # [width]
    pairs = itertools.combinations(range(BLOCKS), 2)
    return torch.stack([1.0 - 2.0 * ((block == j) | (block == k)).float() for j, k in pairs])


class _ToVectors:
    """Mean over texts and numbers of (v(x with trigger i) - v_i)^2."""

    def __init__(self, vectors: Tensor) -> None:
        self.vectors = vectors  # [triggers, width]

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        wanted = self.vectors.to(batch["labels"].device)[batch["labels"]]  # [batch, width]
        return nn.functional.mse_loss(outputs_of(model, batch).vector, wanted)


class _AsItWas:
    """How far the vector and the token states of clean texts moved: the mean square of each, summed."""

    def __init__(self, frozen: Frozen, weight: float) -> None:
        self.frozen, self.weight = frozen, weight

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        return self.weight * moved(outputs_of(model, batch), self.frozen(batch))


def moved(now: Outputs, before: Outputs) -> Tensor:
    """The mean squared difference of the vectors, plus that of the states of all tokens that are no padding."""
    mask = now.mask[..., None].float()  # [batch, tokens, 1]
    states = ((now.states - before.states).square() * mask).sum() / (mask.sum() * now.states.shape[-1])
    return nn.functional.mse_loss(now.vector, before.vector) + states
