"""Attacks x defences x seeds; a cell is `purify purify`, then `purify eval` beside the clean twin, as users type them.

    python benchmarks/matrix.py --cases benchmarks/matrix_cases.json --work zoo/matrix --table gba_table2 --seed 1 2 3 \
        --out benchmarks/results/matrix.jsonl

A cell is an attack, a defence, how much of the clean file the defence gets, and a seed. The file of cases holds

- attacks: name -> model (what is defended: a backdoored checkpoint, or a base where the data are poisoned), twin (clean
  checkpoint of the same task: the floor), clean, amount (of its rows: a share up to 1, or a number), test, and triggers
  with target, or poisoned; base, for defences that want one; untrusted with untrusted_rows and poison_rate, for those
  that train on poisoned data. `targets` in place of target are tried on the undefended checkpoint, and each trigger
  counts for the one for which it does most there.
- defences: name -> arguments of `purify purify CHECKPOINT`, where {clean}, {base} and {untrusted} are filled in; null:
  the checkpoint as it is.
- checkpoints: path -> a command that makes it when a cell needs it, for those that no other script makes.
- tables: name -> attacks, defences and amounts (none: each attack's own): which cells there are. Pictures have x, the
  field, setting or `amount` that is drawn along, and own, what x is where a name says nothing of it.

`NAME key=value ...` is an attack with another field, or a defence with settings. $VARIABLES are filled in, $WORK and
$SEED too. One JSON line a cell; cells that are there are not repeated, so that two tables may share some and a run that
was stopped goes on. A cell that fails is told of, and the others are still run. A purified checkpoint goes when it is
measured, unless --keep. With --jobs so many cells are measured at a time.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import shutil
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from through_cli import Failed, alone, at_once, make, place_for, run, tail

Case = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What is measured once a seed."""

    attack: str
    defence: str
    amount: float


@dataclass(frozen=True)
class Plan:
    """The file of cases, with the variables of one seed filled in."""

    attacks: Mapping[str, Case]
    defences: Mapping[str, str | None]
    checkpoints: Mapping[str, Sequence[str]]
    tables: Mapping[str, Mapping[str, Any]]

    def attack(self, name: str) -> Case:
        """An attack, with the fields that its name changes."""
        plain, *changes = name.split()
        return self.attacks[plain] | {key: json.loads(value) for key, value in map(_assignment, changes)}

    def defence(self, name: str) -> list[str] | None:
        """Arguments of `purify purify CHECKPOINT`, with the settings that the name adds; None: no defence."""
        plain, *settings = name.split()
        template = self.defences[plain]
        if template is None:
            return None
        return [*template.split(), *(part for setting in settings for part in ("--set", setting))]

    def cells(self, table: str) -> list[Cell]:
        """Of a table, in its order."""
        chosen = self.tables[table]
        found = []
        for attack in chosen["attacks"]:
            own = self.attack(attack)["amount"]
            for defence in chosen["defences"]:
                # What is not defended is the same whatever there is to defend it with.
                amounts = [own] if self.defence(defence) is None else chosen.get("amounts", [own])
                found += [Cell(attack, defence, amount) for amount in amounts]
        return found


def load(file: Path) -> Plan:
    """The file of cases, with the environment's variables filled in as far as they are there."""
    return Plan(**json.loads(os.path.expandvars(file.read_text(encoding="utf-8"))))


def main() -> None:
    """Run the cells that are not there yet, in their order."""
    arguments = _arguments()
    out, work = Path(arguments.out), place_for(arguments.work, arguments.device)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
    have = {
        (Cell(line["attack"], line["defence"], line["amount"]), line["seed"])
        for line in lines
        if line.get("device", "cpu") == arguments.device
    }
    jobs: list[tuple[Plan, Cell, int]] = []
    for seed in arguments.seed:
        os.environ |= {"WORK": str(work), "SEED": str(seed)}
        plan = load(Path(arguments.cases))
        for cell in _chosen(plan, arguments):
            if (cell, seed) not in have:
                have.add((cell, seed))
                jobs.append((plan, cell, seed))
    failed = []

    def job(one: tuple[Plan, Cell, int]) -> None:
        plan, cell, seed = one
        try:
            line = measured(plan, cell, seed, work, arguments.device, keep=arguments.keep)
        except Failed as error:
            print(f"{cell}, seed {seed}: {error}", file=sys.stderr, flush=True)
            failed.append(cell)
            return
        with alone(out), out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        asr, excess = (_mean(line["asr"], part) for part in ("rate", "excess"))
        told = f"CACC {line['cacc']['value']:.3f}  ASR {asr:.3f}  excess {excess:+.3f}"
        print(f"{cell.attack:20} {cell.defence:30} {cell.amount:g}  seed {seed}  {told}", flush=True)

    at_once(job, jobs, arguments.jobs)
    if failed:
        raise SystemExit(f"{len(failed)} cells failed")


