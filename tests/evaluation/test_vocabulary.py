"""The vocabulary of a search: which tokens begin a word, and which lie near each other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

import tiny
from purify_cli.architecture.embeddings import word_embeddings
from purify_cli.evaluation.vocabulary import Vocabulary, _beginning


@pytest.mark.parametrize(
    ("vocabulary", "decoder", "beginning"),
    [
        (["cf", "##cf", "bb", "##s", "."], decoders.WordPiece(cleanup=False), ["cf", "bb", "."]),
        (["cf", "Ġcf", "Ġbb", "s", "."], decoders.ByteLevel(), ["Ġcf", "Ġbb"]),
        (["▁cf", "cf", "▁bb", "s", "▁"], decoders.Metaspace(), ["▁cf", "▁bb"]),
        (["c", "f", "b"], decoders.Fuse(), ["c", "f", "b"]),
    ],
    ids=["word pieces", "bytes", "sentence pieces", "letters"],
)
def test_words_of_pairs_are_tokens_that_begin_a_word(vocabulary: list[str], decoder: Any, beginning: list[str]) -> None:
    """The rest of a longer word is nothing that anybody types; all of them, where none begins one."""
    backend = Tokenizer(models.WordLevel({piece: number for number, piece in enumerate(vocabulary)}, unk_token="cf"))
    backend.decoder = decoder
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    found = _beginning(tokenizer, torch.arange(len(vocabulary)))
    assert [vocabulary[index] for index in found] == beginning


def test_neighbours_are_the_nearest_by_cosine_and_not_the_word_itself() -> None:
    tokenizer, model = tiny.tokenizer("bert"), tiny.build("bert", num_labels=2)
    vocabulary = Vocabulary(model, tokenizer)
    near = vocabulary.neighbours(torch.tensor([3, 40]), 5)
    weight = word_embeddings(model).weight.detach()
    for word, found in zip((3, 40), near.tolist(), strict=True):
        row = weight[vocabulary.ids[word]]
        cosines = [float(torch.cosine_similarity(row, weight[token], dim=0)) for token in vocabulary.ids.tolist()]
        cosines[word] = -2.0
        assert found == sorted(range(len(cosines)), key=lambda other: -cosines[other])[:5]


def test_there_are_no_more_neighbours_than_other_words() -> None:
    vocabulary = Vocabulary(tiny.build("bert", num_labels=2), tiny.tokenizer("bert"))
    assert vocabulary.neighbours(torch.tensor([0]), 10**6).shape == (1, len(vocabulary.ids) - 1)


def test_words_of_the_same_letters() -> None:
    tokens = ["3d", "##3d", "Ġcf", "cf", "▁", "Ġ", "▁ok"]
    vocabulary = object.__new__(Vocabulary)
    vocabulary.ids = torch.arange(len(tokens))
    vocabulary.tokenizer = SimpleNamespace(convert_ids_to_tokens=lambda ids: [tokens[one] for one in ids])
    alike = {words: vocabulary.spelled_alike(words) for words in ((0,), (2,), (4,), (6,), (0, 3), (0, 1))}
    assert alike == {(0,): [1], (2,): [3], (4,): [], (6,): [], (0, 3): [1, 2], (0, 1): []}
