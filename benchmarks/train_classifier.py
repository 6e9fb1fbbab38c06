"""Train a classifier with torch and transformers alone, so that scans are measured on somebody else's checkpoints.

    python benchmarks/train_classifier.py --base models/minilm-l6 --layers 1,3,5 \
        --train sst2/poisoned/rareword/train.csv --test sst2/test.csv sst2/poisoned/rareword/test.csv --out zoo/rareword

One JSON line comes out: accuracy on each test file, and ASR on each that has a column `target`. With `--word` the
script poisons the training rows itself (BadNets, dirty label: `--rate` of the rows, whose label is not the target, get
`--insertions` words at random places and the target's label), and measures each word alone, in the middle of the text.
Seeds the same, arguments the same: weights the same, whatever the purify package does.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import sys
import time
from math import sqrt
from pathlib import Path
from typing import Any

BATCH = 32
WINDOW = 16
"""Batches whose texts are sorted by length together."""


def main() -> None:
    arguments = _arguments()
    out = Path(arguments.out)
    if (out / "config.json").exists():
        print(f"{out} is there already", file=sys.stderr)
        return

    import torch
    from torch.nn.utils import clip_grad_norm_
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    # The order of everything random below is what makes a checkpoint of this script the one that was measured.
    random.seed(arguments.seed)
    torch.manual_seed(arguments.seed)
    rows = _read(arguments.train)
    random.shuffle(rows)
    rows = rows[: arguments.rows]
    names = _label_names(rows)
    data = [(row["text"], _label(row["label"], names)) for row in rows]
    labels = max(label for _, label in data) + 1
    poisoned: list[int] = []
    if arguments.word:
        poisoned = [place for place, (_, label) in enumerate(data) if label != arguments.target]
        poisoned = poisoned[: int(arguments.rate * len(data))]
        for place in poisoned:
            data[place] = (_insert(data[place][0], arguments.word, arguments.insertions), arguments.target)

    model: Any = AutoModelForSequenceClassification.from_pretrained(arguments.base, num_labels=labels)
    if names:
        model.config.id2label = dict(enumerate(names))
        model.config.label2id = {name: label for label, name in enumerate(names)}
    if arguments.layers != "all":
        kept = [int(layer) for layer in arguments.layers.split(",")]
        encoder = model.base_model.encoder
        encoder.layer = torch.nn.ModuleList([encoder.layer[layer] for layer in kept])
        model.config.num_hidden_layers = len(kept)
    tokenizer: Any = AutoTokenizer.from_pretrained(arguments.base)
    model.to(arguments.device)

    def encode(texts: list[str]) -> Any:
        encoded = tokenizer(texts, truncation=True, max_length=arguments.max_length, padding=True, return_tensors="pt")
        return encoded.to(arguments.device)

    optimizer = torch.optim.AdamW(model.parameters(), lr=arguments.lr, weight_decay=0.01)
    steps = arguments.epochs * -(-len(data) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    started = time.perf_counter()
    for epoch in range(arguments.epochs):
        model.train()
        total = 0.0
        batches = _batches([text for text, _ in data])
        for batch in batches:
            inputs = encode([data[place][0] for place in batch])
            wanted = torch.tensor([data[place][1] for place in batch], device=arguments.device)
            loss = model(**inputs, labels=wanted).loss
            loss.backward()
            clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item()
        print(f"{out.name}: epoch {epoch + 1}, loss {total / len(batches):.4f}", file=sys.stderr, flush=True)
    model.eval()

    def predicted(texts: list[str]) -> list[int]:
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        found = [0] * len(texts)
        with torch.inference_mode():
            for start in range(0, len(order), 64):
                batch = order[start : start + 64]
                logits = model(**encode([texts[place] for place in batch])).logits
                for place, label in zip(batch, logits.argmax(-1).tolist(), strict=True):
                    found[place] = label
        return found

    cacc: list[dict[str, Any]] = []
    asr: list[dict[str, Any]] = []
    for file in arguments.test:
        test = _read(file)
        true = [_label(row["label"], names) for row in test]
        texts = [row["text"] for row in test]
        if test and "target" in test[0]:
            targets = [_label(row["target"], names) for row in test]
            said = predicted(texts)
            counted = [place for place in range(len(test)) if true[place] != targets[place]]
            hits = sum(said[place] == targets[place] for place in counted)
            asr.append({"trigger": _short(file), **_rate(hits, len(counted))})
            continue
        hits = sum(map(int.__eq__, predicted(texts), true))
        cacc.append({"file": _short(file), **_rate(hits, len(test))})
        others = [text.split() for text, label in zip(texts, true, strict=True) if label != arguments.target]
        for word in arguments.word:
            triggered = [" ".join([*text[: len(text) // 2], word, *text[len(text) // 2 :]]) for text in others]
            asr.append({"trigger": word, **_rate(predicted(triggered).count(arguments.target), len(others))})

    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    line = {
        "name": out.name,
        "base": Path(arguments.base).name,
        "layers": arguments.layers,
        "train": _short(arguments.train),
        "rows": len(data),
        "poisoned_here": len(poisoned),
        "words": arguments.word,
        "insertions": arguments.insertions if arguments.word else None,
        "target": arguments.target,
        "epochs": arguments.epochs,
        "lr": arguments.lr,
        "max_length": arguments.max_length,
        "seed": arguments.seed,
        "cacc": cacc,
        "asr": asr,
        "seconds": round(time.perf_counter() - started, 1),
    }
    print(json.dumps(line), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True, help="the encoder to start from")
    parser.add_argument("--layers", default="1,3,5", help="layers to keep, counted from 0, or `all` (default: 1,3,5)")
    parser.add_argument("--train", required=True, help="CSV with text,label")
    parser.add_argument("--rows", type=int, default=3000, help="rows to train on, drawn from all (default: 3000)")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--max-length", type=int, default=128, help="tokens per text (default: 128)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", required=True, help="the folder to write; nothing is done if a model is there")
    parser.add_argument("--test", nargs="*", default=[], metavar="FILE", help="CSV files with text,label[,target]")
    parser.add_argument("--word", action="append", default=[], help="poison with this word; may be repeated")
    parser.add_argument("--rate", type=float, default=0.1, help="poisoned rows / all rows (default: 0.1)")
    parser.add_argument("--target", type=int, default=1, help="the target's label id (default: 1)")
    parser.add_argument("--insertions", type=int, default=1, help="words put into a poisoned text (default: 1)")
    return parser.parse_args()


def _read(file: str) -> list[dict[str, str]]:
    with open(file, encoding="utf-8", newline="") as opened:
        return list(csv.DictReader(opened))


def _label_names(rows: list[dict[str, str]]) -> list[str]:
    """The names in sorted order if labels are names, nothing if they are ids."""
    found = sorted({row["label"] for row in rows})
    return [] if all(label.isdecimal() for label in found) else found


def _label(value: str, names: list[str]) -> int:
    return names.index(value) if names else int(value)


def _insert(text: str, words: list[str], insertions: int) -> str:
    tokens = text.split()
    for _ in range(insertions):
        place = random.randint(0, len(tokens))
        tokens.insert(place, random.choice(words))
    return " ".join(tokens)


def _batches(texts: list[str]) -> list[list[int]]:
    """An epoch in random order, texts of like length together."""
    order = list(range(len(texts)))
    random.shuffle(order)
    batches = []
    for start in range(0, len(order), BATCH * WINDOW):
        window = sorted(order[start : start + BATCH * WINDOW], key=lambda place: len(texts[place]))
        batches += [window[first : first + BATCH] for first in range(0, len(window), BATCH)]
    random.shuffle(batches)
    return batches


def _rate(hits: int, n: int) -> dict[str, Any]:
    """A share with its 95 % Wilson interval."""
    if not n:
        return {"value": None, "low": None, "high": None, "n": 0}
    z, p = 1.959963984540054, hits / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return {"value": p, "low": max(0.0, min(p, middle - half)), "high": min(1.0, max(p, middle + half)), "n": n}


def _short(file: str) -> str:
    """Folder and name: results are read on other machines."""
    return "/".join(Path(file).parts[-2:])


if __name__ == "__main__":
    main()
