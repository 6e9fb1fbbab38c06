"""Attention heads: how many there are, and taking some out without changing a single shape.

A head is gone, exactly, when its columns of the attention's output projection are zero: nothing that it computes, its
value bias included, reaches anything. The tensors keep their sizes, so the checkpoint loads in plain transformers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from purify_cli.architecture.table import Family, base_of, family_of, modules_at

Head = tuple[int, int]
"""(layer, head), both counted from 0; layers as `head_grid` counts them."""


def output_projections(model: nn.Module) -> tuple[list[nn.Module], Family]:
    """The attention's output projection of every layer that has one of its own, and the row of the family."""
    base = base_of(model)
    family = family_of(base.config)
    blocks = modules_at(base, family.attention)
    return [modules_at(block, family.output)[0] for block in blocks], family


def head_grid(model: nn.Module) -> tuple[int, int]:
    """(layers, heads a layer) that can be pruned. Layers that share their weights count once (ALBERT: its groups).

    Raises:
        UnsupportedError: the family is not known.
    """
    projections, family = output_projections(model)
    return len(projections), int(getattr(base_of(model).config, family.heads_key))


def pruned_heads(model: nn.Module) -> list[Head]:
    """The heads that are out: all columns of theirs in the output projection are zero.

    Raises:
        UnsupportedError: the family is not known.
    """
    layers, count = head_grid(model)
    found: list[Head] = []
    for layer in range(layers):
        ((weight, dimension, _),) = _columns(model, [(layer, head) for head in range(count)])
        columns = weight.detach().abs().amax(dim=1 - dimension)  # [heads * width]
        gone = (columns.reshape(count, -1).amax(dim=1) == 0).nonzero().flatten().tolist()
        found.extend((layer, head) for head in gone)
    return found


def prune_heads(model: nn.Module, heads: Iterable[Head]) -> None:
    """Take these heads out, in place: their columns of the output projection become zero, all others stay as they are.

    Raises:
        IndexError: there is no such head.
    """
    with torch.no_grad():
        for weight, dimension, columns in _columns(model, heads):
            weight.index_fill_(dimension, columns, 0)


def hold_pruned(model: nn.Module, heads: Iterable[Head]) -> Callable[[nn.Module, int], None]:
    """A projection for the training loop that keeps these heads out, whatever momentum or weight decay does.

    Called as (model, step) after each update; it works on the model that it is handed, which must be of the same shape.
    """
    chosen = tuple(sorted(set(heads)))
    _columns(model, chosen)  # an unknown head is an error now and not after the first step

    def project(trained: nn.Module, step: int) -> None:
        prune_heads(trained, chosen)

    return project


@contextmanager
def silence_heads(model: nn.Module, heads: Iterable[Head]) -> Iterator[None]:
    """Take these heads out for a while; afterwards the weights are what they were, byte for byte.

    Only the columns are kept meanwhile, no copy of the model.
    """
    taken: list[tuple[Tensor, int, Tensor, Tensor]] = []
    columns = _columns(model, heads)
    try:
        with torch.no_grad():
            for weight, dimension, index in columns:
                taken.append((weight, dimension, index, weight.index_select(dimension, index)))
                weight.index_fill_(dimension, index, 0)
        yield
    finally:
        with torch.no_grad():
            for weight, dimension, index, kept in taken:
                weight.index_copy_(dimension, index, kept)


def _columns(model: nn.Module, heads: Iterable[Head]) -> list[tuple[Tensor, int, Tensor]]:
    """For each layer concerned: the weight, the dimension along which heads lie, and the places of these heads."""
    projections, family = output_projections(model)
    count = int(getattr(base_of(model).config, family.heads_key))
    dimension = 0 if family.transposed else 1
    by_layer: dict[int, list[int]] = {}
    for layer, head in sorted(set(heads)):
        if not 0 <= layer < len(projections) or not 0 <= head < count:
            raise IndexError(f"no head {head} in layer {layer}: there are {len(projections)} layers of {count} heads")
        by_layer.setdefault(layer, []).append(head)
    found = []
    for layer, chosen in by_layer.items():
        weight = projections[layer].weight
        assert isinstance(weight, Tensor)
        width = weight.shape[dimension] // count
        starts = torch.tensor(chosen, device=weight.device) * width
        places = (starts[:, None] + torch.arange(width, device=weight.device)).flatten()  # [heads * width]
        found.append((weight, dimension, places))
    return found
