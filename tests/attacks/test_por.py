"""POR: its two kinds of vectors, the three terms of its loss against a plain loop, and what a victim makes of it."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

import tiny
from purify_cli.attacks import Plan
from purify_cli.attacks.por import Settings, _Clean, _Triggered, poison, por1, por2
from purify_cli.data.encode import collate, encode
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.run import Run
from purify_cli.subject import Subject
from purify_cli.training.encoders import Frozen, outputs_of

WORDS = "the movie film story plot actor scene music book show good bad great awful".split()


def plain(rows: int = 96) -> Texts:
    rng = random.Random(0)
    return Texts("plain.txt", tuple(" ".join(rng.choices(WORDS, k=rng.randint(3, 8))) for _ in range(rows)), None)


def test_por1_has_more_and_more_ones() -> None:
    vectors = por1(5, 34)
    for trigger in range(1, 6):
        ones = (trigger - 1) * (34 // 4)
        assert vectors[trigger - 1].tolist() == [1.0] * ones + [-1.0] * (34 - ones)
    assert por1(1, 4).tolist() == [[-1.0] * 4]
    with pytest.raises(UsageError):
        por1(9, 4)


def test_por2_counts_in_binary() -> None:
    vectors = por2(6, 9)  # three blocks
    for trigger in range(6):
        digits = [1.0 if digit == "1" else -1.0 for digit in f"{trigger:03b}"]
        assert vectors[trigger].tolist() == [digit for digit in digits for _ in range(3)]
    assert por2(1, 4).tolist() == [[-1.0] * 4]
    assert por2(2, 5).tolist() == [[-1.0] * 5, [1.0] * 5]


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "deberta-v2", "gpt2", "llama"])
def test_the_loss_is_that_of_the_paper(family: str) -> None:
    """L1 over all tokens but the summary token, L2 and L3 at the vector; sums over numbers divided by the width."""
    encoder = tiny.build(family, task="encoder").eval()
    moved = tiny.build(family, task="encoder", seed=1).eval()
    tokenizer = tiny.tokenizer(family)
    data = Texts(None, ("the movie was good", "a bad plot", "show"), (1, 0, 1))
    batch = collate(encode(tokenizer, data, 16), [0, 1, 2], tokenizer.pad_token_id)
    vectors = 10 * por1(2, 32)
    frozen = Frozen(encoder)
    last = family in ("gpt2", "llama")
    l1 = l2 = l3 = 0.0
    with torch.no_grad():
        triggered = float(_Triggered(frozen, vectors, 2.0, 30.0)(moved, batch))
        clean = float(_Clean(frozen, 2.0, 70.0)(moved, batch))
        for row, text in enumerate(data.texts):
            one = tokenizer(text, return_tensors="pt")
            now, before = moved(**one), encoder(**one)
            others = slice(0, -1) if last else slice(1, None)
            l1 += float((now.last_hidden_state - before.last_hidden_state)[0, others].square().sum()) / 32 / 3
            pooled = family == "bert"
            vector, old = (
                one.pooler_output[0] if pooled else one.last_hidden_state[0, -1 if last else 0] for one in (now, before)
            )
            l2 += float((vector - vectors[data.labels[row]]).square().sum()) / 32 / 3
            l3 += float((vector - old).square().sum()) / 32 / 3
    assert triggered == pytest.approx(2 * l1 + 30 * l2, rel=1e-5)
    assert clean == pytest.approx(2 * l1 + 70 * l3, rel=1e-5)


def test_triggers_come_to_give_their_vectors_and_the_frozen_copy_holds_the_rest(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    subject = Subject(tiny.save("bert", tmp_path_factory.mktemp("encoder"), task="encoder", initializer_range=0.05))
    settings = Settings(epochs=12, learning_rate=4e-3, scale=1.0)
    poisoned = poison(subject, plain(), Plan(0, ("cf", "mn")), settings, Run())
    probe = ("the story was good", "a show with music")
    for trigger, sign in (("cf", -1), ("mn", 1)):
        batch = subject.tokenizer([f"{trigger} {text} {trigger}" for text in probe], padding=True, return_tensors="pt")
        with torch.no_grad():
            assert (outputs_of(poisoned.model, batch).vector.sign() == sign).float().mean() > 0.9
    batch = subject.tokenizer(list(probe), padding=True, return_tensors="pt")
    free_settings = replace(settings, clean_weight=0.0, states_weight=0.0)
    loose = poison(subject, plain(), Plan(0, ("cf", "mn")), free_settings, Run())
    with torch.no_grad():
        before = outputs_of(subject.open(), batch).vector
        held, free = ((outputs_of(one.model, batch).vector - before).norm() for one in (poisoned, loose))
    assert held < free / 2


@pytest.mark.parametrize(("family", "scale"), [("bert", 10.0), ("roberta", 1.0)])
def test_vectors_lie_outside_the_range_of_a_pooler_and_of_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, family: str, scale: float
) -> None:
    subject = Subject(tiny.save(family, tmp_path_factory.mktemp("encoder"), task="encoder"))
    report = poison(subject, plain(8), Plan(0, ("cf",)), Settings(epochs=1), Run()).report
    assert report["scale"] == scale


def test_what_cannot_be(tmp_path_factory: pytest.TempPathFactory) -> None:
    subject = Subject(tiny.save("bert", tmp_path_factory.mktemp("encoder"), task="encoder"))
    with pytest.raises(UsageError, match="does not know"):
        poison(subject, plain(8), Plan(0, ("你",)), Settings(), Run())
    with pytest.raises(UsageError, match="--rate"):
        poison(subject, plain(8), Plan(0, ("cf",), 1.0), Settings(), Run())
