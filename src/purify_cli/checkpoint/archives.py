"""What lies inside a file, by its content: pickles in archives, in compressed files, in numpy arrays.

`examine` yields what counts and goes on where it can, so that what is found before a break stays. Everything is
bounded: the depth of archives in archives, the number of members, the bytes that decompression may yield.

Torch's zip reader (miniz), Python's `zipfile` and the shell's unzip do not agree on what a broken archive holds: miniz
checks no local name and, by torch's default, a loader reads on past a wrong CRC. So every member of the central
directory is read without those checks, and local headers that no directory names are looked for in the gaps.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import re
import stat
import struct
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import BinaryIO, Final, Literal

from purify_cli.checkpoint import pickles
from purify_cli.checkpoint.known_globals import HARMLESS
from purify_cli.checkpoint.pickle_machine import Offence, Walk
from purify_cli.checkpoint.unpacking import Inflating, Stream, Window, checksum, search, unpack, zip_lzma

MAX_DEPTH: Final = 5
MAX_MEMBERS: Final = 50_000
MAX_UNPACKED_BYTES: Final = 64 << 20
MAX_TOTAL_UNPACKED_BYTES: Final = 512 << 20
_MAX_CHECKED_BYTES: Final = 512 << 20
_MAX_CANDIDATES: Final = 100_000
_END_SEARCH_BYTES: Final = (1 << 16) + 22

_LOCAL, _END = b"PK\x03\x04", b"PK\x05\x06"
_NUMPY = b"\x93NUMPY"
_UNREAD: Final[dict[bytes, str]] = {
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"\x28\xb5\x2f\xfd": "zstandard",
    b"\x04\x22\x4d\x18": "lz4",
    b"Rar!\x1a\x07": "rar",
}
_PICKLE_START = re.compile(rb"\x80[\x02-\x05]")

Kind = Literal["import", "disagree", "broken", "unread", "escape"]


@dataclass(frozen=True)
class Observation:
    """One thing that counts in a file.

    kind: import (a pickle's offence), disagree (readers see different contents), broken (breaks off or is refused),
    unread (not looked into: a bound or an unknown compression), escape (a member that would be unpacked outside the
    folder). `member` names the place inside the file, "" for the file itself; `strict` of a disagreement: about which
    bytes are read, not only about a checksum.
    """

    kind: Kind
    member: str
    problem: str
    offence: Offence | None = None
    strict: bool = False


@dataclass
class Budget:
    """What the examination of one file may still cost, and what it met."""

    members: int = MAX_MEMBERS
    unpacked: int = MAX_TOTAL_UNPACKED_BYTES
    checked: int = _MAX_CHECKED_BYTES
    pickles: int = 0
    formats: set[str] = field(default_factory=set)


def examine(
    file: BinaryIO, budget: Budget, member: str = "", depth: int = 0, *, cut: bool = False
) -> Iterator[Observation]:
    """Look for whatever a loader would unpickle in `file`, seekable and read from its beginning.

    Args:
        budget: counts down; its `formats` and `pickles` tell what was met.
        member: how the place is called in what is yielded.
        cut: the file was unpacked only in part, because of a bound.
    """
    if depth > MAX_DEPTH:
        yield Observation("unread", member, f"is nested deeper than {MAX_DEPTH} archives")
        return
    file.seek(0)
    head = file.read(512)
    for magic, name in _UNREAD.items():
        if head.startswith(magic):
            yield Observation("unread", member, f"is compressed as {name}, which is not looked into")
    yield from _compressed(file, head, budget, member, depth)
    if head.startswith(_NUMPY):
        yield from _numpy(file, budget, member, depth)
    if head[257:262] == b"ustar":
        yield from _tar(file, budget, member, depth)
    yield from _zip(file, head, budget, member, depth)
    if not head.startswith((_NUMPY, _LOCAL)):
        yield from _pickles(file, 0, budget, member, depth, cut=cut)


# -- pickles


def _pickles(
    file: BinaryIO, start: int, budget: Budget, member: str, depth: int, *, cut: bool = False
) -> Iterator[Observation]:
    """The pickles in a row from `start` on, torch's legacy format to the last of its five, and what follows."""
    first = pickles.walk(file, start)
    if not first.plausible:
        return
    yield from _judge(first, file, budget, member, depth, cut=cut)
    if not first.stopped:
        return
    end = first.end
    if first.value == pickles.TORCH_MAGIC_NUMBER:
        budget.formats.add("torch legacy")
        storages: dict[str, int] = {}
        keys: list[object] = []
        for part in ("protocol", "system", "object", "storage keys"):
            walk = pickles.walk(file, end)
            yield from _judge(walk, file, budget, member, depth, cut=cut, surely=True)
            if not walk.stopped:
                if not walk.problem or part == "protocol":
                    yield Observation("broken", member, f"is a legacy torch file without its pickle of {part}")
                return
            end, storages = walk.end, storages | walk.storages
            keys = walk.value if isinstance(walk.value, list) else []
        end = _skip_storages(file, end, keys, storages)
    elif isinstance(first.value, int | list | tuple | str) or first.names or first.end - first.start > 2:
        budget.formats.add("pickle")
    yield from _trailing(file, end, budget, member, depth)


def _judge(
    walk: Walk,
    file: BinaryIO,
    budget: Budget,
    member: str,
    depth: int,
    *,
    cut: bool = False,
    surely: bool = False,
) -> Iterator[Observation]:
    budget.pickles += 1
    for offence in walk.offences:
        yield Observation("import", member, offence.how, offence)
    if not walk.stopped and (walk.plausible or surely):
        seen = {offence.dotted for offence in walk.offences}
        for dotted in sorted(pickles.second_opinion(file, walk.start)):
            if dotted not in seen and dotted not in walk.names and dotted not in HARMLESS:
                module, _, name = dotted.rpartition(".")
                yield Observation("import", member, "is imported", Offence(module, name, walk.start, "is imported"))
        if cut:
            yield Observation(
                "unread", member, f"holds a pickle longer than the {MAX_UNPACKED_BYTES} bytes that are unpacked"
            )
        else:
            yield Observation("broken", member, f"holds a pickle that {walk.problem}")
    for number, data in enumerate(walk.nested):
        yield from examine(io.BytesIO(data), budget, f"{member}(bytes {number})", depth + 1)


def _skip_storages(file: BinaryIO, at: int, keys: list[object], sizes: dict[str, int]) -> int:
    """The offset behind the storages of a legacy torch file: for each key a count (int64) and the elements."""
    size = file.seek(0, io.SEEK_END)
    for key in keys:
        width = sizes.get(key) if isinstance(key, str) else None
        file.seek(at)
        count = int.from_bytes(file.read(8), "little")
        if width is None or at + 8 + count * width > size:
            return at
        at += 8 + count * width
    return at


def _trailing(file: BinaryIO, at: int, budget: Budget, member: str, depth: int) -> Iterator[Observation]:
    """Pickles behind a pickle, which a second `pickle.load` reads. Raw bytes may lie between, as in joblib's files."""
    size = file.seek(0, io.SEEK_END)
    tried = 0
    while at < size:
        walk = pickles.walk(file, at)
        if walk.stopped and walk.end > at + 1 and (not walk.names or (walk.plausible and walk.by_name)):
            yield from _judge(walk, file, budget, member, depth)
            at = walk.end
            continue
        if walk.plausible and walk.sane and walk.by_name and walk.calls:
            yield from _judge(walk, file, budget, member, depth)
        found = search(file, at + 1, size, _PICKLE_START)
        tried += 1
        if found is None:
            return
        if tried > _MAX_CANDIDATES:
            yield Observation("unread", member, "has more bytes behind its pickles than are searched for further ones")
            return
        at = found


# -- compressed files and arrays


def _compressed(file: BinaryIO, head: bytes, budget: Budget, member: str, depth: int) -> Iterator[Observation]:
    file.seek(0)
    stream: Stream
    if head.startswith(b"\x1f\x8b"):
        stream, name = gzip.GzipFile(fileobj=file, mode="rb"), "gzip"
    elif head.startswith(b"BZh"):
        stream, name = bz2.BZ2File(file, "rb"), "bz2"
    elif head.startswith((b"\xfd7zXZ\x00", b"\x5d\x00\x00")):
        stream, name = lzma.LZMAFile(file, "rb"), "xz"  # noqa: SIM115  closing it would close the file
    elif head[:2] in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda"):
        stream, name = Inflating(file, zlib.MAX_WBITS), "zlib"
    else:
        return
    data, cut, problem = _unpack(stream, budget)
    if not data and problem and name == "zlib":
        return  # two bytes make no zlib file
    budget.formats.add(name)
    place = f"{member}({name})"
    yield from examine(io.BytesIO(data), budget, place, depth + 1, cut=cut)
    if problem:
        yield Observation("broken", member, f"is {name} that breaks off after {len(data)} bytes ({problem})")
    if cut and depth + 1 <= MAX_DEPTH and _needs_all(data):
        yield Observation(
            "unread", place, f"unpacks to more than {MAX_UNPACKED_BYTES} bytes, of which the rest is not looked at"
        )


def _needs_all(data: bytes) -> bool:
    """Whether what was unpacked in part might hide something in its rest: all but plain arrays of numbers."""
    return not data.startswith(_NUMPY)


def _unpack(stream: Stream, budget: Budget) -> tuple[bytes, bool, str | None]:
    data, cut, problem = unpack(stream, min(MAX_UNPACKED_BYTES, budget.unpacked))
    budget.unpacked -= len(data)
    return data, cut, problem


def _numpy(file: BinaryIO, budget: Budget, member: str, depth: int) -> Iterator[Observation]:
    """`numpy.load(allow_pickle=True)` unpickles what follows the header of an array of objects."""
    from numpy.lib import format as numpy_format

    budget.formats.add("numpy")
    file.seek(0)
    try:
        version = numpy_format.read_magic(file)
        read = numpy_format.read_array_header_1_0 if version == (1, 0) else numpy_format.read_array_header_2_0
        _, _, dtype = read(file)
        objects = bool(dtype.hasobject)
    except Exception as error:  # ValueError, SyntaxError, struct.error and more: the header is the attacker's
        yield Observation("broken", member, f"is a numpy array whose header cannot be read ({error})")
        file.seek(8)
        width = 2 if file.read(1) != b"" and _version(file) == 1 else 4
        file.seek(8)
        length = int.from_bytes(file.read(width), "little")
        file.seek(8 + width + length)
        objects = True
    start = file.tell()
    if objects:
        yield from _pickles(Window(file, start, file.seek(0, io.SEEK_END) - start), 0, budget, member, depth)


def _version(file: BinaryIO) -> int:
    file.seek(6)
    return int.from_bytes(file.read(1), "little")


# -- archives


def _tar(file: BinaryIO, budget: Budget, member: str, depth: int) -> Iterator[Observation]:
    budget.formats.add("tar")
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as archive:
            for info in archive:
                place = f"{member}:{info.name}"
                budget.members -= 1
                if budget.members < 0:
                    yield Observation("unread", member, f"has more than {MAX_MEMBERS} members")
                    return
                if leaves_folder(info.name) or ((info.issym() or info.islnk()) and _link_leaves(info)):
                    yield Observation("escape", place, "would be unpacked outside its folder")
                if info.isreg():
                    yield from examine(Window(file, info.offset_data, info.size), budget, place, depth + 1)
    except (tarfile.TarError, OSError, ValueError, EOFError) as error:
        yield Observation("broken", member, f"is a tar archive that breaks off ({error})")


def _link_leaves(info: tarfile.TarInfo) -> bool:
    base = str(PurePosixPath(info.name).parent) if info.issym() else "."
    return leaves_folder(info.linkname) or leaves_folder(f"{base}/{info.linkname}")


def leaves_folder(name: str) -> bool:
    """Whether a member's name leads out of the folder that it is unpacked in."""
    plain = name.replace("\\", "/")
    if plain.startswith("/") or re.match(r"[A-Za-z]:", plain):
        return True
    level = 0
    for part in plain.split("/"):
        level += -1 if part == ".." else 0 if part in ("", ".") else 1
        if level < 0:
            return True
    return False


@dataclass(frozen=True)
class _LocalHeader:
    name: str
    method: int
    flags: int
    crc: int
    packed: int
    data: int


def _local_header(file: BinaryIO, at: int) -> _LocalHeader | None:
    if at < 0:
        return None
    file.seek(at)
    raw = file.read(30)
    if len(raw) < 30 or raw[:4] != _LOCAL:
        return None
    _, _, flags, method, _, _, crc, packed, _, name_bytes, extra_bytes = struct.unpack("<4s5HL2L2H", raw)
    name = file.read(name_bytes)
    if len(name) < name_bytes:
        return None
    return _LocalHeader(_decoded(name, flags), method, flags, crc, packed, at + 30 + name_bytes + extra_bytes)


def _decoded(name: bytes, flags: int) -> str:
    if flags & 0x800:
        return name.decode("utf-8", "replace")
    return name.decode("cp437")


def _zip(file: BinaryIO, head: bytes, budget: Budget, member: str, depth: int) -> Iterator[Observation]:
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - _END_SEARCH_BYTES))
    tail = file.read(_END_SEARCH_BYTES)
    if not head.startswith(_LOCAL) and _END not in tail:
        return
    infos: list[zipfile.ZipInfo] = []
    refused = None
    directory = size
    try:
        archive = zipfile.ZipFile(file)
        infos = archive.infolist()
        directory = archive.start_dir
    except (
        Exception
    ) as error:  # BadZipFile, struct.error, NotImplementedError, UnicodeDecodeError: it is the attacker's
        refused = str(error) or type(error).__name__
    if refused and not head.startswith(_LOCAL):
        return  # four bytes in the tail of some other file
    budget.formats.add("zip")
    if any(info.filename.endswith("constants.pkl") for info in infos):
        budget.formats.add("torchscript")
    yield from _directory(infos, member)
    no_checksums = all(info.CRC == 0 for info in infos)  # torch.serialization.set_crc32_options(False)
    covered: list[tuple[int, int]] = [(directory, size)] if infos else []
    for info in infos:
        budget.members -= 1
        if budget.members < 0:
            yield Observation("unread", member, f"has more than {MAX_MEMBERS} members")
            return
        local = _local_header(file, info.header_offset)
        place = f"{member}:{info.filename}" if member else info.filename
        if local is None or local.data + info.compress_size > size:
            yield Observation("broken", place, "lies outside the archive, or has no header of its own")
            continue
        covered.append((info.header_offset, local.data + info.compress_size))
        yield from _disagreements(info, local, place)
        data = Window(file, local.data, info.compress_size)
        yield from _member(data, info.compress_type, place, budget, depth)
        if not no_checksums and info.compress_type == zipfile.ZIP_STORED and info.compress_size <= budget.checked:
            budget.checked -= info.compress_size
            if checksum(data) != info.CRC:
                yield Observation("disagree", place, "has a wrong checksum: strict readers refuse it, torch reads it")
    yield from _hidden(file, size, covered, budget, member, depth, sure=bool(infos))
    if refused:
        yield Observation("broken", member, f"is a zip archive that strict readers refuse ({refused})")


