"""PURE's steps as the released code does them, written from the method's description: the slow way to compare with.

- Every text is padded to `max_length` tokens, in training, scoring and evaluation.
- Heads are scored and the penalty is taken on full attention maps (`output_attentions=True`, eager attention).
- Every accuracy that pruning looks at is that of a deep copy of the model, with the heads cut out of it.

Nothing else is slow on purpose: optimizer, schedule, clipping and number of steps are the same as ours, heads that are
cut out save their computation from then on (as transformers' former `prune_heads` did), and passes that need no
attention map run on PyTorch's fused attention unless `eager_everywhere` is asked for. BERT's module names only.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import get_linear_schedule_with_warmup

Head = tuple[int, int]

BATCH = 32
"""Texts a batch in training and scoring: the reference's."""


@dataclass(frozen=True)
class Padded:
    """A data set as the reference holds it: one block, every row padded to the same length.

    Attributes:
        inputs: `input_ids`, `attention_mask` and what else the tokenizer gives, each [texts, max_length].
        labels: [texts].
    """

    inputs: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, places: Sequence[int]) -> tuple[dict[str, Tensor], Tensor]:
        chosen = torch.tensor(places)
        return {name: column[chosen] for name, column in self.inputs.items()}, self.labels[chosen]


def pad_all(tokenizer: Any, texts: Sequence[str], labels: Sequence[int], max_length: int) -> Padded:
    """Tokenize and pad to `max_length`."""
    inputs = tokenizer(list(texts), truncation=True, max_length=max_length, padding="max_length", return_tensors="pt")
    return Padded(dict(inputs), torch.tensor(list(labels)))


