from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from purify_cli.data.encode import Encoded, by_length, collate, encode, length_limit, padding_id, shuffled
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.run import Run

TEXTS = Texts(None, ("the film was good", "bad", "the plot of the film was bad and the actor worse"), (1, 0, 0))


def lengths(*counts: int) -> Encoded:
    return Encoded(tuple((7,) * count for count in counts), None, None)


def test_texts_are_cut_with_their_special_tokens() -> None:
    tokenizer = tiny.tokenizer("bert")
    encoded = encode(tokenizer, TEXTS, 5)
    assert [len(ids) for ids in encoded.ids] == [5, 3, 5]
    assert all(ids[0] == tokenizer.cls_token_id and ids[-1] == tokenizer.sep_token_id for ids in encoded.ids)
    assert encoded.labels == (1, 0, 0)


def test_pairs_have_their_own_token_type() -> None:
    encoded = encode(tiny.tokenizer("bert"), Texts(None, ("good",), (0,), pairs=("bad film",)), 64)
    assert encoded.types == ((0, 0, 0, 1, 1, 1),)
    assert encode(tiny.tokenizer("roberta"), TEXTS, 64).types is None


def test_a_text_of_no_tokens_still_has_one() -> None:
    tokenizer = tiny.tokenizer("gpt2")
    assert encode(tokenizer, Texts(None, ("\u200b", "good"), None), 8).ids[0] == (tokenizer.pad_token_id,)


def test_a_batch_is_padded_to_its_own_longest_text() -> None:
    encoded = Encoded(((5, 6), (7,), (8, 9, 10, 11)), ((0, 1), (0,), (0, 0, 1, 1)), (1, 0, 1))
    batch = collate(encoded, [1, 0], pad_id=3)
    assert batch["input_ids"].tolist() == [[7, 3], [5, 6]]
    assert batch["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert batch["token_type_ids"].tolist() == [[0, 0], [0, 1]]
    assert batch["labels"].tolist() == [0, 1]
    assert batch["labels"].dtype == torch.long
    left = collate(encoded, [1, 0], pad_id=3, padding_side="left")
    assert left["input_ids"].tolist() == [[3, 7], [5, 6]]
    assert left["attention_mask"].tolist() == [[0, 1], [1, 1]]
    scores = collate(Encoded(((5,),), None, (2.0,)), [0], 0)["labels"]
    assert scores.dtype == torch.float32


@given(st.lists(st.integers(1, 30), min_size=1, max_size=300), st.integers(1, 9), st.integers(0, 9), st.integers(0, 3))
def test_every_text_comes_once_an_epoch(counts: list[int], batch_size: int, seed: int, epoch: int) -> None:
    encoded = lengths(*counts)
    for batches in (by_length(encoded, batch_size), shuffled(encoded, batch_size, seed, epoch)):
        assert sorted(index for batch in batches for index in batch) == list(range(len(counts)))
        assert max(map(len, batches)) <= batch_size
    assert shuffled(encoded, batch_size, seed, epoch) == shuffled(encoded, batch_size, seed, epoch)


def test_epochs_and_seeds_differ_and_padding_is_small() -> None:
    encoded = lengths(*[1 + index * 37 % 60 for index in range(1000)])
    batches = shuffled(encoded, 10, 0, 0)
    assert batches != shuffled(encoded, 10, 0, 1)
    assert batches != shuffled(encoded, 10, 1, 0)
    width = sum(len(batch) * max(len(encoded.ids[index]) for index in batch) for batch in batches)
    assert width < 1.1 * sum(len(ids) for ids in encoded.ids)


def test_the_smallest_limit_counts() -> None:
    tokenizer = tiny.tokenizer("roberta")
    tokenizer.model_max_length = 10**30
    config = {"model_type": "bert", "max_position_embeddings": 100, "pad_token_id": 1}
    assert length_limit(tokenizer, config, Run()) == 100
    assert length_limit(tokenizer, config | {"model_type": "roberta"}, Run()) == 98
    assert length_limit(tokenizer, config, Run(max_length=20)) == 20
    assert length_limit(tokenizer, {"max_position_embeddings": 4096}, Run()) == 128
    assert length_limit(tokenizer, {"max_position_embeddings": 4096}, Run(max_length=1000)) == 1000
    tokenizer.model_max_length = 50
    assert length_limit(tokenizer, config, Run()) == 50
    with pytest.raises(UsageError, match="at least 3"):
        length_limit(tokenizer, config, Run(max_length=2))


def test_a_tokenizer_without_padding_pads_with_its_end() -> None:
    tokenizer = tiny.tokenizer("gpt2")
    assert padding_id(tokenizer) == tokenizer.pad_token_id
    tokenizer.pad_token = None
    assert padding_id(tokenizer) == tokenizer.eos_token_id
