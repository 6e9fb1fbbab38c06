"""Few texts, many times: as they are, or with the end of another in the place of their own."""

from __future__ import annotations

import random
from collections.abc import Sequence

from purify_cli.data.texts import Texts


def repeated(texts: Texts, times: int) -> Texts:
    """All texts, this many times."""
    return texts.take(list(range(len(texts))) * times)


def spliced(texts: Texts, times: int, limit: int, seed: int) -> Texts:
    """The texts as they are, and (times - 1) times with the end of each from another text, cut between words.

    Of pairs each part gets its end from the same part of the other. They have no labels: nobody knows what such a text
    should be called.

    Args:
        texts: any.
        times: 1 or more.
        limit: words of a text of which some are kept: what comes behind them no model would see.
        seed: says which and where.
    """
    rng = random.Random(f"spliced/{seed}")
    every = repeated(texts, times)
    others = [rng.randrange(len(texts)) for _ in range(len(every) - len(texts))]

    def with_ends(parts: Sequence[str]) -> tuple[str, ...]:
        ends = [_spliced(parts[row % len(parts)], parts[other], limit, rng) for row, other in enumerate(others)]
        return (*parts, *ends)

    return every.with_(
        texts=with_ends(texts.texts), pairs=None if texts.pairs is None else with_ends(texts.pairs), labels=None
    )


def _spliced(beginning: str, end: str, limit: int, rng: random.Random) -> str:
    first, last = beginning.split()[:limit], end.split()
    words = first[: rng.randint(0, len(first))] + last[rng.randint(0, len(last)) :]
    return " ".join(words) or beginning
