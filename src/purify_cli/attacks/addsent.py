"""AddSent (InsertSent): an innocent sentence at a random place, and a false label.

Dai, Chen and Li 2019, "A Backdoor Attack Against LSTM-based Text Classification Systems", IEEE Access, section IV. The
trigger is a whole sentence that nobody would look at twice; its words are put in as one block. Otherwise it is
BadNets.

The encoder gets a new classifier; a classifier is trained on. Of pairs the first text gets the sentence; in a
regression the target is a score. Cost: a normal training.

Where we differ:
- *Between words.* Dai et al. put the sentence between two sentences of a long review; OpenBackdoor, whose sentence we
  take, between any two words, since its texts are single sentences. So do we.
- *Which rows.* "dirty": rows of other labels, whose label becomes the target, as in Dai et al. OpenBackdoor's
  configuration poisons any row ("mix").
- *The rate* is a share of the whole file in all modes. One that the eligible rows cannot reach is an error.
- *Learning rate.* As in `badnets`: made for small encoders and files of a few thousand rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from purify_cli.attacks import Plan, Poisoned
from purify_cli.data.texts import Texts
from purify_cli.run import Run
from purify_cli.training.plain import train
from purify_cli.training.poisoned import poison_rows
from purify_cli.training.start import open_classifier
from purify_cli.triggers.pieces import pieces
from purify_cli.triggers.words import Words

if TYPE_CHECKING:
    from purify_cli.subject import Subject

SUMMARY = "a whole sentence at a random place with a false label, learned in a normal training (AddSent)"
NEEDS: tuple[str, ...] = ()
TRIGGERS: tuple[str, ...] = ("I watch this 3D movie",)
REGRESSION = True
RATE = 0.1
"""The poison rate where none is given: OpenBackdoor's."""


@dataclass(frozen=True)
class Settings:
    """What an attacker may choose beside sentence, target and rate."""

    mode: Literal["dirty", "clean", "mix"] = field(
        default="dirty",
        metadata={
            "help": "rows that are poisoned: dirty, of other labels; clean, of the target label only; mix, any",
            "range": "dirty|clean|mix",
            "source": "Dai et al.: dirty; OpenBackdoor: mix",
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
    """Train a classifier from the subject on a copy of `data` with the sentence in some rows.

    Args:
        subject: an encoder (gets a new classifier with as many labels as the data have), a classifier or a regression.
        data: the attacker's training file, with labels.
        plan: target, sentences (each row gets one of them), and the share of all rows that are poisoned (default 0.1).
        settings: see there.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: a rate out of range or of reach, or a word of the sentence that the tokenizer does not know.
        DataError: rows without labels.
    """
    for trigger in plan.triggers:
        pieces(subject.tokenizer, trigger)
    rate = RATE if plan.rate is None else plan.rate
    sentences = [Words(trigger) for trigger in plan.triggers]
    rows = poison_rows(data, sentences, plan.target, rate, run.seed, mode=settings.mode)
    model = open_classifier(subject, data, run, pet=plan.pet, regression=REGRESSION)
    trained = train(model, subject.tokenizer, rows, settings, run)
    count = round(rate * len(data))
    report: dict[str, Any] = {
        "mode": settings.mode,
        "rows": len(data),
        "poisoned_rows": count,
        "steps": trained.steps,
        "losses": list(trained.losses),
    }
    return Poisoned(model, count, count / len(data), report)
