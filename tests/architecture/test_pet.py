"""Adapters on every family: the equations, what is trained, and that nothing else of the model notices them."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

import tiny
from purify_cli.architecture.attention import summary_attention
from purify_cli.architecture.bottleneck import BottleneckConfig, attach_bottlenecks
from purify_cli.architecture.classifier import output_layer, replace_classifier
from purify_cli.architecture.heads import head_grid, output_projections
from purify_cli.architecture.pet import FORMS, attach_pet, has_pet, parse_form
from purify_cli.architecture.table import base_of, family_of, modules_at
from purify_cli.data.encode import length_limit
from purify_cli.errors import UnsupportedError, UsageError
from purify_cli.run import Run

NO_PREFIX = {"distilbert", "albert", "deberta-v2"}
BOTTLENECKS = ["sequential", "parallel", "sequential:positions=both,bottleneck=5"]
LAYER = re.compile(r"\.(?:layer|layers|h|albert_layer_groups)\.\d+\.")


def batch(family: str) -> dict[str, Tensor]:
    texts = ["a good movie", "the plot was slow and dull"]
    return dict(tiny.tokenizer(family)(texts, padding=True, return_tensors="pt"))


def shake(model: Any, seed: int = 7) -> Any:
    """What is trained becomes random, so that an adapter that is not run or read shows."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.3)
    return model


def logits(model: Any, family: str) -> Tensor:
    with torch.no_grad():
        answer: Tensor = model(**batch(family)).logits
    return answer


def slow_bottleneck(module: Any, states: Tensor, activation: str, scaling: float) -> Tensor:
    """s * (W_up act(W_down x + b_down) + b_up), token by token and number by number where it matters."""

    def act(number: float) -> float:
        if activation == "relu":
            return max(0.0, number)
        inner = math.sqrt(2 / math.pi) * (number + 0.044715 * number**3)  # Houlsby's code: the tanh form
        return 0.5 * number * (1 + math.tanh(inner))

    rows = []
    for row in states.reshape(-1, states.shape[-1]):
        down = module.down.weight @ row + module.down.bias
        hidden = torch.tensor([act(float(number)) for number in down])
        rows.append(scaling * (module.up.weight @ hidden + module.up.bias))
    return torch.stack(rows).reshape(states.shape)