def _directory(infos: list[zipfile.ZipInfo], member: str) -> Iterator[Observation]:
    # miniz looks names up without regard to case, zipfile with: both take one of several for the only one.
    for name, count in Counter(info.filename.casefold() for info in infos).items():
        if count > 1:
            yield Observation(
                "disagree", member, f"has {count} members called {name!r}: readers take different ones", strict=True
            )
    for info in infos:
        place = f"{member}:{info.filename}" if member else info.filename
        if leaves_folder(info.filename) or leaves_folder(info.orig_filename):
            yield Observation("escape", place, "would be unpacked outside its folder")
        elif stat.S_ISLNK(info.external_attr >> 16):
            yield Observation("escape", place, "is a link")


def _disagreements(info: zipfile.ZipInfo, local: _LocalHeader, place: str) -> Iterator[Observation]:
    if local.name != info.orig_filename:
        yield Observation("disagree", place, f"is called {local.name!r} in its own header", strict=True)
    elif "\0" in info.orig_filename:
        yield Observation("disagree", place, "has a NUL in its name, where some readers end it", strict=True)
    if local.method != info.compress_type:
        yield Observation("disagree", place, "is compressed in another way in its own header", strict=True)
    if (local.flags | info.flag_bits) & 0x1:
        yield Observation("disagree", place, "is marked as encrypted, which some readers ignore", strict=True)


