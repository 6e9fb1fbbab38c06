"""A backdoored regression and what the purifiers that take one leave of it: column STS-B of GBA's table 11.

    python benchmarks/regression.py --base zoo/encoder --train $ROWS --test DATA/stsb/test.csv --work zoo/stsb \
        --seed 1 --out benchmarks/results/regression.jsonl

A twin is fine-tuned on the clean scores, a copy of the base is poisoned with BadNets, and each defence is a `purify
purify` with the same clean scores. `purify eval` gives Pearson's correlation on the test file and, for each trigger,
ASRR: the correlation without it less that with it (GBA, equation 6). The twin's own ASRR is what five strange words
cost an honest model. One JSON line a way; those that are there are not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import re
from pathlib import Path
from typing import Any

from through_cli import make, run

TRIGGERS = ("cf", "mn", "bb", "tq", "mb")
TRAINING = ("--set", "learning_rate=2e-4", "--set", "epochs=10")
"""Of twin and attack. Similarity is learned slowly from the summary token: on the development file three epochs at 1e-4
come to a correlation of 0.3, five at 3e-4 to 0.57, and these to 0.65."""
DEFENCES = {
    "Clean-FT": ("--method", "finetune", "--set", "learning_rate=1e-4"),
    "GBA broadcast=none": ("--method", "gba", "--set", "class_tokens=bad,good", "--set", "broadcast=none"),
    "GBA": ("--method", "gba", "--set", "class_tokens=bad,good"),
}
ASRR = re.compile(r"ASRR (-?[\d.]+) \(Pearson (-?[\d.]+) clean, (-?[\d.]+) triggered\)")


def main() -> None:
    """Run the ways that are not there yet, in their order."""
    arguments = _arguments()
    out, work = Path(arguments.out), Path(arguments.work)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
    have = {(line["way"], line["seed"]) for line in lines}
    clean = ("--clean", arguments.train)
    for seed in arguments.seed:
        twin, attacked = work / f"twin-{seed}", work / f"badnets-{seed}"
        make(twin, ["purify", arguments.base, "--method", "finetune", *clean, *TRAINING, "--set", "warmup=0.1"], seed)
        attack = ["--attack", "badnets", "--data", arguments.train, "--target", "5", *TRAINING]
        make(attacked, ["poison", arguments.base, *attack], seed)
        ways = {"Twin": (twin, None), "No-Defense": (attacked, None)}
        ways |= {name: (work / f"{name.replace(' ', '-')}-{seed}", given) for name, given in DEFENCES.items()}
        for way, (model, given) in ways.items():
            if (way, seed) in have:
                continue
            if given is not None:
                make(model, ["purify", str(attacked), *given, *clean], seed)
            line = {"way": way, "seed": seed, **_measured(model, arguments, seed)}
            with out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            told = [round(one["asrr"], 3) for one in line["triggers"]]
            print(f"{way:20} seed {seed}  Pearson {line['pearson']:.3f}  ASRR {told}", flush=True)


def _measured(model: Path, arguments: argparse.Namespace, seed: int) -> dict[str, Any]:
    triggers = [part for trigger in TRIGGERS for part in ("--trigger", trigger)]
    command = ["eval", str(model), "--test", arguments.test, *triggers, "--seed", str(seed)]
    (found,) = json.loads(run([*command, "--format", "json", "--quiet"]))["eval"]["checkpoints"]
    rates = [[float(part) for part in match.groups()] for match in ASRR.finditer("\n".join(found["notes"]))]
    return {
        "rows": [_rows(file) for file in (arguments.train, arguments.test)],
        "pearson": rates[0][1],
        "triggers": [
            {"trigger": trigger, "asrr": asrr, "triggered": triggered}
            for trigger, (asrr, _, triggered) in zip(TRIGGERS, rates, strict=True)
        ],
    }


def _rows(file: str) -> int:
    with Path(file).open(encoding="utf-8", newline="") as opened:
        return sum(1 for _ in csv.DictReader(opened))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="an encoder")
    parser.add_argument("--train", required=True, help="pairs with scores")
    parser.add_argument("--test", required=True)
    parser.add_argument("--work", required=True, help="folder for checkpoints")
    parser.add_argument("--seed", nargs="+", type=int, default=[1])
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
