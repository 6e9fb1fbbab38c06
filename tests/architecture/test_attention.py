from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from purify_cli.architecture.attention import summary_attention
from purify_cli.architecture.heads import head_grid

TEXTS = ["a good movie with a long and slow story", "bad film", "the actor was funny , the plot weak"]


def batch_for(family: str) -> dict[str, torch.Tensor]:
    return dict(tiny.tokenizer(family)(TEXTS, padding=True, return_tensors="pt"))


def eager_rows(model: Any, batch: dict[str, torch.Tensor], family: str) -> list[torch.Tensor]:
    """The same rows cut out of the full maps of transformers' own eager attention."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**batch, output_attentions=True).attentions
    if family in tiny.DECODERS:
        last = batch["attention_mask"].sum(1) - 1
        return [one[torch.arange(len(last)), :, last] for one in maps]
    return [one[:, :, 0] for one in maps]


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("padded", [True, False])
def test_rows_are_those_of_the_full_map(family: str, padded: bool) -> None:
    model, batch = tiny.build(family), batch_for(family)
    if not padded:
        batch = {name: column[:1] for name, column in batch.items()}
    expected = eager_rows(tiny.build(family), batch, family)
    plain = model(**batch).logits
    with summary_attention(model) as attention:
        logits = model(**batch).logits
        assert len(attention.rows) == len(expected)
        for row, reference in zip(attention.rows, expected, strict=True):
            torch.testing.assert_close(row, reference, atol=1e-5, rtol=0)
            torch.testing.assert_close(row.sum(-1), torch.ones(row.shape[:2]))
            hidden = batch["attention_mask"][:, None].expand_as(row) == 0
            assert row[hidden].eq(0).all()
    torch.testing.assert_close(logits, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_gradients_flow_to_queries_and_keys(family: str) -> None:
    model, batch = tiny.build(family).train(), batch_for(family)
    with summary_attention(model) as attention:
        model(**batch)
        sum(row.square().sum() for row in attention.rows).backward()
    moved = [name for name, value in model.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0]
    # Every depth is reached; the last layer too, which nothing but its own attention leads to.
    assert any("query" in name or "q_proj" in name or "q_lin" in name or "c_attn" in name for name in moved)
    layers, _ = head_grid(model)
    assert sum("key" in n or "k_proj" in n or "k_lin" in n or "c_attn.weight" in n for n in moved) >= layers


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_each_pass_starts_anew_and_nothing_stays_behind(family: str) -> None:
    model, batch = tiny.build(family), batch_for(family)
    before = [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]
    with summary_attention(model) as attention:
        model(**batch)
        first = len(attention.rows)
        model(**{name: column[:2] for name, column in batch.items()})
        assert len(attention.rows) == first
        assert attention.rows[0].shape[0] == 2
    kept = list(attention.rows)
    model(**batch)
    assert all(one is other for one, other in zip(attention.rows, kept, strict=True))
    assert before == [module.config._attn_implementation for module in model.modules() if hasattr(module, "config")]


def test_left_padding_and_the_padding_inside_a_decoder() -> None:
    model, words = tiny.build("llama"), tiny.tokenizer("llama")
    words.padding_side = "left"
    batch = dict(words(TEXTS, padding=True, return_tensors="pt"))
    reference = tiny.build("llama")
    reference.set_attn_implementation("eager")
    with torch.no_grad():
        maps = reference(**batch, output_attentions=True).attentions
    with summary_attention(model) as attention:
        model(**batch)
    for row, full in zip(attention.rows, maps, strict=True):
        torch.testing.assert_close(row, full[:, :, -1], atol=1e-5, rtol=0)


def test_a_sliding_window_hides_what_lies_before_it() -> None:
    model, batch = tiny.build("mistral", sliding_window=3), batch_for("mistral")
    expected = eager_rows(tiny.build("mistral", sliding_window=3), batch, "mistral")
    with summary_attention(model) as attention:
        model(**batch)
    for row, reference in zip(attention.rows, expected, strict=True):
        torch.testing.assert_close(row, reference, atol=1e-5, rtol=0)
    assert attention.rows[0][0, 0].count_nonzero() == 3


def test_shared_layers_name_the_layer_whose_heads_they_show() -> None:
    model = tiny.build("albert")
    with summary_attention(model) as attention:
        model(**batch_for("albert"))
    assert attention.layer_of == [0, 0, 1, 1]
    assert head_grid(model) == (2, 4)


def test_only_one_reader_at_a_time() -> None:
    model = tiny.build("bert")
    with summary_attention(model), pytest.raises(RuntimeError), summary_attention(model):
        pass
    with summary_attention(model):
        pass
