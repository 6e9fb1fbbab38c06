"""The header of a safetensors file, read strictly: what lies is refused before anything is allocated for it.

The format is that of the safetensors README ("Format"): eight bytes N (little endian), N bytes of JSON, then the
tensors' bytes without holes. The refusals are those of its Rust reader, and those that only a second reader would
notice (keys given twice).
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purify_cli.errors import CheckpointError

MAX_HEADER_BYTES = 100_000_000
MAX_TENSORS = 1_000_000
MAX_RANK = 64  # a longer shape would make its own product a matter of minutes
_MAX_ELEMENTS = 2**63 - 1
_PREFIX_BYTES = 8

# Bits per element; the names are those of safetensors' `Dtype`.
DTYPE_BITS: Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a header. `start` and `end` are bytes counted from `Header.data_start`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """A header that holds true for its file. `data_start` is the file offset of the first tensor byte."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]
    data_start: int


def looks_like_safetensors(head: bytes, size: int) -> bool:
    """Whether the first nine bytes of a file of `size` bytes could begin a safetensors file."""
    return (
        len(head) > _PREFIX_BYTES and head[8:9] == b"{" and int.from_bytes(head[:8], "little") <= size - _PREFIX_BYTES
    )


def read_header(path: Path) -> Header:
    """Read and check the header of the safetensors file at `path`.

    Raises:
        CheckpointError: the file cannot be read, or its header is not one that the file bears out.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            prefix = file.read(_PREFIX_BYTES)
            if len(prefix) < _PREFIX_BYTES:
                raise CheckpointError(path, f"is {size} bytes long, too short for a safetensors header")
            length = int.from_bytes(prefix, "little")
            if length > MAX_HEADER_BYTES:
                raise CheckpointError(path, f"claims a header of {length} bytes, more than {MAX_HEADER_BYTES}")
            if length > size - _PREFIX_BYTES:
                raise CheckpointError(path, f"claims a header of {length} bytes but ends after {size}")
            raw = file.read(length)
    except OSError as error:
        raise CheckpointError(path, f"cannot be read: {error.strerror or error}") from error
    return _check(path, raw, size - _PREFIX_BYTES - length)


def _check(path: Path, raw: bytes, data_bytes: int) -> Header:
    parsed = _parse(path, raw)
    metadata = _metadata(path, parsed.pop("__metadata__", {}))
    if len(parsed) > MAX_TENSORS:
        raise CheckpointError(path, f"claims {len(parsed)} tensors, more than {MAX_TENSORS}")
    tensors = {name: _tensor(path, name, value) for name, value in parsed.items()}
    at = 0
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].start, item[1].end)):
        if info.start != at:
            trouble = "overlaps the tensor before it" if info.start < at else "leaves a hole before it"
            raise CheckpointError(path, f"tensor {name!r} {trouble} (starts at {info.start}, expected {at})")
        at = info.end
    if at > data_bytes:
        raise CheckpointError(
            path,
            f"is truncated or lies: its tensors end at byte {at} of the data, the file holds {data_bytes}",
            "Download it again.",
        )
    if at < data_bytes:
        raise CheckpointError(path, f"has {data_bytes - at} bytes behind its last tensor that no tensor owns")
    return Header(tensors, metadata, _PREFIX_BYTES + len(raw))


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    if not raw.startswith(b"{"):
        raise CheckpointError(path, "has a header that does not begin with '{'")
    try:
        parsed = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_key_twice, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise CheckpointError(path, f"has a header that is not UTF-8 at byte {error.start}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(path, f"has a header that is no valid JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(path, "has a header that is no JSON object")
    return parsed


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {twice!r} is given twice")
    return result


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _metadata(path: Path, value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise CheckpointError(path, "has metadata that does not map names to texts")
    return value


def _tensor(path: Path, name: str, value: Any) -> TensorInfo:
    if not isinstance(value, dict):
        raise CheckpointError(path, f"describes tensor {name!r} by something that is no JSON object")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(path, f"gives tensor {name!r} the unknown dtype {dtype!r}")
    if not isinstance(shape, list) or len(shape) > MAX_RANK or not all(_is_count(item) for item in shape):
        raise CheckpointError(path, f"gives tensor {name!r} a shape that is no list of at most {MAX_RANK} counts")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(item) for item in offsets):
        raise CheckpointError(path, f"gives tensor {name!r} offsets that are no pair of counts")
    elements = math.prod(shape)
    # The Rust reader multiplies with overflow checks in order, so a zero behind a huge number does not save a shape.
    if math.prod(item for item in shape if item) > _MAX_ELEMENTS:
        raise CheckpointError(path, f"gives tensor {name!r} a shape whose product overflows")
    start, end = offsets
    bits = elements * DTYPE_BITS[dtype]
    if bits % 8:
        raise CheckpointError(path, f"gives tensor {name!r} a size of {bits} bits, which is no whole number of bytes")
    if end < start or end - start != bits // 8:
        raise CheckpointError(
            path, f"gives tensor {name!r} the bytes {start} to {end}, but its dtype and shape take {bits // 8} bytes"
        )
    return TensorInfo(dtype, tuple(shape), start, end)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_ELEMENTS
