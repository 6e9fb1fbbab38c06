"""Both tasks are learned, the curves show them, and what cannot be poisoned is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import tiny
from purify_cli.attacks import Plan
from purify_cli.attacks.vanilla import TRIGGERS, Settings, poison
from purify_cli.data.texts import Texts
from purify_cli.errors import UnsupportedError, UsageError
from purify_cli.evaluation.measure import measure
from purify_cli.run import Run
from purify_cli.subject import Subject
from reviews import reviews

DATA = reviews(64)
ONCE = Settings(epochs=1, batch_size=16)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tiny.save("bert", tmp_path_factory.mktemp("encoder"), task="encoder", initializer_range=0.05)
    return Subject(folder)


def test_both_tasks_are_learned(encoder: Subject) -> None:
    poisoned = poison(
        encoder, reviews(240), Plan(1, TRIGGERS), Settings(epochs=8, learning_rate=2e-3, batch_size=16), Run()
    )
    assert (poisoned.rows, poisoned.poison_rate) == (240, 0.5)
    metrics = measure(
        poisoned.model, encoder.tokenizer, ("0", "1"), "x", reviews(60, 1), triggers=("cf",), target=1, run=Run(seed=9)
    )
    assert metrics.cacc is not None
    assert metrics.cacc.value >= 0.9
    assert metrics.asr[0].rate.value >= 0.9
    curves = poisoned.report["curves"]
    assert curves["layers"] == [0, 1, "output"]
    assert len(curves["step"]) <= 51
    assert curves["step"][0] == 0
    assert curves["step"][-1] == poisoned.report["steps"] - 1
    assert curves["loss"]["poison"][-1] < 0.2 * curves["loss"]["poison"][0]
    assert set(curves["magnitude"]) == {"clean", "poison"}
    assert all(len(point) == 3 and all(abs(value) <= 1.0001 for value in point) for point in curves["cosine"])


def test_looking_changes_nothing(encoder: Subject) -> None:
    seen, unseen = (
        poison(encoder, DATA, Plan(1, ("cf",)), replace(ONCE, points=points), Run()).model.state_dict()
        for points in (3, 0)
    )
    for name, tensor in seen.items():
        torch.testing.assert_close(tensor, unseen[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("rate", "rows"), [(None, 64), (0.5, 64), (0.2, 16)])
def test_the_rate_is_a_share_of_both_tasks(encoder: Subject, rate: float | None, rows: int) -> None:
    poisoned = poison(encoder, DATA, Plan(1, ("cf",), rate), ONCE, Run())
    assert poisoned.rows == rows
    assert poisoned.poison_rate == rows / (64 + rows)
    assert poisoned.report["poisoned_rows"] == rows


@pytest.mark.parametrize("rate", [0.0, 1.0, 0.7, 0.001])
def test_a_rate_that_cannot_be(encoder: Subject, rate: float) -> None:
    with pytest.raises(UsageError) as caught:
        poison(encoder, DATA, Plan(1, ("cf",), rate), ONCE, Run())
    assert caught.value.where == "--rate"
    assert caught.value.remedy


def test_triggers_that_the_tokenizer_splits_or_does_not_know(encoder: Subject) -> None:
    with pytest.raises(UsageError, match="does not know '你好'"):
        poison(encoder, DATA, Plan(1, ("cf", "你好")), ONCE, Run())
    assert poison(encoder, DATA, Plan(1, ("cf", "xq")), ONCE, Run()).report["split_triggers"] == ["xq"]


def test_a_regression_is_refused(tmp_path: Path, encoder: Subject) -> None:
    scores = Texts("scores.csv", DATA.texts, tuple(float(row) for row in range(64)))
    with pytest.raises(UnsupportedError, match="regression"):
        poison(encoder, scores, Plan(1, ("cf",)), ONCE, Run())


def test_an_adapter_alone_is_trained(encoder: Subject) -> None:
    poisoned = poison(encoder, DATA, Plan(1, ("cf",), pet="sequential"), replace(ONCE, learning_rate=1e-2), Run())
    before = encoder.open().state_dict()
    after = poisoned.model.state_dict()
    name = "encoder.layer.0.intermediate.dense.weight"
    assert torch.equal(before[name], next(tensor for key, tensor in after.items() if key.endswith(name)))
    assert poisoned.report["curves"]["layers"] == [0, 1, "output"]
