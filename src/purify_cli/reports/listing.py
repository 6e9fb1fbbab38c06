"""The lists that are no report: the methods there are, and the settings of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.text import Text

from purify_cli.reports.json import dumps, tool
from purify_cli.reports.page import Page, draw

if TYPE_CHECKING:
    from purify_cli.commands.methods import Method, MethodHelp

METHODS_SCHEMA = "purify.methods/1"
SETTINGS_SCHEMA = "purify.settings/1"


def methods_json(methods: Sequence[Method]) -> str:
    """All methods as one JSON object."""
    return dumps({"schema": METHODS_SCHEMA, "tool": tool(), "methods": list(methods)})


def methods_table(methods: Sequence[Method], width: int, color: bool) -> str:
    """All methods, one line each."""

    def fill(page: Page) -> None:
        rows = [
            (method.kind, Text(method.name, style="bold"), method.budget or "", method.summary) for method in methods
        ]
        page.table(("kind", "name", "budget", "what it does"), rows, indent=0)

    return draw(fill, width, color)


def settings_json(helps: Sequence[MethodHelp]) -> str:
    """The settings of methods as one JSON object."""
    return dumps({"schema": SETTINGS_SCHEMA, "tool": tool(), "methods": list(helps)})


def settings_table(helps: Sequence[MethodHelp], width: int, color: bool) -> str:
    """The settings of methods: each with its default, its range, what it does and where it comes from."""

    def fill(page: Page) -> None:
        for number, method in enumerate(helps):
            if number:
                page.show(Text(""))
            page.show(Text.assemble((method.name, "bold"), f" ({method.kind}): {method.summary}"))
            if not method.settings:
                page.item("no settings", bullet="", indent=0)
            for setting in method.settings:
                bounds = f", {setting.range}" if setting.range not in {"", setting.type} else ""
                head = Text.assemble(
                    (f"--set {setting.name}={setting.default}", "bold"), (f"  {setting.type}{bounds}", "dim")
                )
                page.show(head, 2)
                source = f" Source: {setting.source}." if setting.source else ""
                described = setting.help.rstrip(".") + "." if setting.help else ""
                if described or source:
                    page.show(Text((described + source).strip()), 6)

    return draw(fill, width, color)
