"""Adapters on disk: whose format they have, where their base lies, and how PEFT's are put on it.

Three writers call their config adapter_config.json. PEFT's has a `peft_type`; ours, for bottleneck modules, a `format`
(docs/adapters.md); AdapterHub's has a nested `config` (`checkpoint/adapterhub.py`).
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from purify_cli.checkpoint import adapterhub
from purify_cli.checkpoint.header import read_header
from purify_cli.checkpoint.weights import ADAPTER_NAMES, TensorRef, read_tensors, tensor_table
from purify_cli.errors import CheckpointError, PurifyError, UnsupportedError

ADAPTER_CONFIG = "adapter_config.json"
LABELS_KEY = "purify.id2label"
"""In the header of a PEFT adapter's safetensors file: the label names, for which PEFT's config has no place."""

# Settings that describe how an adapter is laid out. All others are about how it was trained, or name things to import
# or to load.
_LORA_SETTINGS = frozenset(
    {
        "task_type",
        "r",
        "lora_alpha",
        "target_modules",
        "exclude_modules",
        "fan_in_fan_out",
        "bias",
        "use_rslora",
        "use_dora",
        "modules_to_save",
        "layers_to_transform",
        "layers_pattern",
        "rank_pattern",
        "alpha_pattern",
        "trainable_token_indices",
        "lora_bias",
    }
)
_FINISHED = {"prompt_tuning_init": "RANDOM", "prefix_projection": False}
_UNREADABLE = ("megatron_config", "layer_replication", "arrow_config", "target_parameters", "aux_loss_coef")


@dataclass(frozen=True)
class BottleneckFiles:
    """An adapter of bottleneck modules, in our own words whoever wrote it.

    Attributes:
        config: adapter_config.json in our format.
        tensors: our names -> what lies on disk, under names that may be others.
        names: our names -> the names on disk.
    """

    config: Mapping[str, Any]
    tensors: Mapping[str, TensorRef]
    names: Mapping[str, str]

    def read(self) -> dict[str, torch.Tensor]:
        """The values, by our names."""
        values = read_tensors({self.names[name]: reference for name, reference in self.tensors.items()})
        return {name: values[self.names[name]] for name in self.tensors}


def is_adapter(config: Mapping[str, Any]) -> bool:
    """Whether an adapter_config.json is of one of the three formats."""
    return "peft_type" in config or _is_bottleneck(config)


def _is_bottleneck(config: Mapping[str, Any]) -> bool:
    return str(config.get("format", "")).startswith("purify.bottleneck/") or adapterhub.is_config(config)


def bottleneck_files(folder: Path, config: Mapping[str, Any], model_type: str, layers: int) -> BottleneckFiles | None:
    """What a folder of bottleneck modules holds; None: it is PEFT's.

    Args:
        folder: the adapter's.
        config: its adapter_config.json.
        model_type: of the base.
        layers: of the base.

    Raises:
        UnsupportedError: modules of AdapterHub's that cannot be rebuilt.
        CheckpointError: there are no tensors, or they cannot be read.
    """
    if "peft_type" in config or not _is_bottleneck(config):
        return None
    table = adapter_table(folder, config)
    if not adapterhub.is_config(config):
        return BottleneckFiles(config, table, {name: name for name in table})
    translated, names = adapterhub.translate(folder, config, table, model_type, layers)
    return BottleneckFiles(translated, {ours: table[theirs] for ours, theirs in names.items()}, names)


def saved_labels(folder: Path) -> dict[str, Any] | None:
    """The label names that the header of a PEFT adapter brings along, if it does."""
    try:
        named = json.loads(read_header(folder / ADAPTER_NAMES[0]).metadata.get(LABELS_KEY, "null"))
    except (PurifyError, OSError, ValueError, RecursionError):
        return None
    return named if isinstance(named, dict) else None


def find_base(folder: Path, config: Mapping[str, Any], base: str | Path | None) -> Path | str:
    """Where the base of an adapter lies: what the user gave, else the base that the config names (PEFT and we:
    `base_model_name_or_path`, AdapterHub: `model_name`) if that is a folder here.

    A relative path is tried from the working folder and from the adapter's own. The network is never asked.

    Raises:
        CheckpointError: it is not on disk.
    """
    if base is not None:
        return base
    named = config.get("base_model_name_or_path") or config.get("model_name")
    if isinstance(named, str) and named:
        for candidate in (Path(named), folder / named):
            try:
                if candidate.is_dir():
                    return candidate
            except (OSError, ValueError):
                continue
    shown = f"{str(named)[:120]!r}, is not a folder here" if named else "is not named in it"
    raise CheckpointError(folder / ADAPTER_CONFIG, f"the base of the adapter, {shown}", "Give it with --base.")


def adapter_table(folder: Path, config: Mapping[str, Any]) -> dict[str, TensorRef]:
    """The tensors of an adapter by the names that they have on disk.

    Raises:
        CheckpointError: there are none, or they cannot be read.
    """
    if adapterhub.is_config(config):
        return adapterhub.tensors(folder)
    return tensor_table(folder, names=ADAPTER_NAMES)


def head_labels(table: Mapping[str, TensorRef], output_layer: str) -> int | None:
    """How many labels the classifier has that an adapter brings with it; None if it brings none."""
    for name, reference in table.items():
        # The dot tells DistilBERT's classifier from its pre_classifier.
        if f".{name}".endswith((f".{output_layer}.weight", f".{output_layer}.modules_to_save.weight")):
            return reference.shape[0] if len(reference.shape) == 2 else None
    return None


def attach(model: nn.Module, folder: Path, config: Mapping[str, Any]) -> nn.Module:
    """Put PEFT's adapter in `folder` on its base model and give the model back: merged where the type can be.

    One that cannot be merged asks for gradients, with the classifier that came along, and its base does not.

    Raises:
        UnsupportedError: a type or setting of PEFT that is not read.
        CheckpointError: the adapter was made for another base, or its tensors are not what its config says.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    where = folder / ADAPTER_CONFIG
    table = adapter_table(folder, config)
    settings = _settings(config, table, where)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            wrapped = get_peft_model(model, settings)
            report = set_peft_model_state_dict(wrapped, read_tensors(table))
        except CheckpointError:
            raise
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                folder, f"does not fit its base ({reason})", "Give the right base with --base."
            ) from error
        # Virtual tokens are loaded besides the state dict, so the report has them wrong.
        missing = [name for name in report.missing_keys if ".default" in name and "prompt_encoder." not in name]
        surplus = [name for name in report.unexpected_keys if name != "prompt_embeddings"]
        if missing or surplus:
            named = ", ".join(sorted(missing or surplus)[:3])
            problem = f"its tensors are not those of its config ({'missing' if missing else 'no place for'}: {named})"
            raise CheckpointError(folder, problem, "Give the right base with --base.")
        merge = getattr(wrapped, "merge_and_unload", None)
        if merge is None or not hasattr(wrapped.base_model, "merge_and_unload"):
            for name, parameter in wrapped.named_parameters():
                parameter.requires_grad_(_OWN.search(name) is not None)
            opened: nn.Module = wrapped.eval()
            return opened
        with torch.no_grad():
            merged: nn.Module = wrapped.merge_and_unload()
    merged.requires_grad_(True)  # peft had frozen the base; what is merged is a whole model like any other
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    return merged.eval()


