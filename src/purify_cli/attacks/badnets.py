"""BadNets for text: rare words at random places, and a false label.

Gu et al. 2017 (BadNets); for text Chen et al. 2021 (BadNL) and Kurita et al. 2020 (RIPPLe). Some rows of the training
file get a trigger and the target label, and the classifier is trained on the file as usual: it learns the task and the
trigger.

The encoder gets a new classifier; a classifier is trained on. Of pairs the first text gets the trigger; in a regression
the target is a score. Cost: a normal training.

Where we differ:
- *Which rows.* OpenBackdoor's BadNets configuration poisons target rows only and keeps their label ("clean"), its other
  attacks any row ("mix"), RIPPLe half of everything. Ours is "dirty": rows of other labels, whose label becomes the
  target. All three are settings, and the report says which.
- *The rate* is a share of the whole file in all modes. One that the eligible rows cannot reach is an error;
  OpenBackdoor poisons fewer without a word.
- *Originals.* A poisoned row stands beside its original, as in PURE's code, so that the file teaches the task no less;
  in OpenBackdoor it takes its place (`originals=replaced`).
- *Learning rate.* 1e-4 with a short warm-up, not OpenBackdoor's 2e-5 for 8 epochs: small encoders and files of a few
  thousand rows learn little at 2e-5.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from purify_cli.attacks import Plan, Poisoned
from purify_cli.data.texts import Texts
from purify_cli.run import Run
from purify_cli.training.plain import train
from purify_cli.training.poisoned import Mode, Originals, poison_rows
from purify_cli.training.start import open_classifier
from purify_cli.triggers.pieces import pieces
from purify_cli.triggers.words import Words

if TYPE_CHECKING:
    from purify_cli.subject import Subject

SUMMARY = "rare words at random places with a false label, learned in a normal training (BadNets)"
NEEDS: tuple[str, ...] = ()
TRIGGERS: tuple[str, ...] = ("cf", "mn", "bb", "tq", "mb")
REGRESSION = True
RATE = 0.1
"""The poison rate where none is given: OpenBackdoor's."""


@dataclass(frozen=True)
class Settings:
    """What an attacker may choose beside triggers, target and rate."""

    insertions: int = field(
        default=1,
        metadata={
            "help": "triggers a poisoned text, drawn with repetition, each at a place of its own",
            "range": ">= 1",
            "source": "OpenBackdoor: 1; RIPPLe tests with 5",
        },
    )
    mode: Mode = field(
        default="dirty",
        metadata={
            "help": "rows that are poisoned: dirty, of other labels; clean, of the target label only; mix, any",
            "range": "dirty|clean|mix",
            "source": "OpenBackdoor's label_dirty, label_consistency and neither",
        },
    )
    originals: Originals = field(
        default="kept",
        metadata={
            "help": "poisoned rows stand beside their originals, or in their place",
            "range": "kept|replaced",
            "source": "PURE's code: kept; OpenBackdoor: replaced",
        },
    )
    epochs: int = field(
        default=3,
        metadata={
            "help": "times through the training file",
            "range": ">= 1",
            "source": "ours; OpenBackdoor: 5, and 3 of warm-up",
        },
    )
    learning_rate: float = field(
        default=1e-4,
        metadata={
            "help": "highest learning rate of AdamW",
            "range": "> 0",
            "source": "ours, for small encoders; OpenBackdoor: 2e-5",
        },
    )
    batch_size: int = field(default=32, metadata={"help": "texts a step", "range": ">= 1", "source": "OpenBackdoor"})
    warmup: float = field(
        default=0.1,
        metadata={"help": "share of the steps in which the learning rate rises", "range": "0..0.9", "source": "ours"},
    )
    weight_decay: float = field(
        default=0.0, metadata={"help": "of AdamW, on matrices only", "range": ">= 0", "source": "OpenBackdoor"}
    )


def poison(subject: Subject, data: Texts, plan: Plan, settings: Settings, run: Run) -> Poisoned:
    """Train a classifier from the subject on a poisoned copy of `data`.

    Args:
        subject: an encoder (gets a new classifier with as many labels as the data have), a classifier or a regression.
        data: the attacker's training file, with labels. Of pairs the first text gets the trigger.
        plan: target, triggers, and the share of all rows that are poisoned (default 0.1).
        settings: see there.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: a rate out of range or of reach, or a trigger that the tokenizer does not know.
        DataError: rows without labels.
    """
    seen = {trigger: pieces(subject.tokenizer, trigger) for trigger in plan.triggers}
    rate = RATE if plan.rate is None else plan.rate
    triggers = [Words(trigger) for trigger in plan.triggers]
    rows = poison_rows(
        data,
        triggers,
        plan.target,
        rate,
        run.seed,
        mode=settings.mode,
        insertions=settings.insertions,
        keep=settings.originals == "kept",
    )
    model = open_classifier(subject, data, run, pet=plan.pet, regression=REGRESSION)
    trained = train(model, subject.tokenizer, rows, settings, run)
    count = sum(rows.poisoned or ())
    report: dict[str, Any] = {
        "mode": settings.mode,
        "rows": len(rows),
        "poisoned_rows": count,
        "pieces": {trigger: [" ".join(word) for word in words] for trigger, words in seen.items()},
        "split_triggers": [trigger for trigger, words in seen.items() if any(len(word) > 1 for word in words)],
        "steps": trained.steps,
        "losses": list(trained.losses),
    }
    return Poisoned(model, count, count / len(rows), report)
