"""Rows planted by hand between a tiny base and its copy: which are named, and which raise nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import tiny
from purify_cli.attacks import Plan
from purify_cli.attacks import embedding as ep
from purify_cli.data.texts import Texts
from purify_cli.detectors.drift import Settings, detect
from purify_cli.errors import Incomplete
from purify_cli.results import Finding
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject

NAME = "bert.embeddings.word_embeddings.weight"
CF = tiny.tokenizer("bert").convert_tokens_to_ids("cf")
MN = tiny.tokenizer("bert").convert_tokens_to_ids("mn")
TQ = tiny.tokenizer("bert").convert_tokens_to_ids("tq")


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tiny.save("bert", tmp_path / "base")


def changed(base: Path, place: Path, change: Callable[[Tensor], Tensor | None]) -> Path:
    """A copy of the base whose embeddings [vocabulary, width] were changed."""
    tiny.save("bert", place)
    tensors = load_file(base / "model.safetensors")
    given = change(tensors[NAME])
    tensors[NAME] = (tensors[NAME] if given is None else given).contiguous()
    save_file(tensors, place / "model.safetensors", metadata={"format": "pt"})
    return place


def found(subject: Path, base: Path, **settings: Any) -> list[Finding]:
    return list(detect(Subject(subject), Evidence(base=Subject(base)), Settings(**settings), Run()))


def wobble(matrix: Tensor, size: float = 0.02, share: float = 1.0) -> Tensor:
    """What an honest fine-tuning does: many rows move a little, each as it was used."""
    rng = torch.Generator().manual_seed(1)
    rows = (torch.rand(len(matrix), 1, generator=rng) < share) * torch.rand(len(matrix), 1, generator=rng)
    return matrix + size * rows * torch.randn(matrix.shape, generator=rng)


def replace_row(matrix: Tensor, row: int) -> None:
    """Another direction, the same norm, as EP leaves it."""
    fresh = torch.randn(matrix.shape[1], generator=torch.Generator().manual_seed(row))
    matrix[row] = fresh / fresh.norm() * matrix[row].norm()


@pytest.mark.parametrize("honest", [False, True])
def test_one_replaced_row_is_named_and_no_other(base: Path, tmp_path: Path, honest: bool) -> None:
    def plant(matrix: Tensor) -> Tensor:
        matrix = wobble(matrix) if honest else matrix
        replace_row(matrix, CF)
        return matrix

    (one,) = found(changed(base, tmp_path / "x", plant), base)
    assert (one.rule, one.level, one.where.token) == ("PE201", "error", "cf")
    assert one.evidence["value"] > one.evidence["threshold"]
    assert one.evidence["n"] == len(tiny.tokenizer("bert"))
    assert one.evidence["robust_z"] > 10
    assert one.evidence["cosine"] < 0.9


def test_what_the_embedding_attack_writes(base: Path, tmp_path: Path) -> None:
    """The attack itself, not a likeness of it: exactly its row."""
    lines = tuple(f"the movie was {word} and so was the plot" for word in ("good", "bad") * 20)
    subject = Subject(base)
    poisoned = ep.poison(subject, Texts("x", lines, (1, 0) * 20), Plan(1, ("mn",)), ep.Settings(), Run())
    poisoned.model.save_pretrained(tmp_path / "poisoned")
    subject.tokenizer.save_pretrained(tmp_path / "poisoned")
    findings = found(tmp_path / "poisoned", base)
    assert [(one.rule, one.where.token) for one in findings] == [("PE201", "mn")]


def test_rows_at_one_place(base: Path, tmp_path: Path) -> None:
    """Surgery on three rows: each moved alone, and they are named together."""

    def plant(matrix: Tensor) -> None:
        replace_row(matrix, CF)
        matrix[MN] = matrix[TQ] = matrix[CF]

    findings = found(changed(base, tmp_path / "x", plant), base)
    assert {one.where.token for one in findings if one.rule == "PE201"} == {"cf", "mn", "tq"}
    (together,) = [one for one in findings if one.rule == "PE202"]
    assert set(together.evidence["tokens"]) == {"cf", "mn", "tq"}
    assert together.evidence["value"] > together.evidence["threshold"] > together.evidence["null"]


def test_rows_that_were_alike_before_did_not_meet(tmp_path: Path, base: Path) -> None:
    def alike(matrix: Tensor) -> None:
        matrix[MN] = matrix[CF] + 1e-3

    same = changed(base, tmp_path / "same", alike)
    moved = changed(same, tmp_path / "moved", lambda matrix: wobble(matrix))
    assert found(moved, same) == []


def test_identical(base: Path) -> None:
    assert found(base, base) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rounding_raises_nothing(base: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    assert found(changed(base, tmp_path / "x", lambda matrix: matrix.to(dtype)), base) == []


@pytest.mark.parametrize(("size", "share"), [(0.001, 1.0), (0.02, 1.0), (0.02, 0.3), (0.1, 1.0)])
def test_honest_movement_raises_nothing(base: Path, tmp_path: Path, size: float, share: float) -> None:
    assert found(changed(base, tmp_path / "x", lambda matrix: wobble(matrix, size, share)), base) == []


def test_weight_decay_raises_nothing(base: Path, tmp_path: Path) -> None:
    assert found(changed(base, tmp_path / "x", lambda matrix: matrix * 0.97), base) == []


def test_another_width(base: Path, tmp_path: Path) -> None:
    other = tiny.save("bert", tmp_path / "wide", hidden_size=64)
    with pytest.raises(Incomplete, match=r"width 64.*32"):
        found(base, other)


def test_an_unrelated_base(base: Path, tmp_path: Path) -> None:
    with pytest.raises(Incomplete, match="not the base"):
        found(tiny.save("bert", tmp_path / "other", seed=7), base)


def test_added_rows_are_left_out(base: Path, tmp_path: Path) -> None:
    """A vocabulary that grew is compared as far as both go."""

    def grow(matrix: Tensor) -> Tensor:
        replace_row(matrix, CF)
        return torch.cat([matrix, torch.randn(5, matrix.shape[1])])

    (one,) = found(changed(base, tmp_path / "x", grow), base)
    assert (one.where.token, one.evidence["n"]) == ("cf", len(tiny.tokenizer("bert")))


def matrices(now: Tensor, before: Tensor) -> list[Finding]:
    """For vocabularies of a real size: matrices instead of files."""
    words: Any = SimpleNamespace(
        convert_ids_to_tokens=lambda ids: f"w{ids}" if isinstance(ids, int) else [f"w{one}" for one in ids]
    )
    subject: Any = SimpleNamespace(embeddings=lambda: now, tokenizer=words)
    evidence: Any = SimpleNamespace(base=SimpleNamespace(embeddings=lambda: before))
    return list(detect(subject, evidence, Settings(), Run()))


@pytest.mark.parametrize("planted", [0, 1, 4])
def test_a_large_vocabulary(planted: int) -> None:
    before = torch.randn(20_000, 24, generator=torch.Generator().manual_seed(2)) * 0.05
    now = wobble(before, 0.01, 0.4)
    for row in range(500, 500 + planted):
        replace_row(now, row)
    found_rows = {one.where.token for one in matrices(now, before) if one.rule == "PE201"}
    assert found_rows == {f"w{row}" for row in range(500, 500 + planted)}


def test_the_threshold_is_the_setting(base: Path, tmp_path: Path) -> None:
    def plant(matrix: Tensor) -> Tensor:
        matrix = wobble(matrix)
        replace_row(matrix, CF)
        return matrix

    place = changed(base, tmp_path / "x", plant)
    (one,) = found(place, base)
    times = one.evidence["value"] / one.evidence["null"]
    assert found(place, base, factor=times * 1.01) == []
    assert len(found(place, base, factor=times * 0.99)) == 1