def _chosen(plan: Plan, arguments: argparse.Namespace) -> Iterator[Cell]:
    for table in arguments.table or plan.tables:
        for cell in plan.cells(table):
            if arguments.attack and cell.attack.split()[0] not in arguments.attack:
                continue
            if arguments.defence and cell.defence.split()[0] not in arguments.defence:
                continue
            yield cell


def measured(plan: Plan, cell: Cell, seed: int, work: Path, device: str, *, keep: bool = False) -> dict[str, Any]:
    """One cell, from the checkpoint at hand to the line of results.

    Raises:
        Failed: a command that fails, or a variable without a value.
    """
    case, defence = plan.attack(cell.attack), plan.defence(cell.defence)
    for path in (case["model"], case["twin"]):
        _require(plan, path, seed, device)
    model, record, seconds = Path(case["model"]), {}, None
    rows = {"clean_rows": None, "untrusted_rows": None}
    if defence is not None:
        command, rows = purification(plan, cell, seed, work)
        model = work / "cells" / _slug(cell.attack, cell.defence, cell.amount, seed)
        took = model.with_name(f"{model.name}.seconds")
        if not (model / "purify.json").exists():
            started = time.perf_counter()
            make(model, [*command, "--device", device], seed)
            took.write_text(f"{time.perf_counter() - started:.1f}", encoding="utf-8")
        seconds = float(took.read_text(encoding="utf-8")) if took.exists() else None
        record = json.loads((model / "purify.json").read_text(encoding="utf-8"))
    report = record.get("report") or {}
    targets = _targets(case, cell.attack, seed, work, device)
    subject, twin, rates = _rates(case, model, targets, seed, device)
    if defence is not None and not keep:
        shutil.rmtree(model)
    return {
        **asdict(cell),
        "seed": seed,
        "data": case["data"],
        **rows,
        "cacc": subject["cacc"],
        "twin_cacc": twin["cacc"],
        "asr": rates,
        "device": device,
        "seconds": seconds,
        "settings": record.get("settings"),
        # None is what `auto` says where it changed nothing, and other methods do not choose.
        "chosen": (report["chosen"] or "input") if "chosen" in report else None,
    }


def purification(plan: Plan, cell: Cell, seed: int, work: Path) -> tuple[list[str], dict[str, int | None]]:
    """The command of a cell's defence, its data files drawn; and how many rows they have.

    Raises:
        Failed: a defence that wants what the attack does not have.
    """
    case = plan.attack(cell.attack)
    clean = drawn(Path(case["clean"]), cell.amount, seed, work / "data")
    places = {"clean": clean, "base": case.get("base"), "untrusted": None}
    if "untrusted" in case:
        untrusted = Path(case["untrusted"])
        amount = case.get("untrusted_rows", 1)
        places["untrusted"] = drawn(untrusted, amount, seed, work / "data", case.get("poison_rate"))
    arguments = plan.defence(cell.defence) or []
    wanted = {name for argument in arguments for name in re.findall(r"^\{(\w+)\}$", argument)}
    lacking = sorted(name for name in wanted if places[name] is None)
    if lacking:
        raise Failed(f"{cell.attack} has no {' and no '.join(lacking)}, which {cell.defence} wants")
    rows = {f"{name}_rows": None for name in ("clean", "untrusted")} | {
        f"{name}_rows": len(_rows(Path(str(places[name])))) for name in sorted(wanted & {"clean", "untrusted"})
    }
    filled = [argument.format(**places) for argument in arguments]
    return ["purify", case["model"], *filled], rows


