from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from purify_cli.checkpoint import inventory as module
from purify_cli.checkpoint.inventory import inventory, list_folder, sha256
from purify_cli.errors import CheckpointError


def test_files_are_sorted_with_their_sizes(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_bytes(b"12")
    (tmp_path / "a.txt").write_bytes(b"1")
    (tmp_path / "b.txt").write_bytes(b"")
    assert [(entry.relative, entry.bytes) for entry in inventory(tmp_path)] == [("a.txt", 1), ("b.txt", 0), ("b/x", 2)]


def test_digest(tmp_path: Path) -> None:
    data = os.urandom((1 << 20) + 17)
    (tmp_path / "x").write_bytes(data)
    assert sha256(tmp_path / "x") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("make", [False, True])
def test_no_folder(tmp_path: Path, make: bool) -> None:
    path = tmp_path / "x"
    if make:
        path.write_text("a file")
    with pytest.raises(CheckpointError) as caught:
        inventory(path)
    assert caught.value.where == str(path)


def test_count_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_FILES", 3)
    for number in range(5):
        (tmp_path / str(number)).write_text("")
    with pytest.raises(CheckpointError):
        inventory(tmp_path)
    assert not list_folder(tmp_path).complete


def test_links(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    (tmp_path / "outside").write_text("secret")
    (folder / "inside").write_text("fine")
    (folder / "good").symlink_to("inside")
    (folder / "bad").symlink_to("../outside")
    (folder / "gone").symlink_to("nothing")
    (folder / "gone-outside").symlink_to("/nowhere/at/all")
    (folder / "loop").symlink_to("loop")
    (folder / "folder").symlink_to("sub")
    (folder / "up").symlink_to("..")
    listing = list_folder(folder)
    assert [entry.relative for entry in listing.files] == ["good", "inside"]
    assert {entry.relative: entry.kind for entry in listing.odd} == {
        "bad": "escapes",
        "gone": "dangling",
        "gone-outside": "escapes",
        "loop": "dangling",
        "folder": "folder",
        "up": "escapes",
    }


def test_hub_cache(tmp_path: Path) -> None:
    root = tmp_path / "models--a--b"
    snapshot = root / "snapshots" / "rev"
    (snapshot / "sub").mkdir(parents=True)
    (root / "blobs").mkdir()
    (root / "blobs" / "1").write_text("x")
    (root / "refs").write_text("x")
    (snapshot / "config.json").symlink_to("../../blobs/1")
    (snapshot / "sub" / "x").symlink_to("../../../blobs/1")
    (snapshot / "no-blob").symlink_to("../../refs")
    (snapshot / "not-downloaded").symlink_to("../../blobs/2")
    listing = list_folder(snapshot)
    assert [entry.relative for entry in listing.files] == ["config.json", "sub/x"]
    assert {entry.relative: entry.kind for entry in listing.odd} == {"no-blob": "escapes", "not-downloaded": "dangling"}


def test_a_folder_called_blobs_elsewhere_is_no_hub_cache(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b" / "model"
    folder.mkdir(parents=True)
    (tmp_path / "a" / "blobs").mkdir()
    (tmp_path / "a" / "blobs" / "1").write_text("x")
    (folder / "x").symlink_to("../../blobs/1")
    assert [entry.kind for entry in list_folder(folder).odd] == ["escapes"]
