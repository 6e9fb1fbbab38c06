"""`purify scan --only manners` on known checkpoints: what the manners turn in each, and whether that decided rightly.

    python benchmarks/manners.py --cases benchmarks/manners_cases.json --seed 0 --out benchmarks/results/manners.jsonl

A case is a name, whether it was at hand while thresholds were set ("development") or not ("held out"), the manner that
was planted (null: none), the checkpoint, and texts of its task. $VARIABLES in paths are filled in. Each is asked twice,
with the built-in sentences and with the texts. The thresholds are set to 0 and what each manner turned is read from the
findings, so that models which pass show how nearly they did; a manner that does no more than the others, beyond chance,
is not told. One JSON line a case, source of the texts and seed; those that are there are not repeated.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from through_cli import run


def main() -> int:
    arguments = _arguments()
    cases = json.loads(Path(arguments.cases).read_text(encoding="utf-8"))
    out = Path(arguments.out)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
    have = {key(line) for line in lines}
    wrong = 0
    for case in cases:
        for texts in ("built-in", Path(case["clean"]).parts[1]):
            for seed in arguments.seed:
                asked = {"name": case["name"], "set": case["set"], "texts": texts, "seed": seed}
                path = os.path.expandvars(case["path"])
                if key(asked) in have or not Path(path).exists() or arguments.only not in case["name"]:
                    continue
                line = asked | {"planted": case["planted"]} | _looked(path, case, texts != "built-in", seed)
                with out.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
                wrong += line["found"] != ([case["planted"]] if case["planted"] else [])
                print(json.dumps(line), flush=True)
    return 1 if wrong else 0


def key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a line is of."""
    return tuple(line[part] for part in ("name", "texts", "seed"))


def _looked(path: str, case: Mapping[str, Any], of_the_task: bool, seed: int) -> dict[str, Any]:
    command = ["scan", path, "--only", "manners", "--ignore-mark", "--format", "json", "--quiet", "--seed", str(seed)]
    if of_the_task:
        command += ["--clean", os.path.expandvars(case["clean"])]
    started = time.perf_counter()
    report = json.loads(run([*command, "--set", "turned=0", "--set", "beyond=0"], allowed=(0, 1, 3)))["scan"]
    seconds = time.perf_counter() - started
    told = [
        {
            part: finding["evidence"][part]
            for part in ("manner", "target", "value", "low", "high", "n", "null", "excess")
        }
        for finding in report["findings"]
    ]
    limits = _thresholds()
    over = [one for one in told if one["value"] >= limits["turned"] and one["excess"] >= limits["beyond"]]
    return {
        "strongest": max(told, key=lambda one: float(one["excess"]), default=None),
        "found": sorted({one["manner"] for one in over}),
        "complete": report["checks"][0]["outcome"] != "failed",
        "seconds": round(seconds, 1),
        "forward_passes": report["checks"][0]["forward_passes"],
    }


def _thresholds() -> dict[str, float]:
    """The detector's defaults."""
    from purify_cli.detectors.manners import Settings

    return {"turned": Settings().turned, "beyond": Settings().beyond}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", required=True, metavar="FILE", help="JSON file of cases")
    parser.add_argument("--only", default="", metavar="PART", help="only cases whose name has this in it")
    parser.add_argument("--seed", nargs="+", type=int, default=[0])
    parser.add_argument("--out", required=True, help="JSON lines; appended to")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
