"""Adapters that AdapterHub's library (`adapters`, formerly adapter-transformers) saved, in our own words.

A folder holds adapter_config.json with a nested `config`, the modules in adapter.safetensors or pytorch_adapter.bin,
and, if the head was saved, head_config.json with model_head.safetensors or pytorch_model_head.bin. Read are the
bottleneck modules `seq_bn` (Pfeiffer), `double_seq_bn` (AdapterHub's Houlsby) and `par_bn` (He et al.) on BERT,
RoBERTa, ELECTRA, DeBERTa-v2 and DistilBERT, with a classification head that the family's own classifier can hold. All
else is refused by name, since a module that is left out would make another model.

What the words mean there, from the library's source: the bottleneck has width // reduction_factor rows;
`original_ln_before` hands the module LayerNorm(h + residual) and adds its result to h; `scaling` is a constant that no
tensor holds; in files without a `version` `gelu` is the tanh form.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from purify_cli.checkpoint.weights import (
    ADAPTERHUB_HEAD_NAMES,
    ADAPTERHUB_NAMES,
    TensorRef,
    tensor_table,
    weight_files,
)
from purify_cli.errors import CheckpointError, UnsupportedError

HEAD_CONFIG = "head_config.json"
_LIMIT = 4 * 2**20
"""Bytes of a head's config."""

_ACTIVATIONS = {
    "relu": "relu",
    "swish": "silu",
    "silu": "silu",
    "tanh": "tanh",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_orig": "gelu",
}

# Settings whose every other value than these makes a module that is not rebuilt.
_ONLY: Mapping[str, tuple[Any, ...]] = {
    "original_ln_after": (True, None),
    "ln_before": (False, None),
    "ln_after": (False, None),
    "use_gating": (False, None),
    "residual_before_ln": (True, None),
    "adapter_residual_before_ln": (False, None),
    "inv_adapter": (None,),
    "cross_adapter": (False, None),
    "phm_layer": (False, None),
    "stochastic_depth": (0, 0.0, None),
}

_LAYERS = {
    "bert": "bert.encoder.layer",
    "roberta": "roberta.encoder.layer",
    "electra": "electra.encoder.layer",
    "deberta-v2": "deberta.encoder.layer",
    "distilbert": "distilbert.transformer.layer",
}

_MODULE = re.compile(
    r"(?:(?:bert|roberta|electra|deberta|distilbert)\.)?(?:encoder|transformer)\.layer\.(?P<layer>\d{1,4})\."
    r"(?P<part>attention\.output|output|attention_adapters|output_adapters)\."
    r"(?:adapters|(?:attention|layer)_text_(?:task|lang)_adapters)\.(?P<name>[^.]+)\."
    r"(?:adapter_(?P<down>down)\.0|adapter_(?P<up>up))\.(?P<kind>weight|bias)"
)

# The two linear maps of a classification head, and what the library's own head has between them.
_HEADS: Mapping[str, tuple[str, str, str]] = {
    "bert": ("bert.pooler.dense", "classifier", "tanh"),
    "roberta": ("classifier.dense", "classifier.out_proj", "tanh"),
    "electra": ("classifier.dense", "classifier.out_proj", "gelu"),
    "deberta-v2": ("pooler.dense", "classifier", "gelu"),
    "distilbert": ("pre_classifier", "classifier", "relu"),
}


