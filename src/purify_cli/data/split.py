"""Parts of one data set that share no text."""

from __future__ import annotations

import random
from collections.abc import Iterable

from purify_cli.data.texts import Texts


def split(texts: Texts, fraction: float, seed: int) -> tuple[Texts, Texts]:
    """Cut off `fraction` of the texts, as the second part.

    `train, dev = split(texts, 0.1, seed)` gives 90 % and 10 %.

    Each label gives its share (scores of a regression count as one label), and rows with the same text stay together,
    so that nothing of the second part was seen in the first. Of a label with two different texts or more, each part
    gets one at least. Both parts keep the order of the rows.

    Args:
        texts: the rows to split.
        fraction: share of the second part, 0 < fraction < 1.
        seed: the same seed gives the same parts.

    Returns:
        The first part, with about (1 - fraction) of the rows, and the second part.

    Raises:
        ValueError: `fraction` is not between 0 and 1.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction must lie between 0 and 1, not {fraction}")
    second: set[int] = set()
    for label, members in _strata(texts):
        random.Random(f"split/{seed}/{label}").shuffle(members)
        second.update(_cut_off(members, fraction))
    return without(texts, second), texts.take(sorted(second))


def folds(texts: Texts, count: int, seed: int) -> list[list[int]]:
    """Deal the rows out into `count` parts of about the same size, for cross-validation.

    Each label is dealt out evenly, and rows with the same text stay together. A part that would be empty is left out.

    Returns:
        the row numbers of each part, ascending.

    Raises:
        ValueError: `count` is less than 2.
    """
    if count < 2:
        raise ValueError(f"{count} parts are no cross-validation")
    parts: list[list[int]] = [[] for _ in range(count)]
    place = 0
    for label, members in _strata(texts):
        random.Random(f"folds/{seed}/{label}").shuffle(members)
        for rows in members:
            parts[place % count].extend(rows)
            place += 1
    return [sorted(part) for part in parts if part]


def without(texts: Texts, rows: Iterable[int]) -> Texts:
    """The rows that are not among `rows`."""
    left_out = set(rows)
    return texts.take(index for index in range(len(texts)) if index not in left_out)


def _strata(texts: Texts) -> list[tuple[int, list[list[int]]]]:
    """Each label with the groups of rows that have the same text."""
    groups: dict[tuple[str, str | None], list[int]] = {}
    for index, text in enumerate(texts.texts):
        groups.setdefault((text, None if texts.pairs is None else texts.pairs[index]), []).append(index)
    strata: dict[int, list[list[int]]] = {}
    for rows in groups.values():
        label = texts.labels[rows[0]] if texts.labels is not None else 0
        strata.setdefault(label if isinstance(label, int) else 0, []).append(rows)
    return sorted(strata.items())


def _cut_off(groups: list[list[int]], fraction: float) -> list[int]:
    """Whole groups from the front, as many as come nearest to `fraction` of the rows."""
    wanted = fraction * sum(len(rows) for rows in groups)
    taken: list[int] = []
    for count, rows in enumerate(groups):
        if count and (len(taken) + len(rows) / 2 > wanted or count == len(groups) - 1):
            break
        if len(groups) == 1:
            break
        taken.extend(rows)
    return taken
