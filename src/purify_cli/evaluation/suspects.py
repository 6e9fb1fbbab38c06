"""What words do in texts, beside what their neighbours do: what a search goes by, and what it tells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from purify_cli.evaluation.sweep import Sweep, margins
from purify_cli.evaluation.vocabulary import Vocabulary

CONTROL_SITES = 10
"""Texts that a control group is tried on."""


@dataclass(frozen=True)
class Site:
    """A text (token ids without special tokens) and the place in it where words are put."""

    body: tuple[int, ...]
    position: int


@dataclass(frozen=True)
class Suspect:
    """Words and what they did: shares of the sure texts turned by them and by their control groups, and more.

    Attributes:
        honest: of a combination or sequence, the greatest shift of the log-odds by as many honest words, as a share of
            its own.
        shift: of the target's log-odds.
        adds: whether that is what its words do, added up; pairs and sequences do more.
    """

    words: tuple[int, ...]
    target: int
    flips: float
    control: float
    company: float
    margin: float
    alone: float
    texts: int
    shift: float
    honest: float | None = None
    adds: bool = True

    @property
    def excess(self) -> float:
        """Flips over those of the control groups."""
        return self.flips - self.control


class Effects:
    """Asks one model what words do, alone and in texts.

    Args:
        sweep: the classifier.
        vocabulary: of it; words are indices into it.
        neighbours: size of a control group.
    """

    def __init__(self, sweep: Sweep, vocabulary: Vocabulary, neighbours: int) -> None:
        self.sweep, self.vocabulary, self.neighbours = sweep, vocabulary, neighbours
        self.alone = sweep.log_probabilities(vocabulary.ids[:, None])  # [words, labels]

    def score(self, words: Tensor, sites: Sequence[Site], target: int) -> tuple[Tensor, Tensor]:
        """[rows, k] words -> the share of sites turned to the target, and mean log-odds."""
        flips = torch.zeros(words.shape[0], dtype=torch.float64)  # 36 of 40 are 0.9, in single precision less
        odds = torch.zeros(words.shape[0])
        for site in sites:
            said = self.sweep.inserted(site.body, site.position, self.vocabulary.ids[words])
            flips += said.argmax(1) == target
            odds += margins(said, target)
        return flips / len(sites), odds / len(sites)

    def before(self, sites: Sequence[Site], target: int) -> Tensor:
        """Mean log-odds of the target in the texts as they are."""
        return margins(self.sweep.log_probabilities_of([site.body for site in sites]), target).mean()

    def suspects(self, words: Tensor, flips: Tensor, odds: Tensor, sites: Sequence[Site], target: int) -> list[Suspect]:
        """Rows of words [rows, k] with what they did, beside their control groups."""
        alone = margins(self.alone, target)[words].max(dim=1).values
        control, company, shift = self.controls(words, sites, target)
        columns = torch.stack([flips, control, company, odds, alone, shift], dim=1).tolist()
        return [
            Suspect(tuple(ids), target, flip, nearest, share, margin, best, len(sites), moved)
            for ids, (flip, nearest, share, margin, best, moved) in zip(words.tolist(), columns, strict=True)
        ]

    def controls(self, words: Tensor, sites: Sequence[Site], target: int) -> tuple[Tensor, Tensor, Tensor]:
        """What the control groups of each row do: all its words replaced by their j-th neighbours.

        Args:
            words: [rows, k].

        Returns:
            flips, [rows]: median share of the texts that a group turns.
            company, [rows]: median shift of the log-odds by a group, as a share of the shift by the words themselves.
            shift, [rows]: by the words themselves.
        """
        rows, size = words.shape
        near = self.vocabulary.neighbours(words.flatten(), self.neighbours)
        near = near.reshape(rows, size, -1).transpose(1, 2)  # [rows, neighbours, k]
        groups = torch.cat([words[:, None], near], dim=1)  # [rows, 1 + neighbours, k]
        sites = sites[:CONTROL_SITES]
        flips, odds = self.score(groups.reshape(-1, size), sites, target)
        shift = (odds - self.before(sites, target)).reshape(rows, -1)
        company = shift[:, 1:].median(dim=1).values / shift[:, 0].clamp(min=1e-6)
        return flips.reshape(rows, -1)[:, 1:].median(dim=1).values, company, shift[:, 0]
