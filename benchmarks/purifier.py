"""Any purifier against one backdoored checkpoint, as a user would: `purify purify`, then `purify eval` beside the twin.

    python benchmarks/purifier.py --method unlearn --model zoo/badnets --twin zoo/sst2-clean --clean clean.csv \
        --test sst2/test.csv --poisoned sst2/poisoned/badnets/test.csv --out zoo/badnets-unlearned \
        --results benchmarks/results/purifiers.jsonl

A result that lies in --out is not made again, only measured.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Purify, measure, append one line."""
    arguments = _arguments()
    out = Path(arguments.out)
    if not (out / "purify.json").exists():
        command = [
            "purify",
            arguments.model,
            "--method",
            arguments.method,
            "--clean",
            arguments.clean,
            "--out",
            str(out),
        ]
        command += [part for item in arguments.set for part in ("--set", item)]
        _purify([*command, "--seed", str(arguments.seed)], allowed=(0, 1))
    measured = []
    for model in (arguments.model, str(out)):
        command = ["eval", model, "--twin", arguments.twin, "--test", arguments.test, "--poisoned", arguments.poisoned]
        measured.append(json.loads(_purify(command))["eval"]["checkpoints"][0])
    record = json.loads((out / "purify.json").read_text(encoding="utf-8"))
    line = {
        "attack": Path(arguments.model).name,
        "method": arguments.method,
        "set": arguments.set,
        "seed": arguments.seed,
        "settings": record["settings"],
        "before": {"cacc": measured[0]["cacc"], "asr": measured[0]["asr"][0]["rate"]},
        "after": {
            "cacc": measured[1]["cacc"],
            **{key: measured[1]["asr"][0][key] for key in ("rate", "floor", "excess")},
        },
    }
    with Path(arguments.results).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))


def _purify(command: list[str], allowed: tuple[int, ...] = (0,)) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "purify_cli", *command, "--format", "json", "--quiet"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
    )
    if ended.returncode not in allowed:
        raise SystemExit(ended.stderr.strip())
    return ended.stdout


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("method", "model", "twin", "clean", "test", "poisoned", "out", "results"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--set", action="append", default=[], help="a setting of the method; may be repeated")
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
