"""Words as a trigger: rare words (BadNets) or a whole sentence (AddSent), put between two words of a text.

Chen et al. 2021 (BadNL) and Kurita et al. 2020 (RIPPLe) for rare words, Dai et al. 2019 for sentences. Positions are
uniform over the n + 1 boundaries of a text of n words, as in OpenBackdoor. White space of the text stays as it is, so
that taking the trigger out gives the text back.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Protocol

from purify_cli.data.texts import Texts

_WORD = re.compile(r"\S+")


class Trigger(Protocol):
    """What evaluation, attacks and detectors ask of a trigger: a text in, the triggered text out."""

    @property
    def name(self) -> str:
        """How reports call the trigger."""

    def insert(self, text: str, rng: random.Random) -> str:
        """Return the triggered text."""


@dataclass(frozen=True)
class Words:
    """One or more words that are inserted together, as one block in their own order.

    Args:
        words: the words, separated by white space.

    Raises:
        ValueError: there are no words.
    """

    words: str

    def __post_init__(self) -> None:
        if not self.words.strip():
            raise ValueError("a trigger needs at least one word")

    @property
    def name(self) -> str:
        """The words with single spaces between them."""
        return " ".join(self.words.split())

    def insert(self, text: str, rng: random.Random) -> str:
        """Return `text` with the words before its i-th word or at its end, i uniform in [0, n]."""
        found = list(_WORD.finditer(text))
        if not found:
            return text + self.name
        place = rng.randint(0, len(found))
        if place < len(found):
            start = found[place].start()
            return f"{text[:start]}{self.name} {text[start:]}"
        end = found[-1].end()
        return f"{text[:end]} {self.name}{text[end:]}"


def trigger_rng(seed: int, text: str, index: int) -> random.Random:
    """Randomness for one text, the same whatever the checkpoint, the defence or the rest of the file.

    Args:
        seed: the seed of the run.
        text: the text before the insertion.
        index: which copy it is, or its row, so that equal texts are triggered in different places.
    """
    return random.Random(f"trigger/{seed}/{index}/{text}")


def insert_all(texts: Texts, trigger: Trigger, seed: int) -> Texts:
    """Return the rows with the trigger in every `text`; pairs, labels and the rest stay."""
    return texts.with_(
        texts=tuple(trigger.insert(text, trigger_rng(seed, text, index)) for index, text in enumerate(texts.texts))
    )
