"""Lists the methods of this version, and the settings of one, without loading torch for the list."""

from __future__ import annotations

from dataclasses import dataclass

from purify_cli import catalogue
from purify_cli.catalogue import KINDS, Kind, SettingHelp


@dataclass(frozen=True)
class Method:
    """One line of `purify methods`. `budget` and `rules` are a detector's; None and empty for the others."""

    kind: Kind
    name: str
    summary: str
    needs: tuple[str, ...]
    budget: str | None
    rules: tuple[str, ...]


@dataclass(frozen=True)
class MethodHelp:
    """What `--help-method` prints."""

    kind: Kind
    name: str
    summary: str
    settings: tuple[SettingHelp, ...]


def methods() -> tuple[Method, ...]:
    """Every attack, detector, purifier, filter and analysis, by kind and then by name."""
    return tuple(
        Method(
            kind=kind,
            name=name,
            summary=catalogue.summary(kind, name),
            needs=tuple(catalogue.declared(kind, name, "NEEDS") or ()),
            budget=catalogue.declared(kind, name, "BUDGET"),
            rules=tuple(catalogue.declared(kind, name, "RULES") or ()),
        )
        for kind in KINDS
        for name in catalogue.names(kind)
    )


def method_help(kind: Kind, name: str) -> MethodHelp:
    """One method's settings, with range, default and source.

    Raises:
        UsageError: no such method.
    """
    module = catalogue.load(kind, name)
    return MethodHelp(
        kind=kind,
        name=catalogue.resolve(kind, name),
        summary=catalogue.summary(kind, name),
        settings=catalogue.describe(module.Settings),
    )
