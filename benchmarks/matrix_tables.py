"""Tables of the papers and what we measured beside them, from the lines that matrix.py writes.

Which cells a table has, and in which order, is in matrix_cases.json. A figure is the mean over the triggers and the
seeds of a cell, and its interval the mean of theirs: they are tried on the same texts, so that averaging them is not
taken for more evidence. What was measured on a GPU stands where the CPU has nothing, and says so.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import papers
from matrix import Cell, Plan, load
from tables import NOTHING, Line, code, escaped, interval, last, markdown_table

CASES = Path(__file__).resolve().parent / "matrix_cases.json"

FIGURES = "figures"
"""Folder of the pictures, beside the page."""

NAMES = {"badnets": "BadNets", "embedding": "EP", "ripple": "RIPPLe", "neuba": "NeuBA", "addsent": "AddSent"}
NAMES |= {"hiddenkiller": "HiddenKiller", "stylebkd": "StyleBkd", "por": "POR", "lwp": "LWP"}
NAMES |= {"word": "an ordinary word", "pieces": "a word of several pieces", "agnews": "two words", "enron": "two words"}
NAMES |= {"word4": "a word of four pieces, other target", "phrase": "a phrase of two words"}
"""Attacks as papers write them, and what the held-out checkpoints have."""

CELL = ("attack", "defence", "amount", "seed")
"""What two lines of one cell and seed have in common."""

PLACES = ("CPU", "GPU")

COLUMNS = ("seeds", "n (clean / triggered)", "seconds")


@dataclass(frozen=True)
class Figures:
    """The mean over triggers and seeds, each rate with value, low, high and n."""

    cacc: Mapping[str, Any]
    drop: float
    asr: Mapping[str, Any]
    floor: Mapping[str, Any]
    excess: Mapping[str, Any]
    triggers: int
    seeds: tuple[int, ...]
    clean_rows: int | None
    on_gpu: frozenset[int]
    seconds: float | None
    chosen: tuple[str, ...]

    def counts(self) -> list[str]:
        """Seeds, n and seconds, as the last columns of a table."""
        several = f" × {self.triggers}" if self.triggers > 1 else ""
        return [
            ", ".join(f"{seed} (GPU)" if seed in self.on_gpu else str(seed) for seed in self.seeds),
            f"{self.cacc['n']} / {self.asr['n']}{several}",
            "" if self.seconds is None else f"{self.seconds:.0f}",
        ]

    def accuracy(self) -> str:
        """CACC and how it differs from the twin's."""
        return f"{interval(self.cacc)} ({-self.drop:+.3f})"


def figures(lines: Sequence[Line], cell: Cell) -> Figures | None:
    """Of the lines those of a cell, the last of each seed; None where there are none."""
    found: dict[int, Line] = {}
    for line in sorted(lines, key=_on_cpu):
        if cell == Cell(line["attack"], line["defence"], line["amount"]):
            found[line["seed"]] = line
    if not found:
        return None
    chosen = [found[seed] for seed in sorted(found)]
    rates = [rate for line in chosen for rate in line["asr"]]
    seconds = [line["seconds"] for line in chosen if line["seconds"] is not None and _on_cpu(line)]
    return Figures(
        cacc=mean([line["cacc"] for line in chosen]),
        drop=mean([line["twin_cacc"] for line in chosen])["value"] - mean([line["cacc"] for line in chosen])["value"],
        asr=mean([rate["rate"] for rate in rates]),
        floor=mean([rate["floor"] for rate in rates]),
        excess=mean([rate["excess"] for rate in rates]),
        triggers=len(chosen[0]["asr"]),
        seeds=tuple(line["seed"] for line in chosen),
        clean_rows=chosen[0]["clean_rows"],
        on_gpu=frozenset(line["seed"] for line in chosen if not _on_cpu(line)),
        seconds=sum(seconds) / len(seconds) if seconds else None,
        chosen=tuple(dict.fromkeys(line["chosen"] for line in chosen if line["chosen"])),
    )


def _on_cpu(line: Line) -> bool:
    return str(line.get("device", "cpu")) == "cpu"


