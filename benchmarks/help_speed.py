"""How long `purify --help` takes beside `import torch`, in turns; the ratio of the medians.

python benchmarks/help_speed.py --repeat 7 --out benchmarks/results/help.jsonl
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

WAYS = {
    "purify --help": [sys.executable, "-m", "purify_cli", "--help"],
    "import torch": [sys.executable, "-c", "import torch"],
}


def main() -> None:
    """Time both and append one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=7)
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(arguments.repeat):
        for way, command in WAYS.items():
            started = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds[way].append(time.perf_counter() - started)
    median = {way: statistics.median(found) for way, found in seconds.items()}
    line = {
        "repeat": arguments.repeat,
        "seconds": {way: round(found, 3) for way, found in median.items()},
        "share": round(median["purify --help"] / median["import torch"], 3),
    }
    with Path(arguments.out).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    print(json.dumps(line))


if __name__ == "__main__":
    main()
