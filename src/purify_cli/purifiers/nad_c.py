"""NAD-C: a clean base as student learns the labels, and the hidden states of the fine-tuned suspect.

The GBA paper (ICLR 2022 submission, section 4.2 and appendix C), a baseline of its Table 2; after Li et al. 2021,
"Neural Attention Distillation", ICLR. There it leaves an ASR of about 6 %. Claim: the upper bound of distillation, for
who knows that the checkpoint is backdoored and has the public base that it came from; on clean texts the teacher shows
nothing of its trigger.

    loss = cross entropy + beta * sum_l mean over tokens t and numbers i of (h_student[l,t,i] - h_teacher[l,t,i])^2

It answers another question than its name says: the student never had the backdoor, and could as well be fine-tuned
without the teacher. What the teacher adds is what the suspect knows beyond the clean texts at hand; its classifier is
new, for the suspect's is the attacker's.

Needs labelled clean texts, and `--base`: the trusted checkpoint that the subject came from, of the same architecture
and vocabulary. Raises UsageError for a base of another shape or vocabulary, and what the training raises.
Cost: two fine-tunings, the second with a forward pass of the teacher in each step; the memory of two models.

Where we differ, and why: as `nad`. The teacher is the suspect fine-tuned, as the paper has it. The student's classifier
is always a new one, also where the base has one.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.purifiers import Purified
from purify_cli.run import Run
from purify_cli.training.clean_base import clean_student
from purify_cli.training.distillation import distil
from purify_cli.training.start import open_classifier

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "distil the fine-tuned suspect into its clean base (NAD-C), a baseline"
NEEDS: tuple[str, ...] = ("clean", "base")
AUTO = 7.0
AUTO_REACH = "base"


@dataclass(frozen=True)
class Settings:
    """The paper's settings where not said otherwise."""

    beta: float = field(
        default=1000.0,
        metadata={"help": "weight of the distance to the teacher", "range": ">= 0", "source": "GBA, appendix C"},
    )
    teacher_epochs: int = field(
        default=3,
        metadata={"help": "of the teacher's fine-tuning", "range": ">= 1", "source": "GBA, appendix B"},
    )
    epochs: int = field(
        default=3, metadata={"help": "of the distillation", "range": ">= 1", "source": "GBA, appendix B"}
    )
    learning_rate: float = field(
        default=2e-5, metadata={"help": "highest, of both trainings", "range": "> 0", "source": "GBA, appendix C"}
    )
    batch_size: int = field(default=32, metadata={"help": "texts a step", "range": ">= 1", "source": "GBA, appendix C"})
    warmup: float = field(
        default=0.0,
        metadata={"help": "share of the steps in which the learning rate rises", "range": "0..0.9", "source": "ours"},
    )
    weight_decay: float = field(
        default=0.0,
        metadata={"help": "of AdamW, on matrices only", "range": ">= 0", "source": "GBA, appendix C"},
    )


def purify(subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run) -> Purified:
    """Teacher, then student; see the module's docstring.

    Args:
        subject: a classifier, or an encoder: the teacher before its fine-tuning.
        evidence: its base is the student.
        train: clean texts with labels.
        dev: not used.
        settings: see there.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: no base, or one that is another model.
    """
    if not settings.beta >= 0:
        raise UsageError("beta", f"{settings.beta!r} is out of range", "Give a number from 0 on.")
    if evidence.base is None:
        raise UsageError("--base", "nad_c needs it", "Give the clean checkpoint that the subject came from.")
    base = evidence.base
    teacher = open_classifier(subject, train, run)
    student = clean_student(subject, teacher, base, run)
    taught, trained = distil(teacher, student, subject.tokenizer, train, settings, run)
    return Purified(
        student,
        {
            "rows": len(train),
            "student": base.spec,
            "steps": trained.steps,
            "losses": list(trained.losses),
            "teacher_losses": list(taught.losses),
        },
    )


def preview(
    subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run
) -> dict[str, Any]:
    """What a purification would do, without doing it."""
    steps = -(-len(train) // settings.batch_size)
    return {
        "rows": len(train),
        "student": None if evidence.base is None else evidence.base.spec,
        "teacher_steps": steps * settings.teacher_epochs,
        "steps": steps * settings.epochs,
        "classifier": "new",
    }
