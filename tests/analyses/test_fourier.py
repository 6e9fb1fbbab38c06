"""The Fourier analysis against a literal computation with the whole matrix."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from purify_cli.analyses import Case, fourier
from purify_cli.data.encode import encode
from purify_cli.data.texts import Texts
from purify_cli.evaluation.predict import predict
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject

SETTINGS = fourier.Settings(delta=1.5, delta_low=0.5, delta_high=2.5, deltas=3, block=4)


def norms(rows: list[list[float]]) -> float:
    return sum(math.sqrt(sum(value * value for value in row)) for row in rows) / len(rows)


def minus(left: list[list[float]], right: list[list[float]]) -> list[list[float]]:
    return [[a - b for a, b in zip(x, y, strict=True)] for x, y in zip(left, right, strict=True)]


def points(subject: Subject, texts: Texts) -> tuple[list[list[float]], list[list[float]]]:
    """The answers, and the distances of the texts' embeddings laid end to end."""
    answers = predict(subject.open(), subject.tokenizer, texts, Run()).double().tolist()
    rows = subject.embeddings().double().tolist()
    ids = encode(subject.tokenizer, texts.with_(labels=None), 64).ids
    longest, width = max(map(len, ids)), len(rows[0])
    flat = [[x for token in one for x in rows[token]] + [0.0] * (width * (longest - len(one))) for one in ids]
    distances = [
        [math.sqrt(sum((a - b) ** 2 for a, b in zip(one, other, strict=True))) for other in flat] for one in flat
    ]
    return answers, distances


def literal(
    answers: list[list[float]], distances: list[list[float]], wanted: list[int], delta: float, squared: bool
) -> dict[str, float | None]:
    """Equations 1, 2, 12 and 13, number by number, with all of G."""
    filters = [[math.exp(-(d * d if squared else d) / (2 * delta)) for d in row] for row in distances]

    def low(values: list[list[float]]) -> list[list[float]]:
        return [
            [sum(g * value[k] for g, value in zip(row, values, strict=True)) / sum(row) for k in range(len(values[0]))]
            for row in filters
        ]

    truth = [[float(label == k) for k in range(len(answers[0]))] for label in wanted]
    y_low, t_low = low(answers), low(truth)
    y_high, t_high = minus(answers, y_low), minus(truth, t_low)
    high = norms(t_high)
    return {
        "low_frequency_ratio": norms(y_low) / norms(answers),
        "high_frequency_ratio": norms(y_high) / norms(answers),
        "error_low": norms(minus(y_low, t_low)) / norms(t_low),
        "error_high": norms(minus(y_high, t_high)) / high if high > 1e-9 else None,
    }


@pytest.mark.parametrize(("family", "squared"), [("bert", False), ("gpt2", False), ("bert", True)])
def test_the_measures_are_those_of_the_whole_matrix(
    family: str, squared: bool, case: Callable[..., Case], checkpoints: Callable[..., Path]
) -> None:
    one = case(checkpoints(family))
    settings = replace(SETTINGS, squared=squared)
    found = fourier.analyse([one], Evidence(), settings, Run())
    assert found.data["deltas"] == [0.5, 1.5, 2.5]
    (shown,) = found.data["checkpoints"]
    attacked = one.attacked(0)
    assert attacked is not None
    for name, texts, wanted in (
        ("clean", one.test, one.test.labels),
        ("triggered", attacked, attacked.targets),
    ):
        assert shown[name]["n"] == len(texts)
        answers, distances = points(one.subject, texts)
        for at, delta in enumerate((0.5, 1.5, 2.5)):
            for key, value in literal(answers, distances, list(wanted or ()), delta, squared).items():
                ours = shown[name][key][at]
                assert ours == (None if value is None else pytest.approx(value, abs=1e-5)), (name, key, delta)
    assert shown["triggered"]["error_high"] == [None] * 3
    assert shown["clean"]["error_high"][0] is not None
    assert [row["texts"] for row in found.rows] == ["clean", "triggered"]
    assert found.rows[0]["low ratio"] == shown["clean"]["low_frequency_ratio"][1]


def test_the_blocks_do_not_show(case: Callable[..., Case], checkpoints: Callable[..., Path]) -> None:
    one = case(checkpoints("bert"), triggers=(), target=None)

    def measured(block: int) -> Any:
        return fourier.analyse([one], Evidence(), replace(SETTINGS, block=block), Run()).data["checkpoints"][0]

    whole, parts = measured(64)["clean"], measured(1)["clean"]
    for key, values in whole.items():
        assert parts[key] == pytest.approx(values, abs=1e-12)
    assert "triggered" not in measured(2)


def test_the_same_texts_twice_are_one_point() -> None:
    """Two texts at one place share a filter: their low part is their mean, whatever its width."""
    encoded = encode_rows(((1, 2), (1, 2)))
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    low = fourier.low_parts(encoded, torch.eye(4), values, [0.1, 10.0], SETTINGS, Run())
    torch.testing.assert_close(low, torch.full((2, 2, 2), 0.5, dtype=torch.float64))


def encode_rows(rows: tuple[tuple[int, ...], ...]) -> Any:
    from purify_cli.data.encode import Encoded

    return Encoded(rows, None, None)


def test_a_wider_filter_passes_less_detail() -> None:
    encoded = encode_rows(((0,), (1,), (2, 3)))
    values = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
    low = fourier.low_parts(encoded, torch.eye(4), values, [0.01, 1e6], SETTINGS, Run())
    torch.testing.assert_close(low[0], values.double(), atol=1e-5, rtol=0)
    torch.testing.assert_close(low[1], values.double().mean(0).expand(3, 2), atol=1e-5, rtol=0)
