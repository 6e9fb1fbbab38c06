"""The one loop that trains everything: objectives, combine, clip, step, schedule, project.

Each step draws its randomness from (seed, step) alone, so a training that was stopped and taken up again ends with the
same weights, bit for bit, as one that never stopped (same device, same number of threads).
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from purify_cli.data.encode import Encoded, collate, shuffled
from purify_cli.errors import Interrupted, PurifyError, UsageError
from purify_cli.run import Run
from purify_cli.training.recipe import Recipe
from purify_cli.training.resume import forget, interruption_between_steps, keep, kept, memories, training_digest

SECONDS_BETWEEN_SAVES = 60.0


@dataclass(frozen=True)
class Trained:
    """What came of a training.

    Attributes:
        model: the model that was given, trained in place, in eval mode, on the run's device, in the dtypes it came in.
        steps: updates made, those before a stop included.
        losses: mean over the steps of each epoch of the sum of the objectives.
        seconds: time spent training, that before a stop included.
    """

    model: nn.Module
    steps: int
    losses: tuple[float, ...]
    seconds: float


def fit(model: nn.Module, streams: Mapping[str, Encoded], recipe: Recipe, run: Run) -> Trained:
    """Train a model in place.

    Half-precision weights are trained as float32, where a small learning rate still moves them, and cast back at the
    end; what no gradient reached comes back bit for bit.

    Args:
        model: any module that takes a batch by keywords.
        streams: encoded, labelled texts by name; see `Recipe.objectives`.
        recipe: what is made small, how, and for how long.
        run: its seed and device; with `run.state`, what is needed to go on after a stop is kept in that folder about
            once a minute and on Ctrl-C. What a stopped training left is taken up if recipe, texts and initial weights
            are the same. A training that took long leaves its end there, so that a command of several trainings does
            not repeat the first when it is stopped in the second: whoever sets `run.state` removes the folder when the
            whole is done.

    Raises:
        UsageError: an objective without a stream, a stream without texts or labels, or nothing to train.
        PurifyError: the loss or the gradient is no longer a finite number.
        Interrupted: Ctrl-C; it says what was kept.
    """
    sources = {
        name: _stream(name, streams)
        for objective in recipe.objectives
        for name in recipe.together.get(objective, (objective,))
    }
    device = torch.device(run.device)
    dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    state_file, digest = None, ""
    if run.state is not None:
        digest = training_digest(model, streams, recipe, run)
        state_file = run.state / f"training-{digest[:16]}.pt"
    model.to(device)
    model.float()
    try:
        with _trainable(model, recipe) as parameters, torch.random.fork_rng(devices=_cuda_devices(device)):
            trained = _Training(model, parameters, sources, recipe, run, digest, state_file).run_all()
    finally:
        _cast_back(model, dtypes)
        model.eval()
    return trained


class _Training:
    """The state of one call of `fit`."""

    def __init__(
        self,
        model: nn.Module,
        parameters: dict[str, nn.Parameter],
        sources: dict[str, Encoded],
        recipe: Recipe,
        run: Run,
        digest: str,
        state_file: Path | None,
    ) -> None:
        self.model, self.parameters, self.sources, self.recipe, self.run = model, parameters, sources, recipe, run
        self.digest, self.state_file = digest, state_file
        self.device = torch.device(run.device)
        self.pad = _pad_id(model)
        self.memories = memories(recipe)
        self.orders: dict[str, tuple[int, list[list[int]]]] = {}  # the epoch that is being read, and its batches
        self.lengths = {name: len(shuffled(source, recipe.batch_size, run.seed, 0)) for name, source in sources.items()}
        self.epoch_steps = next(iter(self.lengths.values()))
        self.total = self.epoch_steps * recipe.epochs
        self.optimizer = _optimizer(parameters, recipe)
        self.scheduler = _scheduler(self.optimizer, recipe, self.total)
        self.step = 0
        self.sums = [0.0] * recipe.epochs
        self.kept_step = 0
        self.seconds = 0.0

    def run_all(self) -> Trained:
        """Take up what was kept, and train to the end."""
        if self.state_file is not None:
            self._take_up(self.state_file)
        saved = self._spent_since = time.monotonic()
        whole = True  # False within a step, where weights, optimizer and hooks may be at odds
        with interruption_between_steps() as interrupted:
            try:
                self.run.progress("training", self.step, self.total)
                while self.step < self.total:
                    whole = False
                    self._one_step()
                    whole = True
                    if interrupted():
                        raise KeyboardInterrupt
                    self.run.progress("training", self.step, self.total)
                    if self.state_file is not None and time.monotonic() - saved > SECONDS_BETWEEN_SAVES:
                        with suppress(OSError):  # a full disk is no reason to lose the training
                            self._keep(self.state_file)
                        saved = time.monotonic()
            except KeyboardInterrupt:
                raise Interrupted(self._what_is_kept(whole)) from None
        self._spend()
        if self.state_file is not None:
            self._finish(self.state_file)
        losses = tuple(total / self.epoch_steps for total in self.sums)
        return Trained(self.model, self.step, losses, self.seconds)

    def _one_step(self) -> None:
        """The order of a step, written once."""
        self.model.train()
        torch.manual_seed(_step_seed(self.run.seed, self.step))
        loss = self._gradients()
        self._clip()
        self.optimizer.step()
        self.scheduler.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.recipe.project is not None:
            with torch.no_grad():
                self.recipe.project(self.model, self.step)
        self.sums[self.step // self.epoch_steps] += loss
        self.step += 1

    def _gradients(self) -> float:
        """Leave the gradient to follow in `.grad` of each parameter; returns the sum of the objectives."""
        combine = self.recipe.combine
        by_objective: dict[str, dict[str, Tensor]] = {}
        total = 0.0
        for name, objective in self.recipe.objectives.items():
            together = self.recipe.together.get(name)
            batch = self._batch(name) if together is None else {stream: self._batch(stream) for stream in together}
            loss = objective(self.model, batch)
            value = float(loss.detach())
            if not math.isfinite(value):
                raise self._diverged(f"the loss ({name}) became {value}")
            total += value
            if combine is None:
                loss.backward()  # type: ignore[no-untyped-call]  # torch has no types for it. Adds to .grad: a sum
                continue
            found = torch.autograd.grad(loss, list(self.parameters.values()), allow_unused=True)
            by_objective[name] = {
                parameter: gradient
                for parameter, gradient in zip(self.parameters, found, strict=True)
                if gradient is not None
            }
        if combine is not None:
            combined = combine(by_objective, self.step)
            for parameter_name, parameter in self.parameters.items():
                parameter.grad = combined.get(parameter_name)
        return total

    def _clip(self) -> None:
        limit = math.inf if self.recipe.clip is None else self.recipe.clip
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), limit))
        # Here, for the loss would only show it one step later, and after the last step never.
        if not math.isfinite(norm):
            raise self._diverged(f"the gradient's norm became {norm}")

    def _diverged(self, what: str) -> PurifyError:
        return PurifyError(
            "training",
            f"{what} at step {self.step + 1} of {self.total}",
            "Use a lower learning rate (--set learning_rate=...).",
        )

    def _batch(self, stream: str) -> dict[str, Tensor]:
        """The batch of this step: tensors `[batch, tokens]`, labels `[batch]`, on the device."""
        epoch, position = divmod(self.step, self.lengths[stream])
        if self.orders.get(stream, (-1, []))[0] != epoch:
            order = shuffled(self.sources[stream], self.recipe.batch_size, self.run.seed, epoch)
            self.orders[stream] = (epoch, order)
        indices = self.orders[stream][1][position]
        batch = collate(self.sources[stream], indices, self.pad)
        return {name: tensor.to(self.device) for name, tensor in batch.items()}

    def _state(self) -> dict[str, Any]:
        return {
            "digest": self.digest,
            "step": self.step,
            "sums": list(self.sums),
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "memories": {place: opening.state_dict() for place, opening in self.memories.items()},
        }

    def _spend(self) -> None:
        now = time.monotonic()
        self.seconds += now - self._spent_since
        self._spent_since = now

    def _keep(self, path: Path) -> None:
        self._spend()
        keep(path, self._state())
        self.kept_step = self.step

    def _take_up(self, path: Path) -> None:
        state = kept(path, self.digest)
        if state is None:
            return
        self.model.load_state_dict(state["model"])
        self.step, self.sums, self.seconds = state["step"], list(state["sums"]), state["seconds"]
        self.kept_step = self.step
        if self.step < self.total:
            self.optimizer.load_state_dict(state["optimizer"])
            self.scheduler.load_state_dict(state["scheduler"])
        for place, opening in self.memories.items():
            opening.load_state_dict(state["memories"][place])

    def _finish(self, path: Path) -> None:
        """Keep the end of a long training, without its optimizer; a short one is sooner done again than kept."""
        if self.seconds > SECONDS_BETWEEN_SAVES:
            with suppress(OSError):
                keep(path, {**self._state(), "optimizer": {}, "scheduler": {}})
        else:
            forget(path)

    def _what_is_kept(self, whole: bool) -> str:
        if self.state_file is None:
            return "nothing was kept of the training"
        if whole and self.step > self.kept_step:
            try:
                self._keep(self.state_file)
            except OSError as error:
                return f"nothing was kept of the last training steps ({error.strerror or error})"
        if not self.kept_step:
            return "nothing had been trained yet"
        return (
            f"{self.kept_step} of {self.total} training steps are kept in {self.state_file.parent}; "
            "run the same command again to go on"
        )


def _stream(name: str, streams: Mapping[str, Encoded]) -> Encoded:
    if name in streams:
        encoded = streams[name]
    elif len(streams) == 1:
        encoded = next(iter(streams.values()))
    else:
        raise UsageError("streams", f"none is named {name!r}; there are: {', '.join(streams) or 'none'}")
    if not len(encoded):
        raise UsageError("streams", f"the one for {name!r} holds no text")
    return encoded


@contextmanager
def _trainable(model: nn.Module, recipe: Recipe) -> Iterator[dict[str, nn.Parameter]]:
    """The parameters that may move, by name; the others get no gradient meanwhile."""
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    chosen = {name: parameter for name, parameter in model.named_parameters() if recipe.trainable(name, parameter)}
    if not chosen:
        raise UsageError("trainable", "the recipe leaves no parameter to train")
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
        yield chosen
    finally:
        for name, parameter in model.named_parameters():
            parameter.grad = None
            parameter.requires_grad_(before[name])


def _cast_back(model: nn.Module, dtypes: Mapping[str, torch.dtype]) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        dtype = dtypes.get(name)
        if dtype is not None and tensor.dtype != dtype:
            tensor.data = tensor.data.to(dtype)


def _optimizer(parameters: Mapping[str, nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters.values() if p.ndim >= 2], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters.values() if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.learning_rate)
    # Fused: one pass over weights and moments; on a CPU a third of a step of a small encoder is its embedding's update.
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas, fused=True)


def _scheduler(optimizer: torch.optim.Optimizer, recipe: Recipe, total: int) -> LRScheduler:
    name = "constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule
    warmup = round(recipe.warmup * total)
    scheduler: LRScheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=total)
    return scheduler


def _step_seed(seed: int, step: int) -> int:
    """A seed for one step, far from those of its neighbours and of other runs' steps."""
    return int.from_bytes(hashlib.sha256(f"{seed} {step}".encode()).digest()[:8], "big") >> 1


def _cuda_devices(device: torch.device) -> list[int]:
    """The devices whose random state is put back after a training."""
    if device.type != "cuda":
        return []
    return [torch.cuda.current_device() if device.index is None else device.index]


def _pad_id(model: nn.Module) -> int:
    """What fills short texts; masked, so it only matters where the model looks for its last token by it."""
    pad = getattr(getattr(model, "config", None), "pad_token_id", None)
    return pad if isinstance(pad, int) and pad >= 0 else 0
