"""Runs the detectors that fit on one checkpoint, cheap ones first, and has the verdict judged from what they found.

A detector that breaks does not stop the others, and never takes back what it had already found.
"""

from __future__ import annotations

import logging
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from purify_cli import catalogue
from purify_cli.errors import CheckpointError, Incomplete, Interrupted, PurifyError, UnsupportedError, UsageError
from purify_cli.results import LEVELS, Check, CheckOutcome, FileDigest, Finding, ScanResult, SubjectSummary
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject

BUDGETS = ("fast", "standard", "deep")
_LOG = logging.getLogger(__name__)

_GIVEN_BY = {"base": "--base", "twin": "--twin", "clean": "--clean", "untrusted": "--untrusted"}


@dataclass(frozen=True)
class ScanRequest:
    """What to scan, and how.

    Attributes:
        checkpoint, base, twin: a folder, a weights file, or hf://org/name[@revision].
        clean: a file of labelled texts that the user trusts.
        budget: "fast", "standard" or "deep": runs the detectors of that budget and of the smaller ones.
        only: detectors to run, whatever their budget; empty: all that the budget allows.
        skip: detectors to leave out.
        ignore_mark: leave the poison mark out, so that the tool can be measured on what it poisoned itself.
        settings: `key=value` for the one selected detector that has the key, or `detector.key=value`.
    """

    checkpoint: str
    base: str | None = None
    twin: str | None = None
    clean: str | None = None
    budget: str = "standard"
    only: tuple[str, ...] = ()
    skip: tuple[str, ...] = ()
    ignore_mark: bool = False
    settings: tuple[str, ...] = ()
    run: Run = field(default_factory=Run)


def scan(request: ScanRequest) -> ScanResult:
    """Scans one checkpoint.

    Raises:
        UsageError: an unknown detector, budget or setting.
        CheckpointError: the checkpoint, the base or the twin is not there.
        DataError: the clean texts cannot be read.
    """
    detectors = select(request)
    settings = _settings(detectors, request.settings, request.budget)
    subject = Subject(request.checkpoint, base=request.base)
    evidence, missing = _evidence(request, subject)

    needs = _Needs(subject, evidence, missing)
    checks: list[Check] = []
    findings: list[Finding] = []
    for number, (name, detector) in enumerate(detectors.items()):
        request.run.progress("checks", number, len(detectors))
        mine: list[Finding] = []
        check = _check(name, detector, settings[name], subject, evidence, needs, mine, request.run)
        again = _again(request, name, settings[name])
        findings += [replace(one, reproduce=one.reproduce or again) for one in mine]
        _LOG.info("%s: %s in %.1f s", name, check.outcome, check.seconds)
        checks.append(check)
    request.run.progress("checks", len(detectors), len(detectors))
    findings.sort(key=lambda one: LEVELS.index(one.level))

    from purify_cli.verdict import judge

    verdict = judge(checks, findings, tuple(detectors))
    return ScanResult(subject=_summary(subject), verdict=verdict, checks=tuple(checks), findings=tuple(findings))


# --- which detectors, and how they are set ----------------------------------------------------------------------------


def select(request: ScanRequest) -> dict[str, ModuleType]:
    """The detectors that a request runs, by name, in the order of running: cheap first, the artifact scan before all.

    Raises:
        UsageError: an unknown detector or budget, or nothing left to run.
    """
    if request.budget not in BUDGETS:
        raise UsageError("--budget", f"{request.budget!r} is no budget", f"Choose from: {', '.join(BUDGETS)}")
    only = {catalogue.resolve("detector", name, "--only") for name in request.only}
    skip = {catalogue.resolve("detector", name, "--skip") for name in request.skip}
    if request.ignore_mark:
        skip.add("mark")
    allowed = BUDGETS[: BUDGETS.index(request.budget) + 1]
    chosen = [
        (name, catalogue.load("detector", name))
        for name in catalogue.names("detector")
        if name not in skip and (name in only or not only)
    ]
    # Who names a detector wants it run, whatever it costs.
    chosen = [(name, module) for name, module in chosen if only or module.BUDGET in allowed]
    if not chosen:
        raise UsageError("--skip" if skip else "--budget", "no detector is left to run", "Leave out --skip or --only")
    chosen.sort(key=lambda item: (BUDGETS.index(item[1].BUDGET), item[0] != "artifact", item[0]))
    return dict(chosen)


