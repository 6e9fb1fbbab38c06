"""PEFT adapters: where their base lies, and how they are put on it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from purify_cli.checkpoint.weights import ADAPTER_NAMES, TensorRef, read_tensors, tensor_table
from purify_cli.errors import CheckpointError, UnsupportedError

ADAPTER_CONFIG = "adapter_config.json"

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
_UNREADABLE = ("megatron_config", "layer_replication", "arrow_config", "target_parameters", "aux_loss_coef")


def find_base(folder: Path, config: Mapping[str, Any], base: str | Path | None) -> Path | str:
    """Where the base of an adapter lies: what the user gave, else `base_model_name_or_path` if that is a folder here.

    A relative path is tried from the working folder and from the adapter's own. The network is never asked.

    Raises:
        CheckpointError: it is not on disk.
    """
    if base is not None:
        return base
    named = config.get("base_model_name_or_path")
    if isinstance(named, str) and named:
        for candidate in (Path(named), folder / named):
            try:
                if candidate.is_dir():
                    return candidate
            except (OSError, ValueError):
                continue
    shown = f"{str(named)[:120]!r}, is not a folder here" if named else "is not named in it"
    raise CheckpointError(folder / ADAPTER_CONFIG, f"the base of the adapter, {shown}", "Give it with --base.")


def adapter_table(folder: Path) -> dict[str, TensorRef]:
    """The tensors of an adapter by name.

    Raises:
        CheckpointError: there are none, or they cannot be read.
    """
    return tensor_table(folder, names=ADAPTER_NAMES)


def head_labels(table: Mapping[str, TensorRef], output_layer: str) -> int | None:
    """How many labels the classifier has that an adapter brings with it; None if it brings none."""
    for name, reference in table.items():
        if name.endswith(f"{output_layer}.weight") or name.endswith(f"{output_layer}.modules_to_save.weight"):
            return reference.shape[0] if len(reference.shape) == 2 else None
    return None


def attach(model: nn.Module, folder: Path, config: Mapping[str, Any]) -> nn.Module:
    """Put the adapter in `folder` on its base model and give the model back: merged where the type can be.

    Raises:
        UnsupportedError: a type or setting of PEFT that is not read.
        CheckpointError: the adapter was made for another base, or its tensors are not what its config says.
    """
    from peft import get_peft_model, set_peft_model_state_dict

    where = folder / ADAPTER_CONFIG
    table = adapter_table(folder)
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
            opened: nn.Module = wrapped.eval()
            return opened
        with torch.no_grad():
            merged: nn.Module = wrapped.merge_and_unload()
    if hasattr(merged, "peft_config"):
        del merged.peft_config
    return merged.eval()


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
    chosen["inference_mode"] = True
    try:
        return PEFT_TYPE_TO_CONFIG_MAPPING[kind](**chosen)
    except (TypeError, ValueError) as error:
        raise CheckpointError(where, f"is not a config of peft's {kind} ({str(error)[:160]})") from error