def tune(
    model: Any,
    data: Padded,
    *,
    epochs: int,
    learning_rate: float,
    seed: int,
    batch_size: int = BATCH,
    penalty: float = 0.0,
    layer_weights: Tensor | None = None,
    eager_everywhere: bool = False,
) -> int:
    """Fine-tune in place: AdamW, linear decay without warm-up, clipping at 1. Returns the number of steps.

    With a penalty the loss is cross entropy + penalty * sum_l c_l sum_h sqrt(sum_b sum_k A[l,b,h,0,k]^2).
    """
    torch.manual_seed(seed)
    order = random.Random(seed)
    model.set_attn_implementation("eager" if penalty or eager_everywhere else "sdpa")
    decayed = [parameter for parameter in model.parameters() if parameter.ndim >= 2]
    free = [parameter for parameter in model.parameters() if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.0}, {"params": free, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate)
    total = epochs * -(-len(data) // batch_size)
    schedule = get_linear_schedule_with_warmup(optimizer, 0, total)
    model.train()
    steps = 0
    for _ in range(epochs):
        rows = list(range(len(data)))
        order.shuffle(rows)
        for places in _cut(rows, batch_size):
            inputs, labels = data.batch(places)
            output = model(**inputs, output_attentions=bool(penalty))
            loss = nn.functional.cross_entropy(output.logits, labels)
            if penalty:
                assert layer_weights is not None
                for weight, attention in zip(layer_weights.tolist(), output.attentions, strict=True):
                    loss = loss + penalty * weight * attention[:, :, 0].square().sum(dim=(0, 2)).sqrt().sum()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            steps += 1
    model.eval()
    return steps


@dataclass(frozen=True)
class Chosen:
    """What step 1 came to.

    Attributes:
        heads: in the order of pruning.
        scores: [layers, heads], before pruning.
        layer_scores: mean over the heads that stay, with the others gone, [layers].
        evaluations: copies of the model that were made and measured.
    """

    heads: tuple[Head, ...]
    scores: Tensor
    layer_scores: Tensor
    evaluations: int


def choose_heads(
    f_p: Any, dev: Padded, *, step: int, drop: float, min_accuracy: float | None, eager_everywhere: bool = False
) -> Chosen:
    """Score the heads of f_p on dev; prune in ascending order, `step` at a time, while the accuracy of a copy holds."""
    maps = scores(f_p, dev)
    table = torch.stack(maps)  # [layers, heads]; nothing is pruned yet, so all layers have as many
    count = table.shape[1]
    best = table.argmax(dim=1).tolist()
    order = [divmod(place, count) for place in table.flatten().argsort(stable=True).tolist()]
    order = [(layer, head) for layer, head in order if head != best[layer]]
    evaluations = 0

    def accuracy(heads: Sequence[Head]) -> float:
        nonlocal evaluations
        evaluations += 1
        model = copy.deepcopy(f_p)
        cut_heads(model, heads)
        model.set_attn_implementation("eager" if eager_everywhere else "sdpa")
        right = 0
        model.eval()
        with torch.inference_mode():
            for places in _cut(range(len(dev)), BATCH):
                inputs, labels = dev.batch(places)
                right += int((model(**inputs).logits.argmax(-1) == labels).sum())
        return float(torch.tensor(right / len(dev)))  # float32, as torch's mean of hits gives it

    whole = accuracy(())
    wanted = min_accuracy if min_accuracy is not None else whole - drop
    heads: list[Head] = []
    for group in _cut(order, step):
        tried = [*heads, *group]
        held = accuracy(tried) >= wanted
        if held:
            heads = tried
            continue
        while len(tried) > len(heads) and not held:
            tried = tried[:-1]
            held = len(tried) > len(heads) and accuracy(tried) >= wanted
        heads = tried
        break
    pruned = copy.deepcopy(f_p)
    cut_heads(pruned, heads)
    left = torch.stack([layer.mean() for layer in scores(pruned, dev)])
    return Chosen(tuple(heads), table, left, evaluations)


def scores(model: Any, data: Padded) -> list[Tensor]:
    """Per layer the variance of the [CLS] row over its first `max_length - 1` keys, [heads].

    The mean over the texts of each batch, then the mean over the batches.
    """
    model.set_attn_implementation("eager")
    model.eval()
    found: list[list[Tensor]] = []
    with torch.inference_mode():
        for places in _cut(range(len(data)), BATCH):
            inputs, _ = data.batch(places)
            attentions = model(**inputs, output_attentions=True).attentions
            found.append([layer[:, :, 0, :-1].var(dim=-1).mean(dim=0) for layer in attentions])
    return [torch.stack(layer).mean(dim=0) for layer in zip(*found, strict=True)]


def layer_weights(layer_scores: Tensor, form: str) -> Tensor:
    """c_l, [layers]: 1 / v_l over their sum, scaled to 0..1 (`paper`), or all 1 (`even`)."""
    if form == "even":
        return torch.ones_like(layer_scores)
    shares = (1 / layer_scores) / (1 / layer_scores).sum()
    spread = shares.max() - shares.min()
    return (shares - shares.min()) / spread if spread > 0 else torch.ones_like(shares)


def cut_heads(model: Any, heads: Sequence[Head]) -> None:
    """Cut heads out in place: fewer rows of query, key and value, fewer columns of the output projection."""
    by_layer: dict[int, set[int]] = {}
    for layer, head in heads:
        by_layer.setdefault(layer, set()).add(head)
    for layer, gone in by_layer.items():
        attention = model.base_model.encoder.layer[layer].attention
        core = attention.self
        width = core.attention_head_size
        kept = [head for head in range(core.query.out_features // width) if head not in gone]
        rows = torch.cat([torch.arange(head * width, (head + 1) * width) for head in kept])
        for projection in (core.query, core.key, core.value):
            projection.weight = nn.Parameter(projection.weight.detach()[rows].clone())
            projection.bias = nn.Parameter(projection.bias.detach()[rows].clone())
            projection.out_features = len(rows)
        output = attention.output.dense
        output.weight = nn.Parameter(output.weight.detach()[:, rows].clone())
        output.in_features = len(rows)
        core.num_attention_heads = len(kept)
        core.all_head_size = len(rows)


def _cut(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
