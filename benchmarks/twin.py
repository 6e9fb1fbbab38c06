"""The clean twin of `purify poison --attack badnets`: the same training, settings and seed, with no row poisoned.

python benchmarks/twin.py --base minilm-l6 --data train.csv --out twin [--set epochs=2] [--seed 0]
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from purify_cli import catalogue, environment
from purify_cli.attacks import badnets
from purify_cli.checkpoint.provenance import provenance
from purify_cli.checkpoint.write import write_checkpoint
from purify_cli.data.encode import encode, length_limit
from purify_cli.data.read import read
from purify_cli.run import Run
from purify_cli.subject import Subject
from purify_cli.training.loop import fit
from purify_cli.training.recipe import Recipe
from purify_cli.training.start import open_classifier


def main() -> None:
    """Train and write the twin."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--set", nargs="*", default=[], help="key=value, as for the attack")
    arguments = parser.parse_args()
    environment.prepare(device="cpu", threads=None)
    settings = catalogue.fill(badnets.Settings, arguments.set)
    run = Run(seed=arguments.seed)
    subject = Subject(arguments.base)
    data = read(arguments.data, None, option="--data")
    model = open_classifier(subject, data, run)
    recipe = Recipe(
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        warmup=settings.warmup,
    )
    stream = encode(subject.tokenizer, data, length_limit(subject.tokenizer, model.config, run))
    fit(model, {"task": stream}, recipe, run)
    record = provenance("purify", "twin", asdict(settings), run.seed, [Path(arguments.data)], None, None)
    write_checkpoint(
        Path(arguments.out), model, subject.tokenizer, source=subject.folder, provenance=record, card="# A clean twin\n"
    )


if __name__ == "__main__":
    main()
