"""What a command line shares with the person or the script before it: streams, progress bars, the file of --output."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO

from purify_cli.errors import OutputError
from purify_cli.reports.escape import escape


def hush(verbose: bool, online: bool) -> None:
    """Keeps libraries quiet, and off the network unless an input is on the hub. Must come before they are imported."""
    settings = {
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
        "DATASETS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }
    os.environ.update(settings)
    if not online:
        os.environ["HF_HUB_OFFLINE"] = "1"
        os.environ["HF_DATASETS_OFFLINE"] = "1"
    if verbose:
        logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s: %(message)s")
        logging.getLogger("purify_cli").setLevel(logging.DEBUG)
    else:
        logging.lastResort = None
        warnings.simplefilter("ignore")


@contextlib.contextmanager
def progress(quiet: bool) -> Iterator[Callable[[str, int, int], None]]:
    """Progress bars on stderr, one a stage, where somebody can see them."""
    if quiet or not is_terminal(sys.stderr):
        yield lambda stage, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    console = Console(stderr=True, no_color=not has_color(sys.stderr))
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, redirect_stdout=False) as bars:
        # Before the first step, libraries and weights are loaded: seconds in which something should move.
        starting: list[TaskID] = [bars.add_task("starting", total=None)]
        stages: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            while starting:
                bars.remove_task(starting.pop())
            if stage not in stages:
                stages[stage] = bars.add_task(escape(stage, limit=40), total=total or None)
            bars.update(stages[stage], completed=done, total=total or None)
            if total and done >= total:
                bars.remove_task(stages.pop(stage))

        yield show


def is_terminal(stream: IO[str]) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_color(stream: IO[str]) -> bool:
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def paper(output: Path | None) -> tuple[int, bool]:
    """Width and color of what the table is drawn on."""
    if output is not None:
        return 80, False
    return shutil.get_terminal_size((80, 24)).columns, has_color(sys.stdout)


def check_output(output: Path | None, force: bool, inputs: Sequence[str]) -> None:
    """Before any long work: --output must be a place that can be written, and none that is in use."""
    if output is None:
        return
    if output.is_dir():
        raise OutputError(f"--output {output}", "is a folder", "Name a file")
    if not output.parent.is_dir():
        raise OutputError(f"--output {output}", "its folder does not exist", f"Make it: mkdir -p {output.parent}")
    if output.is_file() and not force:
        raise OutputError(f"--output {output}", "exists already", "Choose another name, or replace it with --force")
    target = output.resolve()
    for place in inputs:
        if not place.startswith("hf://") and Path(place).exists() and target.is_relative_to(Path(place).resolve()):
            raise OutputError(f"--output {output}", f"lies inside the input {place}", "Choose a place outside of it")


def deliver(text: str, output: Path | None) -> None:
    """Writes the result to stdout, or whole and at once to a file.

    Raises:
        OutputError: it cannot be written.
    """
    if output is None:
        try:
            sys.stdout.write(text)
            sys.stdout.flush()
        except BrokenPipeError:
            # Who closed the pipe has read enough; the exit code still tells the verdict.
            drop(sys.stdout)
        except OSError as error:
            drop(sys.stdout)
            raise OutputError("stdout", f"cannot be written: {error.strerror}") from error
        return
    try:
        if output.exists() and not output.is_file():  # a device or a named pipe: nothing to rename over
            output.write_text(text, encoding="utf-8")
            return
        descriptor, temporary = tempfile.mkstemp(prefix=f".{output.name}.", dir=output.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            mask = os.umask(0)
            os.umask(mask)
            os.chmod(temporary, 0o666 & ~mask)
            os.replace(temporary, output)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        raise OutputError(f"--output {output}", f"cannot be written: {error.strerror}") from error


def drop(stream: IO[str]) -> None:
    """Points a stream that nobody reads at nothing, so that the interpreter's last flush is quiet."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def say(line: str) -> None:
    """One line on stderr."""
    text = escape(" ".join(line.split()))
    try:
        sys.stderr.write(f"purify: {text}\n")
        sys.stderr.flush()
    except OSError:
        drop(sys.stderr)
