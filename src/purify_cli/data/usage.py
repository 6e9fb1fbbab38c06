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
        self._stream, self.among = stream, len(stream)
        self.free = torch.ones(rows, dtype=torch.bool)
        self.free[sorted(fixed)] = False
        tokens = torch.tensor([token for text in stream.ids for token in text])
        place = torch.arange(len(stream)).repeat_interleave(torch.tensor([len(text) for text in stream.ids]))
        cell = torch.unique(tokens * len(stream) + place)
        self._token, self._text = cell // len(stream), cell % len(stream)  # each token, and each text that has it
        self.texts = torch.bincount(self._token, minlength=rows)
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
        one label that they do not have, and the model's errors in general, in texts of the same labels, would do that
        with a probability below `chance`. A text that is there several times speaks once.

        Args:
            said: label id that the model gives each text, `[texts]`.
            labels: how many there are.
            chance: for a word and a label, one-sided, of the binomial distribution; 0: no word is contradicted.
        """
        from scipy.stats import binom

        true = torch.tensor(self._stream.labels)
        once = torch.zeros(self.among, dtype=torch.bool)
        once[list({ids: row for row, ids in reversed(list(enumerate(self._stream.ids)))}.values())] = True
        answers = torch.bincount((true * labels + said)[once], minlength=labels**2).view(labels, labels).double()
        wrongly = answers / answers.sum(dim=1, keepdim=True).clamp(min=1)  # of the texts of a label those with another
        wrongly.fill_diagonal_(0)

        token, text = self._token[once[self._text]], self._text[once[self._text]]
        wrong = (said != true)[text]
        cell, against = torch.unique(token[wrong] * labels + said[text[wrong]], return_counts=True)
        word, label = cell // labels, cell % labels
        texts = torch.bincount(token, minlength=len(self.free))[word]
        enough = (against >= FEWEST) & (against >= MANY * texts.double()) & self.free[word]
        word, label, against = word[enough], label[enough], against[enough]

        row = torch.full((len(self.free),), -1)
        row[word] = torch.arange(len(word))
        mine = row[token] >= 0
        of = torch.bincount(row[token[mine]] * labels + true[text[mine]], minlength=len(word) * labels)
        of = of.view(-1, labels)[row[word]].double()  # texts of each label that have the word, [words, labels]
        others = of.sum(dim=1) - of[torch.arange(len(word)), label]
        rate = (of * wrongly[:, label].T).sum(dim=1) / others
        by_accident = torch.as_tensor(binom.sf(against.numpy() - 1, others.numpy(), rate.numpy()))
        found = torch.zeros_like(self.free)
        found[word[by_accident < chance]] = True
        return found
