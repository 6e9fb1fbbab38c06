"""How a run is to be done: the settings that every command shares, and nothing of what it is about."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def _silent(stage: str, done: int, total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Run:
    """Settings of one run.

    Attributes:
        seed: seeds everything random; the same seed, device and thread count give the same bytes.
        device: a torch device, already resolved ("cpu", "cuda", "cuda:1").
        batch_size: texts per forward pass in prediction. Training takes its batch size from the recipe.
        max_length: tokens per text, special tokens included; None: min(128, what the model takes).
        progress: called as (stage, done, total) now and then, from long work.
        state: folder where long work keeps what it needs to go on after a stop; None: it keeps nothing.
    """

    seed: int = 0
    device: str = "cpu"
    batch_size: int = 64
    max_length: int | None = None
    progress: Callable[[str, int, int], None] = _silent
    state: Path | None = None
