"""The first words of long texts, and the same with triggers in them, so that no trigger is lost to the length limit.

python benchmarks/first_words.py --data DATA/lingspam/test.csv --out zoo/lingspam/test.csv \
    --triggers cf mn bb tq mb --insertions 10 --target 0 --triggered zoo/lingspam/triggered.csv
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from purify_cli.data.read import read
from purify_cli.data.texts import Texts
from purify_cli.training.poisoned import insert_some
from purify_cli.triggers.words import Words


def main() -> None:
    """Write one file, or both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="text,label with label ids")
    parser.add_argument("--words", type=int, default=60, help="kept of each text")
    parser.add_argument("--rows", type=int, default=None, help="kept of the file; all, if left out")
    parser.add_argument("--out", required=True)
    parser.add_argument("--triggers", nargs="+", default=[])
    parser.add_argument("--insertions", type=int, default=1, help="triggers a text, drawn with repetition")
    parser.add_argument("--target", type=int, default=1)
    parser.add_argument("--triggered", help="file of the triggered texts of other labels")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    texts = read(arguments.data, None)
    texts = texts.take(range(min(arguments.rows or len(texts), len(texts))))
    texts = texts.with_(texts=tuple(" ".join(text.split()[: arguments.words]) for text in texts.texts))
    _write(arguments.out, texts)
    if arguments.triggered is not None:
        others = texts.take([row for row, label in enumerate(texts.labels or ()) if label != arguments.target])
        triggers = [Words(trigger) for trigger in arguments.triggers]
        triggered = insert_some(others, triggers, arguments.seed, insertions=arguments.insertions)
        _write(arguments.triggered, triggered, target=arguments.target)


def _write(file: str, texts: Texts, target: int | None = None) -> None:
    rows: Sequence[tuple[str, float]] = list(zip(texts.texts, texts.labels or (), strict=True))
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    with Path(file).open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "label"] + ([] if target is None else ["target"]))
        writer.writerows([*row] if target is None else [*row, target] for row in rows)


if __name__ == "__main__":
    main()
