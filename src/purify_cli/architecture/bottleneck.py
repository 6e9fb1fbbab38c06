"""Bottleneck modules: the sequential adapter of Houlsby et al. and the parallel one of He et al., on any family.

    sequential   h <- h + s * Up(act(Down(h)))          Houlsby et al. 2019, figure 2
    parallel     h <- h + s * Up(act(Down(x)))          He et al. 2022, table 1 and section 4.6

h is what the feed-forward (or attention) part hands to the residual addition, after its dropout and before the layer's
own normalization; x is the input of the feed-forward part. The modules hang on the layer under the names
`bottleneck_ffn` and `bottleneck_attention` and are called by hooks, so that no tensor of the base changes its name.
A layer that is run at several depths (ALBERT) has one module, which is run as often.

Where we differ: Houlsby has two modules a layer and trains the normalizations too; the default here is the one module
behind the feed-forward part that Gu et al. 2023 count, and all of the base stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from purify_cli.architecture.classifier import classifier_parameters
from purify_cli.architecture.table import base_of, family_of, modules_at
from purify_cli.errors import CheckpointError, UnsupportedError

FORMAT = "purify.bottleneck/1"

Form = Literal["sequential", "parallel"]
Positions = Literal["ffn", "attention", "both"]

ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "gelu_tanh": lambda states: functional.gelu(states, approximate="tanh"),
    "silu": functional.silu,
    "tanh": torch.tanh,
}

_FFN, _ATTENTION = "bottleneck_ffn", "bottleneck_attention"
_LARGEST_SCALE = 1e4


@dataclass(frozen=True)
class BottleneckConfig:
    """What the tensors of bottleneck modules do not say.

    Attributes:
        form: where the module reads, as above.
        widths: of the bottleneck, a number a layer; 0: that layer has no module.
        activation: one of `ACTIVATIONS`.
        scaling: s, a constant.
        positions: the parts of a layer that have a module.
        normalized_input: a sequential module reads LayerNorm(h + residual) instead of h, by the layer's own
            normalization (AdapterHub's `original_ln_before`); only behind the feed-forward part, and only of families
            that normalize after it.
    """

    form: Form
    widths: tuple[int, ...]
    activation: str
    scaling: float = 1.0
    positions: Positions = "ffn"
    normalized_input: bool = False

    def describe(self, model: Any) -> dict[str, Any]:
        """What adapter_config.json says of a model that carries these modules."""
        config = base_of(model).config
        same = len(set(self.widths)) == 1
        labels = _labels(model)
        return {
            "format": FORMAT,
            "form": self.form,
            "bottleneck": self.widths[0] if same else list(self.widths),
            "activation": self.activation,
            "scaling": self.scaling,
            "positions": self.positions,
            "normalized_input": self.normalized_input,
            "base_model_name_or_path": getattr(model, "name_or_path", None) or None,
            "model_type": config.model_type,
            "hidden_size": int(getattr(config, family_of(config).width_key)),
            **({} if not labels else {"task_type": "SEQ_CLS", "num_labels": len(labels), "id2label": labels}),
        }

    def tensors(self, model: nn.Module) -> dict[str, Tensor]:
        """All that an adapter folder has to hold: the modules, and what lies between the encoder and the logits."""
        wanted = {*bottleneck_parameters(model), *output_parameters(model)}
        return {name: value for name, value in model.state_dict().items() if name in wanted}


class Bottleneck(nn.Module):
    """s * Up(act(Down(x))): [..., width] -> [..., width]."""

    def __init__(self, width: int, bottleneck: int, activation: str, scaling: float) -> None:
        super().__init__()
        # Left empty: drawing them here would move the caller's random numbers.
        self.down = nn.Linear(width, bottleneck, device="meta").to_empty(device="cpu")
        self.up = nn.Linear(bottleneck, width, device="meta").to_empty(device="cpu")
        self.activation = activation
        self.scaling = scaling

    def forward(self, states: Tensor) -> Tensor:
        result: Tensor = self.scaling * self.up(ACTIVATIONS[self.activation](self.down(states)))
        return result

    def draw(self, form: Form, random: torch.Generator) -> None:
        """The initial values: a module starts as (almost) nothing."""
        with torch.no_grad():
            self.down.bias.zero_()
            self.up.bias.zero_()
            if form == "sequential":  # adapter-bert: truncated normal, standard deviation 1e-3, on both maps
                for map_ in (self.down, self.up):
                    nn.init.trunc_normal_(map_.weight, std=1e-3, a=-2e-3, b=2e-3, generator=random)
            else:  # He et al., as LoRA starts: Kaiming-uniform with a = sqrt(5), and zero
                nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5), generator=random)
                self.up.weight.zero_()


class _After:
    """A forward hook that puts a sequential module behind a part.

    The hooks are objects and not closures, so that a deep copy of the model calls its own modules.
    """

    def __init__(self, bottleneck: Bottleneck) -> None:
        self.bottleneck = bottleneck

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        delta: Tensor = self.bottleneck(output)
        return output + delta


class _Beside:
    """Hooks that put a module beside the feed-forward part: `take` before it, the call behind it."""

    def __init__(self, bottleneck: Bottleneck) -> None:
        self.bottleneck = bottleneck
        self.taken: Tensor | None = None

    def take(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.taken = inputs[0]

    def __call__(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        assert self.taken is not None  # the parts of a layer run in order
        taken, self.taken = self.taken, None
        return output + self._delta(taken, output)

    def _delta(self, taken: Tensor, output: Tensor) -> Tensor:
        delta: Tensor = self.bottleneck(taken)
        return delta

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"taken": None}  # what a failed forward pass left cannot be copied


class _AfterNorm(_Beside):
    """A sequential module that reads LayerNorm(h + residual); the residual is the feed-forward part's input."""

    def __init__(self, bottleneck: Bottleneck, norm: nn.Module) -> None:
        super().__init__(bottleneck)
        self.norm = norm

    def _delta(self, taken: Tensor, output: Tensor) -> Tensor:
        delta: Tensor = self.bottleneck(self.norm(output + taken))
        return delta


def attach_bottlenecks(model: Any, config: BottleneckConfig, seed: int = 0) -> None:
    """Put freshly drawn modules on the layers of a model, in place; `requires_grad` of the rest stays as it is.

    Raises:
        UnsupportedError: the family is not known, or cannot have such modules.
        ValueError: the number of widths is not that of the layers.
    """
    base = base_of(model)
    family = family_of(base.config)
    if config.normalized_input and family.ffn_norm is None:
        raise UnsupportedError("adapter", f"{family.title} normalizes before its parts, and the adapter behind them")
    layers = modules_at(base, family.layer)
    width = int(getattr(base.config, family.width_key))
    random = torch.Generator(device="cpu").manual_seed(seed)
    for layer, bottleneck in zip(layers, config.widths, strict=True):
        if not bottleneck:
            continue
        like = next(layer.parameters())
        for name, part in ((_ATTENTION, "attention"), (_FFN, "ffn")):
            if config.positions not in {part, "both"}:
                continue
            made = Bottleneck(width, bottleneck, config.activation, config.scaling)
            made.draw(config.form, random)
            layer.add_module(name, made.to(device=like.device, dtype=like.dtype))
            result = family.ffn_result if part == "ffn" else family.attention_result
            if config.form == "sequential" and not (config.normalized_input and part == "ffn"):
                modules_at(layer, result)[0].register_forward_hook(_After(made))
                continue
            norm = modules_at(layer, family.ffn_norm)[0] if config.normalized_input and family.ffn_norm else None
            hooks = _Beside(made) if norm is None else _AfterNorm(made, norm)
            modules_at(layer, family.ffn_input)[0].register_forward_pre_hook(hooks.take)
            modules_at(layer, result)[0].register_forward_hook(hooks)
    model.bottleneck_config = config


def bottleneck_parameters(model: nn.Module) -> list[str]:
    """Names of the modules' parameters; each holds the number of its layer."""
    return [name for name, _ in model.named_parameters() if f".{_FFN}." in name or f".{_ATTENTION}." in name]


def output_parameters(model: nn.Module) -> list[str]:
    """Names of what lies between the encoder and the logits: the classifier, and the pooler under it where the family
    has one. Other families have that layer in the classifier itself, and a base that came without it has a drawn one.
    """
    classifier = classifier_parameters(model)
    if not classifier:
        return []
    base = base_of(model)
    pooler = family_of(base.config).pooler
    found = getattr(base, pooler, None) if pooler else None
    inside = {id(parameter) for parameter in found.parameters()} if isinstance(found, nn.Module) else set()
    return [name for name, parameter in model.named_parameters() if id(parameter) in inside] + classifier


def open_for_training(model: nn.Module) -> None:
    """Ask for gradients of the modules and the output layers, and of nothing else, in place."""
    opened = {*bottleneck_parameters(model), *output_parameters(model)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in opened)


def open_bottlenecks(
    model: Any, raw: Mapping[str, Any], tensors: Mapping[str, Tensor], where: str | Path, *, head: bool
) -> Any:
    """Put the modules of an adapter folder on their base, with the classifier that came along, in place.

    Args:
        model: the base, with a classifier of the adapter's number of labels if it is to have one.
        raw: adapter_config.json in our own format.
        tensors: by name, as `BottleneckConfig.tensors` gives them; the classifier's may be missing.
        where: the folder to name in errors.
        head: the classifier must be among the tensors.

    Raises:
        UnsupportedError: a format or a setting that is not known.
        CheckpointError: the adapter is of another base, or its tensors are not those of its config.
    """
    base = base_of(model)
    family = family_of(base.config)
    width = int(getattr(base.config, family.width_key))
    remedy = "Give the right base with --base."
    for key, has in (("model_type", family.model_type), ("hidden_size", width)):
        if raw.get(key, has) != has:
            problem = f"was made for a base whose {key} is {str(raw[key])[:40]!r}, and that of the base is {has!r}"
            raise CheckpointError(where, problem, remedy)
    config = parse_config(raw, len(modules_at(base, family.layer)), tensors, where)
    attach_bottlenecks(model, config)
    # Saved with the prefix of task models or without, as the model was when it was saved.
    tensors = {_placed(name, family.prefix, bare=base is model): value for name, value in tensors.items()}
    inside = bottleneck_parameters(model)
    outputs = output_parameters(model)
    parameters = dict(model.named_parameters())
    missing = sorted({*inside, *(outputs if head else ())} - tensors.keys())
    surplus = sorted(tensors.keys() - {*inside, *outputs})
    if missing or surplus:
        named = ", ".join(name[:120] for name in (missing or surplus)[:3])
        problem = f"its tensors are not those of its config ({'missing' if missing else 'no place for'}: {named})"
        raise CheckpointError(where, problem, remedy)
    with torch.no_grad():
        for name, value in tensors.items():
            if value.shape != parameters[name].shape or not value.is_floating_point():
                problem = f"{name[:120]} is {list(value.shape)}, and the base wants {list(parameters[name].shape)}"
                raise CheckpointError(where, f"does not fit its base ({problem})", remedy)
            parameters[name].copy_(value)
    return model.eval()


def _placed(name: str, prefix: str, *, bare: bool) -> str:
    if bare:
        return name.removeprefix(f"{prefix}.")
    inner = f".{_FFN}." in name or f".{_ATTENTION}." in name
    return f"{prefix}.{name}" if inner and not name.startswith(f"{prefix}.") else name


def parse_config(
    raw: Mapping[str, Any], layers: int, tensors: Mapping[str, Tensor], where: str | Path
) -> BottleneckConfig:
    """adapter_config.json, with every number held against the tensors before anything of its size is made.

    Raises:
        UnsupportedError: a format, form, activation or position that is not known.
        CheckpointError: a number that cannot be.
    """
    if raw.get("format") != FORMAT:
        raise UnsupportedError(where, f"its format is {str(raw.get('format'))[:40]!r}, and only {FORMAT} is read")
    activation, form = raw.get("activation"), raw.get("form")
    positions = raw.get("positions", "ffn")
    for key, value, known in (
        ("activation", activation, tuple(ACTIVATIONS)),
        ("form", form, get_args(Form)),
        ("positions", positions, get_args(Positions)),
    ):
        if not isinstance(value, str) or value not in known:
            raise UnsupportedError(where, f"its {key} is {str(value)[:40]!r}, and only {', '.join(known)} are read")
    if form == "parallel" and positions != "ffn":
        raise UnsupportedError(where, "parallel modules are read beside the feed-forward part only")
    given = raw.get("bottleneck")
    widths: list[Any] = given if isinstance(given, list) else [given] * layers
    largest = max((size for tensor in tensors.values() for size in tensor.shape), default=0)
    if len(widths) != layers:
        problem = f"gives bottlenecks for {len(widths)} layers, and the base has {layers}"
        raise CheckpointError(where, problem, "Give the right base with --base.")
    for size in widths:
        if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= largest:
            raise CheckpointError(where, f"a bottleneck of {str(size)[:40]!r}, and its tensors allow up to {largest}")
    scaling = raw.get("scaling", 1.0)
    if isinstance(scaling, bool) or not isinstance(scaling, int | float) or not abs(scaling) <= _LARGEST_SCALE:
        raise CheckpointError(where, f"a scaling of {str(scaling)[:40]!r}")
    normalized = raw.get("normalized_input", False)
    if not isinstance(normalized, bool) or (normalized and (form != "sequential" or positions != "ffn")):
        raise UnsupportedError(where, "normalized_input is for sequential modules behind the feed-forward part")
    known_form, known_positions = cast(Form, form), cast(Positions, positions)  # looked at above
    return BottleneckConfig(known_form, tuple(widths), str(activation), float(scaling), known_positions, normalized)


def _labels(model: Any) -> dict[str, str]:
    if not classifier_parameters(model):
        return {}
    named = dict(model.config.id2label)
    return {str(number): str(named[number]) for number in sorted(named)}
