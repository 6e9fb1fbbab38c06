"""What a training looks like while it goes on: losses and gradients of its tasks, read now and then.

The pictures of Gu et al. (ACL 2023) are drawn from it: both losses (figure 1), each layer's gradient of each task
(figure 2) and the cosine between the two (figure 3). Reading changes nothing of the training.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from purify_cli.architecture.layers import by_layer, layer_count, parts
from purify_cli.training.recipe import Batch, Gradients, Objective

POINTS = 50
"""Steps of a training that are read, where nobody says how many."""


class Curves:
    """Reads about `points` steps of a training, evenly spaced, the first and the last among them.

    It remembers, so that a training that was stopped has the same curves: whoever holds it in an opening of a recipe
    passes `state_dict` and `load_state_dict` on.

    Args:
        model: the model that is trained; its trainable parameters give the layers.
        total: steps of the training.
        points: how many of them are read; 0: none.
    """

    def __init__(self, model: nn.Module, total: int, points: int = POINTS) -> None:
        self.every = max(1, -(-total // points)) if points else 0
        self.last = total - 1
        self.count = layer_count(model)
        names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.parts = parts(model, names)
        self.layers = sorted({part.layer for part in self.parts if part.layer >= 0})
        """Layers that carry trainable parameters; the number of layers itself stands for the output layer."""
        self._losses: dict[str, Tensor] = {}
        self._points: list[dict[str, Any]] = []

    def watch(self, name: str, objective: Objective) -> Objective:
        """The same objective, its loss kept in sight under this name."""

        def watched(model: nn.Module, batch: Batch) -> Tensor:
            loss = objective(model, batch)
            self.see(name, loss)
            return loss

        return watched

    def see(self, name: str, value: Tensor) -> None:
        """Keep a scalar in sight until the step's point is written."""
        self._losses[name] = value.detach()

    def loss(self, name: str) -> float:
        """The value last seen under this name."""
        return float(self._losses[name])

    def due(self, step: int) -> bool:
        """Whether this step is read."""
        return bool(self.every) and (step % self.every == 0 or step == self.last)

    def write(self, step: int, gradients: Mapping[str, Gradients] | None = None, **more: Any) -> None:
        """Write the step's point, if it is due.

        Args:
            step: counted from 0.
            gradients: by objective, then by parameter name: each layer's norm, and with "clean" and "poison" among
                them the cosine between these two, 0 where one of them is zero.
            more: what the method adds: numbers, or lists of them by layer, by name.
        """
        if not self.due(step):
            return
        point: dict[str, Any] = {
            "step": step,
            "loss": {name: short(float(loss)) for name, loss in self._losses.items()},
        }
        if gradients is not None:
            squares = {name: by_layer(self.parts, one, one, self.count) for name, one in gradients.items()}
            point["magnitude"] = {name: self.by_layer(square.sqrt()) for name, square in squares.items()}
            if {"clean", "poison"} <= set(gradients):
                inner = by_layer(self.parts, gradients["clean"], gradients["poison"], self.count)
                norms = (squares["clean"] * squares["poison"]).sqrt()
                point["cosine"] = self.by_layer((inner / norms).where(norms > 0, 0.0))
        self._points.append(point | more)

    def by_layer(self, values: Tensor) -> list[float]:
        """Of `[layers + 1]` numbers those of the layers that are trained, short enough to be read."""
        listed = values.tolist()
        return [short(listed[layer]) for layer in self.layers]

    def report(self) -> dict[str, Any]:
        """The curves in JSON types: `layers`, and by name a column with an entry a point."""
        names = ["output" if layer == self.count else layer for layer in self.layers]
        columns: dict[str, Any] = {}
        for key in self._points[0] if self._points else ():
            values = [point[key] for point in self._points]
            nested = isinstance(values[0], Mapping)
            columns[key] = {name: [value[name] for value in values] for name in values[0]} if nested else values
        return {"layers": names, **columns}

    def state_dict(self) -> dict[str, Any]:
        """What it has read so far."""
        return {"points": list(self._points)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what was read before a stop."""
        self._points = list(state["points"])


class WriteLosses:
    """A projection that writes the curves of a training whose gradients are not kept apart; it changes no weight.

    Args:
        curves: which it writes, and whose memory it carries.
        more: what the method adds to a point.
    """

    def __init__(self, curves: Curves, more: Callable[[], Mapping[str, Any]] = dict) -> None:
        self.curves, self.more = curves, more

    def __call__(self, model: nn.Module, step: int) -> None:
        """Write the step's point."""
        self.curves.write(step, **self.more())

    def state_dict(self) -> dict[str, Any]:
        """The curves so far."""
        return self.curves.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a stop."""
        self.curves.load_state_dict(state)


def short(value: float) -> float:
    """Six digits: a curve is looked at."""
    return float(f"{value:.6g}")
