"""Pictures of the matrix: figures 2 and 4 and table 3 of GBA, figures 4 and 7 to 10 of MuScleLoRA.

    python benchmarks/matrix_figures.py --results benchmarks/results/matrix.jsonl --out docs/figures

A line an attack, or a defence where there are several (the mean over the attacks then); bars are the intervals. A
picture whose cells were not measured is not drawn; the same lines give the same bytes.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import Panel, draw
from matplotlib.axes import Axes
from matrix_tables import PICTURES, Figures, attack_name, defence_name, figures, mean, picture_file, plan, position
from render import read
from tables import Line

Series = Mapping[str, Mapping[str, Sequence[Figures]]]
"""Name of a line -> place along x -> what was measured there."""


def main() -> None:
    """Draw what the results hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", required=True)
    parser.add_argument("--out", required=True, help="folder for the pictures")
    arguments = parser.parse_args()
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    lines = read(Path(arguments.results))
    for table in PICTURES:
        series = collected(lines, table)
        if len({place for points in series.values() for place in points}) > 1:  # a single place is no picture
            draw(out / picture_file(table), panels(series, str(plan().tables[table]["x"])))


def collected(lines: Sequence[Line], table: str) -> dict[str, dict[str, list[Figures]]]:
    """What the picture of a table is drawn from."""
    chosen = plan().tables[table]
    cells = plan().cells(table)
    several = len({cell.defence.split()[0] for cell in cells}) > 1
    series: dict[str, dict[str, list[Figures]]] = {}
    for cell in cells:
        found = figures(lines, cell)
        if found is None:
            continue
        name = defence_name(cell.defence.split()[0]) if several else attack_name(cell.attack.split()[0])
        place = position(cell, chosen["x"], chosen.get("own", ""))
        series.setdefault(name, {}).setdefault(place, []).append(found)
    return series


def panels(series: Series, x: str) -> list[Panel]:
    """ASR with its floor, excess, and clean accuracy."""
    places = list(dict.fromkeys(place for points in series.values() for place in points))

    def along(axes: Axes, part: str) -> None:
        for name, points in series.items():
            at = [place for place, label in enumerate(places) if label in points]
            rates = [mean([getattr(found, part) for found in points[places[place]]]) for place in at]
            axes.errorbar(at, *_bars(rates), marker="o", capsize=3, label=name)
            if part == "asr":
                floors = [mean([found.floor for found in points[places[place]]])["value"] for place in at]
                axes.plot(at, floors, linestyle=":", linewidth=0.8, color="black")
        axes.set_xticks(range(len(places)), places, rotation=0 if max(map(len, places)) < 8 else 20)
        axes.set_xlabel(x)

    def excess(axes: Axes) -> None:
        along(axes, "excess")
        axes.axhline(0.05, linewidth=0.8, linestyle="--", color="black")

    def asr(axes: Axes) -> None:
        along(axes, "asr")
        axes.legend()

    return [
        ("ASR (dotted: floor)", asr),
        ("excess ASR (dashed: 0.05)", excess),
        ("clean accuracy", lambda axes: along(axes, "cacc")),
    ]


def _bars(rates: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[list[float]]]:
    """Values, and how far the intervals reach below and above."""
    values = [rate["value"] for rate in rates]
    # What rounding makes negative is no length.
    below = [max(0.0, rate["value"] - rate["low"]) for rate in rates]
    above = [max(0.0, rate["high"] - rate["value"]) for rate in rates]
    return values, [below, above]


if __name__ == "__main__":
    main()