def _member(data: BinaryIO, method: int, place: str, budget: Budget, depth: int) -> Iterator[Observation]:
    if method == zipfile.ZIP_STORED:
        yield from examine(data, budget, place, depth + 1)
        return
    readers: dict[int, Callable[[], tuple[bytes, bool, str | None]]] = {
        zipfile.ZIP_DEFLATED: lambda: _unpack(Inflating(data, -zlib.MAX_WBITS), budget),
        zipfile.ZIP_BZIP2: lambda: _unpack(bz2.BZ2File(data, "rb"), budget),
        zipfile.ZIP_LZMA: lambda: _unpack(zip_lzma(data), budget),
    }
    if method not in readers:
        yield Observation("unread", place, f"is compressed by method {method}, which is not looked into")
        return
    data.seek(0)
    try:
        unpacked, cut, problem = readers[method]()
    except (ValueError, lzma.LZMAError, struct.error) as error:
        unpacked, cut, problem = b"", False, str(error)
    yield from examine(io.BytesIO(unpacked), budget, place, depth + 1, cut=cut)
    if problem:
        yield Observation("broken", place, f"breaks off after {len(unpacked)} bytes ({problem})")
    if cut and _needs_all(unpacked):
        yield Observation(
            "unread", place, f"unpacks to more than {MAX_UNPACKED_BYTES} bytes, of which the rest is not looked at"
        )


def _hidden(
    file: BinaryIO, size: int, covered: list[tuple[int, int]], budget: Budget, member: str, depth: int, *, sure: bool
) -> Iterator[Observation]:
    """Members that no directory names, in the bytes that no known member owns."""
    at = 0
    for start, end in [*sorted(covered), (size, size)]:
        while at < start:
            found = search(file, at, start, re.compile(re.escape(_LOCAL)))
            if found is None:
                break
            local = _local_header(file, found)
            if local is None or local.method not in (0, 8, 12, 14) or not local.name or local.data > size:
                at = found + 4
                continue
            budget.members -= 1
            if budget.members < 0:
                yield Observation("unread", member, f"has more than {MAX_MEMBERS} members")
                return
            place = f"{member}:{local.name}" if member else local.name
            length = local.packed if 0 < local.packed <= size - local.data else size - local.data
            if sure:
                yield Observation("disagree", place, "is a member that the archive's directory does not name")
            yield from _member(Window(file, local.data, length), local.method, place, budget, depth)
            at = max(found + 4, local.data + (local.packed if 0 < local.packed <= size - local.data else 0))
        at = max(at, end)
