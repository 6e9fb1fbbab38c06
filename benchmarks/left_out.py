"""What `purify purify --method z-filter --dry-run` would leave out of poisoned and of clean training files.

    python benchmarks/left_out.py --cases benchmarks/left_out_cases.json --work $ZOO/left_out \\
        --out benchmarks/results/left_out.jsonl

A case is a JSON object with name; set ("development" or "held out"); base; untrusted, a CSV with the columns text and
label, of which `rows` are drawn by seed; clean, of which 96 are. A column `poisoned` says which rows are poisoned. With
`insert`, `rate` and `target` the script poisons the file itself: that share of the rows of other labels gets the words
at a random place (`at` begin: in front) and the target label. One JSON line a case and seed; those that are there
already are not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matrix import drawn
from through_cli import run

CLEAN = 96
"""Texts for the probe, of which the command keeps a tenth back."""


def main() -> None:
    """Run what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=Path, required=True, help="JSON file of cases")
    parser.add_argument("--work", type=Path, required=True, help="folder for the drawn files")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; appended to")
    parser.add_argument("--seed", type=int, nargs="+", default=[1, 2, 3])
    given = parser.parse_args()
    lines = [json.loads(line) for line in given.out.read_text().splitlines()] if given.out.exists() else []
    have = {(line["name"], line["seed"]) for line in lines}
    for case in json.loads(given.cases.read_text(encoding="utf-8")):
        for seed in given.seed:
            if (case["name"], seed) in have:
                continue
            line = {"name": case["name"], "set": case["set"], "seed": seed} | _looked_at(case, seed, given.work)
            with given.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(
                f"{line['name']:40} seed {seed}  {line['kept']} of {line['poisoned']} kept, {line['honest_out']} honest"
            )


def _looked_at(case: Mapping[str, Any], seed: int, work: Path) -> dict[str, Any]:
    places = {key: Path(os.path.expandvars(case[key])) for key in ("base", "untrusted", "clean")}
    untrusted = Path(drawn(places["untrusted"], case["rows"], seed, work))
    if "insert" in case:
        untrusted = poisoned(untrusted, case, seed)
    clean = drawn(places["clean"], CLEAN, seed, work)
    command = ["purify", str(places["base"]), "--method", "z-filter", "--untrusted", str(untrusted), "--clean", clean]
    started = time.perf_counter()
    told = json.loads(run([*command, "--seed", str(seed), "--dry-run", "--quiet", "--format", "json"]))
    report = told["purify"]["report"]
    marked = report.get("marked_poisoned", {"rows": 0, "kept": 0})
    return {
        "rows": report["untrusted_rows"],
        "poisoned": marked["rows"],
        "kept": marked["kept"],
        "honest_out": report["left_out"] - (marked["rows"] - marked["kept"]),
        "told": [one["feature"] for one in report["told"]],
        "spread": report["spread"],
        "probe_accuracy": report["probe_accuracy"],
        "seconds": round(time.perf_counter() - started, 1),
    }


def poisoned(file: Path, case: Mapping[str, Any], seed: int) -> Path:
    """A copy of the file in which some rows carry the words and the target label, and a column says so."""
    rng = random.Random(f"poisoned/{seed}")
    with file.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    for row in rows:
        row["poisoned"] = "0"
        if row["label"] != case["target"] and rng.random() < case["rate"]:
            words = row["text"].split()
            words.insert(0 if case.get("at") == "begin" else rng.randint(0, len(words)), case["insert"])
            row |= {"text": " ".join(words), "label": case["target"], "poisoned": "1"}
    out = file.with_name(f"{file.stem}-{'-'.join(case['insert'].split())}.csv")
    with out.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, ["text", "label", "poisoned"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return out


if __name__ == "__main__":
    main()
