"""The rest of a word of several pieces: a search names as many of them as suffice, and the others say nothing alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from purify_cli.evaluation.suspects import Effects, Site

BEGINNING = 4
"""Tokens of the text in which the whole vocabulary is tried beside each piece."""

TAKEN = 3
"""Words that are taken. The first was the missing piece in trials; the others meant as little alone, and it cost no
accuracy to treat them too."""


def rest(effects: Effects, pieces: Sequence[int], sites: Sequence[Site], target: int) -> list[tuple[int, ...]]:
    """Words that do more beside one of these pieces than both do alone, the most first, each with that piece.

    Between honest words that happens as well, though hardly as much: this names what may belong to a trigger, and
    accuses nobody. It is seen where nothing is decided yet, so it is looked at in the beginning of that text in which
    the pieces do most together, beyond what each does alone.

    Args:
        effects: of the model.
        pieces: that turn texts together, in order.
        sites: texts that are surely another label.
        target: label id.

    Returns:
        pairs of words in the order in which they do that, one of them a piece.
    """
    beginnings = [Site(site.body[:BEGINNING], min(site.position, BEGINNING)) for site in sites]
    site = max(beginnings, key=lambda one: _together(effects, pieces, one, target))
    every = torch.arange(len(effects.vocabulary.ids))[:, None]
    before = effects.before([site], target)
    _, alone = effects.score(every, [site], target)
    most = torch.full((len(every),), -torch.inf)
    pairs = every.expand(-1, 2)
    for piece in pieces:
        own = torch.full_like(every, piece)
        for rows in (torch.cat([own, every], dim=1), torch.cat([every, own], dim=1)):
            _, both = effects.score(rows, [site], target)
            more = (both - alone - alone[piece] + before).nan_to_num(-torch.inf)
            pairs = torch.where((more > most)[:, None], rows, pairs)
            most = torch.maximum(most, more)
    most[list(pieces)] = -torch.inf
    best = most.topk(min(TAKEN, len(most))).indices
    return [tuple(pair) for pair in pairs[best[most[best] > 0]].tolist()]


def _together(effects: Effects, pieces: Sequence[int], site: Site, target: int) -> float:
    """What these do in a text beyond the sum of their parts, in log-odds."""
    before = effects.before([site], target)
    _, whole = effects.score(torch.tensor([list(pieces)]), [site], target)
    _, parts = effects.score(torch.tensor(pieces)[:, None], [site], target)
    return float(whole - before - (parts - before).clamp(min=0).sum())
