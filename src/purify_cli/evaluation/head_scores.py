"""How unevenly each attention head looks at a text: the score by which PURE prunes (Zhao, Xu, Yuan, ICML 2024)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from purify_cli.architecture.attention import summary_attention
from purify_cli.architecture.heads import head_grid
from purify_cli.data.encode import Encoded, by_length, collate
from purify_cli.run import Run

REFERENCE_BATCH = 32
"""The scores are averaged over batches of this size; PURE's lambda belongs to them too."""


def head_scores(model: Any, encoded: Encoded, pad_id: int, max_length: int, run: Run) -> Tensor:
    """Variance over the keys of the attention that the summary token pays, on the mean of the texts.

    As the reference computes it: a row is padded with zeros to `max_length`, its last entry left out, its unbiased
    variance taken; then the mean over each batch of 32 in the order given, and the mean over the batches.

    Returns:
        [layers, heads] float32 on the CPU.
    """
    keys = max_length - 1
    layers, heads = head_grid(model)
    per_text = torch.zeros(len(encoded), layers, heads)
    model.eval()
    with torch.inference_mode(), summary_attention(model) as seen:
        for indices in by_length(encoded, run.batch_size):
            batch = collate(encoded, indices, pad_id)
            batch.pop("labels", None)
            model(**{name: column.to(run.device) for name, column in batch.items()})
            rows = torch.stack([row[:, :, :keys] for row in seen.rows], dim=1).float()  # [batch, depths, heads, keys]
            total, squares = rows.sum(-1), rows.square().sum(-1)  # [batch, depths, heads]
            variance = ((squares - total.square() / keys) / (keys - 1)).cpu()
            layer_of = torch.tensor(seen.layer_of)
            depths = torch.bincount(layer_of, minlength=layers).clamp(min=1)
            per_layer = torch.zeros(len(indices), layers, heads).index_add_(1, layer_of, variance)
            per_text[indices] = per_layer / depths[:, None]
    return torch.stack([part.mean(0) for part in torch.split(per_text, REFERENCE_BATCH)]).mean(0)
