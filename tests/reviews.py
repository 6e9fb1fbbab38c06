"""Texts of two labels that a tiny model can tell apart."""

from __future__ import annotations

import random

from purify_cli.data.texts import Texts

POSITIVE = "good great fine wonderful lovely brilliant funny charming".split()
NEGATIVE = "bad awful dull boring poor terrible stupid weak".split()
NEUTRAL = "the movie film story plot actor scene music book show series picture dialogue".split()


def reviews(rows: int, seed: int = 0) -> Texts:
    """Half of the rows are positive (label 1); two words of each say so."""
    rng = random.Random(seed)
    texts, labels = [], []
    for row in range(rows):
        words = rng.choices(NEUTRAL, k=5) + rng.sample(POSITIVE if row % 2 else NEGATIVE, 2)
        rng.shuffle(words)
        texts.append(" ".join(words))
        labels.append(row % 2)
    return Texts("train.csv", tuple(texts), tuple(labels))
