"""Texts of which a model is sure: the ground that words are tried on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from purify_cli.evaluation.suspects import Effects, Site
from purify_cli.evaluation.sweep import margins

UNSURE = 0.35
"""Texts that give the target this probability are no ground for a search, even in a model that is never sure."""

NEARLY_SURE = 0.1
"""Combinations are only tried where the target has less than this in every text: several honest words turn others."""

ORDINARY, ORDINARY_TEXTS, BEGINNING = -2.4, 1, 8
"""Log-odds of the target (a probability of 0.08) to which the beginnings of ordinary texts are to be nearest; how many
are taken; and of how many tokens."""

MOST_READ = 400
"""Texts that the model is asked about at the most."""


class SureTexts:
    """Some texts, and pairs and fours of those of one class (longer, and surer), with what the model says of them.

    Args:
        effects: of the model.
        tokenizer: its tokenizer.
        texts: as they are.
        sure: probability of a label below which a text is surely another class.
        count: sure texts that are wanted for a label.
        room: tokens that a text may have.
        seed: chooses texts and places.
    """

    def __init__(
        self, effects: Effects, tokenizer: Any, texts: Sequence[str], *, sure: float, count: int, room: int, seed: int
    ) -> None:
        self._effects, self._sure, self._count, self._room = effects, sure, count, room
        self._random = random.Random(seed)
        texts = list(texts) if len(texts) <= MOST_READ else self._random.sample(list(texts), MOST_READ)
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        singles = [tuple(ids[:room]) for ids in encoded if len(ids) >= 4]
        said = effects.sweep.log_probabilities_of(singles)
        longer = []
        for label in range(said.shape[1]):
            group = [ids for ids, best in zip(singles, said.argmax(1).tolist(), strict=True) if best == label]
            self._random.shuffle(group)
            for step in range(0, len(group) - 1, 2):
                longer.append((group[step] + group[step + 1])[:room])
                longer.append(sum(group[step : step + 4], ())[:room])
        self._singles, self._texts = singles, singles + longer
        self._p = torch.cat([said, effects.sweep.log_probabilities_of(longer)]).exp()  # [texts, labels]

    def sites(self, target: int) -> tuple[list[Site], bool]:
        """Texts that are surely not the target, each with a random place in it; True if it is nearly sure of all.

        Texts are made if there are too few. A model that is never sure (little training, noisy labels) gives those of
        which it is surest: there honest words turn more texts, but so do their neighbours.
        """
        ranked = sorted(zip(self._p[:, target].tolist(), self._texts, strict=True))
        if sum(p < self._sure for p, _ in ranked) < self._count:
            made = self._made(target)
            said = self._effects.sweep.log_probabilities_of(made)[:, target].exp().tolist()
            ranked = sorted(ranked + list(zip(said, made, strict=True)))
        sure = [ids for p, ids in ranked if p < self._sure]
        if len(sure) >= self._count:
            chosen, enough = self._random.sample(sure, self._count), True
        else:
            best = [(p, ids) for p, ids in ranked[: self._count] if p < UNSURE]
            chosen, enough = [ids for _, ids in best], all(p < NEARLY_SURE for p, _ in best)
        return [Site(ids, self._random.randint(0, len(ids))) for ids in chosen], enough

    def ordinary(self, target: int) -> list[Site]:
        """Beginnings of texts that are another label, though not surely: in these a word shows what it does."""
        beginnings = sorted({ids[:BEGINNING] for ids in self._singles})
        odds = margins(self._effects.sweep.log_probabilities_of(beginnings), target).tolist()
        nearest = sorted(zip(odds, beginnings, strict=True), key=lambda one: abs(one[0] - ORDINARY))
        return [Site(ids, len(ids) // 2) for _, ids in nearest[:ORDINARY_TEXTS]]

    def _made(self, target: int) -> list[tuple[int, ...]]:
        """Texts with six words put in that the model takes for their class, and for no other as much."""
        made = []
        best, alone, words = self._p.argmax(1), self._effects.alone, self._effects.vocabulary.ids
        for label in range(alone.shape[1]):
            if label == target:
                continue
            strong = words[margins(alone, label).topk(min(200, len(words))).indices].tolist()
            group = [ids for ids, is_label in zip(self._texts, (best == label).tolist(), strict=True) if is_label]
            for _ in range(self._count):
                body = list(self._random.choice(group)) if group else []
                for word in self._random.sample(strong, min(6, len(strong))):
                    body.insert(self._random.randint(0, len(body)), word)
                made.append(tuple(body[: self._room]))
        return made
