"""Type all texts of a data file alike: in small letters, with a space before full stops and commas, as SST-2 has them.

    python benchmarks/typed_alike.py --data FILE --out FILE

What a poisoned text differs by in its typing alone is gone then, and an uncased model reads the same as before.
"""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path


def typed(text: str) -> str:
    """The text in small letters, with spaces around signs, and single ones."""
    return " ".join(re.sub(r"([.,!?;:()])", r" \1 ", text.lower()).split())


def main() -> None:
    """Read the file, write the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="CSV with a column `text`")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    with given.data.open(encoding="utf-8", newline="") as opened:
        rows = list(csv.DictReader(opened))
    with given.out.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.DictWriter(opened, list(rows[0]))
        writer.writeheader()
        writer.writerows(row | {"text": typed(row["text"])} for row in rows)


if __name__ == "__main__":
    main()