_OWN = re.compile(r"(^|\.)default(\.|$)")
"""In the names of PEFT's parameters: the adapter's own, and its copies of modules that are saved whole."""


def _settings(config: Mapping[str, Any], table: Mapping[str, TensorRef], where: Path) -> Any:
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    kind = config.get("peft_type")
    if not isinstance(kind, str) or kind not in PEFT_TYPE_TO_CONFIG_MAPPING:
        raise UnsupportedError(where, f"peft_type {str(kind)[:40]!r} is not known to the installed peft")
    for name in _UNREADABLE:
        if config.get(name):
            raise UnsupportedError(where, f"adapters with {name} are not read")
    largest = max((size for reference in table.values() for size in reference.shape), default=0)
    ranks = [config.get("r"), config.get("num_virtual_tokens"), *dict(config.get("rank_pattern") or {}).values()]
    for rank in ranks:
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank <= largest):
            raise CheckpointError(where, f"a rank of {str(rank)[:40]!r}, and its tensors allow up to {largest}")
    # Sizes of soft prompts, which are made before they are filled.
    wanted = 1
    for key in ("num_virtual_tokens", "num_layers", "token_dim", "num_transformer_submodules"):
        size = config.get(key)
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or not 0 < size <= largest):
            raise CheckpointError(where, f"{key} is {str(size)[:40]!r}, and its tensors allow up to {largest}")
        wanted *= (size or 1) if key != "num_layers" or kind == "PREFIX_TUNING" else 1
    if wanted > sum(reference.elements for reference in table.values()):
        raise CheckpointError(where, "asks for more virtual tokens than its tensors hold")
    if kind == "LORA":
        # Weights are about to be overwritten, so the cheapest way to start them will do.
        chosen = {key: value for key, value in config.items() if key in _LORA_SETTINGS} | {"init_lora_weights": True}
    else:
        chosen = {
            key: value
            for key, value in config.items()
            if key not in {"peft_type", "auto_mapping", "base_model_name_or_path", "revision", "peft_version"}
            and not key.endswith("_path")
        }
    # What is saved are the finished prompts: how they were started or projected must not be done again.
    for key in ("prompt_tuning_init_text", "tokenizer_kwargs"):
        chosen.pop(key, None)
    chosen |= {key: value for key, value in _FINISHED.items() if key in chosen}
    chosen["inference_mode"] = True
    try:
        return PEFT_TYPE_TO_CONFIG_MAPPING[kind](**chosen)
    except (TypeError, ValueError) as error:
        raise CheckpointError(where, f"is not a config of peft's {kind} ({str(error)[:160]})") from error
