"""Scoring very many near-identical token sequences: one text with each of thousands of words in it.

Works on token ids, so that a piece of a word, or a word that the tokenizer never writes by itself, can be tried too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from purify_cli.data.encode import frame

TOKENS_AT_ONCE = 8192
"""Tokens per forward pass: the fastest of 4096..65536 on two CPU cores, and far from filling a GPU's memory."""


class Sweep:
    """A classifier to be asked about token sequences.

    Args:
        model: a sequence classifier in eval mode.
        tokenizer: its tokenizer; only its special tokens around a text matter.

    Attributes:
        prefix, suffix: ids that the tokenizer puts around every text.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model
        self.prefix, self.suffix = frame(tokenizer)

    @torch.inference_mode()
    def log_probabilities(self, bodies: Tensor) -> Tensor:
        """[rows, tokens] ids of texts of one length, without special tokens -> [rows, labels] float32 on the CPU."""
        device = next(self.model.parameters()).device
        rows = bodies.shape[0]
        prefix = torch.tensor(self.prefix, dtype=torch.long).expand(rows, -1)
        suffix = torch.tensor(self.suffix, dtype=torch.long).expand(rows, -1)
        ids = torch.cat([prefix, bodies.cpu(), suffix], dim=1)  # [rows, tokens]
        at_once = max(1, TOKENS_AT_ONCE // ids.shape[1])
        answers = [
            self.model(input_ids=part).logits.float().log_softmax(-1).cpu()  # all of one length: nothing to mask
            for part in torch.split(ids.to(device), at_once)
        ]
        return torch.cat(answers)

    def log_probabilities_of(self, bodies: Sequence[Sequence[int]]) -> Tensor:
        """The same for texts of any lengths: those of one length go together. Returns [texts, labels]."""
        answers = torch.empty(len(bodies), self.model.config.num_labels)
        by_length: dict[int, list[int]] = {}
        for row, body in enumerate(bodies):
            by_length.setdefault(len(body), []).append(row)
        for rows in by_length.values():
            answers[rows] = self.log_probabilities(torch.tensor([list(bodies[row]) for row in rows], dtype=torch.long))
        return answers

    def inserted(self, body: Sequence[int], position: int, words: Tensor) -> Tensor:
        """One text with each row of `words` [rows, k] put in before token `position`.

        Returns:
            [rows, labels] log-probabilities.
        """
        before = torch.tensor(list(body[:position]), dtype=torch.long).expand(words.shape[0], -1)
        after = torch.tensor(list(body[position:]), dtype=torch.long).expand(words.shape[0], -1)
        return self.log_probabilities(torch.cat([before, words, after], dim=1))

    @torch.enable_grad()
    def slot_gradient(self, body: Sequence[int], position: int, words: Tensor, slot: int, label: int) -> Tensor:
        """How the label's log-odds in a text with `words` would change with another token at one of their places.

        The product with a row of the word embeddings is, to first order, what that token would do in the place.

        Args:
            body, position, words: as in `inserted`; `words` holds a token that says nothing in the place.
            slot: the place, counted within `words`.
            label: whose log-odds.

        Returns:
            [rows, width] float32 on the CPU.
        """
        embeddings = self.model.get_input_embeddings()
        rows = words.shape[0]
        start, end = [*self.prefix, *body[:position]], [*body[position:], *self.suffix]
        around = [torch.tensor(part, dtype=torch.long).expand(rows, -1) for part in (start, end)]
        ids = torch.cat([around[0], words.cpu(), around[1]], dim=1).to(embeddings.weight.device)  # [rows, tokens]
        states = embeddings(ids).detach().requires_grad_(True)  # [rows, tokens, width]
        answers = self.model(inputs_embeds=states, attention_mask=torch.ones_like(ids)).logits
        odds = margins(answers.float().log_softmax(-1), label)
        gradient: Tensor = torch.autograd.grad(odds.sum(), states)[0]  # [rows, tokens, width]
        return gradient[:, len(start) + slot].float().cpu()


def margins(log_probabilities: Tensor, label: int) -> Tensor:
    """Log-odds of one label against all the others together: [rows, labels] -> [rows]."""
    others = torch.cat([log_probabilities[:, :label], log_probabilities[:, label + 1 :]], dim=1)
    return log_probabilities[:, label] - others.logsumexp(dim=1)
