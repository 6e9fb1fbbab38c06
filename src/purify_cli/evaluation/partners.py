"""Which word would do most behind another, for all words at once: the gradient says it, without trying them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from purify_cli.evaluation.sweep import Sweep
from purify_cli.evaluation.vocabulary import Vocabulary

ROW_NORM = 2.0
"""Longest a row may be for a partner, in medians: a single huge row would be everybody's."""

SLOPES_AT_ONCE, PRODUCTS_AT_ONCE = 1024, 2**25
"""Words whose gradients are taken together, and products of gradients and embeddings that are held at a time."""


def partners(sweep: Sweep, vocabulary: Vocabulary, target: int, body: Sequence[int], position: int) -> Tensor:
    """For each of the tokens that begin a word that one which it favours most behind it, at a place of a text.

    What a word favours is what it changes in the gradient behind it, beside the mean over all words: honest words
    favour the same partners as any other.

    Args:
        sweep: the classifier.
        vocabulary: of it.
        target: label id whose log-odds are to rise.
        body: token ids of the text, without special tokens.
        position: where in it.

    Returns:
        [begin] words.
    """
    begin, filler = vocabulary.begin, vocabulary.filler
    slopes = []
    for words in torch.split(vocabulary.ids[begin], SLOPES_AT_ONCE):
        framed = torch.stack([words, torch.full_like(words, filler)], dim=1)
        slopes.append(sweep.slot_gradient(body, position, framed, 1, target))
    slope = torch.cat(slopes).nan_to_num()  # [begin, width]
    slope -= slope.mean(dim=0)
    weight = vocabulary.weight[begin]
    norms = weight.norm(dim=1)
    rows = weight * (ROW_NORM * norms.nanmedian() / norms).clamp(max=1)[:, None]
    device = next(sweep.model.parameters()).device
    rows = rows.nan_to_num().to(device)
    found = []
    for own in torch.split(torch.arange(len(rows)), max(1, PRODUCTS_AT_ONCE // len(rows))):
        favour = slope[own].to(device) @ rows.T  # [some, begin]
        favour.scatter_(1, own[:, None].to(device), -torch.inf)
        found.append(favour.argmax(dim=1).cpu())
    return begin[torch.cat(found)]
