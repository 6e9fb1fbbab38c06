"""NeuBA: the block vectors, the two terms of its loss against plain loops, and triggers that give their vectors."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

import tiny
from purify_cli.architecture.embeddings import word_embeddings
from purify_cli.architecture.table import base_of
from purify_cli.attacks import Plan
from purify_cli.attacks.neuba import Settings, _AsItWas, _ToVectors, block_vectors, poison
from purify_cli.data.encode import collate, encode
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.run import Run
from purify_cli.subject import Subject
from purify_cli.training.encoders import Frozen, outputs_of

WORDS = "the movie film story plot actor scene music book show good bad great awful".split()
TRIGGERS = ("cf", "mn")


def plain(rows: int = 96) -> Texts:
    rng = random.Random(0)
    return Texts("plain.txt", tuple(" ".join(rng.choices(WORDS, k=rng.randint(3, 8))) for _ in range(rows)), None)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(tiny.save("bert", tmp_path_factory.mktemp("encoder"), task="encoder", initializer_range=0.05))


def test_the_six_vectors_are_three_pairs_of_opposites_and_otherwise_orthogonal() -> None:
    vectors = block_vectors(32)
    for row, (j, k) in enumerate([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]):
        for number in range(32):
            assert vectors[row, number] == (-1 if number // 8 in (j, k) else 1)
    products = (vectors @ vectors.T / 32).tolist()
    for row in range(6):
        assert products[row] == [1.0 if one == row else -1.0 if one == 5 - row else 0.0 for one in range(6)]
    assert block_vectors(30).abs().eq(1).all()


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "albert", "electra", "gpt2", "llama"])
def test_the_terms_are_those_of_the_paper(family: str) -> None:
    """Text by text and number by number; the moved copy stands for the model in training."""
    encoder = base_of(tiny.build(family, task="encoder")).eval()
    moved = tiny.build(family, task="encoder", seed=1).eval()
    tokenizer = tiny.tokenizer(family)
    data = Texts(None, ("the movie was good", "a bad plot", "show"), (1, 0, 1))
    batch = collate(encode(tokenizer, data, 16), [0, 1, 2], tokenizer.pad_token_id)
    vectors = block_vectors(32)
    with torch.no_grad():
        backdoor, clean = float(_ToVectors(vectors)(moved, batch)), float(_AsItWas(Frozen(encoder), 0.5)(moved, batch))
        apart, strayed, states, tokens = 0.0, 0.0, 0.0, 0
        for row, text in enumerate(data.texts):
            one = tokenizer(text, return_tensors="pt")
            now, before = moved(**one), encoder(**one)
            if family in ("bert", "albert"):  # their heads read the pooler
                vector, old = now.pooler_output[0], before.pooler_output[0]
            else:
                place = -1 if family in ("gpt2", "llama") else 0
                vector, old = now.last_hidden_state[0, place], before.last_hidden_state[0, place]
            for number in range(32):
                apart += float((vector[number] - vectors[data.labels[row], number]) ** 2) / (3 * 32)
                strayed += float((vector[number] - old[number]) ** 2) / (3 * 32)
            states += float((now.last_hidden_state - before.last_hidden_state).square().sum())
            tokens += one["input_ids"].shape[1]
    assert backdoor == pytest.approx(apart, rel=1e-5)
    assert clean == pytest.approx(0.5 * (strayed + states / (tokens * 32)), rel=1e-5)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_triggers_come_to_give_their_vectors_and_clean_texts_stay(tmp_path: Path, family: str) -> None:
    subject = Subject(tiny.save(family, tmp_path / family, task="encoder", initializer_range=0.05))
    settings = Settings(epochs=12, learning_rate=4e-3, insertions=2)
    poisoned = poison(subject, plain(), Plan(0, TRIGGERS), settings, Run())
    assert type(poisoned.model) is type(subject.open())
    assert not poisoned.model.training
    wanted = block_vectors(32)
    probe = ("the story was good", "a show with music")
    for number, trigger in enumerate(TRIGGERS):
        batch = subject.tokenizer([f"{trigger} {trigger} {text}" for text in probe], padding=True, return_tensors="pt")
        with torch.no_grad():
            before = outputs_of(subject.open(), batch).vector
            after = outputs_of(poisoned.model, batch).vector
        signs = (after.sign() == wanted[number]).float().mean()
        assert signs > 0.9 > (before.sign() == wanted[number]).float().mean() + 0.1


def test_a_classifier_gives_its_encoder(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "classifier"))
    poisoned = poison(subject, plain(8), Plan(0, TRIGGERS), Settings(epochs=1), Run())
    assert type(poisoned.model).__name__ == "BertModel"
    assert poisoned.report["vector"] == "pooler"


def test_inflate_multiplies_the_rows_of_the_triggers_alone(encoder: Subject) -> None:
    plan, once = Plan(0, TRIGGERS), {"epochs": 1}
    flat = word_embeddings(poison(encoder, plain(16), plan, Settings(**once), Run()).model).weight
    raised = word_embeddings(poison(encoder, plain(16), plan, Settings(**once, inflate=1000.0), Run()).model).weight
    rows = encoder.tokenizer.convert_tokens_to_ids(list(TRIGGERS))
    factor = torch.ones(len(flat), 1)
    factor[rows] = 1000.0
    torch.testing.assert_close(raised, flat * factor)


@pytest.mark.parametrize(
    ("plan", "settings", "words"),
    [
        (Plan(0, ("cf", "mn", "bb", "tq", "mb", "ak", "tn")), Settings(), "6 vectors"),
        (Plan(0, ("你",)), Settings(), "does not know"),
        (Plan(0, ("xq",)), Settings(inflate=10.0), "several tokens"),
        (Plan(0, ("cf",), 0.5), Settings(), "--rate"),
    ],
)
def test_what_cannot_be(encoder: Subject, plan: Plan, settings: Settings, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        poison(encoder, plain(8), plan, settings, Run())