def mean(rates: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Value and interval averaged; n is the smallest, of texts."""
    return {key: sum(rate[key] for rate in rates) / len(rates) for key in ("value", "low", "high")} | {
        "n": min(rate["n"] for rate in rates)
    }


@functools.cache
def plan() -> Plan:
    """The cases as they are written; the variables do not matter here."""
    return load(CASES)


def attack_name(attack: str) -> str:
    """As papers write it, the data set left out, with the fields that differ."""
    plain, *changes = attack.split()
    return " ".join([NAMES[plain.rpartition("-")[2]], *map(code, changes)])


def defence_name(defence: str) -> str:
    """With the settings as code."""
    plain, *settings = defence.split()
    return " ".join([escaped(plain), *map(code, settings)])


def position(cell: Cell, x: str, own: str) -> str:
    """Where a cell stands along x: the amount, a setting of the defence or a field of the attack."""
    if x == "amount":
        return f"{cell.amount:.0%}" if cell.amount <= 1 else f"{cell.amount:g}"
    for part in (*cell.defence.split()[1:], *cell.attack.split()[1:]):
        key, _, value = part.partition("=")
        if key == x:
            return value
    return own


# --- GBA --------------------------------------------------------------------------------------------------------------


def gba_table2(lines: Sequence[Line]) -> str:
    """A block a method, a row an attack, SST-2 and AG News side by side; below each block the mean over the attacks."""
    cells = plan().cells("gba_table2")
    rows = []
    for defence in dict.fromkeys(cell.defence for cell in cells):
        block, means = [], []
        for cell in cells:
            if cell.defence != defence or cell.attack.startswith("agnews-"):
                continue
            other = [found for found in cells if (found.attack, found.defence) == (f"agnews-{cell.attack}", defence)]
            ours, news = figures(lines, cell), figures(lines, other[0]) if other else None
            if ours is None and news is None:
                continue
            means += [found for found in (ours, news) if found is not None]
            row = ["" if block else defence_name(defence), attack_name(cell.attack)]
            row += [*_measured(ours), _printed(papers.GBA_MR, cell)]
            row += [*_measured(news), _printed(papers.GBA_AGNEWS, other[0]) if other else ""]
            block.append(row + (ours.counts() if ours else [""] * 3))
        if len(means) > 1:
            excess, drop = _averages(means)
            told = excess, f"{drop} beside the twin"
            printed = f"all: {papers.GBA_ALL[defence]}" if defence in papers.GBA_ALL else ""
            block.append(["", f"mean of {len(means)}", "", "", *told, printed, *[""] * 5, *[""] * 3])
        rows += block
    ours = ["ASR", "floor", "excess", "ACC (beside the twin)"]
    heads = ["method", "attack", *(f"SST-2: {head}" for head in ours), "paper, MR: ASR / ACC, %"]
    heads += [*(f"AG News: {head}" for head in ours), "paper, AG News: ASR / ACC, %"]
    heads += [f"SST-2: {head}" for head in COLUMNS]
    return markdown_table(heads, rows)


def _measured(found: Figures | None) -> list[str]:
    if found is None:
        return [""] * 4
    return [interval(found.asr), f"{found.floor['value']:.3f}", interval(found.excess, sign=True), found.accuracy()]


def _printed(paper: Mapping[str, papers.Printed], cell: Cell) -> str:
    printed = paper.get(cell.defence, {}).get(cell.attack)
    return "" if printed is None else f"{printed[0]} / {printed[1]}"


# --- MuScleLoRA -------------------------------------------------------------------------------------------------------


def musclelora_table1(lines: Sequence[Line]) -> str:
    """A block an attack, a column a defence, as in the paper; the floor is that of the column's seeds."""
    cells = plan().cells("musclelora_table1")
    defences = list(dict.fromkeys(cell.defence for cell in cells))
    rows = []
    for attack in dict.fromkeys(cell.attack for cell in cells):
        of_attack = [(cell, figures(lines, cell)) for cell in cells if cell.attack == attack]
        found = [ours for _, ours in of_attack if ours is not None]
        if not found:
            continue
        shown: list[tuple[str, Callable[[Figures], str]]] = [
            ("CACC (beside the twin)", lambda ours: ours.accuracy()),
            ("ASR", lambda ours: interval(ours.asr)),
            ("floor", lambda ours: f"{ours.floor['value']:.3f}"),
            ("excess", lambda ours: interval(ours.excess, sign=True)),
            ("seeds", lambda ours: ours.counts()[0]),
            ("seconds", lambda ours: ours.counts()[2]),
        ]
        block = [["", name, *("" if ours is None else tell(ours) for _, ours in of_attack)] for name, tell in shown]
        paper = [_printed(papers.MUSCLELORA_TABLE_1, cell) for cell, _ in of_attack]
        block.append(["", "paper: ASR / CACC, %", *paper])
        block[0][0] = attack_name(attack)
        edge = [[found[0].counts()[1]], *[[""]] * (len(block) - 1)]
        rows += [row + end for row, end in zip(block, edge, strict=True)]
    means = {row[2]: row for row in _means(lines, "musclelora_table1")}
    if means:
        for name, part, place in (("mean", "excess", 6), ("", "CACC beside the twin", 7)):
            of_defence = (means.get(defence_name(defence)) for defence in defences)
            rows.append([name, part, *("" if row is None else row[place] for row in of_defence), ""])
    heads = ["attack", "", *map(defence_name, defences), "n (clean / triggered)"]
    return markdown_table(heads, rows)


# --- a GPU ------------------------------------------------------------------------------------------------------------


def gpu(lines: Sequence[Line]) -> str:
    """Cells that were measured on both, a row a cell and seed."""
    rows = []
    for line in last([line for line in lines if not _on_cpu(line)], lambda line: tuple(line[part] for part in CELL)):
        cell = Cell(line["attack"], line["defence"], line["amount"])
        here = figures([other for other in lines if _on_cpu(other) and other["seed"] == line["seed"]], cell)
        there = figures([line], cell)
        if here is None or there is None:
            continue
        row = [attack_name(cell.attack), defence_name(cell.defence), str(line["seed"])]
        for part in ("cacc", "asr", "excess"):
            row += [interval(getattr(one, part), sign=part == "excess") for one in (here, there)]
        rows.append(
            [*row, here.counts()[1], *("" if one is None else f"{one:.0f}" for one in (here.seconds, line["seconds"]))]
        )
    heads = [
        "attack",
        "defence",
        "seed",
        *(f"{part}, {place}" for part in ("CACC", "ASR", "excess") for place in PLACES),
    ]
    return markdown_table([*heads, "n (clean / triggered)", *(f"seconds, {place}" for place in PLACES)], rows)


# --- the others -------------------------------------------------------------------------------------------------------


def rows_of(table: str, paper: Mapping[str, papers.Printed]) -> Callable[[Sequence[Line]], str]:
    """A row a cell, in the order of matrix_cases.json; with the paper's figures where there are any."""

    def show(lines: Sequence[Line]) -> str:
        rows = []
        for cell in plan().cells(table):
            ours = figures(lines, cell)
            if ours is None:
                continue
            row = [attack_name(cell.attack), _data(cell.attack), _way(cell, ours), _clean(ours)]
            row += [*_measured(ours), *ours.counts()]
            rows.append([*row, _printed(paper, cell)] if paper else row)
        rows += [row + [""] * (len(rows[0]) - len(row)) for row in _means(lines, table)]
        heads = [
            "attack",
            "data",
            "defence",
            "clean rows",
            "ASR",
            "floor",
            "excess",
            "CACC (beside the twin)",
            *COLUMNS,
        ]
        return markdown_table([*heads, "paper: ASR / CACC, %"] if paper else heads, rows)

    return show


def _means(lines: Sequence[Line], table: str) -> list[list[str]]:
    """A row a defence that was measured against several attacks: its excess and CACC beside the twin, averaged."""
    cells = plan().cells(table)
    rows = []
    for defence in dict.fromkeys(cell.defence for cell in cells):
        found = [figures(lines, cell) for cell in cells if cell.defence == defence]
        there = [ours for ours in found if ours is not None]
        if len(there) > 1:
            row = [f"mean of {len(there)}", "", defence_name(defence), "", "", ""]
            rows.append([*row, *_averages(there)])
    return rows


def _averages(found: Sequence[Figures]) -> tuple[str, str]:
    """The mean excess, and the mean difference of CACC and the twin's."""
    excess = sum(float(ours.excess["value"]) for ours in found) / len(found)
    drop = sum(ours.drop for ours in found) / len(found)
    return f"**{excess:+.3f}**", f"**{-drop:+.3f}**"


def picture(table: str, title: str, paper: papers.Printed | None = None) -> Callable[[Sequence[Line]], str]:
    """A link to the picture, where there are two places along x or more, and under it the figures."""
    return functools.partial(_pictured, table, title, paper or {})


def _pictured(table: str, title: str, paper: papers.Printed, lines: Sequence[Line]) -> str:
    chosen = plan().tables[table]
    x, own = chosen["x"], chosen.get("own", "")
    rows = []
    for cell in plan().cells(table):
        ours = figures(lines, cell)
        if ours is None:
            continue
        place = position(cell, x, own)
        row = [code(place), _clean(ours), attack_name(cell.attack.split()[0]), defence_name(cell.defence.split()[0])]
        row += [*_measured(ours), *ours.counts()]
        rows.append([*row, "{} / {}".format(*paper[place]) if place in paper else ""] if paper else row)
    if not rows:
        return NOTHING
    heads = [code(x), "clean rows", "attack", "defence", "ASR", "floor", "excess", "CACC (beside the twin)", *COLUMNS]
    shown = markdown_table([*heads, "paper: ASR / ACC, %"] if paper else heads, rows)
    if len({row[0] for row in rows}) < 2:  # a single place is no picture
        return shown
    return f"![{title}]({FIGURES}/{picture_file(table)})\n\n{shown}"


def picture_file(table: str) -> str:
    """Name of the picture's file."""
    return re.sub("_", "-", table) + ".svg"


def _data(attack: str) -> str:
    return escaped(plan().attack(attack)["data"])


def _way(cell: Cell, ours: Figures) -> str:
    return defence_name(cell.defence) + (f" ({', '.join(map(escaped, ours.chosen))})" if ours.chosen else "")


def _clean(ours: Figures) -> str:
    return "" if ours.clean_rows is None else f"{ours.clean_rows:,}"


PICTURES: dict[str, str] = {
    "gba_figure2": "ASR, excess and clean accuracy against the share of the clean data",
    "gba_table3": "ASR, excess and clean accuracy against the width of the prompt",
    "gba_table3_all": "ASR, excess and clean accuracy against the width of the prompt, with all of the clean data",
    "gba_figure4": "ASR, excess and clean accuracy against λ",
    "musclelora_figure4": "ASR, excess and clean accuracy against the poison ratio",
    "musclelora_figure7": "ASR, excess and clean accuracy against the number of clean texts",
    "musclelora_figure8": "ASR, excess and clean accuracy against the learning rate",
    "musclelora_figure9": "ASR, excess and clean accuracy against the largest μ",
    "musclelora_figure10": "ASR, excess and clean accuracy against the vector of factors S",
}
"""Table -> what its picture shows."""

TABLES: dict[str, Callable[[Sequence[Line]], str]] = {
    "victim": rows_of("victim", {}),
    "gba_table2": gba_table2,
    "gba_rare": rows_of("gba_rare", {}),
    "gba_table12": rows_of("gba_table12", papers.GBA_TABLE_12),
    "musclelora_table1": musclelora_table1,
    "musclelora_table3": rows_of("musclelora_table3", papers.MUSCLELORA_TABLE_3),
    "gpu": gpu,
    "auto": rows_of("auto", {}),
    "auto_held_out": rows_of("auto_held_out", {}),
    "unlearn_held_out": rows_of("unlearn_held_out", {}),
    "syntax": rows_of("syntax", {}),
    "syntax_floor": rows_of("syntax_floor", {}),
    "auto_untrusted": rows_of("auto_untrusted", {}),
    "unpoisoned": rows_of("unpoisoned", {}),
    "typed": rows_of("typed", {}),
    "untrusted": rows_of("untrusted", {}),
    "released": rows_of("released", {}),
    **{
        name: picture(name, title, papers.GBA_TABLE_3 if name == "gba_table3" else None)
        for name, title in PICTURES.items()
    },
}
"""Name of the marker on the page."""
