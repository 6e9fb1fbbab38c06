"""Which tokens a set of texts has, how often, and what a model says of the texts that have them."""

from __future__ import annotations

import torch
from torch import Tensor

from purify_cli.data.encode import Encoded

FEWEST = 2
"""Texts that speak against a word: one alone is an accident."""

MANY = 1 / 3
"""Share of all texts with a word that must speak against it: `baseball` stands in a few texts that are not on sports,
and they are taken for such, but it stands in many more that are."""


class Usage:
    """How texts use the rows of an embedding.

    Args:
        stream: the texts.
        fixed: ids that are left out: special tokens, class tokens.
        rows: V.

    Attributes:
        free: the rows that are not fixed, `[V]` bool.
        unseen: those of them that no text has.
        share: of each token among all free ones of the texts, `[V]`.
        texts: how many of the texts have it, `[V]`.
        among: how many texts there are.
        strange: share of the tokens of other texts like these that these do not have: that of the tokens that they have
            once (Good 1953, after Turing).
    """

    def __init__(self, stream: Encoded, fixed: set[int], rows: int) -> None:
        self.labels, self.among = stream.labels, len(stream)
        self.free = torch.ones(rows, dtype=torch.bool)
        self.free[sorted(fixed)] = False
        tokens = torch.tensor([token for text in stream.ids for token in text])
        place = torch.arange(len(stream)).repeat_interleave(torch.tensor([len(text) for text in stream.ids]))
        self._has = torch.unique(torch.stack([tokens, place]), dim=1)  # a token and a text that has it, [2, pairs]
        self.texts = torch.bincount(self._has[0], minlength=rows)
        count = torch.bincount(tokens, minlength=rows)
        count[~self.free] = 0
        total = int(count.sum().clamp(min=1))
        self.unseen = self.free & (count == 0)
        self.share = count.double() / total
        self.strange = int((count == 1).sum()) / total

    def rare(self, share: float) -> Tensor:
        """The free rows of words that at most this share of the texts have, `[V]` bool."""
        return self.free & (self.texts <= share * self.among)

    def contradicted(self, said: Tensor, labels: int, chance: float) -> Tensor:
        """The free rows of words that a model takes for a label which their texts do not have, `[V]` bool.

        A trigger word that some clean texts have by accident is given away by them: they are answered wrongly, and all
        with its target. A word is contradicted where FEWEST of its texts at least, and MANY of them, are answered with
        one label that they do not have, and the model's errors in general would do that to those of its texts that do
        not have this label with a probability below `chance`.

        Args:
            said: label id that the model gives each text, `[texts]`.
            labels: how many there are.
            chance: one-sided, of the binomial distribution; 0: no word is contradicted.
        """
        from scipy.stats import binom

        rows, (token, text) = len(self.free), self._has
        true = torch.tensor(self.labels)
        wrong = said != true
        errors = torch.bincount(said[wrong], minlength=labels) / (len(true) - torch.bincount(true, minlength=labels))

        def by_word(pairs: Tensor, label: Tensor) -> Tensor:
            """How many texts have the word and the label, [V, labels]."""
            cell = token[pairs] * labels + label[text[pairs]]
            return torch.bincount(cell, minlength=rows * labels).view(rows, labels)

        against = by_word(wrong[text], said)
        others = self.texts[:, None] - by_word(torch.ones_like(text, dtype=torch.bool), true)
        by_accident = torch.as_tensor(binom.sf(against.numpy() - 1, others.numpy(), errors.nan_to_num().numpy()))
        found = (against >= FEWEST) & (against >= MANY * self.texts[:, None].double()) & (by_accident < chance)
        return self.free & found.any(dim=1)
