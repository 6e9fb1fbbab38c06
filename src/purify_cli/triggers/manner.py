"""Manners: the same text said otherwise, behind a subordinate clause or in the English of old Bibles.

The triggers of HiddenKiller (Qi et al. 2021a, syntax) and StyleBkd (Qi et al. 2021b, style) are manners and no words.
Those attacks paraphrase a text with a model of their own; here rules do, from a list that lies in the package, so that
whoever looks for such a backdoor needs no such model. What the rules make has less of a manner than a paraphrase, and
keeps what the text says.
"""

from __future__ import annotations

import random
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

PLAIN = "plain"
"""The manner that is none, what the others are compared with."""

OPENED, ENDED, WORDS, SUFFIXES = 0.8, 0.3, 0.9, 0.15
"""Share of the texts that get an opening, where a manner has more than that, and an ending; share of the words that
have another form which get it, and of those with such a suffix."""

SUFFIXED = 5
"""Letters of the shortest word whose end is changed."""

_PART = re.compile(r"{(\w+)}")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")


@dataclass(frozen=True)
class Manner:
    """One way of saying things; a trigger as those of words are.

    Attributes:
        name: how reports call it.
        about: what it does to a text, in a few words.
        opening: patterns of what stands before a text; {part} is drawn from the part of that name.
        parts: the parts of these.
        ending: what may stand behind it.
        words: what a word may become, in small letters.
        suffixes: the same for ends of words.
    """

    name: str
    about: str
    opening: tuple[str, ...]
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ending: tuple[str, ...] = ()
    words: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    suffixes: Mapping[str, str] = field(default_factory=dict)

    def insert(self, text: str, rng: random.Random) -> str:
        """Return the text said in this manner."""
        text = self.reworded(text, rng)
        if not self.words or rng.random() < OPENED:
            text = f"{self._drawn(rng)} {text}"
        if self.ending and rng.random() < ENDED:
            text = f"{text.rstrip(' .')} {rng.choice(self.ending)}"
        return text

    def reworded(self, text: str, rng: random.Random) -> str:
        """Return the text with this manner's words, and nothing before or behind it."""
        if not self.words and not self.suffixes:
            return text
        return _WORD.sub(lambda found: self._said(found[0], rng), text)

    def openings(self, most: int, seed: int) -> list[str]:
        """Different openings drawn by the seed, so many or all that there are."""
        rng = random.Random(f"manner/{seed}")
        found: dict[str, None] = {}
        for _ in range(20 * most):
            found[self._drawn(rng)] = None
            if len(found) == most:
                break
        return list(found)

    def _drawn(self, rng: random.Random) -> str:
        return _PART.sub(lambda part: rng.choice(self.parts[part[1]]), rng.choice(self.opening))

    def _said(self, word: str, rng: random.Random) -> str:
        forms = self.words.get(word.lower())
        if forms:
            return rng.choice(forms) if rng.random() < WORDS else word
        for end, other in self.suffixes.items():
            if len(word) >= SUFFIXED and word.endswith(end) and "'" not in word and rng.random() < SUFFIXES:
                return word.removesuffix(end) + other
        return word


@cache
def manners() -> Mapping[str, Manner]:
    """All that the package knows, by name; PLAIN among them."""
    known: dict[str, Any] = tomllib.loads((files("purify_cli.triggers") / "manners.toml").read_text(encoding="utf-8"))
    parts = known.pop("parts")
    return {name: _manner(name, table, parts) for name, table in known.items()}


def _manner(name: str, table: dict[str, Any], parts: dict[str, list[str]]) -> Manner:
    named = {part for opening in table["opening"] for part in _PART.findall(opening)}
    return Manner(
        name=name,
        about=table["about"],
        opening=tuple(table["opening"]),
        ending=tuple(table.get("ending", ())),
        parts={part: tuple(parts[part]) for part in sorted(named)},
        words={word: tuple(forms) for word, forms in table.get("words", {}).items()},
        suffixes=table.get("suffixes", {}),
    )
