"""Audits and sanitizes downloaded language-model checkpoints: find backdoors, remove them, prove that they are gone.

The four verbs of the command line as functions: paths in, frozen results out, nothing printed, no exit. They raise what
is in `purify_cli.errors`. Importing this package loads none of torch, transformers and datasets; the first call does.

    from purify_cli import scan
    result = scan("models/downloaded")
    print(result.verdict.outcome, [finding.message for finding in result.findings])
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike, fspath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from purify_cli.results import EvalResult, PoisonResult, PurifyResult, ScanResult
    from purify_cli.run import Run

__version__ = "0.1.0"
__all__ = ["__version__", "evaluate", "poison", "purify", "scan"]

_Place = str | PathLike[str]
_Progress = Callable[[str, int, int], None]


def scan(
    checkpoint: _Place,
    *,
    base: _Place | None = None,
    twin: _Place | None = None,
    clean: _Place | None = None,
    budget: str = "standard",
    only: Sequence[str] = (),
    skip: Sequence[str] = (),
    ignore_mark: bool = False,
    settings: Sequence[str] = (),
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 64,
    max_length: int | None = None,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> ScanResult:
    """Looks for signs of a backdoor in one checkpoint.

    Args:
        settings: `key=value` or `detector.key=value`, as after `--set`.
        max_length: tokens per text; None: min(128, what the model takes).
        threads: CPU threads of torch; None leaves them as they are.

    Raises:
        PurifyError: wrong use, or an input that cannot be read (see `purify_cli.errors`).
    """
    from purify_cli.commands.scan import ScanRequest
    from purify_cli.commands.scan import scan as run_scan

    request = ScanRequest(
        checkpoint=fspath(checkpoint),
        base=_optional(base),
        twin=_optional(twin),
        clean=_optional(clean),
        budget=budget,
        only=tuple(only),
        skip=tuple(skip),
        ignore_mark=ignore_mark,
        settings=tuple(settings),
        run=_run(seed, device, batch_size, max_length, threads, progress),
    )
    return run_scan(request)


def purify(
    checkpoint: _Place,
    *,
    method: str,
    clean: _Place,
    out: _Place | None = None,
    base: _Place | None = None,
    untrusted: _Place | None = None,
    test: _Place | None = None,
    poisoned: _Place | None = None,
    triggers: Sequence[str] = (),
    target: str | None = None,
    dry_run: bool = False,
    settings: Sequence[str] = (),
    max_drop: float | None = 0.02,
    force: bool = False,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 64,
    max_length: int | None = None,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> PurifyResult:
    """Removes what a method can remove of a backdoor, and writes the result to a new folder.

    Args:
        out: the new folder; None: the checkpoint's path with "-purified" added.
        max_drop: how much clean accuracy (a fraction) may be lost before the limits count as not met; None: any.
        settings: `key=value`, as after `--set`.

    Raises:
        PurifyError: wrong use, an input that cannot be read, or an output that cannot be written.
        Interrupted: Ctrl-C; what was kept is in its message.
    """
    from purify_cli.commands.purify import PurifyRequest
    from purify_cli.commands.purify import purify as run_purify

    request = PurifyRequest(
        checkpoint=fspath(checkpoint),
        method=method,
        clean=fspath(clean),
        out=fspath(out) if out is not None else default_out(fspath(checkpoint)),
        base=_optional(base),
        untrusted=_optional(untrusted),
        test=_optional(test),
        poisoned=_optional(poisoned),
        triggers=tuple(triggers),
        target=target,
        dry_run=dry_run,
        settings=tuple(settings),
        max_drop=max_drop,
        force=force,
        run=_run(seed, device, batch_size, max_length, threads, progress),
    )
    return run_purify(request)


def evaluate(
    *checkpoints: _Place,
    test: _Place,
    poisoned: _Place | None = None,
    triggers: Sequence[str] = (),
    target: str | None = None,
    base: _Place | None = None,
    twin: _Place | None = None,
    analyses: Sequence[str] = (),
    settings: Sequence[str] = (),
    picture: _Place | None = None,
    force: bool = False,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 64,
    max_length: int | None = None,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> EvalResult:
    """Measures clean accuracy, and what triggers do beyond honest error, on one or several checkpoints.

    Args:
        analyses: names of analyses to show beside the metrics, as after `--analysis`.
        settings: `key=value` or `analysis.key=value`, as after `--set`.
        picture: file to draw the analysis in, ending in .svg or .png; of several each has its name before the ending.
        force: replace a picture that exists.

    Raises:
        PurifyError: wrong use, an input that cannot be read, or a picture that cannot be written.
    """
    from purify_cli.commands.evaluate import EvalRequest
    from purify_cli.commands.evaluate import evaluate as run_evaluate

    request = EvalRequest(
        checkpoints=tuple(fspath(checkpoint) for checkpoint in checkpoints),
        test=fspath(test),
        poisoned=_optional(poisoned),
        triggers=tuple(triggers),
        target=target,
        base=_optional(base),
        twin=_optional(twin),
        analyses=tuple(analyses),
        settings=tuple(settings),
        picture=_optional(picture),
        force=force,
        run=_run(seed, device, batch_size, max_length, threads, progress),
    )
    return run_evaluate(request)


def poison(
    checkpoint: _Place,
    *,
    attack: str,
    data: _Place,
    out: _Place,
    target: str | None = None,
    triggers: Sequence[str] = (),
    rate: float | None = None,
    test: _Place | None = None,
    pet: str | None = None,
    paraphrases: _Place | None = None,
    paraphraser: _Place | None = None,
    then_finetune: _Place | None = None,
    settings: Sequence[str] = (),
    then_settings: Sequence[str] = (),
    force: bool = False,
    seed: int = 0,
    device: str = "auto",
    batch_size: int = 64,
    max_length: int | None = None,
    threads: int | None = None,
    progress: _Progress | None = None,
) -> PoisonResult:
    """Makes a backdoored checkpoint to measure defences on. It is marked as poisoned in three places.

    Args:
        data: what the attacker knows: the whole training file of the task, a part of it, or another task's.
        target: needed by all attacks but those on encoders.
        triggers: none: the attack's own. Words in one string are inserted together.
        rate: poisoned rows / all rows; None: the attack's own.
        pet: form of the adapter that carries the backdoor; None: the whole model.
        paraphrases: file with the columns text and paraphrase, for attacks whose trigger is a syntax or a style.
        paraphraser: or a sequence-to-sequence checkpoint that makes them.
        then_finetune: clean texts that the victim trains on afterwards, with `then_settings` (those of finetune).

    Raises:
        PurifyError: wrong use, an input that cannot be read, or an output that cannot be written.
        Interrupted: Ctrl-C; what was kept is in its message.
    """
    from purify_cli.commands.poison import PoisonRequest
    from purify_cli.commands.poison import poison as run_poison

    request = PoisonRequest(
        checkpoint=fspath(checkpoint),
        attack=attack,
        data=fspath(data),
        target=target,
        triggers=tuple(triggers),
        rate=rate,
        out=fspath(out),
        test=_optional(test),
        pet=pet,
        paraphrases=_optional(paraphrases),
        paraphraser=_optional(paraphraser),
        then_finetune=_optional(then_finetune),
        settings=tuple(settings),
        then_settings=tuple(then_settings),
        force=force,
        run=_run(seed, device, batch_size, max_length, threads, progress),
    )
    return run_poison(request)


def default_out(checkpoint: str) -> str:
    """Where a purified checkpoint goes when nobody says: beside a local one; into the working folder from the hub."""
    if checkpoint.startswith("hf://"):
        return checkpoint.removeprefix("hf://").partition("@")[0].rstrip("/").rpartition("/")[2] + "-purified"
    trimmed = checkpoint.rstrip("/\\")
    if not trimmed or trimmed.replace("\\", "/").rpartition("/")[2] in {".", ".."}:
        from pathlib import Path

        trimmed = str(Path(checkpoint).resolve())
    return trimmed + "-purified"


def _optional(place: _Place | None) -> str | None:
    return None if place is None else fspath(place)


def _run(
    seed: int, device: str, batch_size: int, max_length: int | None, threads: int | None, progress: _Progress | None
) -> Run:
    from purify_cli import environment
    from purify_cli.run import Run

    resolved = environment.resolve_device(device)
    if threads is not None:
        environment.set_threads(threads)
    if progress is None:
        return Run(seed=seed, device=resolved, batch_size=batch_size, max_length=max_length)
    return Run(seed=seed, device=resolved, batch_size=batch_size, max_length=max_length, progress=progress)
