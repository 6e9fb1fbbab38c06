"""The sweep answers as the model itself does, text by text."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import tiny
from purify_cli.evaluation import sweep as module
from purify_cli.evaluation.sweep import Sweep, margins


def alone(family: str, body: list[int]) -> Tensor:
    """[labels] for one text given as token ids, with the special tokens that the tokenizer writes."""
    tokenizer = tiny.tokenizer(family)
    framed = [tokenizer.cls_token_id, *body, tokenizer.sep_token_id] if family not in tiny.DECODERS else body
    with torch.no_grad():
        logits: Tensor = tiny.build(family, num_labels=3)(input_ids=torch.tensor([framed])).logits[0]
    return logits.log_softmax(-1)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_equals_one_text_after_the_other(family: str) -> None:
    tokenizer = tiny.tokenizer(family)
    sweep = Sweep(tiny.build(family, num_labels=3), tokenizer)
    bodies = [
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("good", "a bad film", "cf", "the plot")
    ]
    said = sweep.log_probabilities_of(bodies)
    assert said.shape == (4, 3)
    for row, body in enumerate(bodies):
        torch.testing.assert_close(said[row], alone(family, body), atol=1e-5, rtol=1e-5)


def test_frame_is_what_the_tokenizer_writes() -> None:
    tokenizer = tiny.tokenizer("bert")
    sweep = Sweep(tiny.build("bert"), tokenizer)
    assert (sweep.prefix, sweep.suffix) == ([tokenizer.cls_token_id], [tokenizer.sep_token_id])
    bare = Sweep(tiny.build("gpt2"), tiny.tokenizer("gpt2"))
    assert (bare.prefix, bare.suffix) == ([], [])


@pytest.mark.parametrize("position", [0, 1, 3])
def test_words_are_inserted_before_the_position(position: int) -> None:
    sweep = Sweep(tiny.build("bert", num_labels=3), tiny.tokenizer("bert"))
    words = torch.tensor([[50, 51], [60, 61], [62, 50]])
    said = sweep.inserted((70, 71, 72), position, words)
    for row, pair in enumerate(words.tolist()):
        body = [70, 71, 72]
        body[position:position] = pair
        torch.testing.assert_close(said[row], alone("bert", body), atol=1e-5, rtol=1e-5)


def test_small_passes_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep(tiny.build("bert"), tiny.tokenizer("bert"))
    bodies = torch.arange(40, 70)[:, None]
    whole = sweep.log_probabilities(bodies)
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 7)
    torch.testing.assert_close(sweep.log_probabilities(bodies), whole, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(module, "TOKENS_AT_ONCE", 1)  # less than a text: still one at a time
    torch.testing.assert_close(sweep.log_probabilities(bodies[:3]), whole[:3], atol=1e-5, rtol=1e-5)


def test_no_texts_no_answers() -> None:
    sweep = Sweep(tiny.build("bert", num_labels=3), tiny.tokenizer("bert"))
    assert sweep.log_probabilities_of([]).shape == (0, 3)


def test_margins_by_hand() -> None:
    said = torch.tensor([[0.5, 0.3, 0.2], [0.01, 0.98, 0.01]]).log()
    expected = [math.log(0.5 / 0.5), math.log(0.01 / 0.99)]
    torch.testing.assert_close(margins(said, 0), torch.tensor(expected))
    torch.testing.assert_close(margins(said, 1), torch.tensor([math.log(0.3 / 0.7), math.log(0.98 / 0.02)]))
    torch.testing.assert_close(margins(said, 2)[0], torch.tensor(math.log(0.2 / 0.8)))
