"""Which tensors of a weights file hold NaN or infinity, read in pieces."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from purify_cli.checkpoint.header import Header

_CHUNK_BYTES: Final = 1 << 24

# dtype of the header -> (numpy view, mask of the exponent, or None for numpy's own isfinite)
_FLOATS: Final[dict[str, tuple[str, int | None]]] = {
    "F64": ("<f8", None),
    "F32": ("<f4", None),
    "F16": ("<f2", None),
    "C64": ("<f4", None),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("u1", 0x7C),
}


@dataclass
class NotFinite:
    """Counts over the `n` values of one tensor: NaN, infinities of either sign, and finite values that are not zero."""

    tensor: str
    n: int
    nan: int = 0
    positive: int = 0
    negative: int = 0
    other: int = 0

    @property
    def total(self) -> int:
        """Values that are not finite."""
        return self.nan + self.positive + self.negative

    @property
    def like_a_saved_mask(self) -> bool:
        """Zeros and -inf alone: an attention mask that was saved along, not a weight."""
        return self.negative == self.total < self.n and self.other == 0

    def add(self, chunk: np.ndarray[Any, Any]) -> None:

        finite = np.isfinite(chunk)
        if not finite.all():
            odd = chunk[~finite]
            nan = int(np.isnan(odd).sum())
            self.nan += nan
            self.positive += int((odd > 0).sum())
            self.negative += int((odd < 0).sum())
        if self.negative or self.other == 0:
            self.other += int(np.count_nonzero(chunk[finite]))

    def add_codes(self, odd: np.ndarray[Any, Any], chunk: np.ndarray[Any, Any], infinity: int | None = None) -> None:

        sign = 1 << (8 * chunk.itemsize - 1)
        codes = chunk[odd]
        if infinity is None:
            self.nan += codes.size
        else:
            self.positive += int((codes == infinity).sum())
            self.negative += int((codes == (infinity | sign)).sum())
            self.nan += int(((codes & (sign - 1)) != infinity).sum())
        self.other += int(np.count_nonzero(chunk[~odd] & (sign - 1)))


def in_safetensors(path: Path, header: Header) -> Iterator[NotFinite]:
    """Tensors of a safetensors file whose header was read."""
    if not any(info.dtype in _FLOATS or info.dtype == "F8_E4M3" for info in header.tensors.values()):
        return
    for name, info in header.tensors.items():
        if info.end == info.start:
            continue
        if info.dtype == "F8_E4M3":  # no infinity; all exponent and mantissa bits set is NaN
            view, mask = "u1", None
        elif info.dtype in _FLOATS:
            view, mask = _FLOATS[info.dtype]
        else:
            continue
        count = (info.end - info.start) // np.dtype(view).itemsize
        values = np.memmap(path, dtype=view, mode="r", offset=header.data_start + info.start, shape=(count,))
        tally = NotFinite(name, count)
        step = _CHUNK_BYTES // np.dtype(view).itemsize
        for at in range(0, count, step):
            chunk = values[at : at + step]
            if info.dtype == "F8_E4M3":
                tally.add_codes((chunk & 0x7F) == 0x7F, chunk)
            elif mask is not None:
                tally.add_codes((chunk & mask) == mask, chunk, infinity=mask)
            else:
                tally.add(chunk)
        if tally.total:
            yield tally


def in_torch(path: Path, *, mmap: bool) -> Iterator[NotFinite]:
    """Tensors of a file that torch wrote, opened with weights_only; nothing where torch refuses it."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch remarks on protocols; the walk has read them already
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception:  # settings, metrics, arrays: harmless by our lists, but not for torch's
        return
    for name, tensor in _tensors(loaded):
        if not (tensor.is_floating_point() and tensor.layout == torch.strided and not tensor.is_meta):
            continue
        tally = NotFinite(name, tensor.numel())
        for chunk in tensor.detach().reshape(-1).split(_CHUNK_BYTES // 4):
            tally.add(chunk.to(torch.float64 if chunk.dtype == torch.float64 else torch.float32).numpy())
        if tally.total:
            yield tally


def _tensors(value: Any, name: str = "", depth: int = 0) -> Iterator[tuple[str, Any]]:
    import torch

    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, Mapping) and depth < 4:
        for key, item in value.items():
            yield from _tensors(item, f"{name}.{key}" if name else str(key), depth + 1)
