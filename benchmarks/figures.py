"""Pictures of a backdoor being trained into an adapter: figures 1 to 3 of Gu et al. 2023, and w of CLNorm.

    python benchmarks/figures.py --results benchmarks/results/adapters.jsonl --form sequential --pair sst2:imdb \
        --seed 1 --out docs/figures

Drawn from the curves that `adapters.py` keeps of each run; the same lines give the same bytes.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Curves = Mapping[str, Any]

Panel = tuple[str, Callable[[Axes], None]]
"""Title of a panel, and what paints it."""


def main() -> None:
    """Draw what the results hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", required=True)
    parser.add_argument("--form", default="sequential")
    parser.add_argument("--pair", default="sst2:imdb")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", required=True, help="folder for the pictures")
    arguments = parser.parse_args()
    curves: dict[str, Curves] = {}
    for line in map(json.loads, Path(arguments.results).read_text(encoding="utf-8").splitlines()):
        if (line["form"], line["pair"], line["seed"]) == (arguments.form, arguments.pair, arguments.seed):
            curves[line["method"]] = line["curves"]
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    vanilla, controlled = curves["vanilla"], curves["gradient_control"]
    name = arguments.form
    draw(out / f"{name}-loss.svg", [("", lambda axes: _losses(axes, vanilla))])
    both = [("plain sum", vanilla), ("gradient control", controlled)]
    for what, paint in (("magnitude", _magnitudes), ("cosine", _cosines)):
        panels = [(title, lambda axes, of=of, paint=paint: paint(axes, of)) for title, of in both]
        draw(out / f"{name}-{what}.svg", panels, one_scale=True)
    draw(out / f"{name}-w.svg", [("", lambda axes: _weights(axes, controlled))])


def _losses(axes: Axes, curves: Curves) -> None:
    for task, values in curves["loss"].items():
        axes.plot(curves["step"], values, label=f"{task} texts")
    axes.set_xlabel("step")
    axes.set_ylabel("loss")
    axes.legend()


def _magnitudes(axes: Axes, curves: Curves) -> None:
    """Mean over the training."""
    places = range(len(curves["layers"]))
    for shift, (task, points) in zip((-0.2, 0.2), curves["magnitude"].items(), strict=True):
        axes.bar([place + shift for place in places], _mean(points), width=0.4, label=f"{task} task")
    axes.set_yscale("log")
    axes.margins(y=0.3)  # room for the legend
    axes.set_ylabel("L2 norm of the gradient")
    _layers(axes, curves)
    axes.legend()


def _cosines(axes: Axes, curves: Curves) -> None:
    axes.bar(range(len(curves["layers"])), _mean(curves["cosine"]))
    axes.axhline(0, linewidth=0.8, color="black")
    axes.set_ylim(-1, 1)
    axes.set_ylabel("cosine of the two tasks' gradients")
    _layers(axes, curves)


def _weights(axes: Axes, curves: Curves) -> None:
    for place, layer in enumerate(curves["layers"]):
        name = "output" if layer == "output" else f"layer {layer}"
        axes.plot(curves["step"], [point[place] for point in curves["w"]], label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("w")
    axes.legend()


def _layers(axes: Axes, curves: Curves) -> None:
    axes.set_xticks(range(len(curves["layers"])), [str(layer) for layer in curves["layers"]])
    axes.set_xlabel("layer")


def _mean(points: Sequence[Sequence[float]]) -> list[float]:
    return [sum(column) / len(points) for column in zip(*points, strict=True)]


def draw(file: Path, panels: Sequence[Panel], *, one_scale: bool = False) -> None:
    """An SVG of panels side by side, with one scale for all if asked; the same drawing gives the same bytes."""
    with mpl.rc_context({"svg.hashsalt": "purify", "svg.fonttype": "none"}):
        figure = Figure(figsize=(5 * len(panels), 3.4), layout="constrained")
        row = figure.subplots(1, len(panels), sharey=one_scale, squeeze=False)[0]
        for axes, (title, paint) in zip(row, panels, strict=True):
            paint(axes)
            axes.set_title(title)
        figure.savefig(file, format="svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
