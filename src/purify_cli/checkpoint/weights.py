"""The tensors of a checkpoint, by name: where each lies, how large it is, and its values when they are asked for.

Safetensors (one file, or shards by their index) and, only if there are none, `.bin` through the weights-only unpickler.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from purify_cli.errors import CheckpointError, UnsupportedError

MODEL_NAMES = ("model.safetensors", "pytorch_model.bin")
ADAPTER_NAMES = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTERHUB_NAMES = ("adapter.safetensors", "pytorch_adapter.bin")
ADAPTERHUB_HEAD_NAMES = ("model_head.safetensors", "pytorch_model_head.bin")

_INDEX_LIMIT = 64 * 2**20
"""Bytes of an index file; the largest models have a few MB."""


@dataclass(frozen=True)
class TensorRef:
    """One tensor on disk: its file, shape, and dtype as torch names it ("float32", "bfloat16")."""

    file: Path
    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


def weight_files(folder: Path, names: tuple[str, str] = MODEL_NAMES) -> tuple[Path, ...]:
    """The files that hold the weights of `folder`, in order; empty if there are none.

    Raises:
        CheckpointError: an index that cannot be read, leaves the folder, or names a shard that is missing.
    """
    for name in names:
        if (folder / name).is_file():
            return (folder / name,)
        index = folder / f"{name}.index.json"
        if index.is_file():
            return tuple(dict.fromkeys(_shards(index).values()))
    if names is MODEL_NAMES:
        # Writers other than transformers name their one file as they like.
        others = [file for file in sorted(folder.glob("*.safetensors")) if file.name not in ADAPTER_NAMES]
        if len(others) == 1:
            return (others[0],)
    return ()


def tensor_table(folder: Path, file: Path | None = None, names: tuple[str, str] = MODEL_NAMES) -> dict[str, TensorRef]:
    """Every tensor of the checkpoint in `folder`, or of one weights `file`, by name; of safetensors no value is read.

    Raises:
        CheckpointError: no weights, a file that is truncated or lies, shards that contradict their index.
        UnsupportedError: weights of a format that is not read (GGUF, ONNX, TensorFlow, Flax).
    """
    if file is not None and file.suffix.lower() in _FOREIGN_ENDINGS:
        raise UnsupportedError(file, "weights of this format are not read", "Convert them to safetensors.")
    files = (file,) if file is not None else weight_files(folder, names)
    if not files:
        foreign = _foreign_weights(folder)
        if foreign is not None:
            raise UnsupportedError(foreign, "weights of this format are not read", "Convert them to safetensors.")
        raise CheckpointError(folder, "no weights in it", f"Expected {names[0]}, or an index with its shards.")
    table: dict[str, TensorRef] = {}
    for one in files:
        for name, reference in _table_of(one).items():
            if name in table:
                raise CheckpointError(one, f"tensor {_short(name)} is in {table[name].file.name} as well")
            table[name] = reference
    index = files[0].parent / f"{names[0 if files[0].suffix == '.safetensors' else 1]}.index.json"
    if file is None and index.is_file() and files[0].name not in names:
        for name, shard in _shards(index).items():
            if name not in table or table[name].file != shard:
                raise CheckpointError(index, f"tensor {_short(name)} is not in {shard.name}, where the index puts it")
    return table


def read_tensor(folder: Path, name: str, file: Path | None = None) -> torch.Tensor:
    """The values of one tensor, in the dtype that it has on disk.

    Raises:
        CheckpointError: there is no such tensor, or its file cannot be read.
    """
    table = tensor_table(folder, file)
    if name not in table:
        raise CheckpointError(file or folder, f"has no tensor {_short(name)}")
    return next(iter(_read(table[name].file, (name,)).values()))


def read_tensors(table: Mapping[str, TensorRef]) -> dict[str, torch.Tensor]:
    """The values of all tensors of a table, file by file."""
    by_file: dict[Path, list[str]] = {}
    for name, reference in table.items():
        by_file.setdefault(reference.file, []).append(name)
    values: dict[str, torch.Tensor] = {}
    for file, wanted in by_file.items():
        values.update(_read(file, tuple(wanted)))
    return values


def _shards(index: Path) -> dict[str, Path]:
    """Tensor name -> shard, of an index file. Only plain names beside the index count as shards."""
    if index.stat().st_size > _INDEX_LIMIT:
        raise CheckpointError(index, f"an index of more than {_INDEX_LIMIT // 2**20} MB")
    try:
        entries = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(index, "is not an index of shards: no weight_map in it") from error
    if not isinstance(entries, dict) or not entries:
        raise CheckpointError(index, "is not an index of shards: its weight_map is empty")
    shards: dict[str, Path] = {}
    for name, shard in entries.items():
        if not isinstance(shard, str) or shard in {"", ".", ".."} or Path(shard).name != shard or "\\" in shard:
            raise CheckpointError(index, f"names a shard outside the folder: {_short(str(shard))}")
        if not (index.parent / shard).is_file():
            raise CheckpointError(index, f"names the shard {_short(shard)}, which is missing")
        shards[name] = index.parent / shard
    return shards


def _table_of(file: Path) -> dict[str, TensorRef]:
    if file.suffix == ".safetensors":
        from purify_cli.checkpoint.header import read_header

        header = read_header(file)
        return {
            name: TensorRef(file, tuple(entry.shape), _DTYPES.get(entry.dtype, entry.dtype))
            for name, entry in header.tensors.items()
        }
    return {
        name: TensorRef(file, tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for name, tensor in _unpickled(file).items()
    }


_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


def _read(file: Path, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    if file.suffix != ".safetensors":
        tensors = _unpickled(file)
        return {name: tensors[name] for name in names}
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            return {name: opened.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(file, f"cannot be read as safetensors ({_reason(error)})") from error


def _unpickled(file: Path) -> dict[str, torch.Tensor]:
    """A state dict through the weights-only unpickler, which knows tensors and containers and runs nothing else."""
    try:
        try:
            content: Any = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError:  # files from before torch 1.6 are no archives and cannot be mapped
            content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        remedy = f"Nothing of it was run. Look at it with: purify scan {file.parent}"
        raise CheckpointError(file, "holds more than tensors, so it is not opened", remedy) from error
    except (EOFError, KeyError, TypeError, AttributeError, IndexError) as error:
        # What a reader of pickles stumbles over in other files; its words say nothing to anybody.
        raise CheckpointError(file, "is no file of weights that torch wrote") from error
    except (RuntimeError, OSError, ValueError) as error:
        raise CheckpointError(file, f"cannot be read as PyTorch weights ({_reason(error)})") from error
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping):
        raise CheckpointError(file, f"holds a {type(content).__name__} and no named tensors")
    return {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}


_FOREIGN_ENDINGS = frozenset({".gguf", ".onnx", ".h5", ".msgpack"})


def _foreign_weights(folder: Path) -> Path | None:
    for pattern in ("*.gguf", "*.onnx", "onnx/*.onnx", "*.h5", "*.msgpack", "*.ckpt.index"):
        for file in sorted(folder.glob(pattern)):
            return file
    return None


def _reason(error: Exception) -> str:
    return _short(str(error).strip().split("\n")[0]) or type(error).__name__


def _short(text: str, limit: int = 120) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
