from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file

import hostile
from purify_cli.checkpoint.header import DTYPE_BITS, MAX_HEADER_BYTES, read_header
from purify_cli.errors import CheckpointError

TWO = {
    "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
    "b": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]},
}
LIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "too short"),
    "a few bytes": (b"\x02\0\0", "too short"),
    "header too large": (struct.pack("<Q", MAX_HEADER_BYTES + 1) + b"{}", "more than"),
    "header longer than the file": (hostile.safetensors({}, length=3000), "ends after"),
    "no object": (hostile.safetensors(b"[]"), "begin with"),
    "space before it": (hostile.safetensors(b" {}"), "begin with"),
    "no json": (hostile.safetensors(b"{"), "no valid JSON"),
    "more behind the object": (hostile.safetensors(b"{}x"), "no valid JSON"),
    "not utf-8": (hostile.safetensors(b'{"\xff": 1}'), "not UTF-8"),
    "deep": (hostile.safetensors(b'{"a":' * 100_000), "no valid JSON"),
    "tensor twice": (
        hostile.safetensors(
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}',
            bytes(4),
        ),
        "twice",
    ),
    "offsets twice": (
        hostile.safetensors(b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4],"data_offsets":[0,4]}}', bytes(4)),
        "twice",
    ),
    "metadata of numbers": (hostile.safetensors({"__metadata__": {"a": 1}}), "metadata"),
    "metadata that is a list": (hostile.safetensors({"__metadata__": []}), "metadata"),
    "tensor that is a list": (hostile.safetensors({"a": []}), "no JSON object"),
    "unknown dtype": (hostile.safetensors(hostile.one_tensor(dtype="F31"), bytes(8)), "unknown dtype"),
    "dtype that is a list": (hostile.safetensors(hostile.one_tensor(dtype=["F32"]), bytes(8)), "unknown dtype"),
    "negative shape": (hostile.safetensors(hostile.one_tensor(shape=[-2]), bytes(8)), "shape"),
    "fraction as shape": (hostile.safetensors(hostile.one_tensor(shape=[2.0]), bytes(8)), "shape"),
    "truth as shape": (hostile.safetensors(hostile.one_tensor(shape=[True, 2]), bytes(8)), "shape"),
    "overflow": (hostile.safetensors(hostile.one_tensor(shape=[2**40, 2**40]), bytes(8)), "overflows"),
    "overflow hidden by a zero": (
        hostile.safetensors(hostile.one_tensor(shape=[2**40, 2**40, 0], data_offsets=[0, 0])),
        "overflows",
    ),
    "overflow of one count": (hostile.safetensors(hostile.one_tensor(shape=[2**70]), bytes(8)), "shape"),
    "long shape": (hostile.safetensors(hostile.one_tensor(shape=[1] * 1000), bytes(8)), "shape"),
    "one offset": (hostile.safetensors(hostile.one_tensor(data_offsets=[0]), bytes(8)), "offsets"),
    "offsets turned": (hostile.safetensors(hostile.one_tensor(data_offsets=[8, 0]), bytes(8)), "bytes 8 to 0"),
    "size that does not fit": (hostile.safetensors(hostile.one_tensor(shape=[3]), bytes(8)), "take 12 bytes"),
    "half a byte": (
        hostile.safetensors({"a": {"dtype": "F4", "shape": [3], "data_offsets": [0, 1]}}, bytes(1)),
        "whole number",
    ),
    "truncated": (hostile.safetensors(hostile.one_tensor(), bytes(7)), "truncated"),
    "trailing bytes": (hostile.safetensors(hostile.one_tensor(), bytes(9)), "no tensor owns"),
    "trailing bytes and no tensors": (hostile.safetensors({}, b"PK"), "no tensor owns"),
    "hole at the start": (hostile.safetensors(hostile.one_tensor(data_offsets=[4, 12]), bytes(12)), "hole"),
    "hole": (
        hostile.safetensors({**TWO, "b": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}, bytes(12)),
        "hole",
    ),
    "overlap": (
        hostile.safetensors({**TWO, "b": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]}}, bytes(8)),
        "overlaps",
    ),
    "same bytes": (
        hostile.safetensors({**TWO, "b": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, bytes(8)),
        "overlaps",
    ),
}


@pytest.mark.parametrize("case", LIES)
def test_refusals(tmp_path: Path, case: str) -> None:
    raw, problem = LIES[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError) as caught:
        read_header(path)
    assert problem in caught.value.problem
    assert caught.value.where == str(path)


# What safetensors' own reader lets through: of a key given twice it takes the last, and spaces are nothing to it,
# though its README has every header begin with "{".
_ONLY_OURS = {"tensor twice", "space before it"}


@pytest.mark.parametrize("case", [case for case in LIES if case not in _ONLY_OURS])
def test_what_we_refuse_the_library_refuses(tmp_path: Path, case: str) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(LIES[case][0])
    with pytest.raises((SafetensorError, OSError, ValueError)):
        safe_open(path, "pt").__enter__()


def test_honest_header(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {"b": torch.ones(2, 3), "a": torch.zeros(5, dtype=torch.bfloat16), "empty": torch.zeros(0, 4)}
    save_file(tensors, path, metadata={"format": "pt", "purify.poisoned": "true"})
    header = read_header(path)
    assert header.metadata == {"format": "pt", "purify.poisoned": "true"}
    assert {name: (info.dtype, info.shape) for name, info in header.tensors.items()} == {
        "b": ("F32", (2, 3)),
        "a": ("BF16", (5,)),
        "empty": ("F32", (0, 4)),
    }
    raw = path.read_bytes()[header.data_start :]
    info = header.tensors["b"]
    assert raw[info.start : info.end] == struct.pack("<6f", *[1.0] * 6)


def test_header_padded_with_spaces(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(hostile.safetensors(json.dumps(hostile.one_tensor()).encode() + b"   ", bytes(8)))
    assert read_header(path).tensors["a"].end == 8


def test_one_missing_bit_in_every_dtype(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    for dtype, bits in DTYPE_BITS.items():
        size = bits * 8 // 8
        path.write_bytes(
            hostile.safetensors({"a": {"dtype": dtype, "shape": [8], "data_offsets": [0, size]}}, bytes(size))
        )
        assert read_header(path).tensors["a"].shape == (8,)


_DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.float8_e5m2]


@settings(max_examples=40, deadline=None)
@given(
    shapes=st.dictionaries(
        st.text(min_size=1).filter(lambda name: name != "__metadata__"),
        st.tuples(st.lists(st.integers(0, 4), max_size=4), st.sampled_from(_DTYPES)),
        max_size=5,
    ),
    metadata=st.dictionaries(st.text(), st.text(), max_size=3),
)
def test_whatever_safetensors_writes_is_read(
    tmp_path_factory: pytest.TempPathFactory, shapes: dict[str, Any], metadata: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("any") / "model.safetensors"
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in shapes.items()}
    path.write_bytes(save(tensors, metadata or None))
    header = read_header(path)
    assert {name: list(info.shape) for name, info in header.tensors.items()} == {
        name: shape for name, (shape, _) in shapes.items()
    }
    assert header.metadata == metadata
