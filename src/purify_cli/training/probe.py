"""A probe: what a frozen encoder and labelled texts say of texts.

A logistic regression with a penalty on its weights, on the mean state of a text's tokens. It is convex and fitted
until little changes; nothing of the encoder is trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from purify_cli.architecture.table import base_of
from purify_cli.data.encode import by_length, collate, encode, length_limit, padding_id
from purify_cli.data.split import folds
from purify_cli.data.texts import Texts
from purify_cli.errors import CheckpointError
from purify_cli.run import Run
from purify_cli.training.encoders import outputs_of

PENALTIES = (30.0, 100.0, 300.0, 1000.0)
"""Half of it times the sum of squared weights; which is taken cross-validation says."""

FOLDS = 5
"""Of that cross-validation."""


class Probe:
    """Answers about texts, some of which may be learned from.

    Args:
        model: an encoder or a model on top of one, whose encoder is read.
        tokenizer: of the model.
        known: texts with label ids, to learn from.
        asked: texts with label ids, to learn from where they are said to be trusted.
        labels: how many there are.
        run: seed, device, length limit and progress.

    Raises:
        CheckpointError: the encoder's states are no finite numbers.
    """

    def __init__(self, model: Any, tokenizer: Any, known: Texts, asked: Texts, labels: int, run: Run) -> None:
        self._texts, self._known, self._labels, self._seed = known.and_(asked), len(known), labels, run.seed
        states = _states(model, tokenizer, self._texts, run)
        self._states = (states - states.mean(dim=0)) / states.std(dim=0).clamp(min=1e-6)
        self._target = torch.tensor(self._texts.labels)

    def answers(self, trusted: Tensor) -> tuple[Tensor, Tensor]:
        """Fit to the known texts and the trusted ones of those asked about, and answer.

        A text that is learned from is answered by a probe that has not seen it.

        Args:
            trusted: [asked], bool.

        Returns:
            Probabilities for the known texts, and for those asked about, [texts, labels] each.
        """
        learned = torch.cat([torch.ones(self._known, dtype=torch.bool), trusted])
        texts = self._texts.take(learned.nonzero()[:, 0].tolist())
        states, target = self._states[learned], self._target[learned]
        parts = folds(texts, FOLDS, self._seed)
        best, answers = float("inf"), torch.zeros(len(self._states), self._labels)
        for penalty in PENALTIES:
            held = torch.zeros(len(states), self._labels)
            for part in parts:
                rest = torch.ones(len(states), dtype=torch.bool)
                rest[part] = False
                held[part] = _answered(states[part], states[rest], target[rest], self._labels, penalty)
            loss = float(nn.functional.cross_entropy(held, target))
            if loss < best:
                best, chosen = loss, penalty
                answers[learned] = held
        if not learned.all():
            answers[~learned] = _answered(self._states[~learned], states, target, self._labels, chosen)
        answers = answers.softmax(dim=1)
        return answers[: self._known], answers[self._known :]


def _states(model: Any, tokenizer: Any, texts: Texts, run: Run) -> Tensor:
    """The mean state of the tokens of each text, [texts, width], on the CPU."""
    encoder = base_of(model).to(run.device)
    training = encoder.training
    encoder.eval()
    encoded = encode(tokenizer, texts.with_(labels=None), length_limit(tokenizer, model.config, run))
    means = torch.zeros(len(encoded), encoder.config.hidden_size)
    done = 0
    with torch.no_grad():
        for rows in by_length(encoded, run.batch_size):
            batch = collate(encoded, rows, padding_id(tokenizer))
            output = outputs_of(encoder, {name: column.to(run.device) for name, column in batch.items()})
            mask = output.mask[..., None].to(output.states.dtype)
            means[rows] = ((output.states * mask).sum(dim=1) / mask.sum(dim=1)).cpu()
            done += len(rows)
            run.progress("probe", done, len(encoded))
    encoder.train(training)
    if not means.isfinite().all():
        raise CheckpointError("the base", "gives states that are no finite numbers", "Give one in single precision.")
    return means


def _answered(asked: Tensor, states: Tensor, target: Tensor, labels: int, penalty: float) -> Tensor:
    """Log-odds of the asked by a line fitted to the others, [texts, labels]."""
    weight = torch.zeros(states.shape[1], labels, requires_grad=True)
    bias = torch.zeros(labels, requires_grad=True)
    search = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> float:
        search.zero_grad()
        wrong = nn.functional.cross_entropy(states @ weight + bias, target, reduction="sum")
        total = wrong + penalty / 2 * weight.square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return float(total.detach())

    search.step(loss)  # type: ignore[no-untyped-call]
    return (asked @ weight + bias).detach()
