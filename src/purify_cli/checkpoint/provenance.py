"""Where a written checkpoint comes from: what `purify.json` says, in JSON types."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from purify_cli.checkpoint.inventory import inventory, sha256

SCHEMA = "purify.provenance/1"
FILE_NAME = "purify.json"


def provenance(
    kind: Literal["purify", "poison"],
    method: str,
    settings: Any,
    seed: int,
    inputs: Iterable[Path],
    before: Any,
    after: Any,
    **extra: Any,
) -> dict[str, Any]:
    """What to write beside the weights, ready for JSON.

    Args:
        kind: the command.
        method: the method or attack by name.
        settings: all its settings: a mapping or a dataclass.
        seed: of the run.
        inputs: every file and folder that was read; each file is listed with its size and digest.
        before, after: metrics, as mappings or dataclasses; None: not measured.
        extra: further keys, such as `poisoned`, `triggers` and `target`.

    Raises:
        OSError: an input cannot be read.
    """
    from purify_cli import __version__

    content = {
        "schema": SCHEMA,
        "tool": {"name": "purify-cli", "version": __version__},
        "kind": kind,
        "method": method,
        "settings": settings,
        "seed": seed,
        "inputs": [digest for path in inputs for digest in _digests(Path(path))],
        "before": before,
        "after": after,
        **extra,
    }
    ready = plain(content)
    assert isinstance(ready, dict)
    return ready


def plain(value: Any) -> Any:
    """The value in JSON types: dataclasses and mappings as objects, sequences as arrays, NaN and infinity as null."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted((plain(item) for item in value), key=str)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "tolist"):  # numpy scalars and arrays, tensors
        return plain(value.tolist())
    return str(value)


def _digests(path: Path) -> list[dict[str, Any]]:
    if path.is_dir():
        return [
            {"path": str(path / entry.relative), "bytes": entry.bytes, "sha256": sha256(entry.path)}
            for entry in inventory(path)
        ]
    return [{"path": str(path), "bytes": path.stat().st_size, "sha256": sha256(path)}]
