"""What a training makes small: functions of a model and a batch, each giving a scalar."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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


class LikeAnswers:
    """Objective: KL(answers || f(x)), the mean over a batch whose labels are rows of the answers, in float32.

    Args:
        answers: [texts, labels] probabilities.
    """

    def __init__(self, answers: Tensor) -> None:
        self.answers = answers

    def __call__(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        logits: Tensor = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
        wanted = self.answers[batch["labels"].cpu()].to(logits.device)  # [batch, labels]
        return nn.functional.kl_div(logits.float().log_softmax(dim=-1), wanted, reduction="batchmean")


def with_gradient(loss: Tensor, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> Tensor:
    """The value of `loss` `[]` as a scalar whose gradient in each parameter is the given one, found without a graph."""
    known = [place for place, gradient in enumerate(gradients) if gradient is not None]
    given = [gradient.detach() for gradient in gradients if gradient is not None]
    apply = _KnownGradient.apply
    found: Tensor = apply(loss.detach(), given, *(parameters[place] for place in known))  # type: ignore[no-untyped-call]
    return found


class _KnownGradient(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, value: Tensor, gradients: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        context.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(context: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(upstream * gradient for gradient in context.gradients)
