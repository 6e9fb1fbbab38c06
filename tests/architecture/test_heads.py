from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from purify_cli.architecture.heads import (
    head_grid,
    hold_pruned,
    output_projections,
    prune_heads,
    pruned_heads,
    silence_heads,
)

HEADS = ((0, 1), (1, 0), (1, 3))


def batch_for(family: str) -> dict[str, torch.Tensor]:
    return dict(
        tiny.tokenizer(family)(["a good movie", "the plot was slow and dull"], padding=True, return_tensors="pt")
    )


def without_context(model: Any, batch: dict[str, torch.Tensor], heads: tuple[tuple[int, int], ...]) -> torch.Tensor:
    """The logits when what these heads hand to the output projection is replaced by zeros, weights untouched."""
    projections, _ = output_projections(model)
    handles = []
    for layer, projection in enumerate(projections):

        def blank(module: Any, inputs: tuple[torch.Tensor, ...], layer: int = layer) -> tuple[torch.Tensor, ...]:
            context = inputs[0].unflatten(-1, (4, -1)).clone()  # [batch, token, head, width]
            for number, head in heads:
                if number == layer:
                    context[..., head, :] = 0
            return (context.flatten(-2), *inputs[1:])

        handles.append(projection.register_forward_pre_hook(blank))
    with torch.no_grad():
        logits = model(**batch).logits
    for handle in handles:
        handle.remove()
    return logits


def state(model: Any) -> dict[str, bytes]:
    return {name: value.numpy().tobytes() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_pruned_head_is_one_whose_context_is_zero(family: str) -> None:
    model, batch = tiny.build(family), batch_for(family)
    assert head_grid(model) == (2, 4)
    with torch.no_grad():
        plain = model(**batch).logits
    expected = without_context(model, batch, HEADS)
    prune_heads(model, HEADS)
    with torch.no_grad():
        pruned = model(**batch).logits
    torch.testing.assert_close(pruned, expected, atol=1e-6, rtol=1e-6)
    assert not torch.allclose(pruned, plain, atol=1e-4)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_pruning_touches_nothing_else(family: str) -> None:
    model, untouched = tiny.build(family), tiny.build(family)
    prune_heads(model, HEADS)
    changed = {
        name for name, value in model.state_dict().items() if not torch.equal(value, untouched.state_dict()[name])
    }
    assert len(changed) == 2
    for projection, before in zip(output_projections(model)[0], output_projections(untouched)[0], strict=True):
        differing = int((projection.weight != before.weight).sum())
        assert differing in {projection.weight.numel() // 4, projection.weight.numel() // 2}
        assert torch.equal(projection.weight[projection.weight != 0], before.weight[projection.weight != 0])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_silence_ends_with_the_same_bytes(family: str) -> None:
    model, batch = tiny.build(family), batch_for(family)
    before, expected = state(model), without_context(model, batch, HEADS)
    with silence_heads(model, HEADS), torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, expected, atol=1e-6, rtol=1e-6)
    assert state(model) == before
    with pytest.raises(KeyboardInterrupt), silence_heads(model, HEADS):
        raise KeyboardInterrupt
    assert state(model) == before


@pytest.mark.parametrize("family", ["bert", "gpt2", "qwen3", "albert"])
def test_training_does_not_bring_a_pruned_head_back(family: str) -> None:
    model, batch = tiny.build(family), batch_for(family)
    prune_heads(model, HEADS)
    project = hold_pruned(model, HEADS)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for step in range(3):
        optimizer.zero_grad()
        model(**batch, labels=torch.tensor([0, 1])).loss.backward()
        optimizer.step()
        project(model, step)
    with torch.no_grad():
        trained = model(**batch).logits
    torch.testing.assert_close(trained, without_context(model, batch, HEADS))
    pruned = sum(int(projection.weight.eq(0).sum()) for projection in output_projections(model)[0])
    assert pruned == 3 * output_projections(model)[0][0].weight.numel() // 4


@pytest.mark.parametrize("head", [(2, 0), (0, 4), (-1, 0), (0, -1)])
def test_an_unknown_head_is_an_error_and_changes_nothing(head: tuple[int, int]) -> None:
    model = tiny.build("bert")
    before = state(model)
    with pytest.raises(IndexError):
        prune_heads(model, [(0, 0), head])
    with pytest.raises(IndexError):
        hold_pruned(model, [head])
    assert state(model) == before


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_pruned_heads_are_seen(family: str) -> None:
    model = tiny.build(family)
    assert pruned_heads(model) == []
    prune_heads(model, [(1, 2), (0, 3)])
    assert pruned_heads(model) == [(0, 3), (1, 2)]
