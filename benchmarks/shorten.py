"""An encoder with some of its layers: the small model that the grids run on.

python benchmarks/shorten.py --base all-MiniLM-L6-v2 --layers 1,3,5 --out zoo/encoder
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import AutoModel, AutoTokenizer


def main() -> None:
    """Write the encoder, unless it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument("--layers", default="1,3,5", help="layers to keep, counted from 0 (default: 1,3,5)")
    parser.add_argument("--out", required=True)
    arguments = parser.parse_args()
    if (Path(arguments.out) / "config.json").exists():
        return
    model = AutoModel.from_pretrained(arguments.base)
    kept = [int(layer) for layer in arguments.layers.split(",")]
    model.encoder.layer = torch.nn.ModuleList([model.encoder.layer[layer] for layer in kept])
    model.config.num_hidden_layers = len(kept)
    model.save_pretrained(arguments.out)
    AutoTokenizer.from_pretrained(arguments.base).save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
