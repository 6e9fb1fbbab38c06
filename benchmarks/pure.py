"""PURE against one backdoored checkpoint: before, fine-tuning, pruning alone, normalization alone, both; one JSON
line a cell.

    python benchmarks/pure.py --model zoo/rareword --twin zoo/sst2-clean --clean sst2/train.csv --test sst2/test.csv \
        --poisoned sst2/poisoned/rareword/test.csv --out benchmarks/results/pure.jsonl

Cells already in the output file are not run again. The clean rows are the first ROWS of the file; a tenth of them is
dev. The test files are used for nothing but the figures. ASR is measured on the poisoned file, the floor is the
twin's rate on the same file.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from purify_cli import environment
from purify_cli.data.encode import encode, length_limit
from purify_cli.data.read import read
from purify_cli.data.split import split
from purify_cli.evaluation.measure import Twin, measure
from purify_cli.purifiers import pure
from purify_cli.run import Run
from purify_cli.subject import Subject
from purify_cli.training.loop import fit
from purify_cli.training.start import open_classifier

PAPER = pure.Settings(
    layer_weights="paper", fresh_classifier=True, min_accuracy=0.85, penalty=0.15, learning_rate=2e-5, warmup=0.0
)
OURS = pure.Settings()
CELLS: dict[str, tuple[str, pure.Settings]] = {
    "finetune": ("f_p", OURS),
    "prune-only": ("both", replace(OURS, normalize=False)),
    "normalize-only": ("both", replace(OURS, prune=False)),
    "pure": ("both", OURS),
    "paper-finetune": ("f_p", PAPER),
    "paper-pure": ("both", PAPER),
}


def main() -> None:
    """Run the cells that are asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--twin", required=True, help="the same training without poison")
    parser.add_argument("--clean", required=True)
    parser.add_argument("--rows", type=int, default=3000)
    parser.add_argument("--test", required=True)
    parser.add_argument("--poisoned", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--cells",
        nargs="*",
        default=["finetune", "prune-only", "normalize-only", "pure"],
        help="NAME, or NAME:key=value,key=value to try other settings",
    )
    arguments = parser.parse_args()
    environment.prepare(device="cpu", threads=None)

    from purify_cli import catalogue

    attack = Path(arguments.model).name
    out = Path(arguments.out)
    have = {
        (row["attack"], row["cell"], row["seed"])
        for row in map(json.loads, out.read_text().splitlines() if out.exists() else [])
    }
    run = Run(seed=arguments.seed)
    subject, twin = Subject(arguments.model), Subject(arguments.twin)
    clean = read(arguments.clean, subject.labels)
    train, dev = split(clean.take(range(min(arguments.rows, len(clean)))), 0.1, arguments.seed)
    test, poisoned = read(arguments.test, subject.labels), read(arguments.poisoned, subject.labels)

    def figures(model: Any) -> dict[str, Any]:
        found = measure(
            model,
            subject.tokenizer,
            subject.labels,
            arguments.model,
            test,
            poisoned=poisoned,
            twin=Twin(twin.model("cpu"), twin.tokenizer),
            run=run,
        )
        # Of paths their end is enough: the results are published.
        rates = tuple(replace(rate, trigger="/".join(Path(rate.trigger).parts[-2:])) for rate in found.asr)
        return asdict(replace(found, path=attack, asr=rates))

    tuned: dict[tuple[Any, ...], Any] = {}

    def f_p(settings: pure.Settings) -> Any:
        key = (settings.fresh_classifier, settings.learning_rate, settings.warmup, settings.epochs, settings.batch_size)
        if key not in tuned:
            model = open_classifier(subject, train, run, fresh=settings.fresh_classifier)
            stream = {"task": encode(subject.tokenizer, train, length_limit(subject.tokenizer, model.config, run))}
            fit(model, stream, pure._recipe(settings, identity="PURE step 1"), run)
            tuned[key] = model
        return tuned[key]

    for cell in ["before", *arguments.cells]:
        if (attack, cell, arguments.seed) in have:
            continue
        started = time.perf_counter()
        report: dict[str, Any] = {}
        settings = None
        if cell == "before":
            model = subject.open("cpu")
        else:
            name, _, other = cell.partition(":")
            kind, settings = CELLS[name]
            assignments = other.split(",") if other else []
            changed = catalogue.fill(pure.Settings, assignments)
            keys = [item.partition("=")[0] for item in assignments]
            settings = pure.resolved(replace(settings, **{key: getattr(changed, key) for key in keys}), subject)
            model = f_p(settings)
            if kind == "both":
                pruning = pure.prune_by_score(model, subject.tokenizer, dev, settings, run)
                model, report = pure.normalized(subject, train, pruning, settings, run)
        line = {
            "attack": attack,
            "cell": cell,
            "seed": arguments.seed,
            "rows": len(train),
            "settings": None if settings is None else asdict(settings),
            "seconds": round(time.perf_counter() - started, 1),
            "pruned": len(report.get("pruned", [])),
            "metrics": figures(model),
        }
        with out.open("a") as file:
            file.write(json.dumps(line) + "\n")
        found = line["metrics"]["asr"][0]
        excess = found["excess"]
        interval = f"[{excess['low']:+.3f}, {excess['high']:+.3f}]"
        print(
            f"{attack:14} {cell:40} CACC {line['metrics']['cacc']['value']:.3f}  ASR {found['rate']['value']:.3f}  "
            f"floor {found['floor']['value']:.3f}  excess {excess['value']:+.3f} {interval}  pruned {line['pruned']}  "
            f"{line['seconds']} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
