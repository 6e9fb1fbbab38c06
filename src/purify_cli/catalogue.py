"""Finds methods by name. A method's name is the name of its file, so listing them imports none of them."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import math
import pkgutil
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from purify_cli.errors import UsageError

Kind = Literal["attack", "detector", "purifier", "filter", "analysis"]

_FOLDERS: dict[str, str] = {
    "attack": "attacks",
    "detector": "detectors",
    "purifier": "purifiers",
    "filter": "filters",
    "analysis": "analyses",
}
KINDS: tuple[Kind, ...] = ("attack", "detector", "purifier", "filter", "analysis")

_OPTIONS = {
    "attack": "--attack",
    "detector": "--only",
    "purifier": "--method",
    "filter": "--filter",
    "analysis": "--analysis",
}
_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})


@dataclass(frozen=True)
class SettingHelp:
    """What `--help-method` prints of one setting. `default` is its text as `--set` would take it."""

    name: str
    type: str
    default: str
    range: str
    source: str
    help: str


def _folder(kind: Kind) -> Path:
    return Path(__file__).parent / _FOLDERS[kind]


@cache
def names(kind: Kind) -> tuple[str, ...]:
    """The names of all methods of a kind, sorted; imports none of them. A leading underscore makes a file no method."""
    found = pkgutil.iter_modules([str(_folder(kind))])
    return tuple(sorted(module.name for module in found if not module.name.startswith("_")))


def resolve(kind: Kind, name: str, option: str | None = None) -> str:
    """The catalogue's spelling of a name; '-' and '_' are equal.

    Args:
        option: the command-line option that the name came from, for the error.

    Raises:
        UsageError: no such method; it names those that there are.
    """
    spelled = name.strip().replace("-", "_")
    known = names(kind)
    if spelled not in known:
        choice = f"Choose from: {', '.join(known)}" if known else f"This version has no {kind} methods"
        raise UsageError(option or _OPTIONS[kind], f"there is no {kind} named {name!r}", choice)
    return spelled


def load(kind: Kind, name: str) -> ModuleType:
    """Imports one method.

    Raises:
        UsageError: no such method; it names those that there are.
    """
    return importlib.import_module(f"purify_cli.{_FOLDERS[kind]}.{resolve(kind, name)}")


@cache
def _declarations(kind: Kind, name: str) -> dict[str, Any]:
    """The literal constants at the top of a method's source, read and not run: importing one would load torch."""
    place = _folder(kind) / name
    source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    declared: dict[str, Any] = {}
    for statement in ast.parse(source.read_text(encoding="utf-8")).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=constant)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id=constant), value=value) if value is not None:
                pass
            case _:
                continue
        try:
            declared[constant] = ast.literal_eval(value)
        except (ValueError, TypeError, SyntaxError):
            continue
    return declared


def declared(kind: Kind, name: str, constant: str) -> Any:
    """A constant of a method (SUMMARY, NEEDS, BUDGET, RULES), unimported; None where it is absent or no literal."""
    return _declarations(kind, resolve(kind, name)).get(constant)


def summary(kind: Kind, name: str) -> str:
    """A method's one line, without importing it.

    Raises:
        UsageError: no such method.
    """
    line = declared(kind, name, "SUMMARY")
    return line if isinstance(line, str) else ""


# --- settings ---------------------------------------------------------------------------------------------------------


def describe(settings_class: type[Any]) -> tuple[SettingHelp, ...]:
    """Every setting of a method, in the order of the fields of its `Settings` dataclass."""
    hints = typing.get_type_hints(settings_class)
    return tuple(
        SettingHelp(
            name=field.name,
            type=_type_name(hints[field.name]),
            default=_default_text(field),
            range=str(field.metadata.get("range", "")),
            source=str(field.metadata.get("source", "")),
            help=str(field.metadata.get("help", "")),
        )
        for field in dataclasses.fields(settings_class)
        if field.init
    )


def fill(settings_class: type[Any], assignments: Sequence[str]) -> Any:
    """Settings with `key=value` assignments applied, checked against each type and range. The last of a key wins.

    Raises:
        UsageError: no '=', an unknown key, a value of another type or out of its range.
    """
    hints = typing.get_type_hints(settings_class)
    fields = {field.name: field for field in dataclasses.fields(settings_class) if field.init}
    values: dict[str, Any] = {}
    for assignment in assignments:
        key, text = parse_assignment(assignment)
        if key not in fields:
            known = f"Its settings are: {', '.join(fields)}" if fields else "It has no settings"
            raise UsageError(f"--set {assignment}", f"the method has no setting {key!r}", known)
        values[key] = _value(hints[key], text, fields[key], assignment)
    try:
        filled = settings_class(**values)
    except ValueError as error:  # settings that each are in their range and do not fit each other
        raise UsageError("--set", str(error)) from error
    except TypeError as error:
        missing = [name for name, field in fields.items() if _required(field) and name not in values]
        raise UsageError(
            "--set", f"the method needs a value for {', '.join(missing)}" if missing else str(error)
        ) from error
    return filled


def parse_assignment(assignment: str) -> tuple[str, str]:
    """Splits `key=value`; '-' in the key counts as '_'.

    Raises:
        UsageError: no '=' or no key.
    """
    key, equals, text = assignment.partition("=")
    key = key.strip().replace("-", "_")
    if not equals or not key:
        raise UsageError(f"--set {assignment}", "is not of the form key=value", "Write for example --set epochs=3")
    return key, text.strip()


