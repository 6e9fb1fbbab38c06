"""What went wrong, where, and what would do.

The errors know nothing of exit codes or of how they are shown: `exits.py` maps them by type. Raise them with fields,
not with a finished sentence glued together, so that a test can look at the fields and a report can show them.
"""

from __future__ import annotations

from pathlib import Path


class PurifyError(Exception):
    """Wrong use or bad input.

    Args:
        where: the file, folder or option that is wrong, as the user knows it.
        problem: what is wrong with it, a clause that can follow the place and a colon.
        remedy: what would do, a sentence in the imperative; empty if there is nothing to advise.
        line: the line of a text file, counted from 1.
    """

    def __init__(self, where: str | Path, problem: str, remedy: str = "", *, line: int | None = None) -> None:
        super().__init__(str(where), problem, remedy, line)
        self.where = str(where)
        self.problem = problem
        self.remedy = remedy
        self.line = line

    def __str__(self) -> str:
        place = self.where if self.line is None else f"{self.where}, line {self.line}"
        sentence = f"{place}: {self.problem}"
        return f"{sentence}. {self.remedy}" if self.remedy else sentence


class UsageError(PurifyError):
    """An option that does not exist, does not fit the others, or is out of its range."""


class CheckpointError(PurifyError):
    """A checkpoint that cannot be read: missing, truncated, or at odds with itself."""


class UnsupportedError(CheckpointError):
    """A checkpoint that is what it says, but of a kind or architecture that the tool does not know.

    `scan` turns this into an inconclusive verdict; every other command ends with it.
    """


class DataError(PurifyError):
    """A data file that cannot be read as labelled texts."""


class OutputError(PurifyError):
    """A place where the result cannot be written: it exists, or the disk is full."""


class Incomplete(Exception):
    """A detector could not look at everything it is there to look at. What it found before stays."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Interrupted(Exception):
    """Ctrl-C during long work.

    Args:
        kept: what was kept, and how to go on, in one sentence.
    """

    def __init__(self, kept: str) -> None:
        super().__init__(kept)
        self.kept = kept
