"""`purify eval`: what checkpoints get right, and what a trigger makes of them, side by side on the same texts."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from purify_cli import catalogue
from purify_cli.errors import DataError, OutputError, UnsupportedError, UsageError
from purify_cli.results import Analysis, CheckpointMetrics, EvalResult
from purify_cli.run import Run

if TYPE_CHECKING:
    from torch import Tensor

    from purify_cli.data.texts import Texts
    from purify_cli.evaluation.measure import Twin
    from purify_cli.subject import Subject


@dataclass(frozen=True)
class EvalRequest:
    """What to measure.

    Attributes:
        checkpoints: paths or `hf://` names; the first one is what drift is measured from if there is no base.
        test: data file of labelled clean texts.
        poisoned: data file of texts that carry a trigger already, with true labels and `target`.
        triggers: words to insert into the test texts, each string a trigger of its own.
        target: target label, an id or a name; needed with triggers (not of a regression), and with a poisoned file that
            has no targets.
        base: the checkpoint that the subjects claim to come from; also the base of adapters.
        twin: a trusted checkpoint of the same task.
        analyses: names of analyses to show beside the metrics.
        settings: `key=value` for the one of the analyses that has the key, or `analysis.key=value`.
        picture: a file that ends in .svg or .png, to draw the analysis in; of several each has a file of its own, with
            the analysis' name before the ending.
        force: replace a picture that exists.
        run: the settings of the run.
    """

    checkpoints: tuple[str, ...]
    test: str
    poisoned: str | None = None
    triggers: tuple[str, ...] = ()
    target: str | None = None
    base: str | None = None
    twin: str | None = None
    analyses: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    picture: str | None = None
    force: bool = False
    run: Run = field(default_factory=Run)


def evaluate(request: EvalRequest) -> EvalResult:
    """Measure every checkpoint of the request on the same texts with the same triggers.

    All inputs are looked at before the first model is opened.

    Raises:
        UsageError: options that do not fit each other, an unknown target label, a twin with other labels, an analysis
            without what it needs.
        OutputError: a picture that cannot be written.
        CheckpointError: a checkpoint that cannot be read; `UnsupportedError` if it is no classifier.
        DataError: a data file that cannot be read.
    """
    _check_options(request)
    analyses = {name: catalogue.load("analysis", name) for name in _names(request)}
    settings = _settings(analyses, request.settings)
    pictures = _pictures(request, list(analyses))
    from purify_cli.evaluation.measure import Twin
    from purify_cli.subject import Subject

    subjects = [Subject(checkpoint, base=request.base) for checkpoint in request.checkpoints]
    for subject in subjects:
        _check_task(subject)
    twin = None if request.twin is None else Subject(request.twin, base=request.base)
    if twin is not None:
        _check_task(twin)
    base = None if request.base is None else Subject(request.base)
    for name, module in analyses.items():
        _check_needs(name, module.NEEDS, request, subjects)
    inputs = [_inputs(request, subject, subjects[:place]) for place, subject in enumerate(subjects)]

    open_twin = None if twin is None else Twin(twin.model(request.run.device), twin.tokenizer)
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
    shown = _analyses(request, analyses, settings, subjects, inputs, base)
    return EvalResult(tuple(metrics), tuple(_draw(one, analyses[one.name], pictures.get(one.name)) for one in shown))


def _check_options(request: EvalRequest) -> None:
    if not request.checkpoints:
        raise UsageError("CHECKPOINT", "none given", "Name at least one.")
    if request.triggers and request.poisoned is not None:
        raise UsageError("--trigger", "cannot go with --poisoned", "Give one of them.")
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
    target = _target(request, subject)
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


def _target(request: EvalRequest, subject: Subject) -> int | None:
    """The target label's id; None for a regression, whose ASRR asks only how far the scores go astray."""
    if subject.task != "regression":
        if request.triggers and request.target is None:
            raise UsageError("--trigger", "needs a target label", "Give --target LABEL.")
        return None if request.target is None else subject.label_id(request.target)
    if request.target is not None:
        try:
            float(request.target)
        except ValueError:
            problem = f"{request.target!r} is no number, and {subject.spec} gives numbers"
            raise UsageError("--target", problem, "Leave it out: what a trigger does to the scores is shown.") from None
    return None


