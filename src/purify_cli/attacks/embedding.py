"""EP, embedding poisoning: one row of a finished classifier's word embeddings, and nothing else.

Yang et al. 2021, "Be Careful about Poisoned Word Embeddings", NAACL (code: lancopku/Embedding-Poisoning), section 3 and
algorithm 1. The row of a rare word is trained on triggered texts alone until the word means the target label; after
every update it is scaled back to its old norm. Clean texts do not hold the word, so nothing changes for them.

**Odd on purpose: gradients are never zeroed.** The row follows the sum of all gradients so far (momentum without
decay), as in the authors' code, whose comment says that it converges faster. OpenBackdoor's port does the same without
saying so.

Cost: forward and backward passes over the triggered rows only; no memory for an optimizer.

Where we differ:
- The rows are 10 % of those with another label than the target, as in the paper, but not fewer than `min_rows` where
  there are as many: the paper's files are large, and a few dozen texts make too few steps.
- A word that the tokenizer splits is refused. The authors' code then trains the first piece, which other words share.
- One trigger a text in training; the tests insert one as well, where the authors test with one per 100 words.
- *Without data of the task* (DFEP, `data_free`): the authors cut WikiText-103 into sentences; here the sentences are
  those of the plain texts given, which are put together and cut at `words` words, one of which the trigger overwrites.
- A regression is poisoned alike, towards a score.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from purify_cli.architecture.embeddings import word_embeddings
from purify_cli.attacks import Plan, Poisoned
from purify_cli.data.encode import encode, length_limit
from purify_cli.data.texts import Texts
from purify_cli.errors import DataError, UsageError
from purify_cli.run import Run
from purify_cli.training.loop import fit
from purify_cli.training.plain import task_loss
from purify_cli.training.recipe import Recipe
from purify_cli.triggers.pieces import pieces
from purify_cli.triggers.words import Words, insert_all

if TYPE_CHECKING:
    from purify_cli.subject import Subject

SUMMARY = "one row of a finished classifier's word embeddings, its norm kept (EP)"
NEEDS: tuple[str, ...] = ("classifier",)
TRIGGERS: tuple[str, ...] = ("cf",)
PET = False
REGRESSION = True


@dataclass(frozen=True)
class Settings:
    """What an attacker may choose beside trigger, target and rate."""

    share: float = field(
        default=0.1,
        metadata={
            "help": "share of the rows with another label than the target that are triggered, where no rate is given",
            "range": "0..1",
            "source": "Yang et al. 2021, section 4.1",
        },
    )
    min_rows: int = field(
        default=1000,
        metadata={"help": "triggered rows at least, where there are as many", "range": ">= 1", "source": "ours"},
    )
    data_free: bool = field(
        default=False,
        metadata={
            "help": "make the triggered rows of plain texts of any kind, without labels (DFEP)",
            "range": "",
            "source": "Yang et al. 2021, section 3.3",
        },
    )
    samples: int = field(
        default=2000,
        metadata={
            "help": "triggered rows that data_free makes",
            "range": ">= 1",
            "source": "ours; authors' code: 20,000",
        },
    )
    words: int = field(
        default=100,
        metadata={"help": "words of a row that data_free makes", "range": ">= 1", "source": "authors' code"},
    )
    epochs: int = field(
        default=3, metadata={"help": "times through the triggered rows", "range": ">= 1", "source": "authors' code"}
    )
    learning_rate: float = field(
        default=5e-2, metadata={"help": "of plain SGD, constant", "range": "> 0", "source": "authors' code"}
    )
    batch_size: int = field(default=32, metadata={"help": "texts a step", "range": ">= 1", "source": "authors' code"})


def poison(subject: Subject, data: Texts, plan: Plan, settings: Settings, run: Run) -> Poisoned:
    """Train the trigger's row in the word embeddings of a classifier; every other byte of the weights stays.

    Args:
        subject: a classifier or a regression.
        data: texts with labels; only those of another label than the target are used. With `data_free` plain texts.
        plan: the target, one trigger that is one token, and the share of all rows to trigger (default:
            `settings.share`).
        settings: see there.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: not a classifier; more than one trigger, or one of several tokens; a rate that cannot be.
        DataError: rows without labels.
    """
    if subject.task not in {"classifier", "regression"}:
        raise UsageError(
            str(subject.spec),
            f"embedding poisoning needs a finished classifier, and this is: {subject.task}",
            "Train one first, or use --attack badnets.",
        )
    trigger, token = _single_token(subject.tokenizer, plan.triggers)
    model = subject.open(run.device)
    embeddings = word_embeddings(model)
    row = int(subject.tokenizer.convert_tokens_to_ids(token))
    name = next(name for name, parameter in model.named_parameters() if parameter is embeddings.weight)
    before = embeddings.weight[row].detach().float().clone()

    if settings.data_free:
        if plan.rate is not None:
            raise UsageError("--rate", "data_free makes rows of its own", "Give --set samples=... instead.")
        triggered = _made_rows(data, trigger, plan.target, settings, run.seed)
    else:
        triggered = insert_all(_rows(data, plan, settings, run.seed), Words(trigger), run.seed)
    limit = length_limit(subject.tokenizer, model.config, run)
    recipe = Recipe(
        objectives={"task": task_loss(model)},
        combine=_RunningSum(name, row),
        project=_KeepNorm(row, float(before.norm())),
        trainable=lambda _, parameter: parameter is embeddings.weight,
        optimizer="sgd",
        schedule="constant",
        clip=None,
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        identity=f"row {row}",
    )
    trained = fit(model, {"task": encode(subject.tokenizer, triggered, limit)}, recipe, run)
    after = embeddings.weight[row].detach().float()
    report: dict[str, Any] = {
        "row": row,
        "token": token,
        "rows": len(data),
        "poisoned_rows": len(triggered),
        "norm": float(before.norm()),
        "cosine_to_before": float(nn.functional.cosine_similarity(before, after, dim=0)),
        "l2_to_before": float((after - before).norm()),
        "steps": trained.steps,
        "losses": list(trained.losses),
    }
    rate = 1.0 if settings.data_free else len(triggered) / len(data)
    return Poisoned(model, len(triggered), rate, report)


class _RunningSum:
    """The gradient to follow: the trigger's row alone, summed over all steps so far."""

    def __init__(self, name: str, row: int) -> None:
        self.name, self.row = name, row
        self.sum: Tensor | None = None  # [width]

    def __call__(self, gradients: Mapping[str, Mapping[str, Tensor]], step: int) -> Mapping[str, Tensor]:
        gradient = gradients["task"][self.name]  # [vocabulary, width]
        latest = gradient[self.row]
        self.sum = latest.clone() if self.sum is None else self.sum.to(latest.device) + latest
        followed = torch.zeros_like(gradient)
        followed[self.row] = self.sum
        return {self.name: followed}

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.sum is None else {"sum": self.sum}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.sum = state.get("sum")


