"""The report as JSON: one object of the schema `purify.report/1` (report.schema.json beside this file)."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence, Set
from importlib import resources
from pathlib import PurePath
from typing import Any

from purify_cli import __version__
from purify_cli.results import SCHEMA, EvalResult, PoisonResult, PurifyResult, Rate, Report, ScanResult


def render(report: Report) -> str:
    """One JSON object in ASCII, two spaces deep, with a newline at its end.

    Keys keep the order of the schema; free mappings (evidence, settings, a method's own report) are sorted. What is not
    a number (NaN, infinity) is null.
    """
    return dumps(_members(report))


def schema() -> dict[str, Any]:
    """The JSON Schema (2020-12) that every report satisfies."""
    text = resources.files("purify_cli.reports").joinpath("report.schema.json").read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def dumps(members: Mapping[str, Any]) -> str:
    """The text of one object whose members keep their order; no character of it acts on a terminal."""
    text = json.dumps(
        {key: plain(member) for key, member in members.items()}, indent=2, ensure_ascii=True, allow_nan=False
    )
    # DEL is the one control character that JSON in ASCII leaves as it is.
    return text.replace("\x7f", "\\u007f") + "\n"


class _Members(dict[str, Any]):
    """An object of the schema, whose members stay in its order; any other mapping is sorted."""


def tool() -> Mapping[str, str]:
    """The `tool` member of every document."""
    return _Members(name="purify-cli", version=__version__)


def _members(report: Report) -> dict[str, Any]:
    result = report.result
    head: dict[str, Any] = {
        "schema": SCHEMA,
        "tool": tool(),
        "command": list(report.command),
        "started": report.started,
        "seconds": round(report.seconds, 3),
        "environment": report.environment,
        "subject": None if isinstance(result, EvalResult) else result.subject,
    }
    match result:
        case ScanResult():
            checks = [dataclasses.replace(check, seconds=round(check.seconds, 3)) for check in result.checks]
            head["scan"] = _Members(verdict=result.verdict, checks=checks, findings=result.findings)
        case PurifyResult():
            head["purify"] = _Members(
                method=_Members(name=result.method, settings=result.settings),
                before=result.before,
                after=result.after,
                report=result.report,
                wrote=result.wrote,
                limits=result.limits,
            )
        case EvalResult():
            head["eval"] = _Members(checkpoints=result.checkpoints, analyses=result.analyses)
        case PoisonResult():
            head["poison"] = _Members(
                attack=_Members(name=result.attack, settings=result.settings),
                triggers=result.triggers,
                target=result.target,
                poison_rate=result.poison_rate,
                metrics=result.metrics,
                wrote=result.wrote,
                pet=result.pet,
                then=result.then,
                then_settings=result.then_settings,
                report=result.report,
                notes=result.notes,
            )
    return head


def plain(value: Any) -> Any:
    """A value in JSON types: dataclasses as objects, NaN and infinity as None, library scalars as numbers."""
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        # Half a surrogate pair stands for a byte that was no UTF-8 (a file name); strict readers refuse it.
        return str(value).encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _fields(value)
    if isinstance(value, _Members):
        return {key: plain(member) for key, member in value.items()}
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(member) for key, member in sorted(value.items(), key=lambda item: str(item[0]))}
    if isinstance(value, Set):
        return [plain(member) for member in sorted(value, key=str)]
    if isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray)):
        return [plain(member) for member in value]
    if isinstance(value, PurePath):
        return plain(str(value))
    if callable(getattr(value, "tolist", None)):  # an array, a tensor, or one number of theirs
        return plain(value.tolist())
    return plain(str(value))


def _fields(value: Any) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        member = getattr(value, field.name)
        if member is None and field.default is None and not isinstance(value, Rate):
            continue
        members[field.name] = plain(member)
    return members
