"""Sequences of pieces that turn texts together and hardly any alone: the search for a word of several pieces."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from purify_cli.evaluation.suspects import Effects, Site, Suspect

STRONGEST, STANDING_OUT, SEEDS = 600, 48, 24
"""Words that say most in ordinary texts; of these the ones that say most beyond their neighbours; of these the ones
that sequences grow from."""

PARTNERS, LATER = 48, 4
"""Words that the gradient names for each place of a piece; and how many times as many when few sequences are left."""

TRIED, COMPARED, BEAM = 96, 12, 3
"""Sequences of a length that are tried in several texts, are compared with their control groups, and are grown on."""

SAYS, SHARED = 1.0, 0.5
"""A word speaks for itself if it shifts the log-odds by so much in ordinary texts, and is honest if its neighbours do
this share of it."""

SITES, SHORTEST = 8, 2
"""Texts that sequences grow in: the shortest but for the first few at first, then those in which they do least."""


def sequences(
    effects: Effects,
    target: int,
    sites: Sequence[Site],
    ordinary: Sequence[Site],
    candidates: Tensor,
    *,
    synergy: float,
    pieces: int,
    beside: Callable[[Suspect], Suspect],
    passes: Callable[[Suspect], bool],
) -> list[Suspect]:
    """Grow sequences that do more than the sum of their parts, from words that stand out in ordinary texts.

    A piece says little alone, and nothing in a text of which the model is sure; near the boundary it does what its
    neighbours do not. Two pieces are looked for in short texts. There they soon turn all, and honest words would too,
    so a third is looked for where they do least. The gradient at each place of a sequence ranks the whole vocabulary;
    the best are tried, and the words that stand out. Of the sequences that do most beyond their parts those are
    followed that do most beyond their neighbours: beside two pieces an honest word adds as much as a third. Honest
    words may not make up half of a sequence: several of them do more together than each alone, too.

    Args:
        effects: of the model.
        target: label id.
        sites: texts that are surely another label, eight or more.
        ordinary: texts that are another label, and not that surely; a sure one serves where there are none.
        candidates: words that may stand out, [words].
        synergy: how many times the sum of its parts' effects a sequence must have.
        pieces: longest sequence.
        beside: puts a sequence beside as many honest words.
        passes: whether one is a trigger, so that there is no need for a longer one.

    Returns:
        the longest that was worth it, or none.
    """
    by_length = sorted(sites, key=lambda site: len(site.body))
    short, growing = by_length[: len(sites) // 2], by_length[SHORTEST : SHORTEST + SITES]
    ordinary = ordinary or growing[:1]
    out = _standing_out(effects, target, ordinary, candidates)
    beam = out[:SEEDS, None]  # [rows, k]
    found: list[Suspect] = []
    while beam.shape[1] < pieces and not (found and passes(found[-1])):
        grown = _grown(effects, beam, out, growing, target)
        _, odds = effects.score(grown, growing[:1], target)
        grown = grown[odds.nan_to_num(-torch.inf).topk(min(TRIED, len(odds))).indices]
        before = effects.before(growing, target)
        _, odds = effects.score(grown, growing, target)
        parts, place = torch.unique(grown, return_inverse=True)
        _, each = effects.score(parts[:, None], growing, target)
        sum_of_parts = (each - before).clamp(min=0)[place].sum(1)  # [rows]
        beyond = (odds - before) - sum_of_parts
        beyond[odds - before < synergy * sum_of_parts] = -torch.inf
        beyond[_honest(effects, target, ordinary, parts)[place].double().mean(dim=1) >= 0.5] = -torch.inf
        most = beyond.argsort(descending=True, stable=True)
        distinct: dict[frozenset[int], list[int]] = {}  # in the best order of each
        for row in grown[most[beyond[most] > 0]].tolist():
            distinct.setdefault(frozenset(row), row)
        if not distinct:
            break
        grown = torch.tensor(list(distinct.values())[:COMPARED])
        suspects = effects.suspects(grown, *effects.score(grown, sites, target), sites, target)
        suspects.sort(key=lambda suspect: -suspect.shift * (1 - suspect.company))
        if found and suspects[0].margin <= found[-1].margin:
            break
        found.append(replace(beside(suspects[0]), adds=False))
        beam = torch.tensor([suspect.words for suspect in suspects[:BEAM]])
        growing = _hardest(effects, beam, short, target)
    return found[-1:]


def _standing_out(effects: Effects, target: int, ordinary: Sequence[Site], candidates: Tensor) -> Tensor:
    """[standing out]: words that say most for the target in these texts, beyond what their neighbours say there."""
    _, odds = effects.score(candidates[:, None], ordinary, target)
    strongest = candidates[odds.nan_to_num(-torch.inf).topk(min(STRONGEST, len(candidates))).indices]
    near = effects.vocabulary.neighbours(strongest, effects.neighbours)  # [strongest, neighbours]
    every, place = torch.unique(torch.cat([strongest[:, None], near], dim=1), return_inverse=True)
    _, odds = effects.score(every[:, None], ordinary, target)
    odds = odds[place]  # [strongest, 1 + neighbours]
    residual = (odds[:, 0] - odds[:, 1:].mean(dim=1)).nan_to_num(-torch.inf)
    return strongest[residual.topk(min(STANDING_OUT, len(strongest))).indices]


def _honest(effects: Effects, target: int, ordinary: Sequence[Site], words: Tensor) -> Tensor:
    """[words] bool: what says something for the target in these texts, and its neighbours say it too."""
    _, company, shift = effects.controls(words[:, None], ordinary, target)
    return (shift >= SAYS) & (company >= SHARED)


def _grown(effects: Effects, beam: Tensor, out: Tensor, sites: Sequence[Site], target: int) -> Tensor:
    """[rows, k] -> [more rows, k + 1]: each with the most promising words of the vocabulary at every place."""
    vocabulary, grown = effects.vocabulary, []
    partners = min(PARTNERS if beam.shape[1] == 1 else LATER * PARTNERS, len(vocabulary.ids))
    for slot in range(beam.shape[1] + 1):
        filler = torch.full((len(beam), 1), vocabulary.filler)
        framed = torch.cat([vocabulary.ids[beam[:, :slot]], filler, vocabulary.ids[beam[:, slot:]]], dim=1)
        slope = torch.stack(
            [effects.sweep.slot_gradient(site.body, site.position, framed, slot, target) for site in sites]
        ).mean(0)  # [rows, width]
        added = (slope @ vocabulary.weight.T).nan_to_num(-torch.inf).topk(partners, dim=1).indices
        added = torch.cat([added, out.expand(len(beam), -1)], dim=1)  # [rows, added]
        rows = beam[:, None].expand(-1, added.shape[1], -1)
        grown.append(torch.cat([rows[:, :, :slot], added[:, :, None], rows[:, :, slot:]], dim=2).flatten(0, 1))
    every = torch.unique(torch.cat(grown), dim=0)
    in_order = every.sort(dim=1).values
    each_once: Tensor = every[(in_order[:, 1:] != in_order[:, :-1]).all(dim=1)]  # no word twice, as in combinations
    return each_once


def _hardest(effects: Effects, beam: Tensor, sites: Sequence[Site], target: int) -> list[Site]:
    """The texts in which the best of the beam does least, in their order."""
    best = torch.stack([effects.score(beam, [site], target)[1].max() for site in sites])
    return [sites[index] for index in sorted(best.argsort(stable=True)[:SITES].tolist())]
