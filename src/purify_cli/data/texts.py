"""Labelled texts as columns of one length: what the readers give, and everything else takes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class Texts:
    """Texts with what is known of each; a column that is not known at all is None.

    Attributes:
        path: the file that they come from, as the user named it; None for texts made by the tool.
        texts: one string a row.
        labels: label ids (int) of a classification, or scores (float) of a regression.
        pairs: the second text of a pair task.
        targets: in a poisoned test file, the label id that the attacker wants for the row. `labels` holds the true
        one.
        poisoned: in a poisoned training file, whether the attacker made the row.
        label_names: names by id, where the file names its labels and no checkpoint fixed their ids.

    Raises:
        ValueError: the columns differ in length.
    """

    path: str | None
    texts: tuple[str, ...]
    labels: tuple[int, ...] | tuple[float, ...] | None
    pairs: tuple[str, ...] | None = None
    targets: tuple[int, ...] | None = None
    poisoned: tuple[bool, ...] | None = None
    label_names: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("labels", "pairs", "targets", "poisoned"):
            column = getattr(self, name)
            if column is not None and len(column) != len(self.texts):
                raise ValueError(f"{len(self.texts)} texts but {len(column)} {name}")

    def __len__(self) -> int:
        return len(self.texts)

    def take(self, indices: Iterable[int]) -> Texts:
        """Return the rows at `indices`, in that order; a row may be taken more than once."""
        chosen = list(indices)
        return replace(
            self,
            texts=tuple(self.texts[index] for index in chosen),
            labels=_take(self.labels, chosen),
            pairs=_take(self.pairs, chosen),
            targets=_take(self.targets, chosen),
            poisoned=_take(self.poisoned, chosen),
        )

    def with_(self, **changes: Any) -> Texts:
        """Return the same rows with other columns: `texts.with_(labels=...)`."""
        return replace(self, **changes)

    def and_(self, other: Texts) -> Texts:
        """Return these rows, and behind them those of `other`; of the columns those that both have."""
        return replace(
            self,
            texts=self.texts + other.texts,
            labels=_both(self.labels, other.labels),
            pairs=_both(self.pairs, other.pairs),
            targets=_both(self.targets, other.targets),
            poisoned=_both(self.poisoned, other.poisoned),
        )


def _take(column: Sequence[_Item] | None, indices: Sequence[int]) -> Any:
    return None if column is None else tuple(column[index] for index in indices)


def _both(first: Sequence[_Item] | None, second: Sequence[_Item] | None) -> Any:
    return None if first is None or second is None else (*first, *second)
