"""A classifier that answers from states that are known."""

from __future__ import annotations

import pytest
import torch

import tiny
from purify_cli.architecture.classifier import states_known
from purify_cli.architecture.table import base_of

FAMILIES = ("bert", "roberta", "distilbert", "deberta-v2", "electra")


@pytest.mark.parametrize("family", FAMILIES)
def test_known_states_give_the_answer_of_the_text(family: str) -> None:
    model, tokenizer = tiny.build(family, num_labels=3), tiny.tokenizer(family)
    batch = tokenizer(["the movie was good", "so bad"], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = model(**batch).logits
        states = base_of(model)(**batch).last_hidden_state[:, 0]
        with states_known(model, states):
            known = model(input_ids=torch.zeros(2, 1, dtype=torch.long)).logits
        torch.testing.assert_close(known, expected, atol=1e-6, rtol=1e-6)
        with pytest.raises(ValueError, match="stop"), states_known(model, states.flip(0)):
            raise ValueError("stop")
        assert torch.equal(model(**batch).logits, expected), "the base model runs again"
    assert "forward" not in vars(base_of(model))
