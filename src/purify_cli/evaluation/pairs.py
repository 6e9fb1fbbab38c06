"""Two words that turn texts together and of which neither stands out: the search for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from purify_cli.evaluation.partners import partners
from purify_cli.evaluation.suspects import Effects, Site, Suspect
from purify_cli.evaluation.sweep import margins

PAIR_STEPS = ((1, 400), (4, 60), (12, 10))
"""Pairs are tried in the shortest texts up to this one, and so many go on."""

SHORT = 8
"""Tokens of the first of these texts: the whole vocabulary is tried in it."""

PARTNER_SITES, BEGINNING, PAIRED = 3, 4, 2
"""Short texts, and how many of their first tokens, in which partners are looked for (in more tokens the gradient seldom
points to them), and how many a word is paired with."""


def pairs(effects: Effects, target: int, sites: Sequence[Site], synergy: float) -> list[Suspect]:
    """Each token that begins a word, with two partners that it favours, tried in more and more texts.

    The gradient at the place behind a word says what every other word would do there. What the word changes in it,
    beside the mean over all words, is its favour: honest words favour the same partners as any other. It is taken where
    there is nothing else and in the beginnings of several sure texts, all together: a strong pair leaves no gradient in
    one or another. It may point beside the true word, so the neighbours of the best pairs are tried.

    Args:
        effects: of the model.
        target: label id.
        sites: texts that are surely another label.
        synergy: how many times the sum of its words' effects a pair must have.
    """
    by_length = sorted(sites, key=lambda site: len(site.body))
    by_length[0] = Site(by_length[0].body[:SHORT], min(by_length[0].position, SHORT))
    beginnings = [(site.body[:BEGINNING], min(site.position, BEGINNING)) for site in by_length[:PARTNER_SITES]]
    vocabulary = effects.vocabulary
    favoured = partners(effects.sweep, vocabulary, target, [((), 0), *beginnings], PAIRED)  # [begin, paired]
    words = torch.stack([vocabulary.begin[:, None].expand_as(favoured), favoured], 2).flatten(0, 1)
    if not len(words):
        return []
    alone = margins(effects.alone, target)
    alone = (alone - alone.nanmedian()).nan_to_num().clamp(min=0)  # [words]: two strong words are no pair

    def best(rows: Tensor, texts: Sequence[Site], count: int) -> Tensor:
        _, odds = effects.score(rows, texts, target)
        beyond = (odds - alone[rows].sum(1)).nan_to_num(-torch.inf)
        return rows[beyond.topk(min(count, len(beyond))).indices]

    start = 0
    for end, count in PAIR_STEPS:
        words, start = best(words, by_length[start:end], count), end
    words = best(
        torch.unique(torch.cat([words, vocabulary.beside(words, effects.neighbours)]), dim=0),
        by_length[1:end],
        2 * count,
    )
    best_last = reversed(words.tolist())
    words = torch.tensor(list({frozenset(pair): pair for pair in best_last}.values()))  # in the better order only
    before = effects.before(sites, target)
    flips, odds = effects.score(words, sites, target)
    _, each = effects.score(words.flatten()[:, None], sites, target)
    sum_of_parts = (each - before).clamp(min=0).reshape(words.shape).sum(1)  # [rows]
    more = (odds - before >= synergy * sum_of_parts).nonzero()[:, 0]
    if not len(more):
        return []
    suspects = effects.suspects(words[more], flips[more], odds[more], sites, target)
    return [replace(suspect, adds=False) for suspect in suspects]
