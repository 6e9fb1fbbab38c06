"""From a config and named tensors to a model, with nothing left to the checkpoint's own wishes.

Classes come from transformers by family, never from `auto_map` or `architectures`; the numbers of the config are held
against the tensors on disk before anything of their size is built; names that transformers cannot map are errors.
"""

from __future__ import annotations

import logging as stdlib_logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    MODEL_MAPPING,
)
from transformers.utils import logging as transformers_logging

from purify_cli.architecture.classifier import replace_classifier
from purify_cli.architecture.table import Family, family_of
from purify_cli.errors import CheckpointError, UnsupportedError

Form = Literal["base", "classifier", "causal-lm"]

_CLASSES = {
    "base": MODEL_MAPPING,
    "classifier": MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "causal-lm": MODEL_FOR_CAUSAL_LM_MAPPING,
}

# Sizes that become a dimension of some tensor, so that none can exceed the largest dimension on disk.
_WIDTHS = (
    "hidden_size",
    "dim",
    "n_embd",
    "intermediate_size",
    "hidden_dim",
    "n_inner",
    "embedding_size",
    "vocab_size",
    "type_vocab_size",
    "position_buckets",
    "num_attention_heads",
    "n_heads",
    "n_head",
    "num_key_value_heads",
    "head_dim",
    "pooler_hidden_size",
    "summary_hidden_size",
    "conv_kernel_size",
    "n_ctx",
)
_COUNTS = ("num_hidden_layers", "n_layers", "n_layer", "num_hidden_groups", "inner_group_num")
_MAY_BE_ZERO = frozenset({"type_vocab_size", "position_buckets", "conv_kernel_size"})
_POSITIONS = ("max_position_embeddings", "n_positions")

_SHARED_DEPTH_LIMIT = 1024
"""Runs of a shared layer. Tensors do not bound this number; no published model has more than 48."""

_LABEL_LIMIT = 2**20

_HARMLESS = (
    "position_ids",
    "token_type_ids",
    ".masked_bias",
    ".attn.bias",
    "rotary_emb.inv_freq",
    "pooler.",
    "cls.",
    "lm_head.",
    "lm_predictions.",
    "mask_predictions.",
    "vocab_transform.",
    "vocab_projector.",
    "vocab_layer_norm.",
    "predictions.",
    "discriminator_predictions.",
    "generator_predictions.",
    "generator_lm_head.",
    "score.",
    "classifier.",
    "pre_classifier.",
)
_HARMLESS_TO_CLASSIFIERS = tuple(part for part in _HARMLESS if part not in {"score.", "classifier.", "pre_classifier."})


def checked_config(raw: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], where: str) -> PretrainedConfig:
    """The transformers config for `raw`, after its numbers were held against the shapes of the tensors on disk.

    Args:
        raw: config.json as read.
        shapes: tensor name -> shape.
        where: the file to name in errors.

    Raises:
        UnsupportedError: the family is not known, or the weights are quantized.
        CheckpointError: a number that is none, is not positive, or asks for more than the tensors hold.
    """
    family = family_of(raw, where)
    _bound(raw, family, shapes, where)
    kept = {key: value for key, value in raw.items() if key not in _IGNORED}
    try:
        with quiet():
            config: PretrainedConfig = CONFIG_MAPPING[family.model_type].from_dict(kept)
    except Exception as error:  # whatever a library makes of a config that is wrong in some way of its own
        reason = str(error).strip().splitlines()[0][:160] if str(error).strip() else type(error).__name__
        raise CheckpointError(where, f"is not a config of {family.title} ({reason})") from error
    return config


# What would make a loader fetch, import or trust something, or lay the weights out otherwise than they are.
_IGNORED = frozenset(
    {
        "auto_map",
        "custom_pipelines",
        "_attn_implementation",
        "attn_implementation",
        "_attn_implementation_internal",
        "_experts_implementation",
        "quantization_config",
        "_name_or_path",
        "name_or_path",
        "torch_dtype",
        "dtype",
        "use_kernels",
        "output_attentions",
        "output_hidden_states",
        "torchscript",
        "pruned_heads",
        "return_dict",
        "use_return_dict",
        "gradient_checkpointing",
    }
)


def _bound(raw: Mapping[str, Any], family: Family, shapes: Mapping[str, tuple[int, ...]], where: str) -> None:
    if raw.get("quantization_config"):
        raise UnsupportedError(where, "says that the weights are quantized", "Give the checkpoint in full precision.")
    largest = max((size for shape in shapes.values() for size in shape), default=0)
    limits = dict.fromkeys(_WIDTHS, largest) | dict.fromkeys(_COUNTS, len(shapes))
    if family.shares_layers:
        limits[family.layers_key] = _SHARED_DEPTH_LIMIT
    # Rotary positions are computed as they come; learned ones are a tensor.
    rotary = family.output == "o_proj" or raw.get("position_biased_input") is False
    limits |= dict.fromkeys(_POSITIONS, 2**31 if rotary else largest)
    limits["num_labels"] = _LABEL_LIMIT
    for key, limit in limits.items():
        value = raw.get(key)
        if value is None or (key in {"position_buckets", "head_dim"} and value == -1):
            continue
        lowest = 0 if key in _MAY_BE_ZERO else 1
        if isinstance(value, bool) or not isinstance(value, int):
            raise CheckpointError(where, f"{key} is {str(value)[:40]!r} and not a whole number")
        if not lowest <= value <= limit:
            problem = f"{key} is {value}, and the tensors of the checkpoint allow {lowest} to {limit}"
            raise CheckpointError(where, problem)
    for key in ("id2label", "label2id"):
        names = raw.get(key)
        if names is not None and not isinstance(names, Mapping):
            raise CheckpointError(where, f"{key} is not an object")
    reach = raw.get("max_relative_positions")
    if reach is not None and (isinstance(reach, bool) or not isinstance(reach, int) or not -1 <= reach <= 2**20):
        raise CheckpointError(where, f"max_relative_positions is {str(reach)[:40]!r}")