def _settings(detectors: dict[str, ModuleType], assignments: Sequence[str], budget: str) -> dict[str, Any]:
    """Each detector's settings: the budget's own defaults, and the assignments that are meant for it."""
    keys = {
        name: {setting.name for setting in catalogue.describe(module.Settings)} for name, module in detectors.items()
    }
    meant: dict[str, list[str]] = {
        name: [
            f"{one.name}={one.metadata[step]}"
            for one in fields(module.Settings)
            for step in BUDGETS[: BUDGETS.index(budget) + 1]
            if step in one.metadata
        ]
        for name, module in detectors.items()
    }
    for assignment in assignments:
        key, text = catalogue.parse_assignment(assignment)
        detector, dot, bare = key.partition(".")
        if dot:
            detector = catalogue.resolve("detector", detector, f"--set {assignment}")
            if detector not in detectors:
                raise UsageError(f"--set {assignment}", f"the detector {detector} does not run in this scan")
            meant[detector].append(f"{bare}={text}")
            continue
        owners = [name for name, known in keys.items() if key in known]
        if len(owners) != 1:
            problem = (
                f"several detectors have a setting {key!r}" if owners else f"no selected detector has a setting {key!r}"
            )
            known_keys = sorted(f"{name}.{known}" for name, all_known in keys.items() for known in all_known)
            remedy = (
                f"Write {owners[0]}.{key}=..." if owners else f"Their settings are: {', '.join(known_keys) or 'none'}"
            )
            raise UsageError(f"--set {assignment}", problem, remedy)
        meant[owners[0]].append(f"{key}={text}")
    return {name: catalogue.fill(module.Settings, meant[name]) for name, module in detectors.items()}


# --- what the user gave, and what the detectors need ------------------------------------------------------------------


def _evidence(request: ScanRequest, subject: Subject) -> tuple[Evidence, dict[str, str]]:
    """The evidence beside the checkpoint, and for what was given and cannot be used, why."""
    missing: dict[str, str] = {}
    base = Subject(request.base) if request.base else None
    twin = Subject(request.twin) if request.twin else None
    clean = None
    if request.clean:
        from purify_cli.data.read import read

        if not Path(request.clean).exists():
            # Said at once: a checkpoint that cannot be read must not hide a misspelled option.
            read(request.clean, None, option="--clean")
        try:
            labels = subject.labels
        except PurifyError as error:
            missing["clean"] = f"the labels of the checkpoint cannot be read, so --clean cannot either ({error})"
        else:
            clean = read(request.clean, labels or None, option="--clean")
    return Evidence(base=base, twin=twin, clean=clean), missing


@dataclass(frozen=True)
class _Unmet:
    outcome: CheckOutcome
    reason: str


class _Needs:
    """Finds out, once per need, whether it is met."""

    def __init__(self, subject: Subject, evidence: Evidence, missing: dict[str, str]) -> None:
        self._subject = subject
        self._evidence = evidence
        self._missing = missing
        self._known: dict[str, _Unmet | None] = {}

    def unmet(self, need: str) -> _Unmet | None:
        """Why a need is not met, or None."""
        if need not in self._known:
            try:
                reason = self._reason(need)
                self._known[need] = None if reason is None else _Unmet("skipped", reason)
            except UnsupportedError as error:
                self._known[need] = _Unmet("skipped", str(error))
            except PurifyError as error:
                self._known[need] = _Unmet("failed", str(error))
            except (Interrupted, KeyboardInterrupt):
                raise
            except Exception as error:
                self._known[need] = _Unmet("failed", _fault(error))
        return self._known[need]

    def _reason(self, need: str) -> str | None:
        if need == "files":
            return None
        if need == "weights":
            self._subject.embeddings()
            return None
        if need == "classifier":
            task = self._subject.task
            if task == "other":
                self._subject.check_supported()  # says more than that it is something else
            return None if task == "classifier" else f"needs a single-label classifier, and this is {_kind(task)}"
        if need in _GIVEN_BY:
            if getattr(self._evidence, need) is not None:
                return None
            return self._missing.get(need, f"needs {_GIVEN_BY[need]}")
        return f"needs {need!r}, which this version does not know"


