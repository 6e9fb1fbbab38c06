"""Embedding drift: which tokens' rows moved from the base as no training moves them?

No single paper; the signals are those that embedding attacks leave behind. EP (Yang et al., NAACL 2021) changes one
row and keeps its norm; RIPPLe's surgery (Kurita et al., ACL 2020) sets several rows to one vector. Fine-tuning moves
the rows of the words in its texts a little, and many of them, so the vocabulary itself is the null distribution:

- PE201, moved alone: the L2 change of a row is far beyond what all but a few rows show (the 99.9 % quantile of the
  vocabulary).
- PE202, moved together: rows that were apart in the base lie at one place now.

Inputs: the embedding matrices [vocabulary, width] of the subject and of `--base`, read from the files; no model is
built. Raises `Incomplete` for a base of another shape. Cost: no forward pass.

Not seen: a backdoor trained into the whole model moves its trigger rows no further than honest words
or hardly so; and against a base that is not the very one, everything moved.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from purify_cli.errors import Incomplete
from purify_cli.results import Finding, Where
from purify_cli.run import Run

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "compare every token's embedding row with the base: rows that moved alone, or to one place"
RULES = {
    "PE201": "a token's embedding row moved from the base far beyond all others",
    "PE202": "tokens' embedding rows that were apart in the base lie at one place now",
}
NEEDS = ("weights", "base")
BUDGET = "fast"


@dataclass(frozen=True)
class Settings:
    """When a movement counts."""

    factor: float = field(
        default=4.0,
        metadata={
            "help": "a row moved alone if its L2 change is so many times that of the 99.9 % quantile",
            "range": "> 1",
            "source": "ours, from a few trial models",
        },
    )
    least: float = field(
        default=0.01,
        metadata={
            "help": "smaller changes, relative to the row's norm, are rounding",
            "range": "0..1",
            "source": "fp16",
        },
    )
    together: float = field(
        default=0.98, metadata={"help": "cosine of rows that lie at one place", "range": "0..1", "source": "RIPPLe"}
    )
    apart: float = field(
        default=0.8,
        metadata={"help": "largest cosine that such rows had in the base", "range": "0..1", "source": "ours"},
    )


def detect(subject: Subject, evidence: Evidence, settings: Settings, run: Run) -> Iterator[Finding]:
    """See the module's docstring."""
    assert evidence.base is not None
    now, before = subject.embeddings(), evidence.base.embeddings()  # [vocabulary, width]
    if now.shape[1] != before.shape[1]:
        raise Incomplete(
            f"the base has embeddings of width {before.shape[1]}, the checkpoint of {now.shape[1]}: another model"
        )
    shared = min(now.shape[0], before.shape[0])
    now, before = now[:shared], before[:shared]
    change = (now - before).norm(dim=1)  # [vocabulary]
    relative = change / before.norm(dim=1).clamp(min=1e-12)
    usual = change.quantile(0.999).item() if shared <= 2**24 else change.max().item()
    if shared < 2000:  # so small a vocabulary has no 99.9 % quantile of its own
        usual = change.sort().values[-max(2, min(5, shared // 20)) - 1].item()
    if (relative > settings.least).float().mean() > 0.5 and torch.cosine_similarity(now, before).median() < 0.5:
        raise Incomplete("most rows have nothing to do with the base's: it is not the base of this checkpoint")
    alone = ((change > settings.factor * usual) & (relative > settings.least)).nonzero().flatten().tolist()
    sigma = _robust_z(change)
    cosine = torch.cosine_similarity(now, before)
    for row in sorted(alone, key=lambda row: -change[row].item()):
        token = subject.tokenizer.convert_ids_to_tokens(row)
        yield Finding(
            rule="PE201",
            level="error",
            detector="drift",
            message=f"the embedding of {token!r} moved {_times(change[row].item(), usual)} from the base",
            where=Where(token=token),
            evidence={
                "statistic": "l2_change",
                "value": change[row].item(),
                "null": usual,
                "threshold": settings.factor * usual,
                "n": shared,
                "robust_z": sigma[row].item(),
                "cosine": cosine[row].item(),
                "relative_change": relative[row].item(),
            },
        )
    yield from _together(subject, now, before, change, relative, settings)


def _times(change: float, usual: float) -> str:
    return (
        f"{change / usual:.0f} times as far as the 99.9 % quantile of the vocabulary"
        if usual > 0
        else "and no other did,"
    )


def _robust_z(values: Tensor) -> Tensor:
    """Distance from the median in robust standard deviations (MAD times 1.4826)."""
    centre = values.median()
    spread = (values - centre).abs().median() * 1.4826
    return (values - centre) / spread.clamp(min=1e-9)


def _together(
    subject: Subject, now: Tensor, before: Tensor, change: Tensor, relative: Tensor, settings: Settings
) -> Iterator[Finding]:
    """Groups of the rows that moved furthest which lie at one place now and did not before."""
    moved = change.topk(min(500, len(change))).indices
    moved = moved[relative[moved] > settings.least]
    if len(moved) < 2:
        return
    unit_now = torch.nn.functional.normalize(now[moved], dim=1)
    unit_before = torch.nn.functional.normalize(before[moved], dim=1)
    met = (unit_now @ unit_now.T > settings.together) & (unit_before @ unit_before.T < settings.apart)  # [moved, moved]
    left = set(range(len(moved)))
    while left:
        row = min(left)
        group = [row] + [other for other in sorted(left) if other != row and bool(met[row, other])]
        left -= set(group)
        if len(group) < 2:
            continue
        rows = moved[group].tolist()
        tokens = subject.tokenizer.convert_ids_to_tokens(rows)
        yield Finding(
            rule="PE202",
            level="error",
            detector="drift",
            message=f"{', '.join(map(repr, tokens[:10]))} were apart in the base and lie at one place now",
            where=Where(token=tokens[0]),
            evidence={
                "statistic": "cosine",
                "value": (unit_now[group] @ unit_now[group].T).min().item(),
                "null": (unit_before[group[1:]] @ unit_before[row]).max().item(),
                "threshold": settings.together,
                "n": len(group),
                "tokens": tokens,
            },
        )
