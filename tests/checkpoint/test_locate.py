from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from purify_cli.checkpoint.locate import locate
from purify_cli.errors import CheckpointError


def test_a_folder_and_a_file_in_it(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"")
    assert locate(str(tmp_path)).path == tmp_path
    assert locate(tmp_path).weights_file is None
    found = locate(str(weights))
    assert (found.path, found.weights_file, found.revision) == (tmp_path, weights, None)


@pytest.mark.parametrize("spec", ["nowhere", "", "a\0b", "x" * 5000])
def test_what_is_not_there(spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if spec == "":
        assert locate(spec).path == Path()
        return
    with pytest.raises(CheckpointError) as error:
        locate(spec)
    assert error.value.where == spec


def test_a_name_that_looks_like_the_hubs_is_told_how_to_ask_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def never(*arguments: Any, **options: Any) -> str:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", never)
    with pytest.raises(CheckpointError) as error:
        locate("org/name")
    assert "hf://org/name" in error.value.remedy


@pytest.mark.parametrize(
    "spec", ["hf://", "hf:name", "hf://name", "hf://a/b/c", "hf://../x", "hf://a/b@", "hf://a/b@../../x"]
)
def test_addresses_that_are_none(spec: str) -> None:
    with pytest.raises(CheckpointError) as error:
        locate(spec)
    assert error.value.where == spec


def test_the_hub_gives_a_folder_and_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def download(name: str, revision: str | None = None) -> str:
        asked.update(name=name, revision=revision)
        return str(tmp_path / "0123abc")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    found = locate("hf://org/name-1.5@refs/pr/2")
    assert asked == {"name": "org/name-1.5", "revision": "refs/pr/2"}
    assert (found.path, found.revision) == (tmp_path / "0123abc", "0123abc")


def test_what_the_hub_refuses_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    response = SimpleNamespace(status_code=404, headers={}, request=None)
    for failure in (
        RepositoryNotFoundError("gone", response=response),
        LocalEntryNotFoundError("offline"),
        OSError("reset"),
    ):

        def download(name: str, revision: str | None = None, failure: Exception = failure) -> str:
            raise failure

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        with pytest.raises(CheckpointError) as error:
            locate("hf://org/name")
        assert error.value.where == "hf://org/name"
