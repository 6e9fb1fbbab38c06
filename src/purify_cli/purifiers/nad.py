"""NAD: fine-tune the suspect on clean texts, then let the suspect learn from the hidden states of that teacher.

Li et al. 2021, "Neural Attention Distillation: Erasing Backdoor Triggers from Deep Neural Networks", ICLR, on images;
the port to transformers is that of the GBA paper (ICLR 2022 submission, section 4.2 and appendix C), a baseline of its
Table 2. Claim: fine-tuning weakens a backdoor, and a student that must match the teacher in every layer keeps less of
it still. There it did not hold: an ASR of 91 % was left on average.

    loss = cross entropy + beta * sum_l mean over tokens t and numbers i of (h_student[l,t,i] - h_teacher[l,t,i])^2

Needs labelled clean texts; works on classifiers and on encoders, which get a new classifier. `nad_c` is the same with
a clean base as student. Raises what the training raises.
Cost: two fine-tunings, the second with a forward pass of the teacher in each step; the memory of two models.

Where we differ, and why:
- The original compares attention maps of images, each divided by its norm. Which layers and tokens the port takes is
  not given: here all layers behind the embeddings, all tokens but padding, and no normalization.
- beta is 1000, the least of the 1000, 2000 and 5000 that were searched, of which the best by ASR was reported.
- The optimizer is AdamW where the port tried Adam and SGD.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.purifiers import Purified
from purify_cli.run import Run
from purify_cli.training.distillation import distil
from purify_cli.training.start import open_classifier

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "fine-tune a teacher, and distil its hidden states into the suspect (NAD), a baseline"
NEEDS: tuple[str, ...] = ("clean",)


@dataclass(frozen=True)
class Settings:
    """The port's settings where not said otherwise."""

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
    fresh_classifier: bool = field(
        default=False,
        metadata={"help": "start with a new classifier even where there is one", "range": "", "source": "ours"},
    )


def purify(subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run) -> Purified:
    """Teacher, then student; see the module's docstring.

    Args:
        subject: a classifier, or an encoder.
        evidence: not used.
        train: clean texts with labels.
        dev: not used.
        settings: see there.
        run: seed, device, max_length, progress and state.
    """
    if not settings.beta >= 0:
        raise UsageError("beta", f"{settings.beta!r} is out of range", "Give a number from 0 on.")

    teacher, student = (open_classifier(subject, train, run, fresh=settings.fresh_classifier) for _ in range(2))
    taught, trained = distil(teacher, student, subject.tokenizer, train, settings, run)
    return Purified(
        student,
        {
            "rows": len(train),
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
    new = settings.fresh_classifier or subject.task != "classifier"
    return {
        "rows": len(train),
        "teacher_steps": steps * settings.teacher_epochs,
        "steps": steps * settings.epochs,
        "classifier": "new" if new else "kept",
    }
