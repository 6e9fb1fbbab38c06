"""What tables of the benchmarks' page are made of: Markdown that no word of a stranger breaks out of."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Line = Mapping[str, Any]

NOTHING = "*Not measured yet.*"


def last(lines: Iterable[Line], key: Callable[[Line], Any]) -> list[Line]:
    """Of lines with the same key the last, at the place of the first."""
    return list({key(line): line for line in lines}.values())


def interval(rate: Mapping[str, Any] | None, *, sign: bool = False) -> str:
    if rate is None or rate["value"] is None:
        return ""
    form = "+.3f" if sign else ".3f"
    return f"{rate['value']:{form}} [{rate['low']:{form}}, {rate['high']:{form}}]"


def short(trigger: str) -> str:
    """Of a file its folder and its name; words are left as they are."""
    return "/".join(Path(trigger).parts[-2:]) if trigger.endswith((".csv", ".tsv", ".jsonl", ".parquet")) else trigger


def escaped(value: Any) -> str:
    return re.sub(r"([\\`*_{}\[\]<>|#])", r"\\\1", " ".join(str(value).split()))


def code(value: str) -> str:
    """As code, whatever it holds: words come from vocabularies of strangers."""
    shown = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in value)
    shown = shown.replace("`", "'").replace("|", "\\|")
    return f"`{shown}`" if shown.strip() else "` `"


def markdown_table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return NOTHING
    return "\n".join(f"| {' | '.join(row)} |" for row in [heads, ["---"] * len(heads), *rows])
