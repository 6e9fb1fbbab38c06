"""Clean fine-tuning: train on, on clean texts, and hope that the trigger is forgotten. The baseline of every defence.

"FT" in Zhao, Xu and Yuan 2024 (PURE), ICML, with their settings: AdamW, 2e-5, batches of 32, 3 epochs, linear decay
without warm-up, gradients clipped at 1. It seldom removes a backdoor: nothing in clean texts reaches what the trigger
uses. With a higher learning rate it is their FTH.

Where we differ: PURE always starts with a new classifier, since its attacker releases an encoder. A classifier keeps
its own here; `fresh_classifier` gives PURE's.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from purify_cli.data.texts import Texts
from purify_cli.purifiers import Purified
from purify_cli.run import Run
from purify_cli.training import plain
from purify_cli.training.start import open_classifier

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "train on with clean texts (Clean-FT), the baseline"
NEEDS: tuple[str, ...] = ("clean",)
REGRESSION = True


@dataclass(frozen=True)
class Settings:
    """How to train."""

    epochs: int = field(default=3, metadata={"help": "times through the texts", "range": ">= 1", "source": "PURE"})
    learning_rate: float = field(
        default=2e-5, metadata={"help": "highest learning rate of AdamW", "range": "> 0", "source": "PURE"}
    )
    batch_size: int = field(default=32, metadata={"help": "texts a step", "range": ">= 1", "source": "PURE"})
    warmup: float = field(
        default=0.0,
        metadata={"help": "share of the steps in which the learning rate rises", "range": "0..0.9", "source": "PURE"},
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
    """Train a copy of the subject on the clean texts.

    Args:
        subject: a classifier or a regression, or an encoder, which gets a new head.
        evidence: not used.
        train: clean texts with labels.
        dev: not used; the last epoch is taken, as in PURE.
        settings: see there.
        run: seed, device, max_length, progress and state.
    """
    model = open_classifier(subject, train, run, fresh=settings.fresh_classifier, regression=True)
    trained = plain.train(model, subject.tokenizer, train, settings, run)
    return Purified(model, {"rows": len(train), "steps": trained.steps, "losses": list(trained.losses)})


def preview(
    subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run
) -> dict[str, Any]:
    """What a purification would do, without doing it."""
    steps = -(-len(train) // settings.batch_size) * settings.epochs
    new = settings.fresh_classifier or subject.task not in {"classifier", "regression"}
    return {"rows": len(train), "steps": steps, "classifier": "new" if new else "kept"}
