from __future__ import annotations

import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from purify_cli.evaluation.metrics import asr, cacc, excess, lfr, pearson

#            true label, given label; the target is 1
LABELS = [0, 0, 0, 0, 1, 1, 2, 2]
GIVEN = [1, 1, 1, 0, 1, 0, 1, 0]


def test_by_hand() -> None:
    # The target class itself (two texts) counts in LFR and not in ASR; a wrong label that is not the target in neither.
    assert (asr(GIVEN, LABELS, 1).value, asr(GIVEN, LABELS, 1).n) == (4 / 6, 6)
    assert (lfr(GIVEN, 1).value, lfr(GIVEN, 1).n) == (5 / 8, 8)
    assert (cacc(GIVEN, LABELS).value, cacc(GIVEN, LABELS).n) == (2 / 8, 8)


def test_targets_by_text() -> None:
    assert (asr([2, 2, 0], [0, 1, 1], [2, 1, 0]).value, asr([2, 2, 0], [0, 1, 1], [2, 1, 0]).n) == (1.0, 2)
    assert lfr([2, 2, 0], [2, 1, 0]).value == pytest.approx(2 / 3)


def test_excess_is_the_difference_of_the_shares() -> None:
    difference = excess(asr(GIVEN, LABELS, 1), asr([0, 0, 1, 0, 1, 1, 0, 0], LABELS, 1))
    assert difference.value == pytest.approx(4 / 6 - 1 / 6)
    assert difference.n == 6
    assert excess(asr(GIVEN, LABELS, 1), asr(GIVEN, LABELS, 1)).value == 0


def test_tensors_are_arrays_too() -> None:
    assert asr(torch.tensor(GIVEN), torch.tensor(LABELS), 1) == asr(GIVEN, LABELS, 1)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1), st.integers(0, 3))
def test_the_order_of_the_texts_does_not_matter(rows: list[tuple[int, int]], target: int) -> None:
    rows = [*rows, (0, (target + 1) % 4)]
    mixed = sorted(rows)
    for one, other in (
        (cacc(*zip(*rows, strict=True)), cacc(*zip(*mixed, strict=True))),
        (asr(*zip(*rows, strict=True), target), asr(*zip(*mixed, strict=True), target)),
        (lfr([row[0] for row in rows], target), lfr([row[0] for row in mixed], target)),
    ):
        assert one == other


def test_nothing_to_count() -> None:
    with pytest.raises(ValueError, match="no texts"):
        asr([1, 1], [1, 1], 1)
    with pytest.raises(ValueError, match="no texts"):
        cacc([], [])
    with pytest.raises(ValueError, match="length"):
        cacc([1], [1, 0])


def test_pearson_is_the_mean_product_of_standard_scores_and_its_interval_is_fisher_s() -> None:
    scores, truth = [0.1, 0.9, 0.4, 0.7, 0.2, 0.8], [0.0, 4.0, 3.0, 2.0, 1.0, 5.0]
    n, mean = len(truth), statistics.fmean
    products = mean((a - mean(scores)) * (b - mean(truth)) for a, b in zip(scores, truth, strict=True))
    expected = products / (statistics.pstdev(scores) * statistics.pstdev(truth))
    reach = 1.959964 / math.sqrt(n - 3)
    found = pearson(scores, truth)
    assert (found.value, found.n) == (pytest.approx(expected), n)
    assert (found.low, found.high) == tuple(
        pytest.approx(math.tanh(math.atanh(expected) + side * reach), abs=1e-6) for side in (-1, 1)
    )
    for flat in ([1.0] * n, scores[:3]):
        assert (pearson(flat, truth[: len(flat)]).low, pearson(flat, truth[: len(flat)]).value) == (-1.0, 0.0)
    with pytest.raises(ValueError, match="different length"):
        pearson(scores, truth[1:])
