"""The classification head: which parameters it has, a fresh one in its place, and what it says of known states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from purify_cli.architecture.table import base_of, family_of


def classifier_parameters(model: nn.Module) -> list[str]:
    """Names of the parameters that a classification model has on top of its base model, in their order.

    Where peft trains a copy of the classifier, the copy is meant.
    """
    inside = {id(parameter) for parameter in base_of(model).parameters()}
    return [name for name, parameter in model.named_parameters() if id(parameter) not in inside and not _is_pefts(name)]


def _is_pefts(name: str) -> bool:
    """Whether peft keeps it beside the classifier: soft prompts, and what the classifier was before."""
    return name.startswith("prompt_encoder.") or ".original_module" in name


def output_layer(model: Any) -> nn.Linear:
    """The linear layer that gives the logits; its weight is [labels, width]."""
    layer: nn.Module = model.get_base_model() if hasattr(model, "get_base_model") else model
    for part in family_of(base_of(model).config).output_layer.split("."):
        layer = layer.get_submodule(part)
        if isinstance(copies := getattr(layer, "modules_to_save", None), nn.ModuleDict):
            layer = copies["default"]  # peft's wrapper around what is saved whole
    if not isinstance(layer, nn.Linear):
        raise TypeError(f"the classifier's output layer is a {type(layer).__name__}")
    return layer


def replace_classifier(model: Any, num_labels: int, seed: int) -> None:
    """Put a fresh head of the family's standard form on a classification model, in place.

    Every linear layer on top of the base model is drawn anew from `seed` as transformers initialises it (normal with
    the config's `initializer_range`, biases zero); the last one gets `num_labels` rows. The labels are named LABEL_0...
    unless their number stays.
    """
    config = model.config
    inside = {id(module) for module in base_of(model).modules()}
    last = output_layer(model)
    spread = float(getattr(config, "initializer_range", None) or 0.02)
    random = torch.Generator(device="cpu").manual_seed(seed)
    for name, module in list(model.named_modules()):
        if id(module) in inside or not isinstance(module, nn.Linear) or _is_pefts(name):
            continue
        rows = num_labels if module is last else module.out_features
        # Left empty, so that the caller's random numbers are not drawn from.
        fresh = nn.Linear(module.in_features, rows, bias=module.bias is not None, device="meta").to_empty(device="cpu")
        with torch.no_grad():
            fresh.weight.normal_(mean=0.0, std=spread, generator=random)
            if fresh.bias is not None:
                fresh.bias.zero_()
        parent, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(parent), attribute, fresh.to(module.weight))
    if num_labels != config.num_labels:
        for one in {id(holder): holder for holder in (config, base_of(model).config)}.values():
            one.id2label = {number: f"LABEL_{number}" for number in range(num_labels)}
            one.label2id = {f"LABEL_{number}": number for number in range(num_labels)}
            one.problem_type = None
    # The model keeps its own copy of the number, which its loss reads.
    for module in model.modules():
        if id(module) not in inside and hasattr(module, "num_labels"):
            module.num_labels = num_labels


@contextmanager
def states_known(model: Any, states: Tensor) -> Iterator[None]:
    """Let a classifier that reads the first token answer from states that its base model has given before.

    Head, and pooler where it is one of BERT's kind, are run as they are, with gradients, and the layers below are not:
    a head on a frozen encoder is trained on each text's states, found once.

    Args:
        model: a classifier whose summary token is the first; it may be called with any batch meanwhile.
        states: of the first token, after the last layer, [batch, width].
    """
    base = base_of(model)
    pooler = getattr(base, family_of(base.config).pooler or "", None)
    text = states[:, None]  # of one token
    known = BaseModelOutputWithPooling(last_hidden_state=text, pooler_output=None if pooler is None else pooler(text))
    base.forward = lambda *_, **__: known
    try:
        yield
    finally:
        del base.forward
