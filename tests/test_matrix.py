"""benchmarks/matrix.py: its cells, the rows that it draws, what it runs, and the tables that are made of it."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import typer.main

from benchmark_scripts import FOLDER, script
from purify_cli import catalogue
from purify_cli.cli import app

GROUP = typer.main.get_command(app)
CASES = FOLDER / "matrix_cases.json"
VARIABLES = ("ENCODER", "ROWS", "OTHERS", "AGROWS", "DATA", "ZOO", "ATTACKS")


@pytest.fixture(scope="module")
def matrix() -> ModuleType:
    return script("matrix")


@pytest.fixture(scope="module")
def matrix_tables() -> ModuleType:
    return script("matrix_tables")


def rate(value: float, n: int = 100) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": n}


def line(attack: str, defence: str, seed: int = 1, amount: float = 1, excess: float = 0.1, **other: Any) -> Any:
    asr = [{"trigger": "cf", "target": "1", "rate": rate(excess + 0.2), "floor": rate(0.2), "excess": rate(excess)}]
    told = {"attack": attack, "defence": defence, "amount": amount, "seed": seed, "data": "sst2", "clean_rows": 30}
    told |= {"untrusted_rows": None, "cacc": rate(0.8, 300), "twin_cacc": rate(0.81, 300), "asr": asr, "seconds": 2.0}
    return told | {"settings": {}, "chosen": None} | other


def write(file: Path, rows: Sequence[dict[str, str]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return file


def texts(file: str) -> list[str]:
    with Path(file).open(encoding="utf-8", newline="") as opened:
        return [row["text"] for row in csv.DictReader(opened)]


# --- the cells --------------------------------------------------------------------------------------------------------


def test_every_cell_of_the_cases_can_be_typed(
    matrix: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, f"{tmp_path}/{name.lower()}")
    monkeypatch.setenv("WORK", f"{tmp_path}/made")
    monkeypatch.setenv("SEED", "1")
    monkeypatch.setattr(matrix, "drawn", lambda source, amount, *_: f"{source}-{amount}")
    monkeypatch.setattr(matrix, "_rows", lambda file: [{}])
    plan = matrix.load(CASES)
    assert "$" not in json.dumps([plan.attacks, plan.checkpoints])
    cells = {cell for table in plan.tables for cell in plan.cells(table)}
    assert len(cells) > 100
    for cell in cells:
        if plan.defence(cell.defence) is None:
            continue
        (verb, *arguments), rows = matrix.purification(plan, cell, 1, tmp_path)
        context = GROUP.commands[verb].make_context(verb, [*arguments, "--out", "x"])
        method = catalogue.load("purifier", context.params["method"])
        catalogue.fill(method.Settings, _settings(arguments))
        assert rows["clean_rows"] or rows["untrusted_rows"]
        if "untrusted" in method.NEEDS:
            assert "--untrusted" in arguments
        if "base" in method.NEEDS:
            assert "--base" in arguments
    for verb, *arguments in plan.checkpoints.values():
        GROUP.commands[verb].make_context(verb, [*arguments, "--out", "x"])


def _settings(arguments: Sequence[str]) -> list[str]:
    return [arguments[place + 1] for place, argument in enumerate(arguments) if argument == "--set"]


def test_names_change_fields_and_settings(matrix: ModuleType) -> None:
    plan = matrix.Plan(
        attacks={"a": {"amount": 5, "poison_rate": None}},
        defences={"none": None, "d": "--method pure --clean {clean}"},
        checkpoints={},
        tables={"t": {"attacks": ["a poison_rate=0.2"], "defences": ["none", "d x=1 y=2,3"], "amounts": [0.1, 7]}},
    )
    assert plan.attack("a poison_rate=0.2") == {"amount": 5, "poison_rate": 0.2}
    assert plan.defence("d x=1 y=2,3") == ["--method", "pure", "--clean", "{clean}", "--set", "x=1", "--set", "y=2,3"]
    # What is not defended is measured once, whatever there is to defend it with.
    amounts = [(cell.defence, cell.amount) for cell in plan.cells("t")]
    assert amounts == [("none", 5), ("d x=1 y=2,3", 0.1), ("d x=1 y=2,3", 7)]


def test_rows_are_drawn_by_seed_and_the_smaller_draw_is_in_the_larger(matrix: ModuleType, tmp_path: Path) -> None:
    rows = [{"text": f"t{place}", "label": "0", "poisoned": str(int(place < 20))} for place in range(100)]
    source = write(tmp_path / "sst2" / "train.csv", rows)
    assert matrix.drawn(source, 1, 1, tmp_path / "drawn") == str(source)
    few, more = (texts(matrix.drawn(source, amount, 1, tmp_path / "drawn")) for amount in (0.05, 30))
    assert (len(few), len(more)) == (5, 30)
    assert more[:5] == few
    assert texts(matrix.drawn(source, 0.05, 2, tmp_path / "drawn")) != few
    poisoned = texts(matrix.drawn(source, 50, 1, tmp_path / "drawn", 0.3))
    assert (len(set(poisoned)), sum(int(text[1:]) < 20 for text in poisoned)) == (50, 15)
    with pytest.raises(matrix.Failed, match="45 of the 50"):
        matrix.drawn(source, 50, 1, tmp_path / "drawn", 0.5)


# --- a run ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def typed(matrix: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands of a run, each of which does what the matrix sees of it and nothing else."""
    commands: list[list[str]] = []

    def run(command: Sequence[str], allowed: Sequence[int] = (0,)) -> str:
        commands.append(list(command))
        assert GROUP.commands[command[0]].make_context(command[0], list(command[1:]))
        options = dict(pairwise(command))
        if command[0] != "eval":
            if options.get("--method") == "nad":
                raise matrix.Failed("no")
            out = Path(options["--out"])
            out.mkdir(parents=True)
            record = {"settings": {"epochs": 3}, "report": {"chosen": "pure"}}
            (out / "purify.json").write_text(json.dumps(record), encoding="utf-8")
            return ""
        triggers = [word for option, word in pairwise(command) if option == "--trigger"]
        # As if `mn` did most for the target 1 and the others for 0.
        strong = [0.9 if (trigger == "mn") == (options["--target"] == "1") else 0.2 for trigger in triggers]
        asr = [
            {"trigger": trigger, "target": options["--target"], "rate": rate(value), "floor": rate(0.1)}
            | {"excess": rate(value - 0.1)}
            for trigger, value in zip(triggers, strong, strict=True)
        ]
        found = [{"cacc": rate(0.8), "asr": asr}, {"cacc": rate(0.85), "asr": asr}]
        return json.dumps({"eval": {"checkpoints": found}})

    monkeypatch.setattr(matrix, "run", run)
    monkeypatch.setattr(sys.modules["through_cli"], "run", run)
    return commands


