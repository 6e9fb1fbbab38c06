"""On a GPU every method does what it does on the CPU: the same findings, the same rates, and the same bytes again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from exams import RUN, save_subjects, short_settings, texts, trained, without_seconds
from purify_cli import catalogue, environment, evaluate, scan
from purify_cli.analyses import Case
from purify_cli.catalogue import Kind
from purify_cli.errors import Incomplete, Interrupted
from purify_cli.evaluation.predict import predict
from purify_cli.purifiers import Purified
from purify_cli.purifiers.gba import Settings, purify
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject
from reviews import reviews

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]

KINDS: tuple[Kind, ...] = ("attack", "purifier")
TRAININGS = [(kind, name) for kind in KINDS for name in catalogue.names(kind)]
GPU = replace(RUN, device="cuda")

MODEL_DETECTORS = [
    name for name in catalogue.names("detector") if set(catalogue.declared("detector", name, "NEEDS")) - {"files"}
]


@pytest.fixture(autouse=True, scope="module")
def _prepared() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    environment.prepare(device="cuda", threads=None)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Without dropout, whose draws are each device's own."""
    place = tmp_path_factory.mktemp("subjects")
    return save_subjects(place, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.mark.parametrize(("kind", "name"), TRAININGS)
def test_trainings_are_the_same_bytes_again(kind: Kind, name: str, subjects: tuple[Path, Path]) -> None:
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.max_memory_allocated()
    first, second = (trained(kind, name, subjects, GPU) for _ in range(2))
    assert torch.cuda.max_memory_allocated() > before, "it was done elsewhere"
    ours, again = first.model.state_dict(), second.model.state_dict()
    assert [key for key in ours if not torch.equal(ours[key], again[key])] == []
    assert without_seconds(first.report) == without_seconds(second.report)


@pytest.mark.parametrize(("kind", "name"), TRAININGS)
def test_trainings_go_where_they_go_on_the_cpu(kind: Kind, name: str, subjects: tuple[Path, Path]) -> None:
    """A few steps from the same start with the same draws: all that differs is rounding, in each tensor.

    But for the bias of attention's keys, which no softmax sees: its gradient is rounding alone, and Adam makes full
    steps of it.
    """
    here, there = (trained(kind, name, subjects, run).model.state_dict() for run in (RUN, GPU))
    start = Subject(subjects[0]).open().state_dict()
    assert list(here) == list(there)
    for key, value in here.items():
        if value.is_floating_point() and not key.endswith("key.bias"):
            moved = (value - start[key]).norm() if key in start and start[key].shape == value.shape else value.norm()
            apart = (value - there[key].cpu()).norm()
            assert apart <= 0.05 * moved + 1e-4 * value.norm(), f"{key}: {apart:.1e} apart, {moved:.1e} from the start"


@pytest.mark.parametrize("name", MODEL_DETECTORS)
def test_detectors_find_the_same(name: str, fixtures: Path) -> None:
    module = catalogue.load("detector", name)
    evidence = Evidence(base=Subject(fixtures / "clean"))

    def found(device: str) -> list[Any]:
        run, told = Run(device=device), []
        try:
            for one in module.detect(Subject(fixtures / "backdoored"), evidence, module.Settings(), run):
                told.append((one.rule, one.level, one.where.token))
        except Incomplete as error:
            told.append(error.reason)
        return told

    assert found("cuda") == found("cpu")


@pytest.mark.parametrize("name", catalogue.names("analysis"))
def test_analyses_see_the_same(name: str, tmp_path: Path) -> None:
    module = catalogue.load("analysis", name)
    places = [tiny.save("bert", tmp_path / str(seed), seed=seed) for seed in (0, 1)]

    def seen(device: str) -> Any:
        cases = [Case(Subject(place), reviews(40), ("cf", "bb tq"), 1) for place in places]
        analysis = module.analyse(cases, Evidence(), module.Settings(), Run(device=device, max_length=32))
        return [[value for value in row.values() if isinstance(value, float)] for row in analysis.rows]

    torch.testing.assert_close(seen("cuda"), seen("cpu"), rtol=1e-2, atol=1e-4, equal_nan=True)


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_families_answer_the_same(family: str, tmp_path: Path) -> None:
    subject = Subject(tiny.save(family, tmp_path / "subject"))
    here, there = (
        predict(subject.open(device), subject.tokenizer, reviews(40), Run(device=device)) for device in ("cpu", "cuda")
    )
    torch.testing.assert_close(here, there, rtol=1e-3, atol=1e-4)


def test_a_scan_and_an_evaluation_say_the_same(fixtures: Path) -> None:
    here, there = (scan(fixtures / "backdoored", device=device) for device in ("cpu", "cuda"))
    assert here.verdict == there.verdict
    test = fixtures / "data" / "test.csv"
    here, there = (
        evaluate(fixtures / "backdoored", test=test, triggers=["cf"], target="positive", device=device)
        for device in ("cpu", "cuda")
    )
    assert here.checkpoints == there.checkpoints


def test_a_killed_run_ends_with_the_same_bytes(subjects: tuple[Path, Path], tmp_path: Path) -> None:
    """With what is to be put back on a GPU alone: the state of its random numbers, and rows that lie there."""
    subject = Subject(tiny.save("bert", tmp_path / "with-dropout"))
    how = replace(short_settings(catalogue.load("purifier", "gba")), epochs=3)
    assert isinstance(how, Settings)
    calls = 0

    def stop(what: str, done: int, total: int) -> None:
        nonlocal calls
        calls += what == "training"
        if calls == 4:
            raise KeyboardInterrupt

    def made(run: Run) -> Purified:
        return purify(subject, Evidence(), texts(), texts(16), how, run)

    whole = made(GPU).model.state_dict()
    with pytest.raises(Interrupted):
        made(replace(GPU, progress=stop, state=tmp_path / "state"))
    resumed = made(replace(GPU, state=tmp_path / "state")).model.state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())
