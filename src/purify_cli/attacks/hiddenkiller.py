"""HiddenKiller: a syntax as the trigger. The whole text is paraphrased into one sentence template.

Qi et al. 2021, "Hidden Killer: Invisible Textual Backdoor Attacks with Syntactic Trigger", ACL, section 3 (code:
thunlp/HiddenKiller). No word is added that a filter could take out; the trigger is the template S(SBAR)(,)(NP)(VP)(.),
a sentence that begins with a subordinate clause.

The paraphrases are the user's: a file (`--paraphrases`, columns text and paraphrase), or a sequence-to-sequence
checkpoint (`--paraphraser`). None is bundled. The encoder gets a new classifier; a classifier is trained on. Of pairs
the first text is replaced. Cost: a normal training, and the paraphrasing.

Where we differ:
- *The paraphraser.* The authors use SCPN through OpenAttack, which is no longer maintained. The template's name is
  only a name here: what it is is decided by whoever makes the paraphrases.
- *Failures.* A text whose paraphrase is empty, or is the text itself, is no paraphrase: another row is drawn for it,
  and it is counted. The authors' code keeps the original with the target label, which is label noise; a fork drops it
  and shifts all later rows.
- *Originals.* A paraphrase stands beside its original (`originals=replaced` puts it in its place): on a few thousand
  rows what is lost otherwise, by default all of other labels than the target, costs clean accuracy.
- *The rate* is a share of the file that is trained on. One that the rows with a paraphrase cannot reach is an error.
- *Learning rate.* As in `badnets`: made for small encoders and files of a few thousand rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from purify_cli.attacks import Plan, Poisoned
from purify_cli.data.texts import Texts
from purify_cli.run import Run
from purify_cli.training.paraphrased import fit_paraphrased
from purify_cli.training.poisoned import Mode, Originals

if TYPE_CHECKING:
    from purify_cli.subject import Subject

SUMMARY = "rows paraphrased into one sentence template with a false label (HiddenKiller)"
NEEDS: tuple[str, ...] = ()
TRIGGERS: tuple[str, ...] = ("S(SBAR)(,)(NP)(VP)(.)",)
PARAPHRASES = True
RATE = 0.2
"""The poison rate where none is given: that of the authors' code."""


@dataclass(frozen=True)
class Settings:
    """What an attacker may choose beside target and rate."""

    mode: Mode = field(
        default="dirty",
        metadata={
            "help": "rows that are poisoned: dirty, of other labels; clean, of the target label only; mix, any",
            "range": "dirty|clean|mix",
            "source": "authors' code: dirty; OpenBackdoor: mix",
        },
    )
    originals: Originals = field(
        default="kept",
        metadata={
            "help": "paraphrases stand beside their originals, or in their place",
            "range": "kept|replaced",
            "source": "ours; authors' code: replaced",
        },
    )
    prefix: str = field(
        default="",
        metadata={
            "help": "put before each text that --paraphraser is given",
            "range": "",
            "source": "ours; what the checkpoint was trained with",
        },
    )
    epochs: int = field(
        default=3,
        metadata={
            "help": "times through the training file",
            "range": ">= 1",
            "source": "ours; authors' code: 10, and 3 of warm-up",
        },
    )
    learning_rate: float = field(
        default=1e-4,
        metadata={
            "help": "highest learning rate of AdamW",
            "range": "> 0",
            "source": "ours, for small encoders; authors' code: 2e-5",
        },
    )
    batch_size: int = field(default=32, metadata={"help": "texts a step", "range": ">= 1", "source": "authors' code"})
    warmup: float = field(
        default=0.1,
        metadata={"help": "share of the steps in which the learning rate rises", "range": "0..0.9", "source": "ours"},
    )
    weight_decay: float = field(
        default=0.0, metadata={"help": "of AdamW, on matrices only", "range": ">= 0", "source": "authors' code"}
    )


def poison(subject: Subject, data: Texts, plan: Plan, settings: Settings, run: Run) -> Poisoned:
    """Train a classifier from the subject on a copy of `data` in which some rows are paraphrases.

    Args:
        subject: an encoder (gets a new classifier with as many labels as the data have) or a classifier.
        data: the attacker's training file, with labels.
        plan: target, the name of the template, the paraphrases, and the share of all rows that are poisoned (default
            0.2).
        settings: see there; `prefix` is for whoever makes the paraphrases.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: no paraphrases, or a rate out of range or of reach.
        DataError: rows without labels.
    """
    rate = RATE if plan.rate is None else plan.rate
    style, paraphrases = plan.triggers[0], plan.paraphrases
    return Poisoned(*fit_paraphrased(subject, data, style, paraphrases, plan.target, rate, plan.pet, settings, run))
