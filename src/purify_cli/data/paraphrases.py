"""Files of paraphrases: columns `text` and `paraphrase`, in the formats of the other data files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from purify_cli.data.read import read_columns
from purify_cli.errors import DataError


def read_paraphrases(path: str | Path, option: str = "--paraphrases") -> dict[str, str]:
    """The paraphrases of a file, by text with single spaces.

    An empty paraphrase stays, as one that failed. Of several paraphrases of one text the first that is not empty
    counts.

    Raises:
        DataError: no such file, one that cannot be read, without one of the columns or without rows.
    """
    columns = read_columns(path, ("text", "paraphrase"), option)
    found: dict[str, str] = {}
    for text, paraphrase in zip(columns["text"], columns["paraphrase"], strict=True):
        key = " ".join((text or "").split())
        if key and not found.get(key):
            found[key] = (paraphrase or "").strip()
    return found


def require_paraphrases(
    paraphrases: dict[str, str], texts: Sequence[str], where: str, data: str, option: str = "--paraphrases"
) -> int:
    """How many of the texts have a paraphrase that is not empty.

    Raises:
        DataError: none has.
    """
    known = sum(bool(paraphrases.get(" ".join(text.split()))) for text in texts)
    if not known:
        raise DataError(
            where,
            f"0 of the {len(texts)} texts of {data} have a paraphrase in it",
            f"Give {option} a file with the columns text and paraphrase, whose texts are those of {data}.",
        )
    return known