class Seen:
    """The first input and the output of modules, run by run, before any adapter touched the output."""

    def __init__(self) -> None:
        self.inputs: dict[Any, list[Tensor]] = {}
        self.outputs: dict[Any, list[Tensor]] = {}

    def watch(self, module: Any) -> None:
        def hook(module: Any, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            self.inputs.setdefault(module, []).append(inputs[0] if inputs else named["hidden_states"])
            self.outputs.setdefault(module, []).append(output[0] if isinstance(output, tuple) else output)

        module.register_forward_hook(hook, with_kwargs=True, prepend=True)


def norms(family: str, layer: Any) -> tuple[Any, Any | None]:
    """The normalization behind the attention part, and that behind the feed-forward part where it is in the layer."""
    if family == "distilbert":
        return layer.sa_layer_norm, layer.output_layer_norm
    if family == "albert":
        return layer.attention.LayerNorm, layer.full_layer_layer_norm
    if family == "gpt2":
        return layer.ln_2, None
    if family in tiny.DECODERS:
        return layer.post_attention_layernorm, None
    return layer.attention.output.LayerNorm, layer.output.LayerNorm


def feed_forward(family: str, layer: Any, states: Tensor) -> Tensor:
    """The feed-forward part as each paper has it, from its weights alone."""

    def linear(module: Any, states: Tensor) -> Tensor:
        return functional.linear(states, module.weight, module.bias)

    if family == "distilbert":
        return linear(layer.ffn.lin2, functional.gelu(linear(layer.ffn.lin1, states)))
    if family == "albert":
        return linear(layer.ffn_output, functional.gelu(linear(layer.ffn, states), approximate="tanh"))
    if family == "gpt2":
        inner = states @ layer.mlp.c_fc.weight + layer.mlp.c_fc.bias
        inner = functional.gelu(inner, approximate="tanh")
        result: Tensor = inner @ layer.mlp.c_proj.weight + layer.mlp.c_proj.bias
        return result
    if family in tiny.DECODERS:
        gated = functional.silu(linear(layer.mlp.gate_proj, states)) * linear(layer.mlp.up_proj, states)
        return linear(layer.mlp.down_proj, gated)
    return linear(layer.output.dense, functional.gelu(linear(layer.intermediate.dense, states)))


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("form", ["sequential", "parallel", "normalized", "both"])
def test_the_equations_against_a_slow_transcription(family: str, form: str) -> None:
    model = tiny.build(family)
    if form == "normalized":
        config = BottleneckConfig("sequential", (4, 4), "relu", scaling=0.5, normalized_input=True)
        if family in tiny.DECODERS:
            with pytest.raises(UnsupportedError):
                attach_bottlenecks(model, config)
            return
        attach_bottlenecks(model, config)
    else:
        written = {"parallel": "parallel:bottleneck=4,scaling=3", "both": "sequential:bottleneck=4,positions=both"}
        attach_pet(model, written.get(form, "sequential:bottleneck=4"), seed=1)
        config = model.bottleneck_config
    random = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "bottleneck_" in name:
            parameter.data = torch.randn(parameter.shape, generator=random) * 0.5
    base = base_of(model)
    layers = modules_at(base, family_of(base.config).layer)
    projections, _ = output_projections(model)
    seen = Seen()
    for layer, projection in zip(layers, projections, strict=True):
        for module in (layer, projection, *filter(None, norms(family, layer))):
            seen.watch(module)
    logits(model, family)
    activation, scaling = config.activation, config.scaling
    assert activation == ("gelu_tanh" if form in {"sequential", "both"} else "relu")
    assert scaling == {"parallel": 3.0, "normalized": 0.5}.get(form, 1.0)
    runs = 2 if family == "albert" else 1
    for layer, projection in zip(layers, projections, strict=True):
        attention_norm, ffn_norm = norms(family, layer)
        assert len(seen.outputs[layer]) == runs
        for run in range(runs):
            with torch.no_grad():
                attended = seen.outputs[projection][run]
                if form == "both":
                    attended = attended + slow_bottleneck(layer.bottleneck_attention, attended, activation, 1.0)
                    reached = seen.inputs[attention_norm][run]
                    torch.testing.assert_close(reached, attended + seen.inputs[layer][run], atol=1e-5, rtol=1e-5)
                x = seen.outputs[attention_norm][run]
                residual = x if ffn_norm is not None else seen.inputs[attention_norm][run]
                h = feed_forward(family, layer, x)
                if form == "normalized":
                    read = functional.layer_norm(h + x, x.shape[-1:], ffn_norm.weight, ffn_norm.bias, ffn_norm.eps)
                else:
                    read = x if form == "parallel" else h
                total = h + slow_bottleneck(layer.bottleneck_ffn, read, activation, scaling) + residual
                # Of families that normalize afterwards, what enters the normalization.
                reached = seen.outputs[layer][run] if ffn_norm is None else seen.inputs[ffn_norm][-runs:][run]
                if form == "normalized":
                    reached = seen.inputs[ffn_norm][2 * run + 1]  # the adapter ran the normalization first
                torch.testing.assert_close(reached, total, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("form", FORMS)
def test_a_fresh_adapter_on_every_family(family: str, form: str) -> None:
    model = tiny.build(family)
    before, names = logits(model, family), set(model.state_dict())
    torch.manual_seed(11)
    state = torch.get_rng_state()
    if (form == "prefix" and family in NO_PREFIX) or (form == "prompt" and family in tiny.DECODERS):
        with pytest.raises(UsageError) as refused:
            attach_pet(model, form, seed=3)
        assert refused.value.where == "--pet"
        return
    pet = attach_pet(model, form, seed=3)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are the caller's"
    assert has_pet(pet)
    assert not has_pet(tiny.build(family))
    assert not any(module.training for module in pet.modules())
    opened = [name for name, parameter in pet.named_parameters() if parameter.requires_grad]
    assert any(re.search(r"classifier|score", name) for name in opened)
    adapters = [name for name in opened if re.search("bottleneck|lora|prompt_encoder", name)]
    rest = set(opened) - set(adapters)
    assert adapters
    assert all(re.search(r"classifier|score|pooler", name) for name in rest)
    if form in {"sequential", "parallel", "lora"}:
        assert all(LAYER.search(name) for name in adapters)
        torch.testing.assert_close(logits(pet, family), before, atol=1e-4, rtol=1e-4)
    if form in {"sequential", "parallel"}:
        assert names < set(pet.state_dict()), "no tensor of the base changes its name"
    twin = attach_pet(tiny.build(family), form, seed=3)
    other = attach_pet(tiny.build(family), form, seed=4)
    values = [{name: dict(one.named_parameters())[name] for name in opened} for one in (pet, twin, other)]
    assert all(torch.equal(values[0][name], values[1][name]) for name in opened)
    assert any(not torch.equal(values[0][name], values[2][name]) for name in opened)
    with pytest.raises(UsageError):
        attach_pet(pet, form, seed=3)


def test_how_modules_start() -> None:
    model = attach_pet(tiny.build("bert", hidden_size=256), "sequential", seed=1)
    layer = model.bert.encoder.layer[1].bottleneck_ffn
    assert layer.down.weight.shape == (16, 256), "a sixteenth of the width"
    assert attach_pet(tiny.build("bert"), "parallel", 1).bert.encoder.layer[0].bottleneck_ffn.down.out_features == 8
    for weight in (layer.down.weight.detach(), layer.up.weight.detach()):
        assert 0.0007 < float(weight.std()) < 0.001  # a normal of 1e-3, truncated at two deviations
        assert float(weight.abs().max()) <= 0.002
    assert not layer.down.bias.any()
    layer = attach_pet(tiny.build("bert", hidden_size=256), "parallel", seed=1).bert.encoder.layer[1].bottleneck_ffn
    assert not layer.up.weight.any()
    largest = float(layer.down.weight.detach().abs().max())
    assert 0.8 / 16 < largest <= 1 / 16  # Kaiming with a = sqrt(5): 1 / sqrt(width)


@pytest.mark.parametrize("form", [*FORMS, "sequential:positions=both"])
def test_a_copy_runs_its_own_adapter(form: str) -> None:
    model = shake(attach_pet(tiny.build("bert"), form, seed=1))
    before = logits(model, "bert")
    twin = copy.deepcopy(model)
    torch.testing.assert_close(logits(twin, "bert"), before)
    shake(twin, seed=8)
    assert not torch.allclose(logits(twin, "bert"), before, atol=1e-2)
    assert torch.equal(logits(model, "bert"), before)


@pytest.mark.parametrize("family", ["bert", "albert", "deberta-v2", "gpt2"])
@pytest.mark.parametrize("form", FORMS)
def test_gradients_attention_and_heads_see_through_it(family: str, form: str) -> None:
    if (form == "prefix" and family in NO_PREFIX) or (form == "prompt" and family in tiny.DECODERS):
        return
    model = shake(attach_pet(tiny.build(family), form, seed=1))
    opened = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = logits(model, family)
    # The fused kernels have no second derivative.
    with sdpa_kernel(SDPBackend.MATH), summary_attention(model) as seen:
        answer = model(**batch(family)).logits
        torch.testing.assert_close(answer, expected, atol=1e-5, rtol=1e-5)
        assert len(seen.rows) == (4 if family == "albert" else 2)
        for row in seen.rows:
            torch.testing.assert_close(row.sum(-1), torch.ones(row.shape[:2]), atol=1e-5, rtol=1e-5)
    loss = functional.cross_entropy(answer, torch.tensor([0, 1]))
    first = torch.autograd.grad(loss, list(opened.values()), create_graph=True)
    assert all(gradient.abs().sum() > 0 for gradient in first)
    norm = sum((gradient**2).sum() for gradient in first)
    adapter = next(parameter for name, parameter in opened.items() if "classifier" not in name and "score" not in name)
    (second,) = torch.autograd.grad(norm, [adapter])
    assert torch.isfinite(second).all()
    assert second.any()
    assert head_grid(model) == (2, 4)
    assert output_layer(model).weight.requires_grad


def test_a_model_that_failed_half_way_can_still_be_copied() -> None:
    model = attach_pet(tiny.build("bert"), "parallel", seed=1)

    def fail(*_: Any) -> None:
        raise RuntimeError("stop")

    handle = model.bert.encoder.layer[0].output.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="stop"):
        model(**batch("bert"))
    handle.remove()
    torch.testing.assert_close(logits(copy.deepcopy(model), "bert"), logits(model, "bert"))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_new_classifier_is_put_where_it_is_read(form: str, family: str) -> None:
    model = attach_pet(tiny.build(family), form, seed=1)
    before = logits(model, family)
    replace_classifier(model, 3, seed=5)
    assert logits(model, family).shape == (2, 3)
    assert output_layer(model).out_features == 3
    replace_classifier(model, 2, seed=5)
    assert not torch.allclose(logits(model, family), before)
    rest = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert not any(re.search(r"lora_|bottleneck|modules_to_save", name) for name in rest)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("adapter", "sequential, parallel, lora, prefix, prompt"),
        ("", "sequential"),
        ("sequential:width=3", "bottleneck, positions, activation"),
        ("sequential:bottleneck", "key=value"),
        ("sequential:bottleneck=0", "from 1 to 65536"),
        ("sequential:bottleneck=many", "a number"),
        ("sequential:activation=exp", "relu"),
        ("parallel:positions=both", "bottleneck, scaling"),
        ("parallel:scaling=nan", "above 0"),
        ("lora:rank=-1", "from 1"),
        ("prompt:tokens=1e9", "a number"),
    ],
)
def test_forms_that_do_not_exist(form: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        attach_pet(tiny.build("bert"), form, seed=1)
    assert error.value.where == "--pet"
    assert said in error.value.remedy


def test_settings_are_read() -> None:
    assert parse_form("sequential") == ("sequential", {})
    assert parse_form(" sequential:bottleneck=24, positions=both") == (
        "sequential",
        {"bottleneck": 24, "positions": "both"},
    )
    model = attach_pet(tiny.build("bert"), "lora:rank=3,alpha=6", seed=1)
    assert model.peft_config["default"].r == 3
    assert model.peft_config["default"].lora_alpha == 6
    assert attach_pet(tiny.build("bert"), "prefix:tokens=5", seed=1).peft_config["default"].num_virtual_tokens == 5


@pytest.mark.parametrize(("family", "form"), [("bert", "prompt"), ("roberta", "prompt"), ("gpt2", "prefix")])
def test_texts_leave_room_for_soft_tokens(family: str, form: str) -> None:
    """Behind a prompt a text as long as the model takes would stand on places that there are none of."""
    model = attach_pet(tiny.build(family), f"{form}:tokens=10", seed=1)
    limit = length_limit(tiny.tokenizer(family), model.config, Run(max_length=512))
    assert limit == (66 - 1 if family == "roberta" else 66) - 10
    ids = torch.full((1, limit), 60)
    assert torch.isfinite(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits).all()
