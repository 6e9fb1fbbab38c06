from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from purify_cli import environment
from purify_cli.errors import UsageError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: request.param)


@pytest.fixture
def restored() -> Iterator[None]:
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)


@pytest.mark.parametrize(
    ("gpus", "name", "resolved"),
    [
        (0, "auto", "cpu"),
        (0, "cpu", "cpu"),
        (2, "auto", "cuda"),
        (2, "cuda", "cuda"),
        (2, "cuda:1", "cuda:1"),
        (2, "cpu", "cpu"),
    ],
    indirect=["gpus"],
)
def test_a_device_is_resolved(gpus: None, name: str, resolved: str) -> None:
    assert environment.resolve_device(name) == resolved


@pytest.mark.parametrize(
    ("gpus", "name"),
    [(0, "cuda"), (0, "cuda:0"), (2, "cuda:2"), (2, "mps"), (2, "cuda:"), (2, "cuda:-1"), (2, ""), (2, "CPU")],
    indirect=["gpus"],
)
def test_a_device_that_is_not_there_is_wrong_use(gpus: None, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        environment.resolve_device(name)
    assert caught.value.where == "--device"


def test_prepare_makes_results_repeat(restored: None) -> None:
    assert environment.prepare(device="cpu", threads=1) == "cpu"
    assert torch.get_num_threads() == 1
    assert torch.are_deterministic_algorithms_enabled()
    described = environment.describe("cpu", 7)
    assert (described.device, described.threads, described.seed) == ("cpu", 1, 7)
    assert described.torch == torch.__version__
