"""What comes of a backdoor when rows of the embedding are replaced and nothing is trained: where GBA's reading is from.

    python benchmarks/merged_rows.py --model zoo/attacks/badnets-1 zoo/attacks/ripple-1 zoo/attacks/embedding-1 \
        --clean $ROWS --test DATA/sst2/dev.csv --target 1 --out benchmarks/results/merged_rows.jsonl

The rows of words that no clean text has are replaced by: the mean row of the clean texts' tokens (the crowd), the mean
of the used rows, [UNK]'s, or the mean of the nearest used rows (cosine). Each text gets one of the triggers. One JSON
line a model and a way; of those that are there twice the page shows the last.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from purify_cli import environment
from purify_cli.architecture.embeddings import word_embeddings
from purify_cli.data.encode import encode, length_limit
from purify_cli.data.read import read
from purify_cli.data.usage import Usage
from purify_cli.evaluation.metrics import asr, cacc
from purify_cli.evaluation.predict import predict
from purify_cli.run import Run
from purify_cli.subject import Subject
from purify_cli.training.poisoned import insert_some
from purify_cli.triggers.words import Words

TRIGGERS = {"embedding": ("cf",)}
"""By the first word of the folder's name, where they are not the five of BadNets."""


def main() -> None:
    """Every way on every model."""
    arguments = _arguments()
    environment.prepare(device="cpu", threads=None)
    run = Run(seed=arguments.seed)
    for path in map(Path, arguments.model):
        subject = Subject(path)
        model, tokenizer = subject.open("cpu"), subject.tokenizer
        clean, test = (read(file, subject.labels) for file in (arguments.clean, arguments.test))
        words = TRIGGERS.get(path.name.partition("-")[0], ("cf", "mn", "bb", "tq", "mb"))
        triggered = insert_some(test, [Words(word) for word in words], run.seed)
        weight = word_embeddings(model).weight.requires_grad_(False)
        given = weight.clone()
        stream = encode(tokenizer, clean, length_limit(tokenizer, model.config, run))
        usage = Usage(stream, set(tokenizer.all_special_ids), len(weight))
        for way, replaced in _ways(given, usage, tokenizer.unk_token_id).items():
            weight.copy_(given)
            weight[usage.unseen] = replaced(given[usage.unseen])
            said, fooled = (predict(model, tokenizer, texts, run).argmax(dim=1).numpy() for texts in (test, triggered))
            line = {
                "model": path.name,
                "way": way,
                "seed": run.seed,
                "unused_rows": int(usage.unseen.sum()),
                "clean_rows": len(clean),
                "cacc": asdict(cacc(said, test.labels or ())),
                "asr": asdict(asr(fooled, test.labels or (), arguments.target)),
                "untriggered": asdict(asr(said, test.labels or (), arguments.target)),
            }
            with Path(arguments.out).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            print(
                f"{path.name:15} {way:12} CACC {line['cacc']['value']:.3f}  ASR {line['asr']['value']:.3f}", flush=True
            )


def _ways(given: Tensor, usage: Usage, unknown: int) -> dict[str, Callable[[Tensor], Tensor]]:
    """Name -> new rows from those of the unused words, `[words, width]`."""
    used = given[usage.free & ~usage.unseen]
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "as it is": lambda rows: rows,
        "the crowd": lambda rows: (usage.share.to(given) @ given).expand_as(rows),
        "mean of used": lambda rows: used.mean(dim=0).expand_as(rows),
        "[UNK]": lambda rows: given[unknown].expand_as(rows),
    }
    for many in (5, 100):
        ways[f"nearest {many}"] = lambda rows, many=many: _nearest(rows, used, many)
    return ways


def _nearest(rows: Tensor, used: Tensor, many: int) -> Tensor:
    closeness = torch.nn.functional.normalize(rows, dim=1) @ torch.nn.functional.normalize(used, dim=1).T
    # In parts: all neighbours of all rows at once would be gigabytes.
    return torch.cat([used[part].mean(dim=1) for part in closeness.topk(many, dim=1).indices.split(1024)])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, help="backdoored classifiers")
    parser.add_argument("--clean", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--target", type=int, required=True)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
