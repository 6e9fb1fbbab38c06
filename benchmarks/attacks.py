"""Every attack on whole models, before and after the victim's own clean training: rows No-Defense and Clean-FT of
GBA's table 2.

    python benchmarks/attacks.py --cases benchmarks/attack_cases.json --work zoo/attacks --seed 1 \
        --out benchmarks/results/attacks.jsonl

Each case is three commands as a user would type them: `purify poison`, `purify purify --method finetune`, and `purify
eval` of both beside the clean twin. The file of cases is a list of objects with name, base, attack (arguments of
`poison`, or null for the clean twin), train (of the twin), clean, victim (arguments of the fine-tuning), twin (name of
another case), test, and triggers with target, or poisoned. $VARIABLES are filled in, $WORK and $SEED too. A case
without target has task-agnostic triggers: each counts for the label for which it does more than in the twin. One JSON
line a case; those that are there are not repeated, and neither are checkpoints that are in the work folder.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from through_cli import alone, at_once, make, place_for, run, tail

Cases = Mapping[str, Mapping[str, Any]]


def main() -> None:
    """Run the cases that are not there yet, in their order."""
    arguments = _arguments()
    out, work = Path(arguments.out), place_for(arguments.work, arguments.device)
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []
    have = {(line["name"], line["seed"]) for line in lines if line.get("device", "cpu") == arguments.device}
    jobs: list[tuple[Cases, str, int]] = []
    for seed in arguments.seed:
        os.environ |= {"WORK": str(work), "SEED": str(seed)}
        listed = json.loads(os.path.expandvars(Path(arguments.cases).read_text(encoding="utf-8")))
        cases = {case["name"]: case for case in listed}
        wanted = [name for name in cases if not arguments.only or name in arguments.only]
        jobs += [(cases, name, seed) for name in wanted if (name, seed) not in have]

    def job(one: tuple[Cases, str, int]) -> None:
        line = measured(*one, work, arguments.device)
        with alone(out), out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        told = [line[when] and round(line[when]["asr_mean"] or 0, 3) for when in ("before", "after")]
        print(f"{line['name']:20} seed {line['seed']}  ASR before {told[0]}  after {told[1]}", flush=True)

    at_once(job, jobs, arguments.jobs)


def measured(cases: Cases, name: str, seed: int, work: Path, device: str) -> dict[str, Any]:
    """The line of one case."""
    case = cases[name]
    attacked, tuned = _checkpoints(cases, name, seed, work, device)
    twins = _checkpoints(cases, case.get("twin", name), seed, work, device)
    is_classifier = "ForSequenceClassification" in (attacked / "config.json").read_text(encoding="utf-8")
    return {
        "name": name,
        "seed": seed,
        "data": Path(case["test"]).parent.name,
        "victim": case["victim"],
        "device": device,
        "before": _measured(case, attacked, twins[0], seed, device) if is_classifier else None,
        "after": _measured(case, tuned, twins[1], seed, device),
    }


def _checkpoints(cases: Cases, name: str, seed: int, work: Path, device: str) -> tuple[Path, Path]:
    """What the attack made and what the victim made of it; made if they are not there."""
    case = cases[name]
    attacked, tuned = (work / f"{name}-{seed}{end}" for end in ("", "-finetuned"))
    given = ["--device", device]
    if Path(case["base"]).parent == work:  # what another case makes
        _checkpoints(cases, Path(case["base"]).name.removesuffix(f"-{seed}"), seed, work, device)
    if case["attack"] is None:
        make(attacked, ["purify", case["base"], "--method", "finetune", *case["train"], *given], seed)
    else:
        make(attacked, ["poison", case["base"], *case["attack"], *given], seed)
    command = ["purify", str(attacked), "--method", "finetune", "--clean", case["clean"], *case["victim"], *given]
    make(tuned, command, seed)
    return attacked, tuned


def _measured(case: Mapping[str, Any], model: Path, twin: Path, seed: int, device: str) -> dict[str, Any]:
    """CACC of model and twin, and the ASR of every trigger beside the twin's."""
    common = ["eval", str(model), str(twin), "--twin", str(twin), "--test", case["test"]]
    common += ["--seed", str(seed), "--device", device, "--format", "json", "--quiet"]
    triggers = [part for trigger in case.get("triggers", []) for part in ("--trigger", trigger)]
    targets = [case["target"]] if "target" in case else ["0", "1"]
    found = []
    for target in targets:
        what = ["--poisoned", case["poisoned"]] if "poisoned" in case else [*triggers, "--target", target]
        found.append(json.loads(run(common + what))["eval"]["checkpoints"])
    by_trigger = zip(*(subject["asr"] for subject, _ in found), strict=True)
    rates = [max(targets, key=lambda rate: float(rate["excess"]["value"])) for targets in by_trigger]
    for rate in rates:
        if rate["trigger"] == case.get("poisoned"):
            rate["trigger"] = tail(rate["trigger"])
    model_found, twin_found = found[0]
    return {
        "cacc": model_found["cacc"],
        "twin_cacc": twin_found["cacc"],
        "asr": rates,
        "asr_mean": sum(rate["rate"]["value"] for rate in rates) / len(rates),
        "floor_mean": sum(rate["floor"]["value"] for rate in rates) / len(rates),
        "lfr": model_found["lfr"],
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", required=True)
    parser.add_argument("--only", nargs="*", default=[], help="names of cases")
    parser.add_argument("--work", required=True, help="folder for checkpoints")
    parser.add_argument("--seed", nargs="+", type=int, default=[1])
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"], help="has a folder of its own in --work")
    parser.add_argument("--jobs", type=int, default=1, help="cases at a time")
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
