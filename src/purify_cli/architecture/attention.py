"""The attention that the summary token pays, read along with an ordinary forward pass.

PURE (Zhao, Xu, Yuan, ICML 2024) scores and penalises the row of [CLS] only. The full maps would cost batch * heads *
keys² numbers a layer and rule out fused attention, so the output comes from scaled_dot_product_attention as ever and
the one row is computed beside it: batch * heads * keys numbers.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from purify_cli.architecture.table import base_of, family_of, modules_at

_NAME = "purify_summary"


@dataclass
class SummaryAttention:
    """What the forward pass last made left behind.

    Attributes:
        rows: a tensor for each depth in the order of the pass, [batch, heads, keys]: the probabilities before dropout,
            in float32 or the wider dtype of the model, zero on padding, differentiable. Keys are the positions of the
            batch as it was handed in.
        layer_of: for each row the layer, as `head_grid` counts them, whose heads it shows. Layers that share weights
            share a number.
    """

    rows: list[Tensor] = field(default_factory=list)
    layer_of: list[int] = field(default_factory=list)
    _position: Tensor | None = None
    """Where the summary token stands, [batch]; None: at the first place."""


_watched: dict[nn.Module, tuple[SummaryAttention, int]] = {}
"""Attention module -> who reads along, and the number of its layer: the attention function is told the module only."""


@contextmanager
def summary_attention(model: nn.Module) -> Iterator[SummaryAttention]:
    """Leave the attention of the summary token in `.rows` at each forward pass of the model while open.

    The summary token is the one whose last state the classifier reads: the first of encoders; of decoders the last that
    is no padding, found as transformers' classifiers find it (the last id that is not the padding id; the last place
    where the padding id is unknown or embeddings were handed in). One reader at a time for a model. With gradient
    checkpointing the rows carry no gradient: turn it off.

    Raises:
        UnsupportedError: the family is not known.
    """
    base = base_of(model)
    family = family_of(base.config)
    cores = [
        modules_at(block, family.core)[0] if family.core else block for block in modules_at(base, family.attention)
    ]
    if any(core in _watched for core in cores):
        raise RuntimeError("the attention of this model is being read already")
    found = SummaryAttention()

    def begin(module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        found.rows, found.layer_of = [], []
        found._position = _last_places(base.config, inputs, named) if family.summary == "last" else None

    with ExitStack() as stack:
        stack.callback(base.register_forward_pre_hook(begin, with_kwargs=True).remove)
        if family.row_from == "interface":
            stack.enter_context(_interface(model))
            for number, core in enumerate(cores):
                _watched[core] = (found, number)
                stack.callback(_watched.pop, core, None)
        else:
            # Attention that transformers does not let one exchange (DeBERTa's, with its relative positions) makes the
            # full map anyway; the row is taken where it enters the dropout.
            for number, core in enumerate(cores):
                dropout = modules_at(core, family.row_from)[0]
                stack.callback(dropout.register_forward_pre_hook(_take_row(found, number)).remove)
        yield found


def _take_row(found: SummaryAttention, number: int) -> Any:
    def take(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found.rows.append(inputs[0][:, :, 0])  # of [batch, heads, query, key]
        found.layer_of.append(number)

    return take


@contextmanager
def _interface(model: Any) -> Iterator[None]:
    """Let all configs of the model name our attention function, and afterwards again what they named before."""
    if _NAME not in ALL_ATTENTION_FUNCTIONS.valid_keys():
        ALL_ATTENTION_FUNCTIONS.register(_NAME, _attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, sdpa_mask)
    configs = {id(module.config): module.config for module in model.modules() if hasattr(module, "config")}
    named = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in named:
            config._attn_implementation = _NAME
        yield
    finally:
        for config, implementation in named:
            config._attn_implementation = implementation


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **named: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention as `sdpa` does it, and the row of the summary token for whoever reads along.

    Args:
        query: [batch, heads, query, width].
        key, value: [batch, key-value heads, key, width].
        attention_mask: None, or [batch or 1, 1 or heads, query, key]: bool (True: is seen) or added to the scores.
    """
    if module in _watched:
        found, number = _watched[module]
        causal = bool(getattr(module, "is_causal", False) if is_causal is None else is_causal)
        found.rows.append(_row(found._position, query, key, attention_mask, scaling, causal))
        found.layer_of.append(number)
    output: tuple[Tensor, Tensor | None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **named
    )
    return output


def _row(
    position: Tensor | None, query: Tensor, key: Tensor, mask: Tensor | None, scaling: float | None, causal: bool
) -> Tensor:
    """softmax(q_summary Kᵀ * scaling + mask), [batch, heads, key]."""
    batch, heads, length, width = query.shape
    groups, keys = key.shape[1], key.shape[2]
    if position is None:
        position = torch.zeros(batch, dtype=torch.long, device=query.device)
    summary = query[torch.arange(batch, device=query.device), :, position]  # [batch, heads, width]
    # Grouped queries: so many heads in a row share a key head.
    grouped = summary.reshape(batch, groups, heads // groups, width)
    scores = torch.einsum("bghw,bgkw->bghk", grouped, key).reshape(batch, heads, keys)
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32)) * (width**-0.5 if scaling is None else scaling)
    hidden = torch.finfo(scores.dtype).min
    if mask is not None:
        row = mask.expand(batch, -1, -1, -1)[
            torch.arange(batch, device=mask.device), :, position
        ]  # [batch, 1|heads, key]
        scores = scores.masked_fill(~row, hidden) if row.dtype == torch.bool else scores + row.to(scores.dtype)
    elif causal and length > 1:
        places = torch.arange(keys, device=query.device)
        scores = scores.masked_fill((places > position[:, None])[:, None], hidden)
    return scores.softmax(dim=-1)


def _last_places(config: Any, inputs: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    ids = named.get("input_ids", inputs[0] if inputs else None)
    padding = config.pad_token_id
    if ids is None or padding is None:
        given = ids if ids is not None else named["inputs_embeds"]
        return torch.full((given.shape[0],), given.shape[1] - 1, dtype=torch.long, device=given.device)
    places = torch.arange(ids.shape[1], device=ids.device)
    last: Tensor = ((ids != padding) * places).argmax(dim=-1)
    return last
