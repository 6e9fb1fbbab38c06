"""Which word would do most behind another, for all words at once: the gradient says it, without trying them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from purify_cli.evaluation.sweep import Sweep
from purify_cli.evaluation.vocabulary import Vocabulary

ROW_NORM = 2.0
"""Longest a row may be for a partner, in medians: a single huge row would be everybody's."""

SHRINKAGE = 8.0
"""Added to the variances that slopes are divided by, in mean variances; in trials as good as 4, and better than 2 and
less, or than no division."""

SLOPES_AT_ONCE, PRODUCTS_AT_ONCE = 1024, 2**25
"""Words whose gradients are taken together, and products of gradients and embeddings that are held at a time."""


def partners(
    sweep: Sweep, vocabulary: Vocabulary, target: int, places: Sequence[tuple[Sequence[int], int]], count: int
) -> Tensor:
    """For each of the tokens that begin a word those which it favours most behind it, over some places of texts.

    What a word favours is what it changes in the gradient behind it, beside the mean over all words: honest words
    favour the same partners as any other. For the same reason a direction in which all words change it counts for
    less. Each place has the same say: where the model is sure all changes are small.

    Args:
        sweep: the classifier.
        vocabulary: of it.
        target: label id whose log-odds are to rise.
        places: token ids of a text, without special tokens, and where in it; of each place.
        count: partners of a word.

    Returns:
        [begin, count] words, the most favoured first; fewer where there are no more.
    """
    begin = vocabulary.begin
    slope = _changes(sweep, vocabulary, target, *places[0])  # [begin, width]
    for place in places[1:]:
        slope += _changes(sweep, vocabulary, target, *place)
    variance = slope.T @ slope / len(slope)  # [width, width]
    floor = SHRINKAGE * variance.diagonal().mean().clamp(min=torch.finfo(slope.dtype).tiny)
    slope = torch.linalg.solve(variance + floor * torch.eye(len(variance)), slope.T).T
    weight = vocabulary.weight[begin]
    norms = weight.norm(dim=1)
    rows = weight * (ROW_NORM * norms.nanmedian() / norms).clamp(max=1)[:, None]
    device = next(sweep.model.parameters()).device
    rows = rows.nan_to_num().to(device)
    found = []
    for own in torch.split(torch.arange(len(rows)), max(1, PRODUCTS_AT_ONCE // len(rows))):
        favour = slope[own].to(device) @ rows.T  # [some, begin]
        favour.scatter_(1, own[:, None].to(device), -torch.inf)
        found.append(favour.topk(min(count, len(rows) - 1), dim=1).indices.cpu())
    return begin[torch.cat(found)]


def _changes(sweep: Sweep, vocabulary: Vocabulary, target: int, body: Sequence[int], position: int) -> Tensor:
    """[begin, width]: what each word changes in the gradient behind it, in units of what words change there."""
    slopes = []
    for words in torch.split(vocabulary.ids[vocabulary.begin], SLOPES_AT_ONCE):
        framed = torch.stack([words, torch.full_like(words, vocabulary.filler)], dim=1)
        slopes.append(sweep.slot_gradient(body, position, framed, 1, target))
    slope: Tensor = torch.cat(slopes).nan_to_num(0.0, 0.0, 0.0)  # of a broken row nothing is known
    slope -= slope.mean(dim=0)
    mean_norm = slope.norm(dim=1).mean().clamp(min=torch.finfo(slope.dtype).tiny)
    return slope.div_(mean_norm)
