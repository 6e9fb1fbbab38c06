"""The command line of this run, and the one that a report proposes next.

Arguments as they are: whoever shows them quotes and escapes them.
"""

from __future__ import annotations

from collections.abc import Sequence

from purify_cli.results import Report


def pasted(path: str) -> str:
    """A path as an argument: one that starts with a hyphen would be read as an option."""
    return f"./{path}" if path.startswith("-") else path


def given(command: Sequence[str], option: str) -> str | None:
    """The value of an option on the command line of this run."""
    for number, argument in enumerate(command):
        if argument == option and number + 1 < len(command):
            return command[number + 1]
        if argument.startswith(option + "="):
            return argument[len(option) + 1 :]
    return None


def extended(report: Report, path: str, more: Sequence[str]) -> tuple[str, ...]:
    """The command of this run with more options. An option that it had gets the new value."""
    arguments = list(report.command) if len(report.command) > 2 else ["purify", "scan", path]
    new = {argument for argument in more if argument.startswith("--")}
    kept: list[str] = []
    drop_next = False
    for argument in arguments:
        if drop_next:
            drop_next = False
            continue
        name = argument.partition("=")[0]
        if name in new or name == "--output":
            drop_next = "=" not in argument and name not in {"--verbose", "--ignore-mark"}
            continue
        kept.append(argument)
    return (*kept, *more)