def start(matrix: ModuleType, monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> list[dict[str, Any]]:
    out = folder / "matrix.jsonl"
    arguments = ["--cases", str(folder / "cases.json"), "--work", str(folder / "work"), "--out", str(out), *more]
    monkeypatch.setattr(sys, "argv", ["matrix.py", *arguments])
    matrix.main()
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def cases(tmp_path: Path) -> dict[str, Any]:
    clean = write(tmp_path / "data" / "train.csv", [{"text": f"t{place}", "label": "0"} for place in range(40)])
    attack = {"data": "sst2", "model": "$WORK/bad-$SEED", "twin": "$WORK/good-$SEED", "clean": str(clean), "amount": 1}
    attack |= {"test": str(clean), "triggers": ["cf", "mn"]}
    return {
        "checkpoints": {
            "$WORK/bad-$SEED": ["poison", "$WORK/good-$SEED", "--attack", "badnets", "--data", "x", "--target", "1"],
            "$WORK/good-$SEED": ["purify", "encoder", "--method", "finetune", "--clean", "x"],
        },
        "attacks": {"known": attack | {"target": "1"}, "agnostic": attack | {"targets": ["0", "1"]}},
        "defences": {"none": None, "tuned": "--method finetune --clean {clean}", "broken": "--method nad --clean x"},
        "tables": {"t": {"attacks": ["known"], "defences": ["none", "tuned epochs=2"], "amounts": [0.1]}},
    }


def test_a_run_measures_each_cell_once_and_goes_on(
    matrix: ModuleType, typed: list[list[str]], cases: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    first, second = start(matrix, monkeypatch, tmp_path)
    assert [command[0] for command in typed] == ["purify", "poison", "eval", "purify", "eval"]
    assert (first["defence"], first["seconds"], first["clean_rows"], first["amount"]) == ("none", None, None, 1)
    assert (second["defence"], second["clean_rows"], second["amount"]) == ("tuned epochs=2", 4, 0.1)
    assert second["seconds"] is not None
    assert second["settings"] == {"epochs": 3}
    assert second["chosen"] == "pure"
    assert second["twin_cacc"]["value"] == 0.85
    work = tmp_path / "work"
    assert typed[2][:4] == ["eval", f"{work}/bad-1", f"{work}/good-1", "--twin"]
    assert typed[3][1] == f"{work}/bad-1" and "epochs=2" in typed[3]
    assert list((work / "cells").glob("*/")) == [], "a purified checkpoint goes when it is measured"
    typed.clear()
    assert len(start(matrix, monkeypatch, tmp_path)) == 2
    assert typed == []
    cases["tables"]["more"] = {"attacks": ["known"], "defences": ["none", "tuned"]}
    (tmp_path / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    assert len(start(matrix, monkeypatch, tmp_path, "--seed", "1", "2")) == 6
    assert [command[0] for command in typed] == [
        *("purify", "eval"),
        "purify",
        "poison",
        "eval",
        *("purify", "eval") * 2,
    ]


def test_a_result_that_is_there_is_only_measured(
    matrix: ModuleType, typed: list[list[str]], cases: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    start(matrix, monkeypatch, tmp_path, "--keep")
    (tmp_path / "matrix.jsonl").write_text("", encoding="utf-8")
    typed.clear()
    _, tuned = start(matrix, monkeypatch, tmp_path)
    assert [command[0] for command in typed] == ["eval", "eval"]
    assert tuned["seconds"] is not None, "it is kept beside the checkpoint"


def test_a_trigger_without_a_target_counts_for_the_one_that_it_has_undefended(
    matrix: ModuleType, typed: list[list[str]], cases: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases["tables"] = {"t": {"attacks": ["agnostic"], "defences": ["tuned"]}}
    (tmp_path / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    (found,) = start(matrix, monkeypatch, tmp_path)
    assert {each["trigger"]: each["target"] for each in found["asr"]} == {"cf": "0", "mn": "1"}
    asked = [command for command in typed if command[0] == "eval"]
    assert [Path(command[1]).name.startswith("bad") for command in asked] == [True, True, False, False]


def test_a_cell_that_fails_stops_no_other(
    matrix: ModuleType,
    typed: list[list[str]],
    cases: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    cases["tables"]["t"]["defences"] = ["broken", "none"]
    cases["attacks"]["known"]["base"] = "$NOWHERE/encoder"
    (tmp_path / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    with pytest.raises(SystemExit, match="1 cells failed"):
        start(matrix, monkeypatch, tmp_path)
    assert "broken" in capsys.readouterr().err
    assert len((tmp_path / "matrix.jsonl").read_text(encoding="utf-8").splitlines()) == 1
    cases["tables"]["t"]["defences"] = ["tuned"]
    cases["attacks"]["known"]["model"] = "$NOWHERE/model"
    (tmp_path / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    with pytest.raises(SystemExit, match="1 cells failed"):
        start(matrix, monkeypatch, tmp_path)
    assert "give the variable a value" in capsys.readouterr().err


# --- tables and pictures ----------------------------------------------------------------------------------------------


def test_a_cell_is_the_mean_over_triggers_and_seeds(matrix: ModuleType, matrix_tables: ModuleType) -> None:
    lines = [line("badnets", "GBA", 1, excess=0.9), line("badnets", "GBA", 1, excess=0.1)]
    lines += [line("badnets", "GBA", 2, excess=0.3), line("badnets", "NAD"), line("badnets", "GBA", amount=0.1)]
    found = matrix_tables.figures(lines, matrix_tables.Cell("badnets", "GBA", 1))
    assert found.excess == pytest.approx({"value": 0.2, "low": 0.1, "high": 0.3, "n": 100})
    assert (found.seeds, found.triggers, found.drop) == ((1, 2), 1, pytest.approx(0.01))
    assert matrix_tables.figures(lines, matrix_tables.Cell("embedding", "GBA", 1)) is None


def test_a_gpu_counts_where_the_cpu_has_nothing_and_says_so(matrix_tables: ModuleType) -> None:
    lines = [line("data-badnets", "LoRA", 1), line("data-badnets", "LoRA", 1, excess=0.9) | {"device": "cuda"}]
    lines += [line("data-badnets", "LoRA", 2, excess=0.5) | {"device": "cuda", "seconds": 9}]
    found = matrix_tables.figures(lines, matrix_tables.Cell("data-badnets", "LoRA", 1))
    assert found.excess["value"] == pytest.approx((lines[0]["asr"][0]["excess"]["value"] + 0.5) / 2)
    assert found.counts()[0] == "1, 2 (GPU)"
    assert found.seconds == lines[0]["seconds"]
    (beside,) = matrix_tables.gpu(lines).splitlines()[2:]
    assert beside.startswith("| BadNets | LoRA | 1 | ")


def test_another_device_measures_and_makes_everything_anew(
    matrix: ModuleType, typed: list[list[str]], cases: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cases.json").write_text(json.dumps(cases), encoding="utf-8")
    start(matrix, monkeypatch, tmp_path, "--keep")
    first = len(typed)
    found = start(matrix, monkeypatch, tmp_path, "--device", "cuda", "--jobs", "2")
    assert [one["device"] for one in found] == ["cpu", "cpu", "cuda", "cuda"]
    assert sorted(command[0] for command in typed[first:]) == sorted(command[0] for command in typed[:first])
    assert all(dict(pairwise(command))["--device"] == "cuda" for command in typed[first:])
    assert all(dict(pairwise(command))["--device"] == "cpu" for command in typed[:first])


@pytest.mark.slow
def test_commands_of_several_jobs_end_as_they_do_alone(matrix: ModuleType) -> None:
    """With processes in the place of a stub: threads that start some ask after each other's."""
    through_cli = sys.modules["through_cli"]  # as the scripts have it
    said: list[str] = []

    def job(number: int) -> None:
        if number % 4:
            said.append(through_cli.run(["--version"]))
        else:
            with pytest.raises(through_cli.Failed, match=r"(?s)exit code 2.*no-such-command"):
                through_cli.run(["no-such-command"])

    through_cli.at_once(job, range(24), 5)
    assert len(said) == 18 and len(set(said)) == 1 and said[0].startswith("purify")
    begun: list[int] = []

    def fails(number: int) -> None:
        begun.append(number)
        raise through_cli.Failed("no")

    with pytest.raises(through_cli.Failed):
        through_cli.at_once(fails, range(1000), 2)
    assert len(begun) < 1000


def test_table_2_of_gba(matrix_tables: ModuleType) -> None:
    lines = [line("badnets", "GBA"), line("agnews-badnets", "GBA", excess=0.3), line("neuba", "MEFT")]
    meft, gba, mean = matrix_tables.gba_table2(lines).splitlines()[2:]
    assert meft.startswith("| MEFT | NeuBA |")
    for part in ("| GBA | BadNets |", "0.300 [0.200, 0.400]", "2.67 / 89.7", "2.77 / 92.17", "+0.300 [+0.200, +0.400]"):
        assert part in gba
    assert "mean of 2" in mean and "**+0.200**" in mean and "all: 3.61" in mean and "**-0.010**" in mean
    assert len({row.count("|") for row in (meft, gba, mean)}) == 1


def test_table_1_of_musclelora(matrix_tables: ModuleType) -> None:
    lines = [line("data-addsent", "MuScleLoRA", amount=96), line("data-addsent", "Vanilla", amount=96, excess=0.7)]
    rows = matrix_tables.musclelora_table1(lines).splitlines()
    assert rows[0].startswith("| attack |  | Vanilla | LoRA | Adapter | Prefix | MuScleLoRA | Clean-only | Z-filter |")
    assert rows[2].startswith("| AddSent | CACC (beside the twin) | 0.800 [0.700, 0.900] (-0.010) |  |")
    assert rows[4].startswith("|  | floor | 0.200")
    assert rows[5].startswith("|  | excess | +0.700")
    assert rows[-1].startswith("|  | paper: ASR / CACC, % | 99.89 / 90.99 | 96.16 / 88.96 |")
    assert "18.97 / 86.77" in rows[-1]
    lines.append(line("data-badnets", "Vanilla", amount=96, excess=0.1))
    *_, excess, accuracy = matrix_tables.musclelora_table1(lines).splitlines()
    assert excess.startswith("| mean | excess | **+0.400** |  |")
    assert accuracy.startswith("|  | CACC beside the twin | **-0.010** |  |")


def test_rows_end_with_the_mean_of_each_defence(matrix_tables: ModuleType) -> None:
    lines = [line("few-badnets", "auto", amount=0.05, excess=0.0, chosen="pure"), line("few-badnets", "No-Defense")]
    lines.append(line("few-ripple", "auto", amount=0.05, excess=0.04))
    *rows, mean = matrix_tables.TABLES["auto"](lines).splitlines()
    assert any("| auto (pure) |" in row for row in rows)
    assert mean.startswith("| mean of 2 |  | auto |")
    assert "**+0.020** | **-0.010** |" in mean
    assert mean.count("|") == rows[0].count("|")


def test_every_paper_figure_has_its_cell(matrix_tables: ModuleType) -> None:
    papers = sys.modules["papers"]
    for table, printed in (
        ("gba_table2", papers.GBA_TABLE_2),
        ("gba_table12", papers.GBA_TABLE_12),
        ("musclelora_table1", papers.MUSCLELORA_TABLE_1),
        ("musclelora_table3", papers.MUSCLELORA_TABLE_3),
    ):
        cells = {(cell.defence, cell.attack) for cell in matrix_tables.plan().cells(table)}
        assert {(defence, attack) for defence, of in printed.items() for attack in of} <= cells
    assert papers.MUSCLELORA_TABLE_3["MuScleLoRA scalings=false alignment=false"] == papers.MUSCLELORA_TABLE_1["LoRA"]


@pytest.mark.parametrize(
    ("cell", "x", "place"),
    [
        (("badnets", "GBA", 0.05), "amount", "5%"),
        (("data-badnets", "MuScleLoRA", 96), "amount", "96"),
        (("badnets", "GBA pull=0.1", 1), "pull", "0.1"),
        (("badnets", "GBA", 1), "pull", "0.01"),
        (("data-badnets poison_rate=0.2", "MuScleLoRA", 96), "poison_rate", "0.2"),
    ],
)
def test_places_along_x(matrix_tables: ModuleType, cell: tuple[str, str, float], x: str, place: str) -> None:
    assert matrix_tables.position(matrix_tables.Cell(*cell), x, "0.01") == place


def test_what_a_picture_says_without_x_is_the_default(matrix_tables: ModuleType) -> None:
    musclelora = catalogue.load("purifier", "musclelora")
    gba = catalogue.load("purifier", "gba")
    own = {name: matrix_tables.plan().tables[name].get("own") for name in matrix_tables.PICTURES}
    assert float(own["musclelora_figure8"]) == musclelora.Numbers.learning_rate
    assert float(own["musclelora_figure9"]) == musclelora.Numbers.mu_max
    assert float(own["gba_figure4"]) == gba.Settings.pull
    assert int(own["gba_table3"]) == gba.Settings.width


def test_pictures_are_drawn_from_what_the_tables_show(matrix_tables: ModuleType, tmp_path: Path) -> None:
    lines = [line("badnets", "GBA", amount=0.05), line("badnets", "GBA width=8", amount=0.05, excess=0.0)]
    shown = matrix_tables.TABLES["gba_table3"](lines)
    assert shown.startswith("![ASR, excess")
    assert "(figures/gba-table3.svg)" in shown
    assert [row.split("|")[1].strip() for row in shown.splitlines()[4:]] == ["`2`", "`8`"]
    assert "1.42 / 95.47" in shown.splitlines()[-1]
    drawing = script("matrix_figures")
    series = drawing.collected(lines, "gba_table3")
    assert {name: list(points) for name, points in series.items()} == {"BadNets": ["2", "8"]}
    for name in ("one.svg", "two.svg"):
        drawing.draw(tmp_path / name, drawing.panels(series, "width"))
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert drawing.collected(lines, "musclelora_figure9") == {}
    of_defences = [line("badnets", "GBA", amount=0.05), line("neuba", "GBA", amount=0.05, excess=0.5)]
    both = drawing.collected(of_defences, "gba_figure2")["GBA"]["5%"]
    assert [found.excess["value"] for found in both] == [0.1, 0.5]


def test_a_picture_that_the_page_shows_is_there() -> None:
    docs = FOLDER.parent / "docs"
    page = (docs / "benchmarks.md").read_text(encoding="utf-8")
    shown = [part.split(")")[0] for part in page.split("](figures/")[1:]]
    missing = [name for name in shown if not (docs / "figures" / name).is_file()]
    assert not missing, "run `make benchmarks-page`"
