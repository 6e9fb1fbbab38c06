"""What an index names, and what the names themselves say is missing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purify_cli.checkpoint import shards
from purify_cli.errors import CheckpointError


def test_an_index_names_each_shard_once() -> None:
    index = {"metadata": {}, "weight_map": {"a": "two.bin", "b": "one.bin", "c": "two.bin"}}
    assert shards.named(json.dumps(index).encode(), "x.index.json") == (["one.bin", "two.bin"], True)


def test_names_that_are_no_texts_are_told_of() -> None:
    index = {"weight_map": {"a": "one.bin", "b": 7, "c": ["two.bin"]}}
    assert shards.named(json.dumps(index).encode(), "x.index.json") == (["one.bin"], False)


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"{}", b'{"weight_map": []}', b'{"weight_map": "one.bin"}'])
def test_what_is_no_index(raw: bytes) -> None:
    with pytest.raises(CheckpointError):
        shards.named(raw, "x.index.json")


def test_of_two_maps_both_count() -> None:
    """A key that stands there twice: which of them a loader takes is its own affair."""
    raw = b'{"weight_map": {"a": "one.bin"}, "weight_map": {"a": "two.bin"}}'
    assert shards.named(raw, "x.index.json") == (["one.bin", "two.bin"], True)


@given(st.integers(1, 12), st.sets(st.integers(1, 12), min_size=1))
def test_numbers_tell_what_is_missing(count: int, there: set[int]) -> None:
    def name(number: int) -> str:
        return f"model-{number:05d}-of-{count:05d}.safetensors"

    files = {name(number) for number in there if number <= count}
    missing = shards.missing_by_number(files)
    assert set(missing) | files == ({name(number) for number in range(1, count + 1)} if files else set())
    assert not set(missing) & files
    assert shards.missing_by_number(files | {"model.safetensors.index.json"}) == [], "the index says it"


def test_a_number_that_no_folder_reaches() -> None:
    assert shards.missing_by_number({"m-00001-of-99999.bin"}) == []
