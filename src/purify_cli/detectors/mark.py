"""The tool's own poison mark: what `purify poison` writes says so in three places, of which each is enough.

`purify.json` (`"poisoned": true`), the safetensors metadata (`purify.poisoned`) and the first line of the model card. A
copy that lost one of them, by a save in another library or an edit of the card, is still recognized by the others.
Costs no forward pass. Raises nothing for files that cannot be read: those are the artifact detector's business.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from purify_cli.checkpoint.header import read_header
from purify_cli.checkpoint.inventory import list_folder
from purify_cli.errors import PurifyError
from purify_cli.results import Finding, Where
from purify_cli.run import Run

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "the mark that `purify poison` leaves on what it writes"
RULES = {"PM501": "the checkpoint says that purify poisoned it"}
NEEDS = ("files",)
BUDGET = "fast"

_METADATA_KEY = "purify.poisoned"
_CARD_SAYS = "poisoned by purify"
_MAX_TEXT_BYTES = 1 << 20


@dataclass(frozen=True)
class Settings:
    """Nothing to set."""


def detect(subject: Subject, evidence: Evidence, settings: Settings, run: Run) -> Iterator[Finding]:
    """One finding for all places together, named in its evidence."""
    places: list[dict[str, str]] = []
    said: dict[str, Any] = {}
    for file in list_folder(subject.path).files:
        named = subject.weights_file is None or file.path.resolve() == Path(subject.weights_file).resolve()
        if not named and file.relative not in ("purify.json", "README.md"):
            continue
        name = file.relative.rpartition("/")[2]
        if name == "purify.json" and (provenance := _provenance(file.path)):
            places.append({"file": file.relative, "place": "provenance"})
            said = provenance
        elif name == "README.md" and _card_says_so(file.path):
            places.append({"file": file.relative, "place": "model card"})
        elif name.endswith(".safetensors") and _metadata_says_so(file.path):
            places.append({"file": file.relative, "place": "safetensors metadata"})
    if not places:
        return
    kept = {key: said[key] for key in ("attack", "triggers", "target") if isinstance(said.get(key), str | list)}
    yield Finding(
        "PM501",
        "error",
        "mark",
        f"the checkpoint says that it was poisoned by purify ({', '.join(sorted({item['place'] for item in places}))})",
        Where(file=places[0]["file"]),
        {"places": places, **kept},
    )


def _provenance(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            parsed = json.loads(file.read(_MAX_TEXT_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) and parsed.get("poisoned") is True else {}


def _card_says_so(path: Path) -> bool:
    """Whether the first line behind an optional front matter (between two lines of `---`) holds the mark."""
    try:
        with path.open("rb") as file:
            lines = file.read(_MAX_TEXT_BYTES).decode("utf-8", "replace").lstrip("\ufeff").splitlines()
    except OSError:
        return False
    if lines and lines[0].strip() == "---":
        ends = [index for index, line in enumerate(lines[1:], start=1) if line.strip() == "---"]
        lines = lines[ends[0] + 1 :] if ends else lines
    first = next((line for line in lines if line.strip()), "")
    return _CARD_SAYS in first.casefold()


def _metadata_says_so(path: Path) -> bool:
    try:
        value = read_header(path).metadata.get(_METADATA_KEY)
    except (PurifyError, OSError):
        return False
    return value is not None and value.strip().casefold() not in ("", "0", "false", "no")
