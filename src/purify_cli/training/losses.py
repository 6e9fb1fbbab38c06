"""What a training makes small: functions of a model and a batch, each giving a scalar."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


def cross_entropy(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean cross entropy of the model's logits `[batch, labels]` against the batch's labels `[batch]`, in float32.

    Computed here and not by the model, whose own loss changes with `config.problem_type`.
    """
    logits: Tensor = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    return nn.functional.cross_entropy(logits.float(), batch["labels"])


def squared_error(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Mean squared error of the scores `[batch, 1]` against the batch's numbers `[batch]`, in float32."""
    scores: Tensor = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    return nn.functional.mse_loss(scores.float().squeeze(-1), batch["labels"].to(torch.float32))
