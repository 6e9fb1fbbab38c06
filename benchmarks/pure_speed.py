"""PURE's wall time, ours against the same steps done the reference's way (pure_reference.py), on the same rows.

    python benchmarks/pure_speed.py --model zoo/rareword --clean sst2/train.csv --rows 2000 \
        --out benchmarks/results/speed.jsonl

Both ways share rows, split, seed, starting weights, learning rate, epochs, steps and threads, and run in one process,
ours first. From the same f_p both choose their heads; if these differ, that is said and the exit code is 1. One JSON
line comes out.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any


def main() -> int:
    arguments = _arguments()

    import pure_reference
    import torch

    from purify_cli import catalogue, environment
    from purify_cli.data.encode import encode, length_limit
    from purify_cli.data.read import read
    from purify_cli.data.split import split
    from purify_cli.evaluation.predict import predict
    from purify_cli.purifiers import pure
    from purify_cli.run import Run
    from purify_cli.subject import Subject
    from purify_cli.training.loop import fit
    from purify_cli.training.start import open_classifier

    environment.prepare(device="cpu", threads=arguments.threads)
    settings = pure.Settings()
    if arguments.settings == "paper":
        settings = replace(
            settings,
            layer_weights="paper",
            fresh_classifier=True,
            min_accuracy=0.85,
            penalty=0.15,
            learning_rate=2e-5,
            warmup=0.0,
        )
    changed = catalogue.fill(pure.Settings, arguments.set)
    keys = [item.partition("=")[0] for item in arguments.set]
    settings = replace(settings, **{key: getattr(changed, key) for key in keys})
    if arguments.epochs is not None:
        settings = replace(settings, epochs=arguments.epochs)

    run = Run(seed=arguments.seed)
    subject = Subject(arguments.model)
    settings = pure.resolved(settings, subject)
    tokenizer: Any = subject.tokenizer
    clean = read(arguments.clean, subject.labels)
    train, dev = split(clean.take(range(min(arguments.rows, len(clean)))), 0.1, arguments.seed)
    timed: dict[str, dict[str, float]] = {}

    def clock(part: str, way: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = work()
        timed.setdefault(part, {})[way] = time.perf_counter() - started
        print(f"{part:10} {way:10} {timed[part][way]:8.1f} s", file=sys.stderr, flush=True)
        return result

    # What is loaded on first use belongs to neither.
    warm = open_classifier(subject, train, run, fresh=settings.fresh_classifier)
    limit = length_limit(tokenizer, warm.config, run)
    predict(warm, tokenizer, dev.take(range(min(8, len(dev)))), run)
    del warm

    # Ours
    def tune_ours() -> Any:
        model = open_classifier(subject, train, run, fresh=settings.fresh_classifier)
        fit(model, {"task": encode(tokenizer, train, limit)}, pure._recipe(settings, identity="speed"), run)
        return model

    f_p = clock("fine-tune", "ours", tune_ours)
    pruning = clock("choose", "ours", lambda: pure.prune_by_score(f_p, tokenizer, dev, settings, run))
    _, report = clock("normalize", "ours", lambda: pure.normalized(subject, train, pruning, settings, run))

    # The reference's way
    labels = {"train": train.labels, "dev": dev.labels}
    common: dict[str, Any] = {
        "epochs": settings.epochs,
        "learning_rate": settings.learning_rate,
        "batch_size": settings.batch_size,
        "seed": arguments.seed,
        "eager_everywhere": arguments.eager_everywhere,
    }
    padded: dict[str, pure_reference.Padded] = {}

    def tune_reference() -> int:
        padded["train"] = pure_reference.pad_all(tokenizer, train.texts, labels["train"], limit)
        model = open_classifier(subject, train, run, fresh=settings.fresh_classifier)
        return pure_reference.tune(model, padded["train"], **common)

    def choose_reference() -> pure_reference.Chosen:
        padded["dev"] = pure_reference.pad_all(tokenizer, dev.texts, labels["dev"], limit)
        return pure_reference.choose_heads(
            f_p,
            padded["dev"],
            step=settings.prune_step,
            drop=settings.prune_drop,
            min_accuracy=settings.min_accuracy,
            eager_everywhere=arguments.eager_everywhere,
        )

    def normalize_reference() -> int:
        model = open_classifier(subject, train, run, fresh=settings.fresh_classifier)
        pure_reference.cut_heads(model, chosen.heads)
        weights = pure_reference.layer_weights(chosen.layer_scores, settings.layer_weights)
        penalty = {"penalty": settings.penalty, "layer_weights": weights}
        return pure_reference.tune(model, padded["train"], **common, **penalty)

    clock("fine-tune", "reference", tune_reference)
    chosen = clock("choose", "reference", choose_reference)
    steps = clock("normalize", "reference", normalize_reference)

    ways = ("ours", "reference")
    timed["total"] = {way: sum(part[way] for part in timed.values()) for way in ways}
    same = set(chosen.heads) == set(pruning.heads)
    layers, heads = pruning.scores.shape
    tokens = [len(ids) for ids in encode(tokenizer, train, limit).ids]
    line = {
        "model": Path(arguments.model).name,
        "layers": layers,
        "heads": heads,
        "rows": len(train) + len(dev),
        "train": len(train),
        "dev": len(dev),
        "mean_tokens": round(sum(tokens) / len(tokens), 1),
        "max_length": limit,
        "seed": arguments.seed,
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "preset": arguments.settings,
        "set": arguments.set,
        "settings": asdict(settings),
        "eager_everywhere": arguments.eager_everywhere,
        "steps": {"ours": report["steps"], "reference": steps},
        "seconds": {part: {way: round(took[way], 2) for way in ways} for part, took in timed.items()},
        "ratio": {part: round(took["reference"] / took["ours"], 2) for part, took in timed.items()},
        "pruned": len(pruning.heads),
        "copies": chosen.evaluations,
        "same_heads": same,
        "largest_score_difference": float((chosen.scores - pruning.scores).abs().max()),
        "least_score_gap": float(pruning.scores.flatten().sort().values.diff().min()),
    }
    text = json.dumps(line)
    print(text, flush=True)
    if arguments.out:
        with Path(arguments.out).open("a", encoding="utf-8") as file:
            file.write(text + "\n")
    if line["steps"]["ours"] != steps:
        print(f"the two took different numbers of steps: {line['steps']}", file=sys.stderr)
        return 1
    if not same:
        print(f"not the same heads: {sorted(pruning.heads)} and {sorted(chosen.heads)}", file=sys.stderr)
        return 1
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a BERT checkpoint, classifier or encoder")
    parser.add_argument("--clean", required=True, help="labelled texts")
    parser.add_argument("--rows", type=int, default=2000, help="the first rows; a tenth is dev (default: 2000)")
    parser.add_argument("--epochs", type=int, help="of both fine-tunings (default: the settings')")
    parser.add_argument("--settings", choices=["ours", "paper"], default="ours", help="defaults, or the paper's")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings to change")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--threads", type=int, help="CPU threads (default: as torch finds them)")
    parser.add_argument(
        "--eager-everywhere",
        action="store_true",
        help="the reference never uses fused attention; by default it does where it needs no map",
    )
    parser.add_argument("--out", help="append the line to this file too")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
