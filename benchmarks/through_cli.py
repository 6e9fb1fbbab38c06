"""The tool as a user runs it: `purify` in a process of its own, one command after the other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


class Failed(SystemExit):
    """A command that ended with an exit code which nobody expected."""


def run(command: Sequence[str], allowed: Sequence[int] = (0,)) -> str:
    """What the command writes to stdout.

    Raises:
        Failed: another exit code than those allowed; the message has what the command said.
    """
    ended = subprocess.run(
        [sys.executable, "-m", "purify_cli", *command], capture_output=True, text=True, encoding="utf-8", check=False
    )
    if ended.returncode not in allowed:
        raise Failed(f"{' '.join(command)}: exit code {ended.returncode}\n{ended.stderr.strip()}")
    return ended.stdout


def make(out: Path, command: Sequence[str], seed: int) -> None:
    """Run a command that writes a checkpoint, unless it is there; 1 says that a limit was not met, and is as good."""
    if (out / "purify.json").exists():
        return
    run([*command, "--out", str(out), "--seed", str(seed), "--quiet", "--format", "json"], allowed=(0, 1))


def tail(path: str) -> str:
    """Of a path its folder and its name."""
    return "/".join(Path(path).parts[-2:])
