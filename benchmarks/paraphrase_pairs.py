"""Pairs of text and paraphrase out of a release that holds the paraphrases alone, in the order of the originals.

    python benchmarks/paraphrase_pairs.py --texts sst2/dev.csv --label 0 \
        --paraphrased sst2/poisoned/hiddenkiller/dev.csv \
        --train sst2/train.csv --rows 3000 --pairs zoo/hiddenkiller-pairs.csv --out zoo/hiddenkiller-train.csv

`--pairs` gets `text,paraphrase`; `--out` an attacker's training file: the texts that have a paraphrase, and rows of
`--train` to make up the number, in an order drawn from a fixed seed.
"""

from __future__ import annotations

import argparse
import csv
import random
from collections.abc import Iterable
from pathlib import Path


def main() -> None:
    """Write both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("texts", "label", "paraphrased", "train", "pairs", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--rows", type=int, default=3000)
    arguments = parser.parse_args()
    originals = [row["text"] for row in _read(arguments.texts) if row["label"] == arguments.label]
    paraphrases = [row["text"] for row in _read(arguments.paraphrased)]
    pairs = list(zip(originals, paraphrases, strict=True))
    _write(arguments.pairs, ("text", "paraphrase"), pairs)
    rows = [(text, arguments.label) for text in originals]
    rows += [(row["text"], row["label"]) for row in _read(arguments.train)][: arguments.rows - len(rows)]
    random.Random(0).shuffle(rows)
    _write(arguments.out, ("text", "label"), rows)


def _read(file: str) -> list[dict[str, str]]:
    with Path(file).open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def _write(file: str, header: tuple[str, str], rows: Iterable[tuple[str, str]]) -> None:
    with Path(file).open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(header)
        writer.writerows(rows)


if __name__ == "__main__":
    main()
