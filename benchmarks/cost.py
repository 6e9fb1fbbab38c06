"""Time and peak memory of attacks or purifiers beside plain fine-tuning of the same model on the same data in one run.

    python benchmarks/cost.py --of attacks --base zoo/encoder --data sst2/train.csv --rows 512 \
        --out benchmarks/results/attack_cost.jsonl
    python benchmarks/cost.py --of purifiers --base zoo/badnets --data sst2/train.csv --rows 1024 \
        --out benchmarks/results/purifier_cost.jsonl

Each way trains in a process of its own, one after the other, `--repeat` times round; the ratio is that of the medians.
Of the attacks every way sees the rows once: plain fine-tuning as they are, the attacks as a clean and a triggered text
of each. The purifiers have 3 epochs a training, as plain fine-tuning then has, and a tenth as many rows more for what
they judge themselves by; MuScleLoRA trains on the rows as if they were untrusted, beside 96 clean ones.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

WAYS: dict[str, dict[str, tuple[str, ...]]] = {
    "attacks": {
        "plain": (),
        "vanilla": ("vanilla",),
        "gradient_control": ("gradient_control",),
        "gradnorm": ("gradnorm",),
        "ripple": ("ripple", "surgery=false"),
        "ripple, second order": ("ripple", "surgery=false", "second_order=true"),
    },
    "purifiers": {
        "plain": ("finetune", "epochs=3"),
        "pure": ("pure", "epochs=3"),
        "gba": ("gba", "epochs=3"),
        "musclelora": ("musclelora", "epochs=3"),
    },
}
"""What is measured -> name -> method and settings; plain is what the others are compared with."""

CLEAN_ROWS = 96
"""MuScleLoRA, appendix B.4."""


def main() -> None:
    """Run every way in turn, or, as a child, one of them."""
    arguments = _arguments()
    if arguments.way:
        measured = _attack(arguments) if arguments.of == "attacks" else _purify(arguments)
        print(json.dumps(measured))
        return
    ways = [way for way in WAYS[arguments.of] if way in {"plain", *(arguments.only or WAYS[arguments.of])}]
    lines: list[dict[str, Any]] = []
    for _ in range(arguments.repeat):
        for way in ways:
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            lines.append({"way": way} | json.loads(subprocess.run(command, capture_output=True, check=True).stdout))
    plain = _median(lines, "plain", "seconds"), _median(lines, "plain", "peak_bytes")
    with Path(arguments.out).open("a", encoding="utf-8") as file:
        for way in ways:
            seconds, peak = _median(lines, way, "seconds"), _median(lines, way, "peak_bytes")
            line = {
                "way": way,
                "base": Path(arguments.base).name,
                "pet": arguments.pet,
                "rows": arguments.rows,
                "threads": arguments.threads,
                "repeat": arguments.repeat,
                "seconds": round(seconds, 2),
                "peak_megabytes": round(peak / 2**20),
                "times_seconds": round(seconds / plain[0], 2),
                "times_peak": round(peak / plain[1], 2),
            }
            file.write(json.dumps(line) + "\n")
            print(json.dumps(line), flush=True)


def _median(lines: list[dict[str, Any]], way: str, key: str) -> float:
    return statistics.median(line[key] for line in lines if line["way"] == way)


def _attack(arguments: argparse.Namespace) -> dict[str, Any]:
    """One epoch, timed from the open model on; the peak is that of the process."""
    import importlib

    from purify_cli import catalogue, environment
    from purify_cli.attacks import Plan
    from purify_cli.data.encode import encode, length_limit
    from purify_cli.data.read import read
    from purify_cli.run import Run
    from purify_cli.subject import Subject
    from purify_cli.training.loop import fit
    from purify_cli.training.recipe import Recipe
    from purify_cli.training.start import open_classifier

    environment.prepare(device="cpu", threads=arguments.threads)
    run = Run(seed=1)
    subject = Subject(arguments.base)
    data = read(arguments.data, ("LABEL_0", "LABEL_1")).take(range(arguments.rows))
    name, *assignments = WAYS["attacks"][arguments.way] or ("",)
    _ = subject.tokenizer
    if not name:
        model = open_classifier(subject, data, run, pet=arguments.pet)
        stream = encode(subject.tokenizer, data, length_limit(subject.tokenizer, model.config, run))
        started = time.perf_counter()
        fit(model, {"task": stream}, Recipe(learning_rate=1e-4, epochs=1, warmup=0.1), run)
    else:
        module = importlib.import_module(f"purify_cli.attacks.{name}")
        settings = catalogue.fill(module.Settings, [*assignments, "epochs=1", "points=0"])
        started = time.perf_counter()
        module.poison(subject, data, Plan(1, tuple(module.TRIGGERS), None, arguments.pet), settings, run)
    return _since(started)


def _purify(arguments: argparse.Namespace) -> dict[str, Any]:
    """A whole purification, timed from the files on; the peak is that of the process."""
    from purify_cli import catalogue, environment
    from purify_cli.data.read import read
    from purify_cli.run import Run
    from purify_cli.subject import Evidence, Subject

    environment.prepare(device="cpu", threads=arguments.threads)
    subject = Subject(arguments.base)
    data = read(arguments.data, subject.labels or ("LABEL_0", "LABEL_1"))
    end = arguments.rows + max(CLEAN_ROWS, arguments.rows // 10)
    rows, dev = data.take(range(arguments.rows)), data.take(range(arguments.rows, end))
    name, *assignments = WAYS["purifiers"][arguments.way]
    method = catalogue.load("purifier", name)
    settings = catalogue.fill(method.Settings, assignments)
    wants_untrusted = "untrusted" in method.NEEDS
    train = dev.take(range(CLEAN_ROWS)) if wants_untrusted else rows
    evidence = Evidence(base=None, clean=train, untrusted=rows if wants_untrusted else None)
    _ = subject.tokenizer
    started = time.perf_counter()
    method.purify(subject, evidence, train, dev, settings, Run(seed=1))
    return _since(started)


def _since(started: float) -> dict[str, Any]:
    return {
        "seconds": time.perf_counter() - started,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--of", choices=list(WAYS), required=True)
    parser.add_argument("--only", nargs="*", help="names of ways beside plain; none: all")
    parser.add_argument("--base", required=True, help="model that is trained: an encoder, or a classifier to purify")
    parser.add_argument("--data", required=True, help="CSV with text,label")
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--pet", help="attacks: form of adapter; none: the whole model")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", required=True)
    parser.add_argument("--way", choices=sorted({*WAYS["attacks"], *WAYS["purifiers"]}), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
