"""Every parameter of every family has its layer, whatever carries it."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import tiny
from purify_cli.architecture.layers import Part, by_layer, layer_count, parameter_layers, parts

LAYER = re.compile(r"\.(?:layer|layers|h|albert_layer_groups)\.(\d+)\.")
OUTPUT = re.compile(r"classifier|score|pooler|ln_f|^model\.norm")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_by_its_names(family: str) -> None:
    model = tiny.build(family)
    layers = parameter_layers(model)
    assert layer_count(model) == 2
    assert list(layers) == [name for name, _ in model.named_parameters()]
    for name, layer in layers.items():
        number = LAYER.search(name)
        expected = int(number[1]) if number else 2 if OUTPUT.search(name) else -1
        assert layer == expected, name
    assert set(layers.values()) == {-1, 0, 1, 2}


def test_a_base_model_without_a_head() -> None:
    layers = parameter_layers(tiny.build("bert", task="encoder"))
    assert layers["embeddings.word_embeddings.weight"] == -1
    assert layers["encoder.layer.1.output.dense.weight"] == 1
    assert layers["pooler.dense.weight"] == 2


def peft_model(family: str, form: str) -> Any:
    import peft

    targets = {"bert": ["query"], "llama": ["q_proj"], "albert": ["query"]}
    config = {
        "lora": lambda: peft.LoraConfig(task_type="SEQ_CLS", target_modules=targets[family]),
        "prefix": lambda: peft.PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
        "prompt": lambda: peft.PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
    }[form]()
    return peft.get_peft_model(tiny.build(family), config)


@pytest.mark.parametrize("family", ["bert", "llama", "albert"])
def test_adapters_belong_to_the_layer_they_are_attached_to(family: str) -> None:
    lora = peft_model(family, "lora")
    found = {layer for name, layer in parameter_layers(lora).items() if "lora_A" in name}
    assert found == {0, 1}
    assert {layer for name, layer in parameter_layers(lora).items() if "modules_to_save" in name} == {2}
    prompt = parameter_layers(peft_model(family, "prompt"))
    assert prompt["prompt_encoder.default.embedding.weight"] == -1


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_prefix_matrix_is_cut_into_its_layers(family: str) -> None:
    """What the parts of a layer hold is what moves that layer: its keys and values, and no other's."""
    model = peft_model(family, "prefix")
    name = "prompt_encoder.default.embedding.weight"
    found = [part for part in parts(model, [name]) if part.name == name]
    assert [part.layer for part in found] == [0, 1]
    weight = model.get_parameter(name)
    assert sum(part.of(weight).numel() for part in found) == weight.numel()
    ids = torch.tensor([[2, 90, 91, 3]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "output_hidden_states": True}
    with torch.no_grad():
        before = model(**inputs).hidden_states
        found[-1].of(weight).add_(1.0)
        after = model(**inputs).hidden_states
    moved = [not torch.equal(left, right) for left, right in zip(before, after, strict=True)]
    assert moved == [False, False, True]


def test_inner_products_by_layer_against_a_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    shapes = {"a": (3, 4), "b": (4,), "c": (2, 6), "out": (5,), "embeddings": (7, 2)}
    left = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    right = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items() if name != "b"}
    some = [Part("a", 0), Part("b", 0), Part("c", 0, slice(0, 3)), Part("c", 1, slice(3, 6)), Part("out", 2)]
    expected = [0.0, 0.0, 0.0]
    for row in range(3):
        for column in range(4):
            expected[0] += float(left["a"][row, column] * right["a"][row, column])
    for row in range(2):
        for column in range(6):
            expected[column // 3] += float(left["c"][row, column] * right["c"][row, column])
    for place in range(5):
        expected[2] += float(left["out"][place] * right["out"][place])
    found = by_layer([*some, Part("embeddings", -1)], left, right, 2)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=0, atol=1e-5)
    assert by_layer([], left, right, 2).tolist() == [0.0, 0.0, 0.0]
