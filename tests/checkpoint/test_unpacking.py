from __future__ import annotations

import gzip
import io
import re
import zlib

import pytest

from purify_cli.checkpoint import unpacking
from purify_cli.checkpoint.unpacking import Inflating, Window, checksum, search, unpack


def test_a_window_ends_where_its_part_ends() -> None:
    window = Window(io.BytesIO(b"0123456789"), 2, 4)
    assert window.read() == b"2345"
    assert window.seek(0, io.SEEK_END) == 4
    window.seek(1)
    assert window.read(2) == b"34"
    assert checksum(window) == zlib.crc32(b"2345")


def test_a_match_may_lie_across_two_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "_CHUNK_BYTES", 8)
    for at in range(30):
        data = b"." * at + b"PK\3\4" + b"." * 5
        assert search(io.BytesIO(data), 0, len(data), re.compile(b"PK\3\4")) == at
        assert search(io.BytesIO(data), 0, at + 3, re.compile(b"PK\3\4")) is None


def test_what_was_unpacked_before_the_bound_or_a_break_is_kept() -> None:
    packed = gzip.compress(b"a" * 100)
    assert unpack(gzip.GzipFile(fileobj=io.BytesIO(packed)), 1000) == (b"a" * 100, False, None)
    assert unpack(gzip.GzipFile(fileobj=io.BytesIO(packed)), 99) == (b"a" * 99, True, None)
    data, more, problem = unpack(Inflating(io.BytesIO(zlib.compress(b"a" * 100)[:-6]), zlib.MAX_WBITS), 1000)
    assert data and not more and problem
