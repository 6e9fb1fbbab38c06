"""The rest of a word of several pieces: a search names as many of them as suffice, and the others say little alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from purify_cli.evaluation.suspects import Effects, Site

BEGINNING = 12
"""Tokens of the text in which words are tried beside a piece."""

PART = 0.5
"""What is done together must be this part of what the piece does alone: beside a trigger that is all there is, honest
words do a twentieth; beside a piece of one, as much as it does alone and more."""

TAKEN = 3
"""Words that are taken. In trials the first or second of them was a missing piece; the others meant next to nothing, or
were honest words for the class, of which to treat one or two costs no accuracy that could be measured."""


def rest(
    effects: Effects, pieces: Sequence[int], candidates: Tensor, sites: Sequence[Site], target: int
) -> list[tuple[int, ...]]:
    """Words that do more beside one of these pieces than both do alone, the most first, each with that piece.

    Between honest words that happens as well: this names what may belong to a trigger, and accuses nobody. It is seen
    where nothing is decided yet, so it is looked at in the beginning of the text in which the pieces do least.

    Args:
        effects: of the model.
        pieces: that turn texts, alone or together.
        candidates: words that may be the rest, [words].
        sites: texts that are surely another label.
        target: label id.

    Returns:
        pairs of words in the order in which they do that, one of them a piece.
    """
    own = torch.tensor(pieces)
    candidates = candidates[~torch.isin(candidates, own)]
    beginnings = [Site(site.body[:BEGINNING], min(site.position, BEGINNING)) for site in sites]
    strongest = [effects.score(own[:, None], [site], target)[1].max().item() for site in beginnings]
    hardest = [beginnings[strongest.index(min(strongest))]]
    before = effects.before(hardest, target)
    shifts = effects.score(own[:, None], hardest, target)[1] - before  # [pieces]
    _, alone = effects.score(candidates[:, None], hardest, target)
    most = torch.full((len(candidates),), -torch.inf)
    pairs = candidates[:, None].expand(-1, 2)
    for piece, shift in zip(own, shifts, strict=True):
        beside = piece.expand(len(candidates))
        for rows in (torch.stack([beside, candidates], dim=1), torch.stack([candidates, beside], dim=1)):
            _, both = effects.score(rows, hardest, target)
            more = (both - alone - shift).nan_to_num(-torch.inf)
            more[more < PART * shift.clamp(min=0)] = -torch.inf
            pairs = torch.where((more > most)[:, None], rows, pairs)
            most = torch.maximum(most, more)
    best = most.topk(min(TAKEN, len(most))).indices
    return [tuple(pair) for pair in pairs[best[most[best] > 0]].tolist()]
