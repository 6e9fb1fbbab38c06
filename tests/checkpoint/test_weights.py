from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from purify_cli.checkpoint.weights import read_tensor, read_tensors, tensor_table
from purify_cli.errors import CheckpointError, UnsupportedError

TENSORS = {
    "a": torch.arange(6, dtype=torch.float16).reshape(2, 3),
    "b": torch.ones(4, dtype=torch.bfloat16),
    "c": torch.tensor(3),
}


def check(folder: Path) -> None:
    table = tensor_table(folder)
    assert {name: (one.shape, one.dtype) for name, one in table.items()} == {
        "a": ((2, 3), "float16"),
        "b": ((4,), "bfloat16"),
        "c": ((), "int64"),
    }
    for name, value in TENSORS.items():
        read = read_tensor(folder, name)
        assert read.dtype == value.dtype
        assert torch.equal(read, value)
    assert read_tensors(table).keys() == TENSORS.keys()
    with pytest.raises(CheckpointError):
        read_tensor(folder, "d")


def save_shards(folder: Path, bin_files: bool = False) -> Path:
    ending = "bin" if bin_files else "safetensors"
    stem = "pytorch_model" if bin_files else "model"
    where = {}
    for number, names in enumerate((["a"], ["b", "c"]), start=1):
        file = f"{stem}-0000{number}-of-00002.{ending}"
        part = {name: TENSORS[name] for name in names}
        if bin_files:
            torch.save(part, folder / file)
        else:
            save_file(part, folder / file)
        where |= dict.fromkeys(names, file)
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return index


def test_one_safetensors_file(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    check(tmp_path)


def test_a_file_with_another_name(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "weights.safetensors")
    check(tmp_path)


@pytest.mark.parametrize("bin_files", [False, True])
def test_shards(tmp_path: Path, bin_files: bool) -> None:
    save_shards(tmp_path, bin_files)
    check(tmp_path)


@pytest.mark.parametrize("legacy", [False, True])
def test_pytorch_weights(tmp_path: Path, legacy: bool) -> None:
    torch.save(TENSORS, tmp_path / "pytorch_model.bin", _use_new_zipfile_serialization=not legacy)
    check(tmp_path)


def test_safetensors_go_before_pickles(tmp_path: Path) -> None:
    save_file(TENSORS, tmp_path / "model.safetensors")
    (tmp_path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    check(tmp_path)


class Payload:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_runs_something_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    mark = tmp_path / "ran"
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.ones(2), "b": Payload(mark)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError) as error:
        tensor_table(tmp_path)
    assert error.value.where == str(file)
    assert "purify scan" in error.value.remedy
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_a_truncated_file_is_named(tmp_path: Path, name: str, kept: int) -> None:
    file = tmp_path / name
    save_file(TENSORS, file) if name.endswith("safetensors") else torch.save(TENSORS, file)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(CheckpointError) as error:
        read_tensors(tensor_table(tmp_path))
    assert error.value.where == str(file)


@pytest.mark.parametrize(
    "shard", ["../x.safetensors", "/etc/passwd", "", "..", "sub/x.safetensors", 3, "missing.safetensors"]
)
def test_an_index_stays_in_its_folder(tmp_path: Path, shard: Any) -> None:
    index = tmp_path / "inner" / "model.safetensors.index.json"
    index.parent.mkdir()
    (index.parent / "sub").mkdir()
    for place in (tmp_path, index.parent / "sub"):
        save_file(TENSORS, place / "x.safetensors")
    index.write_text(json.dumps({"weight_map": {"a": shard}}))
    with pytest.raises(CheckpointError) as error:
        tensor_table(index.parent)
    assert error.value.where == str(index)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', "[" * 100_000])
def test_an_index_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(CheckpointError):
        tensor_table(tmp_path)


def test_shards_that_contradict_their_index(tmp_path: Path) -> None:
    index = save_shards(tmp_path)
    content = json.loads(index.read_text())
    content["weight_map"]["a"] = content["weight_map"]["b"]
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError) as error:
        tensor_table(tmp_path)
    assert error.value.where == str(index)


def test_nothing_to_read(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        tensor_table(tmp_path)
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(UnsupportedError) as error:
        tensor_table(tmp_path)
    assert error.value.where.endswith("model.gguf")


def test_weights_that_are_no_state_dict(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        tensor_table(tmp_path)
