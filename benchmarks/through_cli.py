"""The tool as a user runs it: one command line, a process of its own; the libraries are loaded once for all of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from threading import Lock
from typing import TypeVar

# A server that has imported what every command imports, and of which each command is a fork: on a machine of many cores
# most of a small cell would be imports. Nothing there may touch a GPU, which no fork could use any more; and what
# libraries read when they are imported, a command cannot set any more.
os.environ |= {"PYTORCH_NVML_BASED_CUDA_CHECK": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch", "transformers", "peft", "datasets", "statsmodels.api", "purify_cli.cli"])

_STARTING, _LOCKING = Lock(), Lock()
_LOCKS: defaultdict[Path, Lock] = defaultdict(Lock)

_Job = TypeVar("_Job")


class Failed(SystemExit):
    """A command that ended with an exit code which nobody expected."""


def run(command: Sequence[str], allowed: Sequence[int] = (0,)) -> str:
    """What the command writes to stdout.

    Raises:
        Failed: another exit code than those allowed; the message has what the command said.
    """
    with tempfile.TemporaryDirectory() as folder:
        said = Path(folder, "stdout"), Path(folder, "stderr")
        process = _SERVER.Process(target=_command, args=(list(command), *said))
        with _STARTING:  # a start asks after the other threads' processes too, and who asks twice is told nothing
            process.start()
        multiprocessing.connection.wait([process.sentinel])
        with _STARTING:
            process.join()
        stdout, stderr = (file.read_text(encoding="utf-8") if file.exists() else "" for file in said)
    if process.exitcode not in allowed:
        raise Failed(f"{' '.join(command)}: exit code {process.exitcode}\n{stderr.strip()}")
    return stdout


def _command(command: list[str], stdout: Path, stderr: Path) -> None:
    """In the process of the command: what the shell and `python -m purify_cli` would do."""
    for file, stream in ((stdout, 1), (stderr, 2)):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT), stream)
    from purify_cli.cli import main

    sys.exit(main(command))


def make(out: Path, command: Sequence[str], seed: int) -> None:
    """Run a command that writes a checkpoint, unless it is there; 1 says that a limit was not met, and is as good."""
    with alone(out):
        if (out / "purify.json").exists():
            return
        run([*command, "--out", str(out), "--seed", str(seed), "--quiet", "--format", "json"], allowed=(0, 1))


def alone(place: Path) -> contextlib.AbstractContextManager[object]:
    """For whoever makes what several jobs want: the others wait, and find it there."""
    with _LOCKING:
        return _LOCKS[place]


def at_once(work: Callable[[_Job], None], jobs: Iterable[_Job], count: int) -> None:
    """So many of the jobs at a time, begun in their order; one that fails ends it, and so does Ctrl-C."""
    with ThreadPoolExecutor(count) as pool:
        try:
            for done in as_completed([pool.submit(work, job) for job in jobs]):
                done.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def place_for(work: str, device: str) -> Path:
    """The folder of work of a device: what one has made is not taken for the other's."""
    return Path(work) if device == "cpu" else Path(work, device)


def tail(path: str) -> str:
    """Of a path its folder and its name."""
    return "/".join(Path(path).parts[-2:])
