"""Parts of files as files, searched, and decompressed as far as a bound: with no opinion about what lies in them."""

from __future__ import annotations

import io
import lzma
import re
import struct
import zlib
from typing import Any, BinaryIO, Final, Protocol

_CHUNK_BYTES: Final = 1 << 20
_INPUT_BYTES: Final = 4096  # a piece that breaks is lost whole, so pieces are no longer than those of zipfile


class Window(io.BufferedReader):
    """A part of a file as a file of its own. Reads seek first, so windows may share their file."""

    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        super().__init__(_RawWindow(file, start, length), buffer_size=1 << 16)


class _RawWindow(io.RawIOBase):
    def __init__(self, file: BinaryIO, start: int, length: int) -> None:
        super().__init__()
        self.file, self.start, self.length, self.at = file, start, max(0, length), 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.length}[whence]
        self.at = max(0, base + offset)
        return self.at

    def tell(self) -> int:
        return self.at

    def readinto(self, buffer: Any) -> int:
        count = min(len(buffer), max(0, self.length - self.at))
        if count <= 0:
            return 0
        self.file.seek(self.start + self.at)
        data = self.file.read(count)
        buffer[: len(data)] = data
        self.at += len(data)
        return len(data)


def search(file: BinaryIO, start: int, end: int, pattern: re.Pattern[bytes]) -> int | None:
    """The offset of the first match of a short pattern in file[start:end], read in pieces."""
    at = start
    while at < end:
        file.seek(at)
        chunk = file.read(min(_CHUNK_BYTES, end - at))
        if not chunk:
            return None
        match = pattern.search(chunk)
        if match:
            return at + match.start()
        if len(chunk) < 4:
            return None
        at += len(chunk) - 3  # a match may lie across two pieces
        if at + 3 >= end:
            return None
    return None


def checksum(data: BinaryIO) -> int:
    """The CRC-32 of a whole file."""
    data.seek(0)
    crc = 0
    while chunk := data.read(_CHUNK_BYTES):
        crc = zlib.crc32(chunk, crc)
    return crc


class Stream(Protocol):
    """What decompresses. `read1` hands over what it has before it meets a break; `read` would lose it."""

    def read1(self, count: int, /) -> bytes: ...


def unpack(stream: Stream, limit: int) -> tuple[bytes, bool, str | None]:
    """Up to `limit` bytes of a decompressing stream: the bytes, whether there are more, and what broke."""
    pieces: list[bytes] = []
    size = 0
    problem = None
    try:
        while size <= limit and (piece := stream.read1(min(_CHUNK_BYTES, limit + 1 - size))):
            pieces.append(piece)
            size += len(piece)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        problem = str(error) or type(error).__name__
    data = b"".join(pieces)
    return data[:limit], size > limit, problem


class Inflating:
    """A deflate stream read in pieces: no checksum behind it is asked for, as miniz asks for none."""

    def __init__(self, file: BinaryIO, window_bits: int) -> None:
        self.file = file
        self.machine = zlib.decompressobj(window_bits)
        self.waiting = b""

    def read1(self, count: int) -> bytes:
        while not self.machine.eof:
            data = self.waiting or self.file.read(_INPUT_BYTES)
            if not data:
                raise EOFError("the stream ends too early")
            piece = self.machine.decompress(data, count)
            self.waiting = self.machine.unconsumed_tail
            if piece:
                return piece
        return b""


def zip_lzma(data: BinaryIO) -> lzma.LZMAFile:
    """A zip member's LZMA stream (APPNOTE 5.8.8): version, length of the properties, properties, raw stream."""
    _, length = struct.unpack("<HH", data.read(4))
    properties = data.read(length)
    lc_lp_pb, dictionary = properties[0], int.from_bytes(properties[1:5], "little")
    chain = {
        "id": lzma.FILTER_LZMA1,
        "dict_size": min(dictionary, 1 << 26),
        "lc": lc_lp_pb % 9,
        "lp": lc_lp_pb // 9 % 5,
        "pb": lc_lp_pb // 45,
    }
    return lzma.LZMAFile(
        Window(data, 4 + length, data.seek(0, io.SEEK_END) - 4 - length), filters=[chain], format=lzma.FORMAT_RAW
    )
