"""How values are shown to people: tokens, numbers, rates and settings as text, a method's report as lines and tables.

All that may come from a checkpoint or a dataset is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from purify_cli.reports.escape import escape
from purify_cli.reports.page import Page
from purify_cli.results import Rate

TOKEN_LIMIT = 40
MESSAGE_LIMIT = 600
ROWS_SHOWN = 24

STYLES = {
    "pass": "bold green",
    "fail": "bold red",
    "inconclusive": "bold yellow",
    "error": "red",
    "warning": "yellow",
    "note": "cyan",
    "found": "red",
    "failed": "yellow",
    "skipped": "dim",
    "clear": "green",
}
"""The color of each word of ours that judges."""


def quoted(token: str) -> str:
    """A token or trigger in quotes: it may hold spaces, or look like a word of ours."""
    return f'"{escape(token, limit=TOKEN_LIMIT)}"'


def decimal(value: Any) -> str:
    """A number with three decimals, or four significant digits where it is large or very small."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    number = float(value)
    if not math.isfinite(number):
        return "-"
    if number and (abs(number) >= 1000 or abs(number) < 0.001):
        return f"{number:.3g}"
    return f"{number:.3f}"


def interval(rate: Rate | None) -> str:
    """A rate and its 95 % interval."""
    return "-" if rate is None else f"{share(rate.value)} [{share(rate.low)}, {share(rate.high)}]"


def share(value: float) -> str:
    """A fraction with three decimals, and no minus before a zero."""
    shown = f"{value:.3f}"
    return "0.000" if shown == "-0.000" else shown


def interval_with_n(rate: Rate | None) -> str:
    """A rate, its interval, and of how many texts."""
    return "-" if rate is None else f"{interval(rate)}, n={rate.n}"


def cell(value: Any) -> str:
    """A piece of evidence in a table cell."""
    if isinstance(value, Rate):
        return interval(value)
    if isinstance(value, Mapping) and {"value", "low", "high"} <= set(value):
        return f"{decimal(value['value'])} [{decimal(value['low'])}, {decimal(value['high'])}]"
    if value is None:
        return ""
    if isinstance(value, (bool, int, float)):
        return decimal(value)
    return escape(str(value), limit=TOKEN_LIMIT)


def assignments(settings: Mapping[str, Any]) -> str:
    """Settings as they would be written after --set."""

    def text(value: Any) -> str:
        if value is None or isinstance(value, bool):
            return {None: "none", True: "true", False: "false"}[value]
        if isinstance(value, float):
            return f"{value:g}"
        return ",".join(map(text, value)) if isinstance(value, (tuple, list)) else escape(str(value))

    return "  ".join(f"{escape(str(key))}={text(value)}" for key, value in settings.items())


def left_out(page: Page, left: int, indent: int = 2) -> None:
    """Says how many rows or findings are not shown."""
    if left > 0:
        page.item((f"and {left} more, all of them with --format json", "dim"), bullet=" ", indent=indent)


def free_report(page: Page, content: Mapping[str, Any], indent: int = 2) -> None:
    """A method's own report: numbers and words as lines, lists of rows as tables."""
    rows: list[tuple[str, str]] = []

    def flush() -> None:
        if rows:
            grid = Table.grid(padding=(0, 2, 0, 0))
            grid.add_column(no_wrap=True)
            grid.add_column(overflow="fold")
            for row in rows:
                grid.add_row(*row)
            page.show(grid, indent)
            rows.clear()

    for key, value in content.items():
        name = escape(str(key)).replace("_", " ")
        if isinstance(value, Mapping) and value and not {"value", "low", "high"} <= set(value):
            flush()
            page.show(Text(name, style="bold"), indent)
            free_report(page, value, indent + 2)
        elif _is_rows(value):
            flush()
            page.show(Text(name, style="bold"), indent)
            free_table(page, value, indent + 2)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            rows.append((name, ", ".join(map(cell, value)) or "none"))
        else:
            rows.append((name, cell(value) or "-"))
    flush()


def _is_rows(value: Any) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return False
    mappings = all(isinstance(row, Mapping) for row in value)
    lists = all(isinstance(row, Sequence) and not isinstance(row, str) and len(row) > 2 for row in value)
    return mappings or (lists and len(value) > 1)


def free_table(page: Page, value: Sequence[Any], indent: int) -> None:
    """Rows of a method's report: mappings by their keys, lists by their number (a layer a row, a head a column)."""
    if isinstance(value[0], Mapping):
        heads = list(dict.fromkeys(key for row in value for key in row))
        rows = [[cell(row.get(head)) for head in heads] for row in value[:ROWS_SHOWN]]
        page.table([escape(str(head)).replace("_", " ") for head in heads], rows, indent=indent)
    else:
        columns = max(len(row) for row in value)
        at_once = max(1, (page.width - indent - 6) // 9)
        for start in range(0, columns, at_once):
            heads = ["", *(str(number) for number in range(start, min(columns, start + at_once)))]
            rows = [
                [str(number), *(cell(member) for member in row[start : start + at_once])]
                for number, row in enumerate(value[:ROWS_SHOWN])
            ]
            page.table(heads, rows, right=range(len(heads)), indent=indent)
    left_out(page, len(value) - ROWS_SHOWN, indent)
