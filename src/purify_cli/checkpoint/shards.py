"""Which shards a checkpoint should have: by its index, and by the numbers in their names. Only JSON is opened."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from purify_cli.checkpoint import remote
from purify_cli.errors import CheckpointError

MOST: Final = 10_000
"""Shards that are looked for; a hostile index names more."""

_NUMBERED = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.\w+)")


def named(raw: bytes, where: str) -> tuple[list[str], bool]:
    """The shards that an index names, sorted and each once, and whether it names them by texts alone.

    Args:
        raw: an `*.index.json` as read.
        where: its name, for errors.

    Raises:
        CheckpointError: no JSON, or no weight_map in it.
    """
    parsed = remote.read_json(raw, where)
    maps = [value for key, value in parsed if key == "weight_map"] if isinstance(parsed, remote.Pairs) else []
    if not maps or not all(isinstance(item, remote.Pairs) for item in maps):
        raise CheckpointError(where, "has no weight_map")
    names = [name for item in maps for _, name in item]
    texts = {name for name in names if isinstance(name, str)}
    return sorted(texts)[:MOST], all(isinstance(name, str) for name in names)


def missing_by_number(files: Collection[str]) -> list[str]:
    """Shards whose siblings say how many there are, for folders whose index is missing too."""
    groups: dict[tuple[str, str, str], set[int]] = {}
    for relative in files:
        if match := _NUMBERED.fullmatch(relative):
            groups.setdefault((match["stem"], match["count"], match["suffix"]), set()).add(int(match["number"]))
    missing = []
    for (stem, count, suffix), numbers in sorted(groups.items()):
        if f"{stem}{suffix}.index.json" not in files and int(count) <= MOST:
            missing += [
                f"{stem}-{one:05d}-of-{count}{suffix}" for one in range(1, int(count) + 1) if one not in numbers
            ]
    return missing
