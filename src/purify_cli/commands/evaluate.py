"""`purify eval`: what checkpoints get right, and what a trigger makes of them, side by side on the same texts."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from purify_cli.errors import DataError, UnsupportedError, UsageError
from purify_cli.results import CheckpointMetrics, EvalResult
from purify_cli.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from purify_cli.data.texts import Texts
    from purify_cli.subject import Subject


@dataclass(frozen=True)
class EvalRequest:
    """What to measure.

    Attributes:
        checkpoints: paths or `hf://` names; the first one is what drift is measured from if there is no base.
        test: data file of labelled clean texts.
        poisoned: data file of texts that carry a trigger already, with true labels and `target`.
        triggers: words to insert into the test texts, each string a trigger of its own.
        target: target label, an id or a name; needed with triggers, and with a poisoned file that has no targets.
        base: the checkpoint that the subjects claim to come from; also the base of adapters.
        twin: a trusted checkpoint of the same task.
        run: the settings of the run.
    """

    checkpoints: tuple[str, ...]
    test: str
    poisoned: str | None = None
    triggers: tuple[str, ...] = ()
    target: str | None = None
    base: str | None = None
    twin: str | None = None
    run: Run = field(default_factory=Run)


def evaluate(request: EvalRequest) -> EvalResult:
    """Measure every checkpoint of the request on the same texts with the same triggers.

    All inputs are looked at before the first model is opened.

    Raises:
        UsageError: options that do not fit each other, an unknown target label, a twin with other labels.
        CheckpointError: a checkpoint that cannot be read; `UnsupportedError` if it is no classifier.
        DataError: a data file that cannot be read.
    """
    _check_options(request)
    from purify_cli.subject import Subject

    subjects = [Subject(checkpoint, base=request.base) for checkpoint in request.checkpoints]
    for subject in subjects:
        _check_task(subject)
    twin = None if request.twin is None else Subject(request.twin, base=request.base)
    if twin is not None:
        _check_task(twin)
    base = None if request.base is None else Subject(request.base)
    inputs = [_inputs(request, subject, subjects[:place]) for place, subject in enumerate(subjects)]

    open_twin = None if twin is None else (twin.model(request.run.device), twin.tokenizer)
    reference = None if base is None or not request.triggers else base.embeddings()
    metrics: list[CheckpointMetrics] = []
    for place, (subject, (test, poisoned, target)) in enumerate(zip(subjects, inputs, strict=True)):
        measured = _measure(request, subject, test, poisoned, target, open_twin, reference)
        if place and base is None and reference is not None:
            note = f"drift is measured from {request.checkpoints[0]}: no --base was given"
            measured = replace(measured, notes=(*measured.notes, note))
        metrics.append(measured)
        if place == 0 and reference is None and request.triggers and len(subjects) > 1:
            reference = subject.embeddings()
    return EvalResult(tuple(metrics))


def _check_options(request: EvalRequest) -> None:
    if not request.checkpoints:
        raise UsageError("CHECKPOINT", "none given", "Name at least one.")
    if request.triggers and request.poisoned is not None:
        raise UsageError("--trigger", "cannot go with --poisoned", "Give one of them.")
    if request.triggers and request.target is None:
        raise UsageError("--trigger", "needs a target label", "Give --target LABEL.")
    if request.target is not None and not request.triggers and request.poisoned is None:
        raise UsageError("--target", "has no trigger to go with", "Give --trigger WORD or --poisoned DATA.")
    for trigger in request.triggers:
        if not trigger.strip():
            raise UsageError("--trigger", "has no word", "Give the word or words that are inserted.")


def _check_task(subject: Subject) -> None:
    subject.check_supported()
    if subject.task != "classifier" and not (subject.task == "regression" and len(subject.labels) == 1):
        raise UnsupportedError(
            str(subject.spec),
            f"has no trained classifier, it is of the kind {subject.task}",
            "Give one that classifies whole texts.",
        )


def _inputs(request: EvalRequest, subject: Subject, earlier: list[Subject]) -> tuple[Texts, Texts | None, int | None]:
    """The data files in the label ids of one checkpoint: the same name may have another id in the next one."""
    from purify_cli.data.read import read

    test = read(request.test, subject.labels, option="--test")
    poisoned = None
    if request.poisoned is not None:
        poisoned = read(request.poisoned, subject.labels, option="--poisoned")
    target = None if request.target is None else subject.label_id(request.target)
    if (
        poisoned is not None
        and poisoned.targets is not None
        and target is not None
        and set(poisoned.targets) != {target}
    ):
        raise UsageError(
            "--target", f"differs from the column 'target' of {request.poisoned}", "Leave one of them out."
        )
    if poisoned is not None and poisoned.targets is None and target is None:
        raise DataError(request.poisoned or "", "no column 'target'", "Add it, or give the target with --target.")
    if earlier and len(earlier[0].labels) != len(subject.labels):
        raise UsageError(
            str(subject.spec),
            f"has {len(subject.labels)} labels where {earlier[0].spec} has {len(earlier[0].labels)}",
            "Compare checkpoints of the same task.",
        )
    return test, poisoned, target


def _measure(
    request: EvalRequest,
    subject: Subject,
    test: Texts,
    poisoned: Texts | None,
    target: int | None,
    twin: tuple[object, object] | None,
    reference: Tensor | None,
) -> CheckpointMetrics:
    """One checkpoint; its model is gone when this returns, so that many checkpoints need the memory of one."""
    from purify_cli.evaluation.measure import measure

    model = subject.open(request.run.device)
    return measure(
        model,
        subject.tokenizer,
        subject.labels,
        str(subject.spec),
        test,
        triggers=request.triggers,
        target=target,
        poisoned=poisoned,
        twin=twin,
        base_embeddings=reference,
        run=request.run,
    )
