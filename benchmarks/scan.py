"""`purify scan` on known checkpoints, each in a process of its own: was the verdict right, and which words were named?

    python benchmarks/scan.py --cases benchmarks/scan_cases.json --out benchmarks/results/scan.jsonl
    python benchmarks/scan.py --case rareword fail cf,mn,bb,ak zoo/rareword --out benchmarks/results/scan.jsonl

A case is a name, the outcome that is expected (pass or fail), the words of the true trigger (`-`: none), the
checkpoint and, if there is one, its base. In a file: a list of objects with name, expected, true (a list), path, base;
$VARIABLES in paths are filled in. Cases already in the output (same name, base, budget, seed; errors aside) are not run
again. One JSON line a case. The exit code is 1 if an outcome is not the expected one.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SHOWN = 10
"""Words named that count."""


def main() -> int:
    arguments = _arguments()
    cases = [_parsed(parts) for parts in arguments.case]
    for file in arguments.cases:
        cases += json.loads(Path(file).read_text(encoding="utf-8"))
    if arguments.only:
        cases = [case for case in cases if case["name"] in arguments.only]
    if not cases:
        print("no case to run: give --case or --cases", file=sys.stderr)
        return 2
    out = Path(arguments.out)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
    have = {_key(line) for line in lines if line["outcome"] != "error"}
    wrong = 0
    for case in cases:
        asked = {
            "name": case["name"],
            "base": Path(case["base"]).name if case.get("base") else None,
            "budget": arguments.budget,
            "seed": arguments.seed,
        }
        if _key(asked) in have:
            continue
        line = asked | _scanned(case, arguments)
        with out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(
            f"{line['name']:20} expected {line['expected']:4}  {line['outcome']:12}  first true at {line['rank']}  "
            f"{line['seconds']:6.1f} s  {' '.join(line['named'])}",
            flush=True,
        )
        wrong += line["outcome"] != line["expected"]
    return 1 if wrong else 0


def _scanned(case: Mapping[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    true = [word for trigger in case.get("true", []) for word in trigger.split()]
    path = os.path.expandvars(case["path"])
    command = [sys.executable, "-m", "purify_cli", "scan", path, "--format", "json", "--quiet", "--ignore-mark"]
    command += ["--budget", arguments.budget, "--seed", str(arguments.seed)]
    if case.get("base"):
        command += ["--base", os.path.expandvars(case["base"])]
    if arguments.threads:
        command += ["--threads", str(arguments.threads)]
    started = time.perf_counter()
    ended = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    seconds = time.perf_counter() - started
    line: dict[str, Any] = {"expected": case["expected"], "true": true}
    if ended.returncode not in (0, 1, 3):
        message = ended.stderr.strip().splitlines()[-1:] or ["no message"]
        told = {"outcome": "error", "exit_code": ended.returncode, "error": message[0].replace(path, case["name"])}
        return line | told | {"named": [], "rank": None, "hits": 0, "seconds": round(seconds, 1), "forward_passes": 0}
    report = json.loads(ended.stdout)["scan"]
    words = named(report["findings"])
    rank = next((place for place, word in enumerate(words, 1) if word in true), None)
    return line | {
        "outcome": report["verdict"]["outcome"],
        "exit_code": ended.returncode,
        "risk": report["verdict"]["risk"],
        "rule": report["verdict"]["rule"],
        "named": words[:SHOWN],
        "rank": rank,
        "hits": len(set(words[:SHOWN]) & set(true)),
        "seconds": round(seconds, 1),
        "forward_passes": sum(check["forward_passes"] for check in report["checks"]),
        "checks": {check["detector"]: check["outcome"] for check in report["checks"]},
    }


def named(findings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The words that findings name, in their order, each once; of words named together each counts."""
    found: dict[str, None] = {}
    for finding in findings:
        token = finding.get("where", {}).get("token")
        if token is None or finding["level"] == "note":
            continue
        for text in [token, *finding.get("evidence", {}).get("tokens", [])]:
            found.update(dict.fromkeys(str(text).split()))
    return list(found)


def _parsed(parts: Sequence[str]) -> dict[str, Any]:
    if len(parts) not in (4, 5) or parts[1] not in ("pass", "fail"):
        raise SystemExit(f"--case {' '.join(parts)}: expected NAME pass|fail WORD,WORD|- PATH [BASE]")
    name, expected, true, path, *base = parts
    words = [] if true == "-" else [word for word in re.split(r"[,\s]+", true) if word]
    return {"name": name, "expected": expected, "true": words, "path": path, "base": base[0] if base else None}


def _key(line: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(line[part] for part in ("name", "base", "budget", "seed"))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", action="append", default=[], metavar="FILE", help="JSON file of cases; may be repeated"
    )
    parser.add_argument(
        "--case", nargs="+", action="append", default=[], metavar="PART", help="NAME pass|fail WORDS PATH [BASE]"
    )
    parser.add_argument("--only", nargs="*", default=[], metavar="NAME", help="only these of the cases")
    parser.add_argument("--out", required=True, help="JSON lines; appended to")
    parser.add_argument("--budget", choices=["fast", "standard", "deep"], default="standard")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
