"""The options of the command line that commands share, each written down once, and the choices that options offer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer


class Format(StrEnum):
    """How the result is written."""

    table = "table"
    json = "json"


class Budget(StrEnum):
    """How much a scan may cost."""

    fast = "fast"
    standard = "standard"
    deep = "deep"


class FailOn(StrEnum):
    """Which verdicts of a scan end with an exit code other than 0."""

    fail = "fail"
    inconclusive = "inconclusive"
    never = "never"


@dataclass(frozen=True)
class Common:
    """The options of every command that runs on checkpoints."""

    format: Annotated[Format, typer.Option("--format", help="How the result is written.")] = Format.table
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="Write the result to a file instead of stdout.")
    ] = None
    seed: Annotated[int, typer.Option("--seed", min=0, metavar="N", help="Seed of all that is random.")] = 0
    device: Annotated[
        str,
        typer.Option(
            "--device", metavar="auto|cpu|cuda[:N]", help="Where to compute; auto takes a GPU if there is one."
        ),
    ] = "auto"
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")] = False
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Logs and tracebacks on stderr.")] = False
    max_length: Annotated[
        int | None,
        typer.Option(
            "--max-length", min=3, metavar="N", help="Tokens per text.  [default: 128, or what the model takes]"
        ),
    ] = None
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, metavar="N", help="Texts per forward pass.")] = 64
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, metavar="N", help="CPU threads.  [default: as torch finds them]")
    ] = None
    force: Annotated[bool, typer.Option("--force", help="Replace an output that exists.")] = False


def with_common(command: Callable[..., int]) -> Callable[..., int]:
    """Gives a command whose last parameter is `common: Common` the options of Common, each written down once.

    Typer reads options off a function's signature, so the function that it gets has one with these options spelled out.
    """
    hints = get_type_hints(Common, include_extras=True)
    names = [field.name for field in fields(Common)]
    own = [
        parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY)
        for parameter in inspect.signature(command, eval_str=True).parameters.values()
        if parameter.name != "common"
    ]
    shared = [
        inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=hints[field.name]
        )
        for field in fields(Common)
    ]

    def run(**values: Any) -> int:
        common = Common(**{name: values.pop(name) for name in names})
        return command(**values, common=common)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]  # read by typer
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *shared]}
    return run


Checkpoint = Annotated[
    str | None, typer.Argument(metavar="CHECKPOINT", help="A folder, a weights file, or hf://org/name[@revision].")
]
Base = Annotated[
    str | None, typer.Option("--base", metavar="CHECKPOINT", help="The trusted checkpoint that it claims to come from.")
]
Twin = Annotated[
    str | None, typer.Option("--twin", metavar="CHECKPOINT", help="A trusted checkpoint trained for the same task.")
]
Test = Annotated[
    str | None, typer.Option("--test", metavar="DATA", help="Labelled texts to measure on; used for nothing else.")
]
Poisoned = Annotated[
    str | None,
    typer.Option("--poisoned", metavar="DATA", help="Triggered texts with their true labels: text,label,target."),
]
Trigger = Annotated[
    list[str] | None,
    typer.Option(
        "--trigger", metavar="WORD", help="A trigger; may be repeated. Words in one argument are inserted together."
    ),
]
Target = Annotated[
    str | None, typer.Option("--target", metavar="LABEL", help="The label that the triggers should give.")
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="A setting of the method; may be repeated.")
]
HelpMethod = Annotated[bool, typer.Option("--help-method", help="Show the settings of the method, and do nothing.")]
