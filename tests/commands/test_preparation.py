"""Where a stopped training is kept, and when that is cleared away."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from purify_cli.commands.preparation import forget, resumable
from purify_cli.results import FileDigest, SubjectSummary
from purify_cli.run import Run


def summary(digest: str = "00") -> SubjectSummary:
    return SubjectSummary("x", None, "classifier", None, None, None, (), (FileDigest("a", 1, digest),))


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "data.csv").write_text("text,label\n", encoding="utf-8")
    return tmp_path / "data.csv"


def test_the_place_is_the_same_for_the_same_command_on_the_same_inputs_only(data: Path) -> None:
    first = resumable(Run(), {"a": 1}, summary(), [data]).state
    assert resumable(Run(batch_size=3), {"a": 1}, summary(), [data]).state == first
    assert resumable(Run(seed=1), {"a": 1}, summary(), [data]).state != first
    assert resumable(Run(), {"a": 2}, summary(), [data]).state != first
    assert resumable(Run(), {"a": 1}, summary("01"), [data]).state != first
    data.write_text("text,label\nx,1\n", encoding="utf-8")
    assert resumable(Run(), {"a": 1}, summary(), [data]).state != first


def test_a_place_that_was_given_is_kept(data: Path, tmp_path: Path) -> None:
    given = Run(state=tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    run = resumable(given, {}, summary(), [data])
    assert run == given
    forget(run, given)
    assert (tmp_path / "mine").is_dir()


def test_what_was_abandoned_goes_and_what_is_fresh_stays(data: Path, tmp_path: Path) -> None:
    runs = tmp_path / "cache" / "purify" / "runs"
    for name, days in (("old", 40), ("new", 2)):
        (runs / name).mkdir(parents=True)
        (runs / name / "training-1.pt").write_bytes(b"x")
        os.utime(runs / name, (time.time() - days * 86400,) * 2)
    run = resumable(Run(), {}, summary(), [data])
    assert [folder.name for folder in runs.iterdir()] == ["new"]
    assert run.state is not None
    run.state.mkdir()
    forget(run, Run())
    assert [folder.name for folder in runs.iterdir()] == ["new"]
