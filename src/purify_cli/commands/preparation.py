"""What the commands that train do before and after: check the checkpoint, name its labels, and keep a place for a
stopped training.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from purify_cli.errors import UnsupportedError, UsageError
from purify_cli.run import Run

if TYPE_CHECKING:
    from purify_cli.data.texts import Texts
    from purify_cli.results import SubjectSummary
    from purify_cli.subject import Subject

_ABANDONED_AFTER_SECONDS = 30 * 24 * 3600.0

TRAINABLE_TASKS = ("classifier", "encoder", "masked-lm", "causal-lm")


def check_task(subject: Subject, *, regression: bool = False) -> None:
    """Refuse what no classifier (or with `regression`, no regression either) can be trained from.

    Raises:
        UnsupportedError: a regression, a token classifier, a multi-label classifier or anything unknown.
        CheckpointError: its config or its weights are missing or broken.
    """
    subject.check_supported()
    if subject.task not in TRAINABLE_TASKS and not (regression and subject.task == "regression"):
        raise UnsupportedError(
            subject.spec,
            f"is of another kind ({subject.task})",
            "Give an encoder, a language model or a classifier of whole texts with one label.",
        )


def labels_of(subject: Subject, texts: Texts | None = None) -> tuple[str, ...]:
    """The label names by id: a classifier's own, else those of the data that it is going to be trained on."""
    if subject.task in {"classifier", "regression"}:
        return subject.labels
    if texts is None:
        return ()
    from purify_cli.training.start import data_labels

    return data_labels(texts)


def label_id(subject: Subject, labels: Sequence[str], name_or_id: str) -> int:
    """The id of a label, among the labels that a model of the subject is going to have.

    Raises:
        UsageError: no such label; the error names those that there are.
    """
    if subject.task == "classifier":
        return subject.label_id(name_or_id)
    text = name_or_id.strip()
    folded = [label.casefold() for label in labels]
    if folded.count(text.casefold()) == 1:
        return folded.index(text.casefold())
    if text.isascii() and text.isdigit() and len(text) < 8 and int(text) < len(labels):
        return int(text)
    shown = ", ".join(f"{label} ({number})" for number, label in enumerate(labels[:20]))
    raise UsageError("--target", f"{text!r} is not a label of the data", f"Its labels are {shown}.")


def resumable(run: Run, request: Mapping[str, Any], summary: SubjectSummary, inputs: Iterable[Path]) -> Run:
    """A run with a place to keep a stopped training in, found again by the same command on the same inputs.

    Args:
        run: one with a place already keeps it.
        request: all that decides the outcome beside the run's seed and device, in JSON types.
        summary: of the checkpoint, with the digests of its files.
        inputs: the data files.
    """
    if run.state is not None:
        return run
    from platformdirs import user_cache_path

    from purify_cli.checkpoint.inventory import sha256

    decisive = {
        "request": dict(request),
        "run": [run.seed, run.device, run.max_length],
        "checkpoint": [(file.path, file.sha256) for file in summary.files],
        "inputs": [sha256(path) for path in inputs],
    }
    digest = hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
    runs = user_cache_path("purify") / "runs"
    _forget_abandoned(runs)
    return replace(run, state=runs / digest[:32])


def forget(run: Run, given: Run) -> None:
    """Remove what a command that is done had kept of its trainings, unless its caller had given the place."""
    if run.state is not None and given.state is None:
        shutil.rmtree(run.state, ignore_errors=True)


def _forget_abandoned(runs: Path) -> None:
    """Remove what was stopped long ago and never taken up: it is as large as a model, and nobody else clears it
    away.
    """
    for folder in runs.glob("*"):
        with suppress(OSError):
            if time.time() - folder.stat().st_mtime > _ABANDONED_AFTER_SECONDS:
                shutil.rmtree(folder)
