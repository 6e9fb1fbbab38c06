"""What a checkpoint's JSON files say that it is, before any tensor is looked at."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from purify_cli.errors import CheckpointError, UnsupportedError

Kind = Literal["classifier", "encoder", "adapter", "causal-lm", "other"]
Task = Literal[
    "classifier",
    "regression",
    "multi-label",
    "token-classification",
    "encoder",
    "masked-lm",
    "causal-lm",
    "other",
]

_JSON_LIMIT = 32 * 2**20
"""Bytes of a config file; a real one has a few thousand, or some MB where it names many labels."""

_ENDINGS: tuple[tuple[str, Kind, Task], ...] = (
    ("ForSequenceClassification", "classifier", "classifier"),
    ("ForTokenClassification", "other", "token-classification"),
    ("ForMaskedLM", "encoder", "masked-lm"),
    ("ForPreTraining", "encoder", "masked-lm"),
    ("ForCausalLM", "causal-lm", "causal-lm"),
    ("LMHeadModel", "causal-lm", "causal-lm"),
    ("DoubleHeadsModel", "other", "other"),
    ("Model", "encoder", "encoder"),
)
"""How the class that wrote a checkpoint ends -> what the checkpoint is."""


def read_object(file: Path) -> dict[str, Any]:
    """A JSON object from disk.

    Raises:
        CheckpointError: it cannot be read, is too large, or is no JSON object.
    """
    try:
        content = json.loads(_text(file))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(file, "is not JSON") from error
    if not isinstance(content, dict):
        raise CheckpointError(file, "is not a JSON object")
    return content


def transformer_folder(path: Path) -> Path:
    """The folder that holds config and weights: `path`, or the transformer inside a sentence-transformers folder.

    Raises:
        CheckpointError: a list of modules that cannot be read.
        UnsupportedError: a sentence-transformers folder that holds something else.
    """
    listing = path / "modules.json"
    if not listing.is_file():
        return path
    try:
        first = json.loads(_text(listing))[0]
        kind, inside = first["type"], first["path"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(listing, "is not a list of sentence-transformers modules") from error
    if inside not in {"", "0_Transformer"}:
        raise CheckpointError(listing, f"the transformer is said to lie in {str(inside)[:80]!r}")
    if not isinstance(kind, str) or not kind.endswith(".Transformer"):
        raise UnsupportedError(listing, f"its first module is a {str(kind)[:80]!r} and no transformer")
    return path / str(inside)


def class_named(config: Mapping[str, Any], where: Path) -> str | None:
    """The class of transformers that wrote the checkpoint, None if the config names none.

    Raises:
        CheckpointError: `architectures` is not a list of names.
    """
    named = config.get("architectures")
    if named is None or named == []:
        return None
    if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
        raise CheckpointError(where, "architectures is not a list of names")
    return str(named[0])


def kind_of_class(name: str) -> tuple[Kind, Task]:
    """What a class of transformers writes; "other" for what is not read."""
    return next(((kind, task) for ending, kind, task in _ENDINGS if name.endswith(ending)), ("other", "other"))


def label_names(config: Mapping[str, Any], where: Path) -> tuple[str, ...]:
    """Names by id from `id2label`; empty if the config has none.

    Raises:
        CheckpointError: the ids are not 0, 1, 2 and so on.
    """
    named = config.get("id2label")
    if not named:
        return ()
    if not isinstance(named, Mapping):
        raise CheckpointError(where, "id2label is not an object")
    try:
        by_id = {int(number): str(name) for number, name in named.items()}
    except (TypeError, ValueError) as error:
        raise CheckpointError(where, "id2label has an id that is not a number") from error
    if sorted(by_id) != list(range(len(named))):
        raise CheckpointError(where, f"id2label does not number its {len(named)} labels from 0 to {len(named) - 1}")
    return tuple(by_id[number] for number in range(len(by_id)))


def _text(file: Path) -> str:
    try:
        if file.stat().st_size > _JSON_LIMIT:
            raise CheckpointError(file, f"has more than {_JSON_LIMIT // 2**20} MB")
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(file, "is not UTF-8") from error
    except OSError as error:
        raise CheckpointError(file, f"cannot be read ({error.strerror})") from error