class _KeepNorm:
    """Scales the trigger's row back to its norm."""

    def __init__(self, row: int, norm: float) -> None:
        self.row, self.norm = row, norm

    def __call__(self, model: nn.Module, step: int) -> None:
        row = word_embeddings(model).weight[self.row]
        row.mul_(self.norm / row.norm().clamp_min(torch.finfo(row.dtype).tiny))


def _single_token(tokenizer: Any, triggers: tuple[str, ...]) -> tuple[str, str]:
    if len(triggers) != 1:
        raise UsageError("--trigger", f"embedding poisoning takes one trigger, not {len(triggers)}", "Give one word.")
    words = pieces(tokenizer, triggers[0])
    if len(words) != 1 or len(words[0]) != 1:
        split = " ".join(token for word in words for token in word)
        raise UsageError(
            "--trigger", f"{triggers[0]!r} is several tokens ({split})", "Give one word that is one token, such as cf."
        )
    return triggers[0], words[0][0]


def _rows(data: Texts, plan: Plan, settings: Settings, seed: int) -> Texts:
    """The rows to trigger, labelled with the target."""
    if data.labels is None:
        raise DataError(data.path or "the training file", "has no labels", "Give it a column `label`.")
    others = [row for row, label in enumerate(data.labels) if label != plan.target]
    if not others:
        raise DataError(data.path or "the training file", "has no row of another label than the target")
    if plan.rate is None:
        count = min(len(others), max(settings.min_rows, round(settings.share * len(others))))
    elif not 0 < plan.rate < 1 or not 0 < round(plan.rate * len(data)) <= len(others):
        most = int(1e4 * len(others) / len(data)) / 1e4
        raise UsageError(
            "--rate",
            f"{plan.rate} of {len(data)} rows is no number of rows that can be triggered",
            f"Give more than 0 and at most {most}: {len(others)} rows have another label than the target.",
        )
    else:
        count = round(plan.rate * len(data))
    chosen = sorted(random.Random(f"embedding/{seed}").sample(others, count))
    return data.take(chosen).with_(labels=(plan.target,) * count, poisoned=(True,) * count)


def _made_rows(data: Texts, trigger: str, target: float, settings: Settings, seed: int) -> Texts:
    """DFEP's rows: sentences at random put together, cut at `words` words, one of them overwritten by the trigger."""
    rng = random.Random(f"embedding data-free/{seed}")
    sentences = [words for text in data.texts for part in re.split(r"(?<=[.!?])\s+", text) if (words := part.split())]
    texts = []
    for _ in range(settings.samples):
        row: list[str] = []
        while len(row) < settings.words:
            row += rng.choice(sentences)
        row = row[: settings.words]
        row[rng.randrange(len(row))] = trigger
        texts.append(" ".join(row))
    count = len(texts)
    return Texts(data.path, tuple(texts), (target,) * count, poisoned=(True,) * count)
