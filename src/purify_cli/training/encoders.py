"""What a training of an encoder without a head needs: what a head would read, and a frozen copy to stay close to."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from purify_cli.architecture.table import Family, base_of, family_of
from purify_cli.run import Run

if TYPE_CHECKING:
    from purify_cli.subject import Subject


class Outputs(NamedTuple):
    """What an encoder gives for a batch.

    Attributes:
        states: [batch, tokens, width], of the last layer.
        vector: [batch, width], what a classifier on top reads: see `head_reads`.
        summary: [batch, tokens], 1 at the token that the text is summed up in.
        mask: [batch, tokens], 1 at tokens and 0 at padding.
    """

    states: Tensor
    vector: Tensor
    summary: Tensor
    mask: Tensor


def open_encoder(subject: Subject, run: Run) -> Any:
    """A new encoder of the subject, on the run's device; a classifier or a language model loses its head."""
    return base_of(subject.open(run.device))


def head_reads(family: Family) -> str:
    """What transformers' standard classifier reads of an encoder of the family: "pooler" or "summary state".

    BERT and ALBERT put a linear layer on the pooler. RoBERTa has a pooler too, but its classifier has a layer of its
    own for it, and reads the first token's state, as those of families without a pooler do.
    """
    own_layer = "." in family.output_layer
    return "pooler" if family.pooler is not None and not own_layer else "summary state"


def outputs_of(encoder: nn.Module, batch: Mapping[str, Tensor]) -> Outputs:
    """Run an encoder on a batch; its labels are not looked at."""
    found: Any = encoder(**{name: tensor for name, tensor in batch.items() if name != "labels"})
    family = family_of(encoder.config)
    mask = batch["attention_mask"]
    places = torch.arange(mask.shape[1], device=mask.device)
    if family.summary == "first":
        place = torch.zeros_like(mask[:, 0])
    else:  # the last token that is no padding
        place = (mask * places).argmax(dim=1)
    summary = (places == place[:, None]).to(mask.dtype)
    states = found.last_hidden_state.float()
    if head_reads(family) == "pooler":
        vector = found.pooler_output.float()
    else:
        vector = states[torch.arange(len(states), device=states.device), place]
    return Outputs(states, vector, summary, mask)


class Frozen:
    """A copy of an encoder as it was, asked without gradients and without dropout. It costs the memory of the weights
    once more.
    """

    def __init__(self, encoder: nn.Module) -> None:
        self.encoder = copy.deepcopy(encoder).float().eval().requires_grad_(False)

    def __call__(self, batch: Mapping[str, Tensor]) -> Outputs:
        self.encoder.to(batch["input_ids"].device)
        with torch.no_grad():
            return outputs_of(self.encoder, batch)