def load(
    form: Form,
    config: PretrainedConfig,
    tensors: Mapping[str, torch.Tensor],
    where: str,
    *,
    fresh_labels: int | None = None,
    seed: int = 0,
) -> PreTrainedModel:
    """Build the family's model of a form with these tensors, float32, in eval mode, on the CPU.

    Args:
        form: the base model alone, with a classifier, or with a language model head.
        tensors: name -> values, as on disk.
        where: the checkpoint to name in errors.
        fresh_labels: start a new classifier of so many labels from `seed`; None: the head must be among the tensors.

    Raises:
        CheckpointError: tensors are missing, left over, or of other shapes than the config says.
    """
    family = family_of(config, where)
    model_class = _CLASSES[form][type(config)]
    _check_total(model_class, config, sum(tensor.numel() for tensor in tensors.values()), where)
    if form == "classifier" and fresh_labels is not None and fresh_labels != config.num_labels:
        config.id2label = {number: f"LABEL_{number}" for number in range(fresh_labels)}
        config.label2id = {f"LABEL_{number}": number for number in range(fresh_labels)}
        config.problem_type = None
    given = dict(tensors)
    if fresh_labels is not None:
        # A head that is about to be drawn anew may have other labels on disk; it is left there.
        given = {name: tensor for name, tensor in given.items() if not _in_head(name, family)}
    with quiet(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a pooler that the encoder came without is drawn from it
        try:
            model, report = model_class.from_pretrained(
                None,
                config=config,
                state_dict=given,
                dtype=torch.float32,
                attn_implementation="sdpa" if family.row_from == "interface" else "eager",
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below by name, instead of by a log that nobody sees
                local_files_only=True,
            )
        except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise CheckpointError(where, f"its tensors do not fit its config ({_first_lines(error)})") from error
    _check_names(report, form, family, fresh_labels is not None, where)
    if fresh_labels is not None:
        replace_classifier(model, fresh_labels, seed)
    loaded: PreTrainedModel = model.eval()
    return loaded


def _in_head(name: str, family: Family) -> bool:
    return name.startswith(("classifier.", "pre_classifier.", "score.")) or (
        family.pooler is None and name.startswith("pooler.")
    )


def _check_total(model_class: type[PreTrainedModel], config: PretrainedConfig, on_disk: int, where: str) -> None:
    """Refuse a config whose model is far larger than the tensors that are there, before it is built for real."""
    try:
        with quiet(), torch.device("meta"):
            skeleton = model_class(config)
    except Exception as error:  # dimensions that contradict each other; each family has its own words for it
        raise CheckpointError(where, f"its config describes no model ({_first_lines(error)})") from error
    needed = sum(math.prod(parameter.shape) for parameter in skeleton.parameters())
    # A missing pooler, a fresh head and an untied language model head are all that may come on top.
    allowance = 2 * on_disk + 2**22
    if needed > allowance:
        raise CheckpointError(where, f"its config asks for {needed:,} parameters, and the files hold {on_disk:,}")


def _check_names(report: Any, form: Form, family: Family, fresh: bool, where: str) -> None:
    mismatched = sorted(map(_mismatch, report["mismatched_keys"]))
    if mismatched:
        problem = f"its tensors do not fit its config: {_some(mismatched)}"
        raise CheckpointError(where, problem, "Config and weights are of different models.")
    optional = tuple(
        part
        for part in (f"{family.prefix}.{family.pooler}.", f"{family.pooler}.")
        if family.pooler and (form == "base" or fresh)
    )
    missing = sorted(
        name
        for name in report["missing_keys"]
        if not name.startswith(optional or ("\0",)) and not (fresh and _in_head(name, family))
    )
    if missing:
        claim = "a trained classifier" if form == "classifier" else f"a {family.title} model"
        raise CheckpointError(where, f"claims to be {claim}, but these tensors are missing: {_some(missing)}")
    harmless = _HARMLESS_TO_CLASSIFIERS if form == "classifier" and not fresh else _HARMLESS
    unexpected = sorted(name for name in report["unexpected_keys"] if not any(part in name for part in harmless))
    if unexpected:
        problem = f"tensors that a {family.title} {form.replace('-', ' ')} model has no place for: {_some(unexpected)}"
        raise CheckpointError(where, problem)


def _mismatch(entry: Any) -> str:
    """A tensor of another shape than the config says, from the library's (name, shape on disk, shape wanted)."""
    if not isinstance(entry, tuple):
        return str(entry)
    name, *shapes = entry
    if len(shapes) != 2:
        return str(name)
    return f"{str(name)[:80]} is {list(shapes[0])}, and the config says {list(shapes[1])}"


def _some(names: list[str]) -> str:
    shown = ", ".join(name[:160] for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _first_lines(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:240] or type(error).__name__


@contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers' logs, load reports and progress bars from the user, and put its settings back afterwards."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity(stdlib_logging.CRITICAL)
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()
