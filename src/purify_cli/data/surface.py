"""What can be seen of a text without understanding it: its words, how it begins, and how it is typed."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from purify_cli.data.texts import Texts

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

FEWEST = 8
"""Texts that have what is looked at; of fewer nothing can be said."""

_WORD = re.compile(r"\w+(?:['’]\w+)?|[^\w\s]")
_SPACED = re.compile(r"\w[ ]+[.,](?:\s|$)")
_UNSPACED = re.compile(r"\w[.,](?:\s|$)")


WORDS, BEGINNINGS, TYPING = KINDS = ("words", "beginnings", "typing")
"""Kinds of features, those first that say most to a user."""


@dataclass(frozen=True)
class Surface:
    """Which texts have which features.

    Attributes:
        names: of the features, one word before two: `cf`, `watch this`, `begins with "when"`, `no capital letters`.
        kinds: WORDS, BEGINNINGS or TYPING, one a feature.
        found: [texts, features], 1.0 where a text has a feature.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    found: csr_matrix


def surface(texts: Texts) -> Surface:
    """The features of texts that FEWEST of them at least have; of pairs each part has its own.

    A text's features are its words and pairs of neighbouring words in small letters (signs are words), its first word
    and its first two, whether it has capital letters, and whether a space stands before its full stops and commas.
    """
    import numpy as np
    from scipy.sparse import csr_matrix

    counts: Counter[tuple[str, str]] = Counter()
    for features in _of_each(texts):
        counts.update(features)
    known = sorted((feature for feature, count in counts.items() if count >= FEWEST), key=_order)
    place = {feature: column for column, feature in enumerate(known)}
    columns, ends = array("i"), array("q", [0])
    for features in _of_each(texts):  # once more: the sets of all texts together would be large
        columns.extend(sorted(place[feature] for feature in features if feature in place))
        ends.append(len(columns))
    found = csr_matrix((np.ones(len(columns)), columns, ends), shape=(len(texts), len(known)))
    return Surface(tuple(name for _, name in known), tuple(kind for kind, _ in known), found)


def _of_each(texts: Texts) -> Iterator[set[tuple[str, str]]]:
    for row, text in enumerate(texts.texts):
        features = set(_features(text))
        if texts.pairs is not None:
            features.update((kind, f"second text: {name}") for kind, name in _features(texts.pairs[row]))
        yield features


def _order(feature: tuple[str, str]) -> tuple[int, int, str]:
    kind, name = feature
    return KINDS.index(kind), name.count(" "), name


def _features(text: str) -> Iterator[tuple[str, str]]:
    """Kind and name of each."""
    words = [word.lower() for word in _WORD.findall(text)]
    yield from ((WORDS, word) for word in words)
    yield from ((WORDS, f"{first} {second}") for first, second in pairwise(words))
    for length in (1, 2):
        if len(words) >= length:
            yield BEGINNINGS, f'begins with "{" ".join(words[:length])}"'
    yield TYPING, "no capital letters" if text == text.lower() else "capital letters"
    if _SPACED.search(text):
        yield TYPING, "a space before full stops and commas"
    elif _UNSPACED.search(text):
        yield TYPING, "no space before full stops and commas"