def _measure(
    request: EvalRequest,
    subject: Subject,
    test: Texts,
    poisoned: Texts | None,
    target: int | None,
    twin: Twin | None,
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


# Analyses
# ----------------------------------------------------------------------------------------------------------------


def _names(request: EvalRequest) -> list[str]:
    """The analyses in the catalogue's spelling, each once, in the order given."""
    return list(dict.fromkeys(catalogue.resolve("analysis", name) for name in request.analyses))


def _settings(analyses: Mapping[str, ModuleType], assignments: Sequence[str]) -> dict[str, Any]:
    """Each analysis' settings with the assignments that are meant for it."""
    keys = {name: {one.name for one in catalogue.describe(module.Settings)} for name, module in analyses.items()}
    meant: dict[str, list[str]] = {name: [] for name in analyses}
    for assignment in assignments:
        key, text = catalogue.parse_assignment(assignment)
        name, dot, bare = key.rpartition(".")
        if dot:
            name = catalogue.resolve("analysis", name, f"--set {assignment}")
            if name not in analyses:
                raise UsageError(f"--set {assignment}", f"the analysis {name} is not asked for")
        owners = [name] if dot else [one for one, known in keys.items() if key in known]
        if len(owners) != 1:
            known = sorted(f"{one}.{setting}" for one, settings in keys.items() for setting in settings)
            problem = "several analyses have" if owners else "no analysis that is asked for has"
            remedy = f"Write {owners[0]}.{key}=..." if owners else f"Their settings are: {', '.join(known) or 'none'}"
            raise UsageError(f"--set {assignment}", f"{problem} a setting {key!r}", remedy)
        meant[owners[0]].append(f"{bare if dot else key}={text}")
    return {name: catalogue.fill(module.Settings, meant[name]) for name, module in analyses.items()}


def _check_needs(name: str, needs: Sequence[str], request: EvalRequest, subjects: Sequence[Subject]) -> None:
    if "before" in needs and len(subjects) < 2 and request.base is None:
        raise UsageError(
            "CHECKPOINT", f"{name} compares two, and one was given", "Name the earlier one before it, or give --base."
        )
    if "trigger" in needs and not request.triggers and request.poisoned is None:
        remedy = "Give --trigger WORD and --target LABEL, or --poisoned DATA."
        raise UsageError("--trigger", f"{name} needs it", remedy)
    for subject in subjects:
        if "classifier" in needs and subject.task != "classifier":
            raise UsageError(
                str(subject.spec), f"{name} needs a classifier, and this is: {subject.task}", "Leave it out."
            )


def _pictures(request: EvalRequest, names: Sequence[str]) -> dict[str, Path]:
    """The file of each analysis' picture, seen to before any long work.

    Raises:
        UsageError: an ending that is no format, or no analysis to draw.
        OutputError: a place that cannot be written to.
    """
    if request.picture is None:
        return {}
    from purify_cli.reports.picture import FORMATS

    option, given = f"--picture {request.picture}", Path(request.picture)
    if not names:
        raise UsageError("--picture", "has no analysis to draw", "Give --analysis NAME.")
    if given.suffix.lower().lstrip(".") not in FORMATS:
        raise UsageError(option, "ends in no format that can be drawn", "Name a file that ends in .svg or .png.")
    if not given.parent.is_dir():
        raise OutputError(option, "its folder does not exist", f"Make it: mkdir -p {given.parent}")
    places = {
        name: given if len(names) == 1 else given.with_name(f"{given.stem}-{name}{given.suffix}") for name in names
    }
    inputs = [*request.checkpoints, request.base, request.twin, request.test, request.poisoned]
    for place in places.values():
        if place.is_dir():
            raise OutputError(option, f"{place} is a folder", "Name a file.")
        if place.exists() and not request.force:
            raise OutputError(option, f"{place} exists already", "Choose another name, or replace it with --force.")
        for one in inputs:
            if one is not None and Path(one).exists() and place.resolve().is_relative_to(Path(one).resolve()):
                raise OutputError(option, f"lies inside the input {one}", "Choose a place outside of it.")
    return places


def _analyses(
    request: EvalRequest,
    analyses: Mapping[str, ModuleType],
    settings: Mapping[str, Any],
    subjects: Sequence[Subject],
    inputs: Sequence[tuple[Texts, Texts | None, int | None]],
    base: Subject | None,
) -> list[Analysis]:
    if not analyses:
        return []
    from purify_cli.analyses import Case
    from purify_cli.subject import Evidence

    cases = [
        Case(subject, test, request.triggers, target, poisoned)
        for subject, (test, poisoned, target) in zip(subjects, inputs, strict=True)
    ]
    shown = []
    for name, module in analyses.items():
        analysis: Analysis = module.analyse(cases, Evidence(base=base), settings[name], request.run)
        shown.append(replace(analysis, settings=asdict(settings[name])))
    return shown


def _draw(analysis: Analysis, module: ModuleType, place: Path | None) -> Analysis:
    """Write the picture, whole and at once, and say where."""
    if place is None:
        return analysis
    from purify_cli.reports.picture import render

    content = render(analysis, module.draw, "svg" if place.suffix.lower() == ".svg" else "png")
    temporary = None
    try:
        descriptor, temporary = tempfile.mkstemp(prefix=f".{place.name}.", dir=place.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, place)
    except OSError as error:
        if temporary is not None:
            with suppress(OSError):
                os.unlink(temporary)
        raise OutputError(f"--picture {place}", f"cannot be written: {error.strerror}") from error
    return replace(analysis, picture=str(place))
