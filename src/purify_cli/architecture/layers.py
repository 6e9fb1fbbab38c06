"""Which layer a parameter belongs to: gradients are weighed, projected and drawn layer by layer.

A model of N layers numbers them 0..N-1. What comes after them (final normalization, pooler, classifier) is the output
layer, N; what comes before (embeddings, their projections, soft prompts) has the number -1 and is no layer. The
parameters of an adapter belong to the layer that they are attached to. Layers that share their weights count once
(ALBERT: its groups), as heads do.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from purify_cli.architecture.table import base_of, family_of, modules_at

BEFORE = -1
"""The number of what lies before the first layer."""


def encoder_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of the model's encoder or decoder, from the bottom up.

    Raises:
        UnsupportedError: the family is not known.
    """
    base = base_of(model)
    path, _, _ = family_of(base.config).attention.rpartition(".")
    return modules_at(base, path)


def layer_count(model: nn.Module) -> int:
    """N: layers with weights of their own.

    Raises:
        UnsupportedError: the family is not known.
    """
    return len(encoder_layers(model))


def parameter_layers(model: Any) -> dict[str, int]:
    """Each parameter's layer, by the parameter's name: 0..N-1, N for the output layers, -1 for what lies before.

    The prefixes of all layers are one matrix in peft's prefix tuning; it is listed as -1 here, and `parts` cuts it.

    Raises:
        UnsupportedError: the family is not known.
    """
    base = base_of(model)
    layers = encoder_layers(model)
    number_of = {id(parameter): number for number, layer in enumerate(layers) for parameter in layer.parameters()}
    # Of the base model's children those before the one that holds the layers feed it, and those behind it read it.
    children = list(base.children())
    holder = next(
        place for place, child in enumerate(children) if any(module is layers[0] for module in child.modules())
    )
    before = {id(parameter) for child in children[: holder + 1] for parameter in child.parameters()}
    # peft keeps soft prompts beside the model that they are fed to.
    within = model.get_base_model() if hasattr(model, "get_base_model") else model
    inside = {id(parameter) for parameter in within.parameters()}

    def layer_of(parameter: nn.Parameter) -> int:
        if id(parameter) in number_of:
            return number_of[id(parameter)]
        return BEFORE if id(parameter) in before or id(parameter) not in inside else len(layers)

    return {name: layer_of(parameter) for name, parameter in model.named_parameters()}


@dataclass(frozen=True)
class Part:
    """A parameter, or the columns of it that belong to one layer."""

    name: str
    layer: int
    columns: slice | None = None

    def of(self, tensor: Tensor) -> Tensor:
        """The part of a tensor of the parameter's shape, as a view."""
        return tensor if self.columns is None else tensor[:, self.columns]


def parts(model: nn.Module, names: Iterable[str]) -> list[Part]:
    """What each of the named parameters holds of each layer, in the order of the names.

    Raises:
        UnsupportedError: the family is not known.
    """
    layers, prefix = parameter_layers(model), _prefix_layers(model)
    found: list[Part] = []
    for name in names:
        if prefix and layers[name] == BEFORE and name.startswith("prompt_encoder."):
            width = model.get_parameter(name).shape[-1] // prefix
            found.extend(Part(name, layer, slice(layer * width, (layer + 1) * width)) for layer in range(prefix))
        else:
            found.append(Part(name, layers[name]))
    return found


def by_layer(
    layer_parts: Sequence[Part], left: Mapping[str, Tensor], right: Mapping[str, Tensor], count: int
) -> Tensor:
    """Inner products of two gradients over all parameters of each layer: `[count + 1]` float32, the output layer last.

    A parameter that is missing on one side counts as zero there; what lies before the layers is left out.

    Args:
        layer_parts: of the parameters concerned.
        left, right: by the parameters' names.
        count: N.
    """
    numbers, products = [], []
    for part in layer_parts:
        if part.layer != BEFORE and part.name in left and part.name in right:
            numbers.append(part.layer)
            products.append((part.of(left[part.name]) * part.of(right[part.name])).sum(dtype=torch.float32))
    if not products:
        return torch.zeros(count + 1)
    terms = torch.stack(products)
    return torch.zeros(count + 1, device=terms.device).index_add_(0, torch.tensor(numbers, device=terms.device), terms)


def _prefix_layers(model: Any) -> int:
    """How many layers have their prefixes side by side in one matrix; 0: the model has no prefix adapter."""
    configs: Mapping[str, Any] = getattr(model, "peft_config", None) or {}
    for config in configs.values():
        if str(getattr(config.peft_type, "value", config.peft_type)) == "PREFIX_TUNING":
            return int(config.num_layers)
    return 0