def _required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _value(hint: Any, text: str, field: dataclasses.Field[Any], assignment: str) -> Any:
    bounds = str(field.metadata.get("range", ""))
    try:
        value = _parse(hint, text)
    except ValueError as error:
        wanted = f"Give {_article(_type_name(hint))}" + (f" in the range {bounds}" if bounds else "")
        raise UsageError(f"--set {assignment}", str(error), wanted) from error
    # None is a choice of the type, and no number that a range could hold.
    parts = value if isinstance(value, tuple) else () if value is None else (value,)
    if not all(_in_range(part, bounds) for part in parts):
        raise UsageError(
            f"--set {assignment}", f"{text!r} is out of its range", f"The range of {field.name} is {bounds}"
        )
    return value


def _parse(hint: Any, text: str) -> Any:
    """Reads a text as a value of an annotated type.

    Raises:
        ValueError: the text is no such value.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or hint is str:
        return text
    if hint is type(None):
        if text.lower() in {"none", "null"}:
            return None
        raise ValueError(f"{text!r} is not none")
    if hint is bool:
        if text.lower() in _TRUE:
            return True
        if text.lower() in _FALSE:
            return False
        raise ValueError(f"{text!r} is neither true nor false")
    if hint is int:
        try:
            return int(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a whole number") from None
    if hint is float:
        try:
            number = float(text)
        except ValueError:
            raise ValueError(f"{text!r} is not a number") from None
        if not math.isfinite(number):
            raise ValueError(f"{text!r} is not a finite number")
        return number
    if origin is Literal:
        for choice in arguments:
            if text == str(choice):
                return choice
        raise ValueError(f"{text!r} is not one of {', '.join(str(choice) for choice in arguments)}")
    if origin in (typing.Union, types.UnionType):
        # None first, so that an optional text can be unset; then whatever reads the text most narrowly.
        members = sorted(arguments, key=lambda member: (member is not type(None), member is str))
        reasons = []
        for member in members:
            try:
                return _parse(member, text)
            except ValueError as error:
                reasons.append(str(error))
        raise ValueError(reasons[-1])
    if hint is tuple or origin in (tuple, Sequence, list, frozenset):
        parts = [part.strip() for part in text.split(",")] if text else []
        if not arguments:
            return tuple(parts)
        if origin is tuple and not (len(arguments) == 2 and arguments[1] is Ellipsis):
            if len(parts) != len(arguments):
                raise ValueError(f"{text!r} has {len(parts)} values and not {len(arguments)}")
            return tuple(_parse(member, part) for member, part in zip(arguments, parts, strict=True))
        return tuple(_parse(arguments[0], part) for part in parts)
    raise ValueError(f"a setting of type {_type_name(hint)} cannot be given on the command line")


def _type_name(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is type(None):
        return "none"
    if origin is Literal:
        return "|".join(str(choice) for choice in arguments)
    if origin in (typing.Union, types.UnionType):
        return "|".join(_type_name(member) for member in arguments)
    if origin in (tuple, Sequence, list, frozenset) and arguments:
        if len(arguments) == 2 and arguments[1] is Ellipsis:
            arguments = arguments[:1]
        inner = ",".join(_type_name(member) for member in arguments)
        return f"{inner},..." if len(arguments) == 1 else inner
    return {bool: "true|false", int: "int", float: "float", str: "text"}.get(hint, getattr(hint, "__name__", str(hint)))


def _article(noun: str) -> str:
    if noun in {"int", "float"}:
        return {"int": "a whole number", "float": "a number"}[noun]
    return noun


def _default_text(field: dataclasses.Field[Any]) -> str:
    if field.default is not dataclasses.MISSING:
        default = field.default
    elif field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    else:
        return ""
    return as_text(default)


def as_text(value: Any) -> str:
    """A setting's value as it is written after `--set key=`."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return ",".join(as_text(part) for part in value)
    return str(value)


# --- ranges -----------------------------------------------------------------------------------------------------------

_NUMBER = r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
_INTERVAL = re.compile(rf"({_NUMBER})\s*\.\.\s*({_NUMBER})?")
_COMPARISON = re.compile(rf"(>=|<=|>|<)\s*({_NUMBER})")
_OR = r"(?:\s*\|\s*|\s+or\s+)"
_CHOICES = re.compile(rf"[\w.+-]+(?:{_OR}[\w.+-]+)+")


def range_is_enforced(bounds: str) -> bool:
    """Whether `fill` understands a range: "0..1", ">= 1", "> 0, < 1", "1..", "a|b", "a or b", or nothing."""
    return not bounds.strip() or _read_range(bounds) is not None


def _read_range(bounds: str) -> tuple[Any, ...] | None:
    """The range as tests of a value, or None where it is prose."""
    bounds = bounds.strip()
    if _CHOICES.fullmatch(bounds):
        choices = set(re.split(_OR, bounds))
        return (lambda value: as_text(value) in choices or str(value) in choices,)
    tests: list[Any] = []
    for part in re.split(r"\s*(?:,|\band\b)\s*", bounds):
        if interval := _INTERVAL.fullmatch(part):
            low = float(interval[1])
            high = float(interval[2]) if interval[2] else math.inf
            tests.append(lambda value, low=low, high=high: low <= value <= high)
        elif comparison := _COMPARISON.fullmatch(part):
            sign, limit = comparison[1], float(comparison[2])
            compare = {
                ">=": lambda value, limit=limit: value >= limit,
                "<=": lambda value, limit=limit: value <= limit,
                ">": lambda value, limit=limit: value > limit,
                "<": lambda value, limit=limit: value < limit,
            }
            tests.append(compare[sign])
        else:
            return None
    return tuple(tests)


def _in_range(value: Any, bounds: str) -> bool:
    if not bounds.strip():
        return True
    tests = _read_range(bounds)
    if tests is None:
        return True
    if isinstance(value, (str, bool)) and not _CHOICES.fullmatch(bounds.strip()):
        return True
    return all(test(value) for test in tests)
