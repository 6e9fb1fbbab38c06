"""Low-rank modules: the scaled one is equation 6 to the digit, and merging changes no answer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from purify_cli.architecture.scaled import Scaled, attach_low_rank, merge_low_rank, penultimate_linear

PLACES = {
    "bert": ("bert.pooler.dense", "pooler"),
    "albert": ("albert.pooler", "pooler"),
    "roberta": ("classifier.dense", "classifier"),
    "electra": ("classifier.dense", "classifier"),
    "deberta-v2": ("pooler.dense", "classifier"),
    "distilbert": ("pre_classifier", "classifier"),
    "gpt2": ("transformer.h.1.mlp.c_proj", "layer"),
    "llama": ("model.layers.1.mlp.down_proj", "layer"),
    "qwen2": ("model.layers.1.mlp.down_proj", "layer"),
    "qwen3": ("model.layers.1.mlp.down_proj", "layer"),
    "mistral": ("model.layers.1.mlp.down_proj", "layer"),
}
IDS = torch.tensor([[5, 60, 70, 80, 9], [6, 61, 71, 81, 10]])


def seen(model: Any, name: str) -> tuple[Tensor, Tensor, Tensor]:
    """What goes into and comes out of a module in a pass over `IDS`, and the logits."""
    found: list[tuple[Tensor, Tensor]] = []
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    handle = inner.get_submodule(name).register_forward_hook(
        lambda module, given, answer: found.append((given[0].detach(), answer.detach()))
    )
    with torch.no_grad():
        logits = model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits
    handle.remove()
    return *found[-1], logits


@pytest.mark.parametrize("family", sorted(PLACES))
def test_the_scaled_module_is_equation_6_and_merges(family: str) -> None:
    model: Any = tiny.build(family)
    name, place = penultimate_linear(model)
    assert (name, place) == PLACES[family]
    plain = {key: value.clone() for key, value in model.state_dict().items()}
    _, _, before = seen(model, name)
    form = Scaled((1.0, 3.0, 5.0), bandwidth=2, alpha=0.6)
    wrapped = attach_low_rank(model, rank=2, alpha=4.0, scaled=(name, form), opened=[], seed=3)
    layer = wrapped.get_base_model().get_submodule(name)
    left, right = layer.lora_A["default"].weight, layer.lora_B["default"].weight  # L [6, in], R [out, 6]
    assert left.shape[0] == right.shape[1] == 6
    assert right.abs().max() > 0, "drawn, not zero"
    states, result, logits = seen(wrapped, name)
    assert not torch.allclose(logits, before, atol=1e-4), "the module is at work from the start"
    with torch.no_grad():
        expected = layer.base_layer(states).clone()
        rows, outs = states.reshape(-1, states.shape[-1]), expected.view(-1, expected.shape[-1])
        for row in range(min(3, len(rows))):  # literally: h = W0 x + alpha / r * R (L x . S)
            inner = [float(left[j] @ rows[row]) * (1.0, 1.0, 3.0, 3.0, 5.0, 5.0)[j] for j in range(6)]
            for out in range(outs.shape[1]):
                outs[row, out] += 0.6 / 2 * sum(float(right[out, j]) * inner[j] for j in range(6))
    torch.testing.assert_close(
        result.view(-1, result.shape[-1])[:3], expected.view(-1, expected.shape[-1])[:3], atol=1e-5, rtol=1e-5
    )
    merged = merge_low_rank(wrapped)
    assert {key: value.shape for key, value in merged.state_dict().items()} == {k: v.shape for k, v in plain.items()}
    torch.testing.assert_close(seen(merged, name)[2], logits, atol=1e-5, rtol=1e-5)
    changed = {key for key, value in merged.state_dict().items() if not torch.equal(value, plain[key])}
    assert changed == {f"{name}.weight"}, "LoRA starts as nothing, and the scaled module is in one weight"


def test_a_module_that_starts_at_zero_changes_nothing() -> None:
    model: Any = tiny.build("bert")
    name, _ = penultimate_linear(model)
    before = seen(model, name)[2]
    state = torch.get_rng_state()
    wrapped = attach_low_rank(
        model, rank=None, alpha=1.0, scaled=(name, Scaled((2.0,), start="zero")), opened=[], seed=3
    )
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(seen(wrapped, name)[2], before)
    opened = [key for key, parameter in wrapped.named_parameters() if parameter.requires_grad]
    assert len(opened) == 2 and all("lora" in key for key in opened)


def test_nothing_to_attach_is_the_model_itself() -> None:
    model: Any = tiny.build("bert")
    again = attach_low_rank(model, rank=None, alpha=1.0, scaled=None, opened=[model.classifier.weight], seed=0)
    assert again is model
    assert [key for key, value in model.named_parameters() if value.requires_grad] == ["classifier.weight"]
    assert merge_low_rank(model) is model
