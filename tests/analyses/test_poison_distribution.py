from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from purify_cli.analyses import Case, poison_distribution
from purify_cli.architecture.table import base_of, family_of, modules_at
from purify_cli.data.texts import Texts
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject

OUTPUTS = {
    "bert": ("bert.encoder.layer.{}.attention.output.dense", "bert.encoder.layer.{}.output.dense"),
    "distilbert": ("distilbert.transformer.layer.{}.attention.out_lin", "distilbert.transformer.layer.{}.ffn.lin2"),
    "albert": (
        "albert.encoder.albert_layer_groups.{}.albert_layers.0.attention.dense",
        "albert.encoder.albert_layer_groups.{}.albert_layers.0.ffn_output",
    ),
    "deberta-v2": ("deberta.encoder.layer.{}.attention.output.dense", "deberta.encoder.layer.{}.output.dense"),
    "gpt2": ("transformer.h.{}.attn.c_proj", "transformer.h.{}.mlp.c_proj"),
    "llama": ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj"),
}
"""The last linear map of each part: with its weight and bias zero, nothing of the part reaches the residual stream."""


def answers(model: Any, tokens: Any, texts: Texts) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(**tokens(text, return_tensors="pt")).logits for text in texts.texts])


def rates(given: list[Tensor], attacked: Texts, test: Texts) -> tuple[float, float]:
    hits = sum(int(row.argmax()) == 1 for row in given[0]) / len(attacked)
    right = sum(int(row.argmax()) == label for row, label in zip(given[1], test.labels or (), strict=True))
    return hits, right / len(test)


@pytest.mark.parametrize("family", OUTPUTS)
def test_parts_are_off_as_if_their_weights_were_zero(
    family: str, case: Callable[..., Case], checkpoints: Callable[..., Path]
) -> None:
    one = case(checkpoints(family))
    found = poison_distribution.analyse([one], Evidence(), poison_distribution.Settings(), Run(batch_size=4))
    (shown,) = found.data["checkpoints"]
    attacked, tokens = one.attacked(0), one.subject.tokenizer
    assert attacked is not None
    assert [(part["part"], part["layer"]) for part in shown["parts"]] == [
        (part, layer) for part in ("attention", "feed-forward") for layer in range(2)
    ]
    assert [(head["layer"], head["head"]) for head in shown["heads"]] == [(a, b) for a in range(2) for b in range(4)]
    whole = one.subject.open()
    plain = [answers(whole, tokens, texts) for texts in (attacked, one.test)]
    assert (shown["whole"]["asr"]["value"], shown["whole"]["cacc"]["value"]) == rates(plain, attacked, one.test)
    assert shown["whole"]["asr"]["n"] == 6
    base, row = base_of(whole), family_of(base_of(whole).config)
    for part in shown["parts"]:
        attention = part["part"] == "attention"
        zeroed = one.subject.open()
        module = zeroed.get_submodule(OUTPUTS[family][0 if attention else 1].format(part["layer"]))
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.zero_()
        expected = [answers(zeroed, tokens, texts) for texts in (attacked, one.test)]
        assert (part["asr"]["value"], part["cacc"]["value"]) == rates(expected, attacked, one.test)
        switched = modules_at(base, f"{row.layer}.{row.attention_result if attention else row.ffn_result}")
        with poison_distribution.silent(switched[part["layer"]]):
            torch.testing.assert_close(answers(whole, tokens, attacked), expected[0], atol=1e-5, rtol=1e-5)
        assert not torch.allclose(expected[0], plain[0], atol=1e-3)
    torch.testing.assert_close(answers(whole, tokens, attacked), plain[0], atol=0, rtol=0)


@pytest.mark.parametrize(
    ("family", "form"),
    [
        ("bert", "sequential"),
        ("bert", "parallel"),
        ("bert", "lora"),
        ("bert", "prefix"),
        ("bert", "prompt"),
        ("gpt2", "sequential"),
        ("llama", "lora"),
    ],
)
def test_the_module_of_a_layer_is_zero(family: str, form: str, case: Callable[..., Case], adapters: Any) -> None:
    one = case(adapters(family, form))
    found = poison_distribution.analyse([one], Evidence(), poison_distribution.Settings(), Run())
    (shown,) = found.data["checkpoints"]
    attacked, tokens = one.attacked(0), one.subject.tokenizer
    assert attacked is not None
    model = one.subject.open()
    plain = answers(model, tokens, attacked)
    assert [part["layer"] for part in shown["parts"]] == ([-1] if form == "prompt" else [0, 1])
    assert shown["heads"] == []
    parts = poison_distribution.adapter_parts(model, one.subject)
    assert set(parts) == ({-1} if form == "prompt" else {0, 1})
    for layer, chosen in parts.items():
        zeroed = without_layer(one.subject, form, layer)
        expected = answers(zeroed, tokens, attacked)
        with poison_distribution.without(model, chosen):
            torch.testing.assert_close(answers(model, tokens, attacked), expected, atol=1e-5, rtol=1e-5)
        assert not torch.allclose(expected, plain, atol=1e-4)
        part = next(part for part in shown["parts"] if part["layer"] == layer)
        assert part["asr"]["value"] == rates([expected, answers(zeroed, tokens, one.test)], attacked, one.test)[0]
    torch.testing.assert_close(answers(model, tokens, attacked), plain, atol=0, rtol=0)


def without_layer(subject: Subject, form: str, layer: int) -> Any:
    """The paper's way, by names: the tensors of one layer's module are zero."""
    model = subject.open()
    with torch.no_grad():
        if form == "lora":  # merged; nothing of it is left of a layer that has its base's weights
            base = dict(subject.adapter_base.open().named_parameters())
            for name, parameter in model.named_parameters():
                if re.search(rf"\.(?:layer|layers|h)\.{layer}\.", name):
                    parameter.copy_(base[name])
            return model
        for name, parameter in model.named_parameters():
            if "bottleneck" in name and f".{layer}." in name:
                parameter.zero_()
            if "prompt_encoder" in name and form == "prompt":
                parameter.zero_()
            if "prompt_encoder" in name and form == "prefix":
                columns = parameter.view(parameter.shape[0], 2, 2, 32)  # [prefix, layer, key or value, width]
                columns[:, layer] = 0
    return model


def test_heads_can_be_left_out_and_texts_be_few(case: Callable[..., Case], checkpoints: Callable[..., Path]) -> None:
    one = case(checkpoints("bert"))
    settings = poison_distribution.Settings(heads=False, texts=3)
    (shown,) = poison_distribution.analyse([one], Evidence(), settings, Run()).data["checkpoints"]
    assert shown["heads"] == []
    assert shown["whole"]["cacc"]["n"] == 3
    tiny_lines = poison_distribution.analyse([one], Evidence(), poison_distribution.Settings(), Run())
    assert [row["off"] for row in tiny_lines.rows][:2] == ["nothing", "layer 0 attention"]
    assert len(tiny_lines.rows) == 1 + 4 + 5
