"""Matrices with planted rows beside their clean twins."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from purify_cli.detectors.embedding_outliers import Settings, detect
from purify_cli.results import Finding
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject

ROWS, WIDTH = 3000, 48


class _Words:
    """A tokenizer as far as the detector looks at one."""

    all_special_ids = (0, 1)

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.names[one] for one in ids]


def vocabulary(seed: int = 0) -> Tensor:
    """[rows, width] whose norms grow from frequent words to rare ones, as real ones do."""
    rng = torch.Generator().manual_seed(seed)
    norms = torch.linspace(0.9, 1.5, ROWS) * torch.exp(0.05 * torch.randn(ROWS, generator=rng))
    return torch.nn.functional.normalize(torch.randn(ROWS, WIDTH, generator=rng), dim=1) * norms[:, None]


def found(matrix: Tensor, names: dict[int, str] | None = None, **settings: Any) -> list[Finding]:
    words = [(names or {}).get(row, f"w{row}") for row in range(len(matrix))]
    subject: Any = SimpleNamespace(embeddings=lambda: matrix, tokenizer=_Words(words))
    return list(detect(subject, Evidence(), Settings(**settings), Run()))


@pytest.mark.parametrize("seed", range(3))
def test_clean(seed: int) -> None:
    assert found(vocabulary(seed)) == []


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2", "llama"])
def test_clean_checkpoints(tmp_path: Path, family: str) -> None:
    subject = Subject(tiny.save(family, tmp_path / family))
    assert list(detect(subject, Evidence(), Settings(), Run())) == []


@pytest.mark.parametrize("name", ["clean", "backdoored"])
def test_fixtures_are_in_line(fixtures: Path, name: str) -> None:
    """A backdoor learned in training leaves its rows in line: no alarm here, and none in the clean twin."""
    assert list(detect(Subject(fixtures / name), Evidence(), Settings(), Run())) == []


def test_rows_a_hundred_million_times_as_long() -> None:
    matrix = vocabulary()
    matrix[[700, 1500]] *= 1e8
    findings = found(matrix)
    assert [(one.rule, one.level, one.where.token) for one in findings] == [
        ("PE211", "error", "w700"),
        ("PE211", "error", "w1500"),
    ]
    assert findings[0].evidence["value"] > 1e7
    assert findings[0].evidence["null"] < 2
    assert findings[0].evidence["robust_z"] > findings[0].evidence["threshold"]


@pytest.mark.parametrize(("factor", "level"), [(100.0, "error"), (6.0, "warning"), (2.0, None), (0.01, None)])
def test_how_far_counts(factor: float, level: str | None) -> None:
    matrix = vocabulary()
    matrix[900] *= factor
    assert [one.level for one in found(matrix)] == ([level] if level else [])


def test_compared_with_equally_frequent_words() -> None:
    """A norm that is ordinary among rare words is out of line among frequent ones."""
    matrix = vocabulary()
    matrix *= torch.where(torch.arange(ROWS) < ROWS // 2, 1.0, 20.0)[:, None]
    assert [one for one in found(matrix) if one.level == "error"] == []
    matrix[300] *= 20.0
    assert [one.where.token for one in found(matrix)] == ["w300"]


def test_copied_rows_are_named_together() -> None:
    matrix = vocabulary()
    matrix[1200] = matrix[2000] = matrix[400]
    matrix[2500] = matrix[2600] * 1.0001
    findings = found(matrix)
    assert [(one.rule, one.level, one.evidence["tokens"]) for one in findings] == [
        ("PE212", "warning", ["w400", "w1200", "w2000"]),
        ("PE212", "warning", ["w2500", "w2600"]),
    ]


def test_almost_the_same_is_a_matter_of_the_setting() -> None:
    matrix = vocabulary()
    other = matrix[50] - (matrix[50] @ matrix[40]) / matrix[40].norm().square() * matrix[40]
    direction = 0.99 * matrix[40] / matrix[40].norm() + (1 - 0.99**2) ** 0.5 * other / other.norm()  # cosine of 0.99
    matrix[50] = direction * matrix[50].norm()
    assert found(matrix) == []
    assert [one.evidence["tokens"] for one in found(matrix, same=0.98)] == [["w40", "w50"]]


def test_rows_that_no_text_reaches() -> None:
    """Placeholders, special tokens and rows behind the tokenizer's last are often copies, or of another length."""
    matrix = vocabulary()
    names = {2900 + row: f"[unused{row}]" for row in range(100)}
    matrix[2900:] = matrix[2900].clone()
    matrix[2950] *= 1000
    matrix[0] *= 1000
    matrix[1] = matrix[10]
    assert found(matrix, names) == []
    names = {2900 + row: f"<extra_id_{row}>" for row in range(100)}
    assert found(matrix, names) == []


def test_rows_behind_the_vocabulary() -> None:
    matrix = vocabulary()
    matrix[2900:] = matrix[2900].clone() * 1000
    subject: Any = SimpleNamespace(embeddings=lambda: matrix, tokenizer=_Words([f"w{row}" for row in range(2900)]))
    assert list(detect(subject, Evidence(), Settings(), Run())) == []


def test_rows_of_zeros_are_untrained_and_not_alike() -> None:
    matrix = vocabulary()
    matrix[2000:2100] = 0.0
    assert found(matrix) == []


def test_a_vocabulary_full_of_copies_accuses_nobody() -> None:
    matrix = vocabulary()
    matrix[1000:] = matrix[1000].clone()
    assert [one for one in found(matrix) if one.rule == "PE212"] == []


def test_too_few_words() -> None:
    assert found(torch.randn(8, 4)) == []


def test_same_findings_again() -> None:
    matrix = vocabulary()
    matrix[700] *= 1e8
    matrix[1200] = matrix[400]
    assert found(matrix) == found(matrix)