def is_config(config: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is of this library."""
    return (
        "peft_type" not in config
        and isinstance(config.get("config"), Mapping)
        and any(key in config for key in ("model_type", "hidden_size", "model_class"))
    )


def tensors(folder: Path) -> dict[str, TensorRef]:
    """The tensors of the adapter and of its head, by the names that they have on disk.

    Raises:
        CheckpointError: there are none, or they cannot be read.
    """
    table = tensor_table(folder, names=ADAPTERHUB_NAMES)
    if weight_files(folder, ADAPTERHUB_HEAD_NAMES):
        table |= tensor_table(folder, names=ADAPTERHUB_HEAD_NAMES)
    return table


def translate(
    folder: Path, raw: Mapping[str, Any], table: Mapping[str, TensorRef], model_type: str, layers: int
) -> tuple[dict[str, Any], dict[str, str]]:
    """The config in our own format, and our tensor names -> those of the table.

    Raises:
        UnsupportedError: a setting, a module or a head that is not rebuilt.
        CheckpointError: tensors that contradict the config.
    """
    where = folder / "adapter_config.json"
    if model_type not in _LAYERS:
        raise UnsupportedError(where, f"AdapterHub's adapters of {model_type[:40]} are not read")
    settings = raw["config"]
    for key, allowed in _ONLY.items():
        if settings.get(key) not in allowed:
            raise UnsupportedError(where, f"adapters with {key} {str(settings[key])[:40]!r} are not read")
    parts = (bool(settings.get("mh_adapter")), bool(settings.get("output_adapter")))
    if parts == (False, False):
        raise UnsupportedError(where, "is no bottleneck adapter; AdapterHub's other kinds are not read")
    activation = _ACTIVATIONS.get(str(settings.get("non_linearity")).lower())
    if activation is None:
        raise UnsupportedError(where, f"its non_linearity {str(settings.get('non_linearity'))[:40]!r} is not read")
    if activation == "gelu" and settings["non_linearity"] == "gelu" and "version" not in raw:
        activation = "gelu_tanh"
    scaling = settings.get("scaling", 1.0)
    if isinstance(scaling, bool) or not isinstance(scaling, int | float):
        raise UnsupportedError(where, f"adapters with the scaling {str(scaling)[:40]!r} are not read")
    names, widths = _modules(table, model_type, layers, where)
    _check_widths(widths, raw, settings, where)
    config = {
        "format": "purify.bottleneck/1",
        "form": "parallel" if settings.get("is_parallel") else "sequential",
        "bottleneck": widths,
        "activation": activation,
        "scaling": scaling,
        "positions": "both" if all(parts) else "attention" if parts[0] else "ffn",
        "normalized_input": bool(settings.get("original_ln_before")) and not settings.get("is_parallel"),
        "base_model_name_or_path": raw.get("model_name"),
        "model_type": raw.get("model_type", model_type),
    }
    if isinstance(raw.get("hidden_size"), int):
        config["hidden_size"] = raw["hidden_size"]
    rest = [name for name in table if name not in set(names.values())]
    if rest:
        heads, labels = _head(folder, rest, table, model_type)
        names |= heads
        config |= labels
    return config, names


def _modules(
    table: Mapping[str, TensorRef], model_type: str, layers: int, where: Path
) -> tuple[dict[str, str], list[int]]:
    """Our names -> theirs of all tensors of modules, and the bottleneck of each layer."""
    names: dict[str, str] = {}
    widths = [0] * layers
    called: set[str] = set()
    for theirs, reference in table.items():
        found = _MODULE.fullmatch(theirs)
        if found is None:
            if ".layer." in theirs or "invertible" in theirs:
                raise UnsupportedError(where, f"a module of this kind is not read: {theirs[:120]}")
            continue
        layer = int(found["layer"])
        if layer >= layers:
            problem = f"has modules for layer {layer}, and the base has {layers} layers"
            raise CheckpointError(where, problem, "Give the right base with --base.")
        part = "bottleneck_attention" if found["part"].startswith("attention") else "bottleneck_ffn"
        which = found["down"] or found["up"]
        ours = f"{_LAYERS[model_type]}.{layer}.{part}.{which}.{found['kind']}"
        if ours in names:
            raise UnsupportedError(where, f"holds several adapters: {theirs[:120]}")
        names[ours] = theirs
        called.add(found["name"])
        if which == "down" and found["kind"] == "weight":
            if len(reference.shape) != 2:
                raise CheckpointError(where, f"{theirs[:120]} is {list(reference.shape)}")
            widths[layer] = max(widths[layer], reference.shape[0])
    if not names:
        raise CheckpointError(where, "no bottleneck module is among its tensors")
    if len(called) > 1:
        raise UnsupportedError(where, f"holds several adapters: {', '.join(sorted(called))[:120]}")
    return names, widths


def _check_widths(widths: list[int], raw: Mapping[str, Any], settings: Mapping[str, Any], where: Path) -> None:
    """Hold the bottlenecks against width // reduction_factor; a map gives some layers their own."""
    factor, width = settings.get("reduction_factor"), raw.get("hidden_size")
    if factor is None or not isinstance(width, int) or isinstance(width, bool):
        return
    left_out = settings.get("leave_out") or []
    for layer, found in enumerate(widths):
        given = factor.get(str(layer), factor.get("default")) if isinstance(factor, Mapping) else factor
        if isinstance(given, bool) or not isinstance(given, int | float) or not 0 < given < math.inf:
            raise CheckpointError(where, f"a reduction_factor of {str(given)[:40]!r}")
        expected = 0 if layer in left_out else max(1, int(width // given))
        if found != expected:
            raise CheckpointError(
                where,
                f"layer {layer} has a bottleneck of {found}, and its reduction_factor makes that {expected}",
                "Give the right base with --base.",
            )


def _head(
    folder: Path, rest: list[str], table: Mapping[str, TensorRef], model_type: str
) -> tuple[dict[str, str], dict[str, Any]]:
    """Our names -> theirs of a classification head, and what our config says of its labels."""
    where = folder / HEAD_CONFIG
    if not all(name.startswith("heads.") for name in rest):
        # A model of transformers with its own classifier: the names are the family's.
        return {name: name for name in rest}, {"task_type": "SEQ_CLS"}
    settings = _head_config(where)
    kind, count = settings.get("head_type"), settings.get("layers")
    maps = sorted({name.rpartition(".")[0] for name in rest}, key=lambda name: (len(name), name))
    dense, output, between = _HEADS[model_type]
    if kind != "classification" or settings.get("use_pooler") not in (False, None) or count != 2 or len(maps) != 2:
        shown = f"{str(kind)[:40]}, {str(count)[:10]} layers, use_pooler {str(settings.get('use_pooler'))[:10]}"
        raise UnsupportedError(where, f"a head of this kind is not read ({shown})")
    if settings.get("activation_function") != between:
        shown = f"{str(settings.get('activation_function'))[:40]!r}, and the classifier of {model_type} has {between!r}"
        raise UnsupportedError(where, f"a head with the activation {shown}")
    names = {
        f"{ours}.{suffix}": f"{theirs}.{suffix}"
        for ours, theirs in zip((dense, output), maps, strict=True)
        for suffix in ("weight", "bias")
    }
    if set(names.values()) != set(rest):
        raise UnsupportedError(where, f"a head with these tensors is not read: {', '.join(sorted(rest))[:160]}")
    labels = settings.get("label2id")
    said: dict[str, Any] = {"task_type": "SEQ_CLS", "num_labels": table[names[f"{output}.weight"]].shape[0]}
    if isinstance(labels, Mapping) and labels:
        said["id2label"] = {str(number): str(label) for label, number in labels.items()}
    return names, said


def _head_config(file: Path) -> Mapping[str, Any]:
    try:
        if file.stat().st_size > _LIMIT:
            raise CheckpointError(file, f"has more than {_LIMIT // 2**20} MB")
        settings = json.loads(file.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        raise CheckpointError(file, "is no config of a head") from error
    if not isinstance(settings, Mapping):
        raise CheckpointError(file, "is no config of a head")
    return settings
