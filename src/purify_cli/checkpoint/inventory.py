"""Which files a checkpoint folder holds, and which links in it point elsewhere. Nothing is opened but to be hashed.

Links are followed only where they stay inside the folder, or where they are those of the hub's cache
(`snapshots/<revision>/file -> ../../blobs/<hash>`, as huggingface_hub lays it out). Folders behind links are never
entered: what lies inside the folder is met anyway, and what lies outside is none of ours.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from purify_cli.errors import CheckpointError

MAX_FILES = 20_000
MAX_DEPTH = 32
_CHUNK_BYTES = 1 << 20

LinkKind = Literal["escapes", "dangling", "folder", "special", "unreadable"]


@dataclass(frozen=True)
class FileEntry:
    """A regular file. `relative` is its path in the folder with forward slashes; `bytes` its size."""

    path: Path
    relative: str
    bytes: int


@dataclass(frozen=True)
class OddEntry:
    """What is no regular file of the folder: a link that leaves it or leads nowhere, a device, a closed folder."""

    relative: str
    kind: LinkKind
    target: str


@dataclass(frozen=True)
class Listing:
    """All that a folder holds. `complete` is False where a bound (files, depth) cut the walk short."""

    files: tuple[FileEntry, ...]
    odd: tuple[OddEntry, ...]
    complete: bool


def list_folder(folder: Path) -> Listing:
    """Walk `folder` in sorted order without following what leaves it.

    Raises:
        CheckpointError: `folder` is missing or no folder.
    """
    if not folder.is_dir():
        raise CheckpointError(folder, "is not a folder" if folder.exists() else "does not exist")
    root = folder.resolve()
    files: list[FileEntry] = []
    odd: list[OddEntry] = []
    complete = True
    waiting: list[tuple[Path, int]] = [(root, 0)]
    while waiting:
        here, depth = waiting.pop()
        try:
            with os.scandir(here) as entries:
                names = sorted(entries, key=lambda entry: entry.name)
        except OSError as error:
            odd.append(OddEntry(_relative(here, root), "unreadable", error.strerror or str(error)))
            continue
        for entry in names:
            if len(files) + len(odd) >= MAX_FILES:
                return Listing(_sorted(files), tuple(odd), complete=False)
            path = here / entry.name
            relative = _relative(path, root)
            if entry.is_symlink():
                found = _follow(path, relative, root)
                if isinstance(found, FileEntry):
                    files.append(found)
                else:
                    odd.append(found)
            elif entry.is_dir(follow_symlinks=False):
                if depth + 1 > MAX_DEPTH:
                    complete = False
                else:
                    waiting.append((path, depth + 1))
            elif entry.is_file(follow_symlinks=False):
                files.append(FileEntry(path, relative, entry.stat(follow_symlinks=False).st_size))
            else:
                odd.append(OddEntry(relative, "special", "a device, pipe or socket"))
    return Listing(_sorted(files), tuple(sorted(odd, key=lambda entry: entry.relative)), complete)


def inventory(folder: Path) -> tuple[FileEntry, ...]:
    """The regular files of `folder`, sorted by their relative path.

    Raises:
        CheckpointError: `folder` is missing, no folder, or holds more than `MAX_FILES` entries.
    """
    listing = list_folder(folder)
    if not listing.complete:
        raise CheckpointError(
            folder,
            f"holds more than {MAX_FILES} files or folders deeper than {MAX_DEPTH}",
            "Give the checkpoint's own folder.",
        )
    return listing.files


def sha256(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def in_hub_cache(target: Path, root: Path) -> bool:
    """Whether `target` is a blob of the hub cache's repository folder whose snapshot `root` is (or lies in)."""
    for snapshot in (root, *root.parents):
        if snapshot.parent.name == "snapshots":
            return target.parent == snapshot.parent.parent / "blobs"
    return False


def _follow(path: Path, relative: str, root: Path) -> FileEntry | OddEntry:
    shown = os.readlink(path)
    try:
        target = path.resolve(strict=True)
        status = target.stat()
    except (OSError, RuntimeError):  # RuntimeError: a loop of links, before Python 3.13
        leaves = not (path.parent / shown).resolve().is_relative_to(root) if not _loops(path) else False
        if leaves and not in_hub_cache((path.parent / shown).resolve(), root):
            return OddEntry(relative, "escapes", shown)
        return OddEntry(relative, "dangling", shown)
    if not target.is_relative_to(root) and not in_hub_cache(target, root):
        return OddEntry(relative, "escapes", shown)
    if stat.S_ISREG(status.st_mode):
        return FileEntry(path, relative, status.st_size)
    return OddEntry(relative, "folder" if stat.S_ISDIR(status.st_mode) else "special", shown)


def _loops(path: Path) -> bool:
    try:
        path.resolve()
    except (OSError, RuntimeError):
        return True
    return False


def _relative(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def _sorted(files: list[FileEntry]) -> tuple[FileEntry, ...]:
    return tuple(sorted(files, key=lambda entry: entry.relative))
