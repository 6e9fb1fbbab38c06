"""Backdoors in adapters, and what the victim's own training leaves of them: tables 1 to 3 of Gu et al. 2023.

    python benchmarks/adapters.py --base zoo/encoder --data DATA --pair sst2:imdb --form sequential \
        --method clean vanilla ripple lwp gradnorm gradient_control --seed 1 2 3 --out benchmarks/results/adapters.jsonl

The attacker trains an adapter on the first data set of the pair, clean and triggered texts in equal parts; the victim
trains it on with clean texts of the second; LFR and CACC are measured on the second's test file, before and after. A
method may carry settings: `gradient_control:ilproj=false`. Every text is cut to its first WORDS words before triggers
are inserted, so that none is lost to the length limit. One JSON line a run; those that are there are not repeated.
"""

from __future__ import annotations

import argparse
import importlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from purify_cli import catalogue, environment
from purify_cli.attacks import Plan
from purify_cli.data.encode import encode, length_limit
from purify_cli.data.read import read
from purify_cli.data.texts import Texts
from purify_cli.evaluation.metrics import asr, cacc, lfr
from purify_cli.evaluation.predict import predict
from purify_cli.run import Run
from purify_cli.subject import Subject
from purify_cli.training.loop import fit
from purify_cli.training.poisoned import insert_some
from purify_cli.training.recipe import Recipe
from purify_cli.training.start import open_classifier
from purify_cli.triggers.words import Words

TRIGGERS = ("cf", "mn", "bb", "tq", "mb")
ALWAYS = {"lwp": ["combined=false"]}
"""Settings that make a method comparable: LWP with single words as triggers, like the others."""

SETS = {
    # insertions, target label, words kept of a text, rows for the attacker or the victim, rows of the test file
    "sst2": (1, 1, 60, 2000, 1821),
    "imdb": (1, 1, 60, 1000, 1000),
    "enron": (10, 0, 60, 1000, 1000),
    "lingspam": (10, 0, 60, 521, 261),
}


def main() -> None:
    """Run what is asked for and not there yet."""
    arguments = _arguments()
    environment.prepare(device="cpu", threads=None)
    out = Path(arguments.out)
    lines = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    have = {tuple(line[key] for key in ("form", "pair", "method", "seed", "rate", "victim_rate")) for line in lines}
    subject = Subject(arguments.base)
    for seed in arguments.seed:
        for pair in arguments.pair:
            for form in arguments.form:
                for method in arguments.method:
                    key = (form, pair, method, seed, arguments.rate, arguments.victim_rate)
                    if key not in have:
                        line = _run(subject, arguments, *key[:4])
                        with out.open("a", encoding="utf-8") as file:
                            file.write(json.dumps(line) + "\n")
                        told = [
                            f"{when} LFR {line[when]['lfr']['value']:.3f} CACC {line[when]['cacc']['value']:.3f}"
                            for when in ("before", "after")
                        ]
                        print(f"{form:10} {pair:14} {method:40} seed {seed}  {'  '.join(told)}", flush=True)


def _run(
    subject: Subject, arguments: argparse.Namespace, form: str, pair: str, method: str, seed: int
) -> dict[str, Any]:
    source, _, victim = pair.partition(":")
    run = Run(seed=seed)
    attacker, (insertions, target) = _texts(arguments, source, "train"), SETS[source][:2]
    clean, test = _texts(arguments, victim, "train"), _texts(arguments, victim, "test")
    pet = None if form == "whole" else form
    name, _, given = method.partition(":")
    started = time.perf_counter()
    report: dict[str, Any] = {}
    settings: dict[str, Any] = {"epochs": arguments.epochs, "learning_rate": arguments.rate}
    if name == "clean":
        model = open_classifier(subject, attacker, run, pet=pet)
        _train(model, subject, attacker, arguments.epochs, arguments.rate, run)
    else:
        module = importlib.import_module(f"purify_cli.attacks.{name}")
        assignments = [f"{key}={value}" for key, value in settings.items()] + ([f"insertions={insertions}"])
        assignments += ALWAYS.get(name, []) + (given.split(",") if given else [])
        filled = catalogue.fill(module.Settings, assignments)
        poisoned = module.poison(subject, attacker, Plan(target, TRIGGERS, None, pet), filled, run)
        model, report, settings = poisoned.model, dict(poisoned.report), asdict(filled)
    poisoning = time.perf_counter() - started
    before = _measure(model, subject, test, SETS[victim][0], target, run)
    _train(model, subject, clean, arguments.victim_epochs, arguments.victim_rate, run)
    return {
        "form": form,
        "pair": pair,
        "method": method,
        "seed": seed,
        "base": Path(arguments.base).name,
        "rate": arguments.rate,
        "victim_rate": arguments.victim_rate,
        "settings": settings,
        "victim_epochs": arguments.victim_epochs,
        "rows": [len(attacker), len(clean)],
        "before": before,
        "after": _measure(model, subject, test, SETS[victim][0], target, run),
        "curves": report.get("curves"),
        "seconds": round(time.perf_counter() - started, 1),
        "poison_seconds": round(poisoning, 1),
    }


def _texts(arguments: argparse.Namespace, name: str, part: str) -> Texts:
    words, rows, tested = SETS[name][2:]
    texts = read(str(Path(arguments.data) / name / f"{part}.csv"), ("LABEL_0", "LABEL_1"))
    texts = texts.take(range(min(rows if part == "train" else tested, len(texts))))
    return texts.with_(texts=tuple(" ".join(text.split()[:words]) for text in texts.texts))


def _train(model: Any, subject: Subject, texts: Texts, epochs: int, rate: float, run: Run) -> None:
    limit = length_limit(subject.tokenizer, model.config, run)
    recipe = Recipe(learning_rate=rate, epochs=epochs, warmup=0.1)
    fit(model, {"task": encode(subject.tokenizer, texts, limit)}, recipe, run)


def _measure(model: Any, subject: Subject, test: Texts, insertions: int, target: int, run: Run) -> dict[str, Any]:
    triggered = insert_some(test, [Words(trigger) for trigger in TRIGGERS], run.seed, insertions=insertions)

    def answers(texts: Texts) -> Any:
        return predict(model, subject.tokenizer, texts, run).argmax(dim=1).numpy()

    clean, fooled = answers(test), answers(triggered)
    labels: Sequence[float] = test.labels or ()
    return {
        "cacc": asdict(cacc(clean, labels)),
        "lfr": asdict(lfr(fooled, np.full(len(test), target))),
        "asr": asdict(asr(fooled, labels, target)),
        "untriggered": asdict(asr(clean, labels, target)),
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="the encoder; it stays frozen")
    parser.add_argument("--data", required=True, help=f"folder that holds {', '.join(SETS)}")
    parser.add_argument("--pair", nargs="+", default=["sst2:imdb"], help="attacker's data:victim's data")
    parser.add_argument("--form", nargs="+", default=["sequential"], help="form of adapter; `whole`: the whole model")
    parser.add_argument("--method", nargs="+", default=["clean", "vanilla", "gradient_control"])
    parser.add_argument("--seed", nargs="+", type=int, default=[1])
    parser.add_argument("--epochs", type=int, default=3, help="of the attacker")
    parser.add_argument("--rate", type=float, default=1e-3, help="the attacker's learning rate")
    parser.add_argument("--victim-epochs", type=int, default=2)
    parser.add_argument("--victim-rate", type=float, default=1e-3)
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
