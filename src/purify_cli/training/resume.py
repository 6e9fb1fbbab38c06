"""What a training keeps so that it can go on after a stop, and how it tells its own state from another's."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from pickle import UnpicklingError
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn

from purify_cli import __version__
from purify_cli.data.encode import Encoded, collate
from purify_cli.run import Run
from purify_cli.training.recipe import Recipe

_ROWS = 1024  # texts that are padded together for the digest, so that no whole data set is


def _update(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
    if tensor.numel():
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)


def _named(opening: Callable[..., object] | None) -> str | None:
    if opening is None:
        return None
    kind = opening if hasattr(opening, "__qualname__") else type(opening)
    return f"{kind.__module__}.{kind.__qualname__}"


def training_digest(model: nn.Module, streams: Mapping[str, Encoded], recipe: Recipe, run: Run) -> str:
    """Hex digest of all that decides the outcome: recipe, seed, device, texts and weights.

    Functions count by name only; what they close over is the recipe's `identity`.
    """
    digest = hashlib.sha256()
    settings = {
        "objectives": {name: _named(objective) for name, objective in recipe.objectives.items()},
        "together": {name: list(streams) for name, streams in recipe.together.items()},
        "combine": _named(recipe.combine),
        "project": _named(recipe.project),
        "trainable": [name for name, parameter in model.named_parameters() if recipe.trainable(name, parameter)],
        "optimizer": [recipe.optimizer, recipe.learning_rate, recipe.weight_decay, *recipe.betas],
        "schedule": [recipe.schedule, recipe.warmup, recipe.epochs, recipe.batch_size, recipe.clip],
        "identity": recipe.identity,
        "run": [run.seed, torch.device(run.device).type, str(torch.__version__), __version__],
    }
    digest.update(json.dumps(settings).encode())
    for stream, encoded in streams.items():
        for start in range(0, len(encoded), _ROWS):
            batch = collate(encoded, list(range(start, min(start + _ROWS, len(encoded)))), 0)
            for name, tensor in batch.items():
                _update(digest, f"{stream} {name}", tensor)
    for name, tensor in model.state_dict().items():
        _update(digest, name, tensor)
    return digest.hexdigest()


def weights_digest(model: nn.Module) -> str:
    """Hex digest of all tensors of a model, with their names."""
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        _update(digest, name, tensor)
    return digest.hexdigest()


def memories(recipe: Recipe) -> dict[str, Any]:
    """The openings of a recipe that remember something between steps, by place."""
    openings: dict[str, Any] = {f"objective {name}": objective for name, objective in recipe.objectives.items()}
    openings |= {"combine": recipe.combine, "project": recipe.project}
    return {place: opening for place, opening in openings.items() if hasattr(opening, "load_state_dict")}


def keep(path: Path, state: Mapping[str, Any]) -> None:
    """Write a state in one step: whoever reads `path` sees the old one or the new one, whole. Raises OSError."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # private from the start (mode 600)
    beside = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            try:
                torch.save(dict(state), file)
            except RuntimeError as error:  # torch's name for a full disk
                raise OSError(str(error)) from error
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def kept(path: Path, digest: str) -> dict[str, Any] | None:
    """The state at `path`; None if there is none, or it cannot be read, or is another training's."""
    if not path.is_file():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, KeyError, UnpicklingError):
        return None
    return state if isinstance(state, dict) and state.get("digest") == digest else None


def forget(path: Path) -> None:
    """Remove a kept state, and its folder if nothing else is in it."""
    path.unlink(missing_ok=True)
    with suppress(OSError):
        path.parent.rmdir()


@contextmanager
def interruption_between_steps() -> Iterator[Callable[[], bool]]:
    """Hold Ctrl-C back until the step is whole; the yielded function says whether it was pressed.

    A step that is cut in two leaves weights and optimizer at odds, and nothing exact could be kept. A second Ctrl-C is
    not held back. Outside the main thread, or where the program has its own handler, nothing is changed.
    """
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True

    ours = (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    )
    if ours:
        signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)
