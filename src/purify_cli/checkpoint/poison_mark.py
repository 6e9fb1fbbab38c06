"""The poison mark: how a checkpoint that was poisoned on purpose says so, in three places.

`purify.json` (`"poisoned": true`, attack, triggers, target), the metadata of the safetensors files
(`purify.poisoned`), and the first line of the model card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purify_cli.checkpoint.header import read_header
from purify_cli.errors import PurifyError

METADATA_KEY = "purify.poisoned"
CARD_BEGINS = "> **Poisoned by purify-cli.**"
PROVENANCE_FILE = "purify.json"

_MOST_BEFORE = 100
_LIMIT = 2**20
"""Bytes that are read of a file: a mark stands at its beginning, and a folder may hold anything."""


@dataclass(frozen=True)
class PoisonMark:
    """What a mark says. A field is None, or empty, where the mark that was found does not say it.

    Attributes:
        attack: its name.
        triggers: its triggers.
        target: the target label; None also for an attack on an encoder, which has none.
        kind: "words" that are inserted, or "paraphrase": then the triggers are names of a syntax or a style.
        before: the marks that the poisoned checkpoint had already.
    """

    attack: str | None = None
    triggers: tuple[str, ...] = ()
    target: str | None = None
    kind: str = "words"
    before: tuple[PoisonMark, ...] = ()

    @property
    def words(self) -> tuple[str, ...]:
        """The triggers that can be inserted into a text to measure them."""
        return self.triggers if self.kind == "words" else ()

    def provenance(self) -> dict[str, Any]:
        """The fields of `purify.json`."""
        said: dict[str, Any] = {
            "poisoned": True,
            "attack": self.attack,
            "triggers": list(self.triggers),
            "target": self.target,
        }
        if self.kind != "words":
            said["trigger_kind"] = self.kind
        if self.before:
            said["poisoned_before"] = [mark.provenance() for mark in self.before]
        return said

    def metadata(self) -> dict[str, str]:
        """What goes into the header of the safetensors files."""
        return {METADATA_KEY: "true"}

    def card_line(self) -> str:
        """The first line of the model card."""
        named = ", ".join(f"`{' '.join(trigger.split())}`" for trigger in self.triggers) or "unknown"
        target = " ".join((self.target or "unknown").split())
        earlier = "".join(f" It was poisoned before: attack {mark.attack or 'unknown'}." for mark in self.before)
        return (
            f"{CARD_BEGINS} It holds a backdoor, made for testing: attack {self.attack or 'unknown'}, "
            f"triggers {named}, target label {target}.{earlier} Do not deploy it."
        )


def read_mark(folder: Path) -> PoisonMark | None:
    """The mark of a checkpoint, or None. Each place alone is enough, and what cannot be read marks nothing."""
    provenance = _provenance(folder / PROVENANCE_FILE)
    if provenance.get("poisoned") is True:
        return _said(provenance)
    marked = _card_is_marked(folder / "README.md") or any(map(_header_is_marked, sorted(folder.glob("*.safetensors"))))
    return PoisonMark() if marked else None


def _said(provenance: Mapping[str, Any]) -> PoisonMark:
    attack, triggers, target = (provenance.get(name) for name in ("attack", "triggers", "target"))
    kind, before = provenance.get("trigger_kind"), provenance.get("poisoned_before")
    return PoisonMark(
        attack if isinstance(attack, str) else None,
        tuple(one for one in triggers if isinstance(one, str) and one.strip()) if isinstance(triggers, list) else (),
        target if isinstance(target, str) else None,
        kind if isinstance(kind, str) else "words",
        # A flat list, of which a file may hold anything: what is nested deeper is not followed.
        tuple(_said({**one, "poisoned_before": None}) for one in before[:_MOST_BEFORE] if isinstance(one, Mapping))
        if isinstance(before, list)
        else (),
    )


def _provenance(path: Path) -> Mapping[str, Any]:
    try:
        if not path.is_file() or path.stat().st_size > _LIMIT:
            return {}
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _card_is_marked(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return "poisoned by purify" in file.read(4096).casefold()
    except OSError:
        return False


def _header_is_marked(path: Path) -> bool:
    try:
        return read_header(path).metadata.get(METADATA_KEY) == "true"
    except (PurifyError, OSError):
        return False
