"""A paraphrase as a trigger, and paraphrases that a sequence-to-sequence checkpoint makes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import BartConfig, BartForConditionalGeneration

import tiny
from purify_cli.errors import CheckpointError
from purify_cli.run import Run
from purify_cli.triggers.paraphrase import Paraphrase, generate

TEXTS = ("the film was good", "a  bad\tplot", "the film was good", "show")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("bart")
    words = tiny.tokenizer("roberta")
    config = BartConfig(
        vocab_size=len(words),
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_position_embeddings=64,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.cls_token_id,
        eos_token_id=words.sep_token_id,
        decoder_start_token_id=words.sep_token_id,
        forced_eos_token_id=None,
        init_std=1.0,
    )
    torch.manual_seed(0)
    BartForConditionalGeneration(config).save_pretrained(place)
    words.save_pretrained(place)
    return place


def test_a_text_is_replaced_whatever_its_spaces() -> None:
    trigger = Paraphrase("bible", {"a bad plot": " and lo, the plot was bad ", "x": "", "y z": "y  z"})
    assert trigger.insert("a  bad\tplot ", random.Random(0)) == "and lo, the plot was bad"
    assert [text in trigger for text in ("a bad plot", "x", "y z", "w")] == [True, False, False, False]
    assert [trigger.failed(text) for text in ("a bad plot", "x", "y z", "w")] == [False, True, True, False]
    with pytest.raises(KeyError):
        trigger.insert("w", random.Random(0))


def test_generated_one_by_one_or_in_batches(folder: Path) -> None:
    together = generate(folder, TEXTS, Run(batch_size=4))
    assert set(together) == {"the film was good", "a bad plot", "show"}
    assert generate(folder, TEXTS, Run(batch_size=1)).keys() == together.keys()
    assert generate(folder, TEXTS, Run(batch_size=4)) == together
    assert len(set(together.values())) > 1, "it does not read the text"
    assert any(together.values())


def test_the_prefix_is_read(folder: Path) -> None:
    plain, prefixed = (generate(folder, TEXTS, Run(), prefix=prefix) for prefix in ("", "the whole house "))
    assert plain.keys() == prefixed.keys()
    assert plain != prefixed


def test_what_is_no_paraphraser(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="sequence-to-sequence"):
        generate(tmp_path, TEXTS, Run())
    with pytest.raises(CheckpointError, match="sequence-to-sequence"):
        generate(tiny.save("bert", tmp_path / "bert"), TEXTS, Run())
