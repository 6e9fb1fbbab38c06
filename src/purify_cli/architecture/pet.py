"""Parameter-efficient tuning: a frozen model with an adapter and a classifier that learn.

Five forms, the carriers of Gu et al. 2023 (gradient control): the bottleneck modules of `architecture/bottleneck.py`,
and LoRA, prefix and prompt tuning through peft. What is trained is the adapter and what lies between the encoder and
the logits: the classifier, and the pooler under it where the family keeps that layer apart (BERT, ALBERT).

A form is written `name` or `name:key=value,key=value`:

    sequential   bottleneck (default: width / 16, at least 8), positions=ffn|both, activation (gelu_tanh)
    parallel     bottleneck (as above), scaling (4), activation (relu)
    lora         rank (8), alpha (16), on queries and values
    prefix       tokens (16)
    prompt       tokens (16)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch

from purify_cli.architecture.bottleneck import (
    ACTIVATIONS,
    BottleneckConfig,
    attach_bottlenecks,
    open_for_training,
    output_parameters,
)
from purify_cli.architecture.embeddings import word_embeddings
from purify_cli.architecture.table import base_of, family_of, modules_at
from purify_cli.errors import UsageError

OPTION = "--pet"


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise ValueError(f"from {low} to {high}")
        return number

    return read


def _number(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1e4 or not math.isfinite(number):
        raise ValueError("above 0, up to 10000")
    return number


def _one_of(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return text

    return read


_ACTIVATION = _one_of(*ACTIVATIONS)

FORMS: Mapping[str, Mapping[str, Callable[[str], Any]]] = {
    "sequential": {
        "bottleneck": _whole(1, 2**16),
        "positions": _one_of("ffn", "both"),
        "activation": _ACTIVATION,
    },
    "parallel": {"bottleneck": _whole(1, 2**16), "scaling": _number, "activation": _ACTIVATION},
    "lora": {"rank": _whole(1, 2**12), "alpha": _number},
    "prefix": {"tokens": _whole(1, 2**10)},
    "prompt": {"tokens": _whole(1, 2**10)},
}
"""Form -> its settings, each with what reads it from text."""


def parse_form(form: str) -> tuple[str, dict[str, Any]]:
    """The name and the settings of a form as the user writes it.

    Raises:
        UsageError: no such form or setting, or a value out of range.
    """
    name, _, rest = form.strip().partition(":")
    if name not in FORMS:
        raise UsageError(OPTION, f"{name[:40]!r} is no form of adapter", f"The forms are {', '.join(FORMS)}.")
    settings: dict[str, Any] = {}
    for part in filter(None, (one.strip() for one in rest.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if key not in FORMS[name] or not equals:
            known = ", ".join(FORMS[name])
            raise UsageError(OPTION, f"{name} has no setting {part[:40]!r}", f"Write key=value, of {known}.")
        try:
            settings[key] = FORMS[name][key](value)
        except ValueError as error:
            reason = str(error) if not str(error).startswith(("invalid", "could not")) else "a number"
            raise UsageError(OPTION, f"{key} of {name} is {value[:40]!r}", f"It must be {reason}.") from error
    return name, settings


def attach_pet(model: Any, form: str, seed: int) -> Any:
    """Freeze a classification model and put a fresh adapter on it.

    Args:
        model: a classifier of transformers; changed in place.
        form: as in the module's docstring.
        seed: draws the adapter; the caller's random numbers are left alone.

    Returns:
        The model, wrapped by peft for its forms, in eval mode: the adapter, the classifier and the pooler ask for
        gradients, and nothing else does.

    Raises:
        UsageError: no such form, a setting out of range, a model that has an adapter or cannot carry this one.
    """
    name, settings = parse_form(form)
    if has_pet(model):
        raise UsageError(OPTION, "the checkpoint is an adapter already", "Leave it out, or give the base itself.")
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    if name in {"sequential", "parallel"}:
        _attach_bottlenecks(model, name, settings, seed)
        open_for_training(model)
    else:
        model = _attach_peft(model, name, settings, seed)
    return model.eval()


def has_pet(model: Any) -> bool:
    """Whether a model carries an adapter that is not merged into it."""
    return hasattr(model, "peft_config") or hasattr(model, "bottleneck_config")


def note_soft_tokens(model: Any) -> None:
    """Write into the model's config how many places a prompt or prefix takes from the text, if it carries one."""
    for config in getattr(model, "peft_config", {}).values():
        if config.is_prompt_learning:
            model.config.soft_prompt_tokens = int(config.num_virtual_tokens)


def _attach_bottlenecks(model: Any, form: str, settings: Mapping[str, Any], seed: int) -> None:
    base = base_of(model)
    family = family_of(base.config)
    width = int(getattr(base.config, family.width_key))
    layers = len(modules_at(base, family.layer))
    widths = (settings.get("bottleneck", max(8, width // 16)),) * layers
    if form == "sequential":
        # adapter-bert's GELU is the tanh form.
        config = BottleneckConfig(
            "sequential",
            widths,
            settings.get("activation", "gelu_tanh"),
            positions=settings.get("positions", "ffn"),
        )
    else:
        config = BottleneckConfig(
            "parallel", widths, settings.get("activation", "relu"), scaling=settings.get("scaling", 4.0)
        )
    attach_bottlenecks(model, config, seed)


def _attach_peft(model: Any, name: str, settings: Mapping[str, Any], seed: int) -> Any:
    from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model

    base = base_of(model)
    family = family_of(base.config)
    saved = output_modules(model)
    config: Any
    if name == "lora":
        config = LoraConfig(
            task_type="SEQ_CLS",
            r=settings.get("rank", 8),
            lora_alpha=settings.get("alpha", 16),
            target_modules=list(family.lora_targets),
            fan_in_fan_out=family.transposed,
            modules_to_save=saved,
        )
    elif name == "prefix":
        if not family.takes_prefix:
            raise UsageError(
                OPTION, f"{family.title} takes no prefix: it cannot be handed keys and values", "Choose another form."
            )
        config = PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=settings.get("tokens", 16))
    else:
        if family.summary == "last":
            problem = f"{family.title} finds its last token by the ids, and behind a prompt there are none"
            raise UsageError(OPTION, problem, "Choose another form.")
        config = PromptTuningConfig(
            task_type="SEQ_CLS",
            num_virtual_tokens=settings.get("tokens", 16),
            # The prompt stands among the word embeddings, which some families keep narrower than their layers.
            token_dim=word_embeddings(model).embedding_dim,
            num_layers=int(getattr(base.config, family.layers_key)),
            num_attention_heads=int(getattr(base.config, family.heads_key)),
        )
    if name != "lora":
        config.modules_to_save = saved
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        wrapped = get_peft_model(model, config)
    note_soft_tokens(wrapped)
    return wrapped


def output_modules(model: Any) -> list[str]:
    """What peft trains and saves whole: the modules that `output_parameters` lie in."""
    base = base_of(model)
    names = set(output_parameters(model))
    found = [
        name
        for name, child in model.named_children()
        if child is not base and any(one.startswith(f"{name}.") for one in names)
    ]
    pooler = family_of(base.config).pooler
    if pooler and any(f".{pooler}." in name for name in names):
        found.append(pooler)
    return found
