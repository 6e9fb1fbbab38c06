"""The distance of a student to its teacher, against one number after the other."""

from __future__ import annotations

import pytest
import torch

import tiny
from purify_cli.data.encode import collate, encode, padding_id
from purify_cli.data.texts import Texts
from purify_cli.training.distillation import Distillation

LINES = ("the movie was good", "a dull and very slow plot", "bad")
BETA = 7.0


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "albert", "gpt2", "qwen3"])
def test_the_loss_is_the_equation(family: str) -> None:
    """CE + beta * sum_l mean over tokens and numbers of (h_student - h_teacher)^2; the embeddings are no layer."""
    tokenizer = tiny.tokenizer(family)
    batch = collate(encode(tokenizer, Texts(None, LINES, (1, 0, 0)), 64), range(3), padding_id(tokenizer))
    student, teacher = tiny.build(family), tiny.build(family, seed=1)
    inputs = {name: column for name, column in batch.items() if name != "labels"}
    with torch.no_grad():
        ours = student(**inputs, output_hidden_states=True)
        theirs = teacher(**inputs, output_hidden_states=True)
    mask = batch["attention_mask"]
    assert mask.min() == 0, "without padding the mask is not examined"
    expected = 0.0
    for layer in range(1, len(ours.hidden_states)):
        squares, numbers = 0.0, 0
        for text in range(3):
            for token in range(int(mask[text].sum())):
                mine, given = ours.hidden_states[layer][text, token], theirs.hidden_states[layer][text, token]
                for one, other in zip(mine.tolist(), given.tolist(), strict=True):
                    squares, numbers = squares + (one - other) ** 2, numbers + 1
        expected += BETA * squares / numbers
    for text in range(3):
        expected -= ours.logits[text].log_softmax(-1)[batch["labels"][text]].item() / 3
    loss = Distillation(teacher, BETA)(student, batch)
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert any(parameter.grad is not None for parameter in student.parameters())
    assert Distillation(tiny.build(family), BETA)(student, batch).item() == pytest.approx(
        Distillation(teacher, 0.0)(student, batch).item(), rel=1e-5
    ), "a student that is its teacher has no distance"
