"""Embedding outliers: rows whose norm or company is out of line, for checkpoints of which no base is at hand.

No single paper. NeuBA's release multiplies its trigger rows by 1e8 (Zhang et al. 2023), which layer normalization
turns into "this token alone counts"; RIPPLe's embedding surgery leaves several rows nearly identical (Kurita et al.
2020). The null distribution is the vocabulary: each row is compared with those of its own frequency. Word-piece and
byte-pair vocabularies are written in the order of frequency, so the rows around it in the matrix are its peers.

- PE211, norm: robust z-score of the log norm against the peers. A factor of 10 over the peers is an error, less a
  warning.
- PE212, company: different words with almost the same row. A warning: tied or untrained rows can look alike.

Input: the embedding matrix [vocabulary, width], read from the file; no model is built. Cost: no forward pass.
Not seen: EP, which keeps the norm, by construction; its row shows against a base (`drift`) and in `trigger_search`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from purify_cli.results import Finding, Where
from purify_cli.run import Run

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "look for embedding rows whose norm or nearest rows are unlike those of equally frequent tokens"
RULES = {
    "PE211": "the norm of a token's embedding row is out of line with those of equally frequent tokens",
    "PE212": "different tokens have almost the same embedding row",
}
NEEDS = ("weights",)
BUDGET = "fast"

PEERS = 501
"""Rows around a row that count as equally frequent."""


@dataclass(frozen=True)
class Settings:
    """When a row is out of line."""

    z: float = field(
        default=25.0,
        metadata={"help": "robust z-score of the log norm", "range": "> 3", "source": "ours, from a few trial models"},
    )
    factor: float = field(
        default=3.0, metadata={"help": "smallest factor over the peers' norm", "range": "> 1", "source": "ours"}
    )
    same: float = field(
        default=0.998, metadata={"help": "cosine of almost the same rows", "range": "0.9..1", "source": "RIPPLe"}
    )


def detect(subject: Subject, evidence: Evidence, settings: Settings, run: Run) -> Iterator[Finding]:
    """See the module's docstring."""
    matrix = subject.embeddings()  # [vocabulary, width]
    tokenizer = subject.tokenizer
    names = tokenizer.convert_ids_to_tokens(list(range(min(len(tokenizer), matrix.shape[0]))))
    special = set(tokenizer.all_special_ids)
    words = torch.tensor(
        [row for row, name in enumerate(names) if row not in special and name and not _placeholder(name)],
        dtype=torch.long,
    )
    if len(words) < 10:
        return
    norms = matrix[words].norm(dim=1)
    logs = norms.clamp(min=1e-12).log()
    peers = _rolling_median(logs, PEERS)
    away = logs - peers
    spread = (away.abs().median() * 1.4826).clamp(min=1e-6)
    z = away / spread
    for place in ((z > settings.z) & (away.exp() > settings.factor)).nonzero().flatten().tolist():
        token = names[int(words[place])]
        factor = away[place].exp().item()
        yield Finding(
            rule="PE211",
            level="error" if factor >= 10 else "warning",
            detector="embedding_outliers",
            message=f"the embedding of {token!r} is {factor:.3g} times as long as those of equally frequent tokens",
            where=Where(token=token),
            evidence={
                "statistic": "norm",
                "value": norms[place].item(),
                "null": peers[place].exp().item(),
                "threshold": settings.z,
                "robust_z": z[place].item(),
                "n": len(words),
            },
        )
    yield from _same_rows(matrix, words, names, settings)


def _placeholder(name: str) -> bool:
    """Tokens that no text contains; their rows were never trained and may all be alike."""
    return re.fullmatch(r"[\[<].*(unused|extra_id|reserved|madeupword).*[\]>]?\d*", name) is not None


def _rolling_median(values: Tensor, window: int) -> Tensor:
    window = min(window, len(values) - (len(values) + 1) % 2)
    half = window // 2
    padded = torch.cat([values[:half].flip(0), values, values[len(values) - half :].flip(0)])
    return padded.unfold(0, window, 1).median(dim=1).values


def _same_rows(matrix: Tensor, words: Tensor, names: list[str], settings: Settings) -> Iterator[Finding]:
    unit = torch.nn.functional.normalize(matrix[words], dim=1)
    alive = matrix[words].norm(dim=1) > 1e-6  # rows of zeros were never trained
    unit = unit * alive[:, None]
    # Rows that are close are close in every projection, so most pairs are ruled out in 64 random dimensions.
    width = unit.shape[1]
    directions = torch.linalg.qr(torch.randn(width, min(64, width), generator=torch.Generator().manual_seed(0)))[0]
    short = unit @ directions  # [words, 64]
    squares = short.square().sum(1)
    reach = 2.0 - 2.0 * settings.same + 1e-5
    pairs: list[tuple[int, int]] = []
    for start in range(0, len(unit), 1024):
        part = short[start : start + 1024]
        close = torch.addmm(squares[None, :], part, short.T, alpha=-2.0) <= reach - squares[start : start + 1024, None]
        rows, others = close.nonzero().unbind(1)
        rows = rows + start
        ordered = (rows < others) & alive[rows] & alive[others]
        rows, others = rows[ordered], others[ordered]
        same = (unit[rows] * unit[others]).sum(1) > settings.same
        pairs += list(zip(rows[same].tolist(), others[same].tolist(), strict=True))
        if len(pairs) > 1000:  # a vocabulary full of copies is no trace of an attack
            return
    groups: dict[int, set[int]] = {}
    for row, other in pairs:
        group = groups.setdefault(row, {row}) | groups.get(other, {other})
        for member in group:
            groups[member] = group
    seen: set[int] = set()
    for row in sorted(groups):
        if row in seen:
            continue
        group = groups[row]
        seen |= group
        tokens = [names[int(words[member])] for member in sorted(group)]
        yield Finding(
            rule="PE212",
            level="warning",
            detector="embedding_outliers",
            message=f"{', '.join(map(repr, tokens[:10]))} have almost the same embedding",
            where=Where(token=tokens[0]),
            evidence={"statistic": "cosine", "threshold": settings.same, "n": len(tokens), "tokens": tokens[:50]},
        )