def _kind(task: str) -> str:
    return {"encoder": "an encoder with no classifier", "other": "of another kind"}.get(task, f"a {task} checkpoint")


# --- one check --------------------------------------------------------------------------------------------------------


def _check(
    name: str,
    detector: ModuleType,
    settings: Any,
    subject: Subject,
    evidence: Evidence,
    needs: _Needs,
    findings: list[Finding],
    run: Run,
) -> Check:
    """Runs one detector to its end, adding to `findings` as they come."""
    started, passes = time.perf_counter(), subject.forward_passes

    def done(outcome: CheckOutcome, reason: str = "") -> Check:
        return Check(
            detector=name,
            outcome=outcome,
            reason=reason,
            needs=tuple(detector.NEEDS),
            seconds=time.perf_counter() - started,
            forward_passes=subject.forward_passes - passes,
        )

    unmet = [reason for reason in map(needs.unmet, detector.NEEDS) if reason is not None]
    if unmet:
        # What broke says more than what was not given.
        worst = next((reason for reason in unmet if reason.outcome == "failed"), unmet[0])
        return done(worst.outcome, worst.reason)
    try:
        for finding in detector.detect(subject, evidence, settings, run):
            findings.append(finding)
    except Incomplete as error:
        return done("failed", error.reason)
    except Interrupted:
        raise
    except UnsupportedError as error:
        return done("failed" if findings else "skipped", str(error))
    except PurifyError as error:
        return done("failed", str(error))
    except MemoryError:
        return done("failed", "there is not enough memory for this check")
    except Exception as error:
        _LOG.debug("the detector %s broke", name, exc_info=True)
        return done("failed", _fault(error))
    return done("found" if findings else "clear")


def _again(request: ScanRequest, name: str, settings: Any) -> str:
    """The command that runs this detector alone as it was run here."""
    parts = ["purify", "scan", request.checkpoint, "--only", name]
    for option in ("base", "twin", "clean"):
        if (given := getattr(request, option)) is not None:
            parts += [f"--{option}", given]
    for key, value in asdict(settings).items():
        if value != getattr(type(settings)(), key):
            parts += ["--set", f"{name}.{key}={catalogue.as_text(value)}"]
    if request.run.seed:
        parts += ["--seed", str(request.run.seed)]
    if request.run.max_length is not None:
        parts += ["--max-length", str(request.run.max_length)]
    return shlex.join(parts)


def _fault(error: Exception) -> str:
    return f"a fault of ours: {type(error).__name__}: {error}"


# --- the subject's summary --------------------------------------------------------------------------------------------


def _summary(subject: Subject) -> SubjectSummary:
    """What the subject says of itself; of one that cannot be read, at least its path and its files."""
    try:
        return subject.summary()
    except PurifyError as error:
        _LOG.info("no full summary: %s", error)
    except Exception:
        _LOG.debug("no full summary", exc_info=True)
    return SubjectSummary(
        path=str(subject.spec),
        revision=_quietly(lambda: subject.revision),
        kind="other",
        architecture=None,
        parameters=None,
        vocabulary=None,
        labels=(),
        files=_files(subject.path),
    )


def _quietly(look: Callable[[], str | None]) -> str | None:
    try:
        return look()
    except PurifyError:
        return None


def _files(folder: Path) -> tuple[FileDigest, ...]:
    from purify_cli.checkpoint.inventory import inventory, sha256

    digests = []
    try:
        for entry in inventory(folder):
            try:
                digests.append(FileDigest(path=entry.relative, bytes=entry.bytes, sha256=sha256(entry.path)))
            except OSError as error:
                _LOG.info("no digest of %s: %s", entry.relative, error)
    except (CheckpointError, OSError) as error:
        _LOG.info("no list of files: %s", error)
    return tuple(digests)