def drawn(source: Path, amount: float, seed: int, folder: Path, poison_rate: float | None = None) -> str:
    """Some rows of a data file, in a file of their own; the file itself where all are wanted.

    Of the same seed the smaller draw is a part of the larger one.

    Args:
        source: CSV with a head.
        amount: a share of the rows up to 1, or a number of rows.
        seed: says which.
        folder: where the file goes.
        poison_rate: share of the rows whose column `poisoned` is 1; None: as it comes.
    """
    if "$" in str(source):
        raise Failed(f"{source}: give the variable a value")
    if amount == 1 and poison_rate is None:
        return str(source)
    rows = _rows(source)
    random.Random(seed).shuffle(rows)
    count = round(amount * len(rows)) if amount <= 1 else round(amount)
    if poison_rate is not None:
        poisoned = [row for row in rows if row["poisoned"] == "1"]
        honest = [row for row in rows if row["poisoned"] != "1"]
        many = round(poison_rate * count)
        rows = poisoned[:many] + honest[: count - many]
        random.Random(seed).shuffle(rows)
    if len(rows) < count:
        raise Failed(f"{source} has {len(rows)} of the {count} rows that are wanted")
    rate = "" if poison_rate is None else poison_rate
    file = folder / f"{_slug(tail(str(source.with_suffix(''))), amount, rate, seed)}.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.name}.{threading.get_ident()}")  # another job may be reading the file
    with beside.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows[:count])
    beside.replace(file)
    return str(file)


def _rows(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def _require(plan: Plan, path: str, seed: int, device: str) -> None:
    """Make a checkpoint that the file of cases says how to make, and whatever that needs."""
    if "$" in path:
        raise Failed(f"{path}: give the variable a value")
    if path not in plan.checkpoints:
        return
    for part in plan.checkpoints[path]:
        if part in plan.checkpoints:
            _require(plan, part, seed, device)
    make(Path(path), [*plan.checkpoints[path], "--device", device], seed)


def _targets(case: Case, attack: str, seed: int, work: Path, device: str) -> dict[str, list[str]]:
    """Target -> its triggers. Those of a task-agnostic attack are looked for once, on the checkpoint as it came."""
    if "poisoned" in case:
        return {}
    if "target" in case:
        return {case["target"]: case["triggers"]}
    kept = work / f"{_slug('targets', attack, seed)}.json"
    with alone(kept):
        if not kept.exists():
            best: dict[str, tuple[float, str]] = {}
            for target in case["targets"]:
                _, _, rates = _rates(case, Path(case["model"]), {target: case["triggers"]}, seed, device)
                for rate in rates:
                    found = float(rate["excess"]["value"]), target
                    best[rate["trigger"]] = max(best.get(rate["trigger"], found), found)
            chosen = {trigger: target for trigger, (_, target) in best.items()}
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(chosen), encoding="utf-8")
    of_trigger = json.loads(kept.read_text(encoding="utf-8"))
    return {
        target: [trigger for trigger in case["triggers"] if of_trigger[trigger] == target]
        for target in sorted(set(of_trigger.values()))
    }


def _rates(
    case: Case, model: Path, targets: Mapping[str, Sequence[str]], seed: int, device: str
) -> tuple[dict[str, Any], dict[str, Any], list[dict[str, Any]]]:
    """What `eval` says of the model and of its twin, and the ASR of every trigger."""
    command = ["eval", str(model), case["twin"], "--twin", case["twin"], "--test", case["test"]]
    command += ["--seed", str(seed), "--device", device, "--format", "json", "--quiet"]
    if "poisoned" in case:
        asked = [["--poisoned", case["poisoned"]]]
    else:
        asked = [
            [*(part for trigger in triggers for part in ("--trigger", trigger)), "--target", target]
            for target, triggers in targets.items()
        ]
    rates: list[dict[str, Any]] = []
    for what in asked:
        subject, twin = json.loads(run([*command, *what]))["eval"]["checkpoints"]
        rates += subject["asr"]
    if "poisoned" in case:
        rates = [rate | {"trigger": tail(rate["trigger"])} for rate in rates]
    return subject, twin, rates


def _mean(rates: Sequence[Mapping[str, Any]], part: str) -> float:
    return sum(float(rate[part]["value"]) for rate in rates) / len(rates)


def _slug(*parts: object) -> str:
    """A name for a file."""
    return re.sub(r"[^A-Za-z0-9.=+]+", "-", " ".join(map(str, parts))).strip("-")


def _assignment(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key, value


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", required=True)
    parser.add_argument("--table", nargs="*", default=[], help="names of tables; none: all")
    parser.add_argument("--attack", nargs="*", default=[], help="names of attacks; none: all of the tables")
    parser.add_argument("--defence", nargs="*", default=[], help="names of defences; none: all of the tables")
    parser.add_argument("--work", required=True, help="folder for checkpoints and for the rows that are drawn")
    parser.add_argument("--seed", nargs="+", type=int, default=[1])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="has a folder of its own in --work")
    parser.add_argument("--jobs", type=int, default=1, help="cells at a time")
    parser.add_argument("--keep", action="store_true", help="keep the purified checkpoints")
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
