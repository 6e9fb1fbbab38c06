"""What an attack reaches, beside the clean twin: `purify eval` of both, one JSON line an attacked checkpoint.

    python benchmarks/poison.py --name badnets --model zoo/bn6 --twin zoo/clean6 --test sst2/test.csv \
        --trigger cf --trigger mn --target 1 --out benchmarks/results/poison.jsonl

With --poisoned a file of triggered texts is measured as it is. Names already in the output are not measured again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    arguments = _arguments()
    out = Path(arguments.out)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
    if any((line["name"], line["seed"]) == (arguments.name, arguments.seed) for line in lines):
        return 0
    command = [sys.executable, "-m", "purify_cli", "eval", arguments.model, arguments.twin, "--twin", arguments.twin]
    command += ["--test", arguments.test, "--seed", str(arguments.seed), "--format", "json", "--quiet"]
    if arguments.poisoned:
        command += ["--poisoned", arguments.poisoned]
    for trigger in arguments.trigger:
        command += ["--trigger", trigger]
    if arguments.target is not None:
        command += ["--target", arguments.target]
    if arguments.threads:
        command += ["--threads", str(arguments.threads)]
    ended = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    if ended.returncode:
        print(ended.stderr.strip(), file=sys.stderr)
        return ended.returncode
    subject, twin = json.loads(ended.stdout)["eval"]["checkpoints"]
    rates: list[dict[str, Any]] = []
    for rate in subject["asr"]:
        trigger = _short(arguments.poisoned) if rate["trigger"] == arguments.poisoned else rate["trigger"]
        rates.append(rate | {"trigger": trigger})
    line = {
        "name": arguments.name,
        "model": Path(arguments.model).name,
        "twin": Path(arguments.twin).name,
        "layers": _layers(arguments.model),
        "trained_by": arguments.trained_by,
        "seed": arguments.seed,
        "cacc": subject["cacc"],
        "twin_cacc": twin["cacc"],
        "asr": rates,
        "asr_mean": subject["asr_mean"],
    }
    with out.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)
    return 0


def _layers(model: str) -> int | None:
    config = json.loads((Path(model) / "config.json").read_text(encoding="utf-8"))
    layers = config.get("num_hidden_layers")
    return int(layers) if layers is not None else None


def _short(file: str) -> str:
    """Folder and name: results are read on other machines."""
    return "/".join(Path(file).parts[-2:])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="what the table calls it")
    parser.add_argument("--model", required=True, help="the attacked checkpoint")
    parser.add_argument("--twin", required=True, help="the same training without poison")
    parser.add_argument("--test", required=True, help="CSV with text,label")
    parser.add_argument("--poisoned", help="CSV with text,label,target")
    parser.add_argument("--trigger", action="append", default=[], help="a word to insert; may be repeated")
    parser.add_argument("--target", help="the target label of --trigger")
    parser.add_argument("--trained-by", default="script", choices=["script", "poison"], help="what made the checkpoint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", required=True, help="JSON lines; appended to")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
