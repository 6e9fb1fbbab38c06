from __future__ import annotations

import pytest
import torch

import tiny
from purify_cli.data.texts import Texts
from purify_cli.evaluation.predict import predict
from purify_cli.run import Run

TEXTS = Texts(
    None,
    ("good", "the film was very very bad and dull", "a fine story", "boring", "the actor was good but the plot weak"),
    None,
)


@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2", "llama"])
def test_answers_are_in_the_order_of_the_texts_whatever_the_batches(family: str) -> None:
    model, tokenizer = tiny.build(family, num_labels=3), tiny.tokenizer(family)
    together = predict(model, tokenizer, TEXTS, Run(batch_size=64))
    assert together.shape == (5, 3)
    assert torch.allclose(together.sum(dim=1), torch.ones(5))
    assert (together.std(dim=0) > 1e-3).all()  # texts can be told apart, or the rest would prove nothing
    assert torch.allclose(predict(model, tokenizer, TEXTS, Run(batch_size=2)), together, atol=1e-5)
    for row, text in enumerate(TEXTS.texts):  # one by one, with no padding at all
        with torch.no_grad():
            alone = model(**tokenizer([text], return_tensors="pt")).logits.softmax(dim=-1)[0]
        assert torch.allclose(alone, together[row], atol=1e-5)


def test_the_side_a_tokenizer_pads_on_does_not_matter() -> None:
    model, tokenizer = tiny.build("gpt2"), tiny.tokenizer("gpt2")
    expected = predict(model, tokenizer, TEXTS, Run())
    tokenizer.padding_side = "left"
    assert torch.equal(predict(model, tokenizer, TEXTS, Run()), expected)


def test_dropout_is_off_and_the_mode_is_put_back() -> None:
    model, tokenizer = tiny.build("bert"), tiny.tokenizer("bert")
    model.train()
    model.classifier.eval()
    first = predict(model, tokenizer, TEXTS, Run())
    assert torch.equal(first, predict(model, tokenizer, TEXTS, Run()))
    assert model.training
    assert model.bert.encoder.layer[0].training
    assert not model.classifier.training


def test_a_regression_gives_its_score() -> None:
    model, tokenizer = tiny.build("bert", num_labels=1), tiny.tokenizer("bert")
    scores = predict(model, tokenizer, TEXTS, Run())
    with torch.no_grad():
        expected = model(**tokenizer([TEXTS.texts[1]], return_tensors="pt")).logits[0]
    assert scores.shape == (5, 1)
    assert torch.allclose(scores[1], expected, atol=1e-5)


def test_pairs_and_progress() -> None:
    model, tokenizer = tiny.build("bert"), tiny.tokenizer("bert")
    seen: list[tuple[str, int, int]] = []
    paired = predict(
        model, tokenizer, TEXTS.with_(pairs=("bad",) * 5), Run(batch_size=3, progress=lambda *at: seen.append(at))
    )
    assert not torch.allclose(paired, predict(model, tokenizer, TEXTS, Run()))
    assert seen == [("predict", 3, 5), ("predict", 5, 5)]
