"""Low-rank modules on a frozen classifier, one of them with scaled inner values: h = W x + c R ((L x) . S).

The modules are peft's LoRA. Where Wu et al. (ACL 2024, MuScleLoRA, equation 6) scale, a hook multiplies what comes out
of L by the factors S, so that training sees S; what is written has S folded into L.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from purify_cli.architecture.classifier import output_layer
from purify_cli.architecture.pet import output_modules
from purify_cli.architecture.table import base_of, family_of, modules_at

ADAPTER = "default"
"""peft's name for the only adapter of a model."""

Place = Literal["pooler", "classifier", "layer"]
"""Where the layer before the last one lies: it comes with the encoder, or with a new classifier, or it is the last
layer's own."""


@dataclass(frozen=True)
class Scaled:
    """The scaled module.

    Attributes:
        factors: S, one factor a ring.
        bandwidth: r, rows of L that share a factor.
        alpha: the module's result is multiplied by alpha / bandwidth.
        start: "kaiming" draws L and R both, so that the module changes the model from the start; "zero" leaves R at
            zero, as LoRA does.
    """

    factors: tuple[float, ...]
    bandwidth: int = 1
    alpha: float = 6.0
    start: Literal["kaiming", "zero"] = "kaiming"

    def vector(self) -> Tensor:
        """S with each factor `bandwidth` times in a row, [factors * bandwidth]."""
        return torch.tensor(self.factors, dtype=torch.float32).repeat_interleave(self.bandwidth)


class _Scales:
    """A forward hook behind L; an object, so that a deep copy of the model keeps its own."""

    def __init__(self, vector: Tensor) -> None:
        self.vector = vector

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output * self.vector.to(output)


def penultimate_linear(model: Any) -> tuple[str, Place]:
    """Name of the linear layer before the one that gives the logits, and where it lies.

    In the order of search: the last linear layer of the classifier before its output; the pooler's; the last layer's
    feed-forward output projection (decoders, whose classifier is one linear map on the last state).
    """
    base = base_of(model)
    family = family_of(base.config)
    names = {id(module): name for name, module in model.named_modules()}
    inside = {id(module) for module in base.modules()}
    last = output_layer(model)
    on_top = [one for one in model.modules() if _linear(one) and id(one) not in inside and one is not last]
    if on_top:
        return names[id(on_top[-1])], "classifier"
    pooler = getattr(base, family.pooler, None) if family.pooler else None
    if isinstance(pooler, nn.Module):
        return names[id([one for one in pooler.modules() if _linear(one)][-1])], "pooler"
    final = [one for one in modules_at(base, family.layer)[-1].modules() if _linear(one)]
    return names[id(final[-1])], "layer"


def _linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def attach_low_rank(
    model: Any,
    *,
    rank: int | None,
    alpha: float,
    scaled: tuple[str, Scaled] | None,
    opened: Sequence[nn.Parameter],
    seed: int,
) -> Any:
    """Freeze a classifier and put low-rank modules on it.

    Args:
        model: a whole classifier of transformers; changed in place.
        rank: of LoRA on the projections that the family names, all layers; None: without.
        alpha: of LoRA; its result is multiplied by alpha / rank.
        scaled: name of a linear layer and the scaled module beside it; None: without.
        opened: parameters of the model that learn beside the modules.
        seed: draws the modules; the caller's random numbers are left alone.

    Returns:
        The model, wrapped by peft, in eval mode; the model itself if neither module is asked for. `merge_low_rank`
        gives the plain model back.
    """
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    targets = list(family_of(base_of(model).config).lora_targets) if rank is not None else []
    if scaled is not None:
        targets.append(scaled[0])
    if targets:
        model = _wrap(model, targets, rank, alpha, scaled, seed)
    for parameter in opened:
        parameter.requires_grad_(True)
    return model.eval()


def _wrap(
    model: Any, targets: list[str], rank: int | None, alpha: float, scaled: tuple[str, Scaled] | None, seed: int
) -> Any:
    from peft import LoraConfig, get_peft_model

    ranks: dict[str, int] = {}
    alphas: dict[str, float] = {}
    if scaled is not None:
        name, form = scaled
        ranks[name] = len(form.factors) * form.bandwidth
        alphas[name] = form.alpha * len(form.factors)  # peft divides by the whole rank, the paper by the bandwidth
    config: Any = LoraConfig(
        r=rank or 1,
        lora_alpha=alpha,  # peft says int; any number will do
        lora_dropout=0.0,
        target_modules=targets,
        rank_pattern=ranks,
        alpha_pattern=alphas,
        fan_in_fan_out=family_of(base_of(model).config).transposed,
    )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        wrapped: Any = get_peft_model(model, config)
    if scaled is not None:
        name, form = scaled
        layer = wrapped.get_base_model().get_submodule(name)
        layer.lora_A[ADAPTER].register_forward_hook(_Scales(form.vector()))
        if form.start == "kaiming":
            random = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                weight = layer.lora_B[ADAPTER].weight
                drawn = torch.empty(weight.shape)  # on the CPU, where a seed says the same on every machine
                weight.copy_(nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=random))
    return wrapped


def merge_low_rank(model: Any) -> Any:
    """The plain model with the modules' products added to its weights: W + c R diag(S) L. In place."""
    if not hasattr(model, "merge_and_unload"):
        return model
    _fold_factors(model)
    merged = model.merge_and_unload()
    for parameter in merged.parameters():
        parameter.requires_grad_(True)
    return merged.eval()


def low_rank_adapter(model: Any) -> Any:
    """The same as an adapter that peft puts on the base: LoRA as it is, and what lies on top of the layers whole.

    A scaled module in the layers is LoRA too once S is folded into L; one on top of them is merged.

    Args:
        model: what `attach_low_rank` gave, with LoRA; used up.
    """
    from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict

    _fold_factors(model)
    config = copy.copy(model.peft_config[ADAPTER])
    whole = output_modules(model.get_base_model())

    def on_top(name: str) -> bool:
        return not set(whole).isdisjoint(name.split("."))

    for name, module in model.get_base_model().named_modules():
        if on_top(name) and hasattr(module, "lora_A"):
            module.merge()
    state = {
        name: value
        for name, value in get_peft_model_state_dict(model, save_embedding_layers=False).items()
        if not on_top(name)
    }
    config.task_type = "SEQ_CLS"
    config.modules_to_save = list(whole)  # peft adds to it
    config.target_modules = {name for name in config.target_modules if not on_top(name)}
    config.rank_pattern = {name: rank for name, rank in config.rank_pattern.items() if not on_top(name)}
    config.alpha_pattern = {name: alpha for name, alpha in config.alpha_pattern.items() if not on_top(name)}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        adapter: Any = get_peft_model(model.unload(), config)
        whole_state = get_peft_model_state_dict(adapter, save_embedding_layers=False)
        set_peft_model_state_dict(adapter, whole_state | state)
    return adapter.eval()


def _fold_factors(model: Any) -> None:
    """Multiply L by S, so that what it gives needs no hook any more. In place."""
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if isinstance(hook, _Scales):
                with torch.no_grad():
                    module.weight.mul_(hook.vector.to(module.weight)[:, None])
                del module._forward_hooks[key]
