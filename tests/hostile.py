"""Files made to deceive, one builder each. Payloads are built from opcodes and never loaded by a test."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy
import torch


class RunsSystem:
    """Unpickled, it would run a command."""

    def __reduce__(self) -> Any:
        return os.system, ("echo this must never be run",)


def payload(protocol: int = 2) -> bytes:
    """A pickle that would run a command."""
    return pickle.dumps(RunsSystem(), protocol)


def calls(module: str, name: str, *arguments: Any, protocol: int = 4) -> bytes:
    """A pickle that calls module.name with constants."""
    body = b"\x80" + bytes([protocol]) + short(module) + short(name) + b"\x93("
    for argument in arguments:
        body += pickle.dumps(argument, 4)[2:-1].split(b"\x94")[0] if not isinstance(argument, str) else short(argument)
    return body + b"tR."


def short(text: str) -> bytes:
    data = text.encode()
    return b"\x8c" + bytes([len(data)]) + data


def state(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"layer.weight": torch.randn(4, 3, generator=generator), "layer.bias": torch.zeros(4)}


def torch_zip(value: Any = None) -> bytes:
    buffer = io.BytesIO()
    torch.save(state() if value is None else value, buffer)
    return buffer.getvalue()


def torch_legacy(value: Any = None) -> bytes:
    buffer = io.BytesIO()
    torch.save(state() if value is None else value, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


def zipped(members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def safetensors(header: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def one_tensor(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes}


def gguf(pairs: dict[str, Any], version: int = 3, order: str = "<") -> bytes:
    """GGUF metadata with texts, and lists of texts or numbers."""

    def text(value: str) -> bytes:
        data = value.encode()
        return struct.pack(order + "Q", len(data)) + data

    out = b"GGUF" + struct.pack(order + "IQQ", version, 0, len(pairs))
    for key, value in pairs.items():
        out += text(key)
        if isinstance(value, str):
            out += struct.pack(order + "I", 8) + text(value)
        elif isinstance(value, int):
            out += struct.pack(order + "II", 4, value)
        elif value and isinstance(value[0], str):
            out += struct.pack(order + "IIQ", 9, 8, len(value)) + b"".join(map(text, value))
        else:
            out += struct.pack(order + "IIQ", 9, 4, len(value)) + struct.pack(f"{order}{len(value)}I", *value)
    return out


def object_array() -> bytes:
    buffer = io.BytesIO()
    numpy.save(buffer, numpy.array([RunsSystem()], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def weights(folder: Path) -> None:
    """Honest weights, so that the folder has something to scan."""
    from safetensors.torch import save_file

    save_file(state(), folder / "model.safetensors", metadata={"format": "pt"})
