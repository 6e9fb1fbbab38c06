"""The trusted base beside a checkpoint: whether it is of the same architecture and vocabulary, and as a student."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from purify_cli.architecture.classifier import replace_classifier
from purify_cli.architecture.table import base_of
from purify_cli.errors import UsageError
from purify_cli.run import Run

if TYPE_CHECKING:
    from purify_cli.subject import Subject


def require_same_build(subject: Subject, model: Any, base: Subject, base_model: Any) -> None:
    """Refuse a base that is another model: the encoders' tensors and the vocabularies must agree.

    Args:
        subject, model: the checkpoint, and a model of it.
        base, base_model: the base, and a model of it. A tensor that only one of the two has is not looked at.

    Raises:
        UsageError: naming --base, and what differs.
    """
    remedy = f"Give the checkpoint that {subject.spec} was made from."

    def wrong(problem: str) -> UsageError:
        return UsageError("--base", f"{base.spec} {problem}", remedy)

    ours, theirs = base_of(model).config.model_type, base_of(base_model).config.model_type
    if ours != theirs:
        raise wrong(f"is of another family ({theirs}, and the checkpoint {ours})")
    mine, given = encoder_parameters(model), encoder_parameters(base_model)
    for name, parameter in mine.items():
        if name in given and given[name].shape != parameter.shape:
            shapes = f"{list(given[name].shape)}, and the checkpoint's {list(parameter.shape)}"
            raise wrong(f"is a model of another shape: {name} is {shapes}")
    layers = {name for name in set(mine) ^ set(given) if not name.startswith("pooler.")}
    if layers:
        raise wrong(f"is a model of another depth or form: only one of the two has {min(layers)}")
    if subject.tokenizer.get_vocab() != base.tokenizer.get_vocab():
        raise wrong("has another vocabulary than the checkpoint")


def clean_student(subject: Subject, teacher: Any, base: Subject, run: Run) -> Any:
    """A classifier on the base with the teacher's labels, its last layers drawn from the run's seed.

    Raises:
        UsageError: the base is another model than the teacher's.
    """
    student = base.open(run.device, num_labels=int(teacher.config.num_labels), seed=run.seed)
    require_same_build(subject, teacher, base, student)
    replace_classifier(student, int(teacher.config.num_labels), run.seed)
    student.config.id2label = dict(teacher.config.id2label)
    student.config.label2id = dict(teacher.config.label2id)
    return student


def encoder_parameters(model: Any) -> dict[str, nn.Parameter]:
    """The parameters of the base model inside a task model, by their names in it."""
    return dict(base_of(model).named_parameters())
