from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purify_cli.evaluation.intervals import newcombe, paired, wilson

COUNTS = st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))


@settings(deadline=None)  # the first call loads statsmodels
@given(COUNTS)
def test_wilson_contains_its_estimate(counts: tuple[int, int]) -> None:
    successes, n = counts
    rate = wilson(successes, n)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1
    assert (rate.value, rate.n) == (successes / n, n)
    assert rate.low < rate.high
    mirrored = wilson(n - successes, n)
    assert mirrored.low == pytest.approx(1 - rate.high, abs=1e-12)


def test_wilson_is_exact_at_the_ends() -> None:
    assert wilson(0, 10).low == 0
    assert wilson(10, 10).high == 1


def test_wilson_by_hand() -> None:
    # Newcombe 1998 (single proportion), table I: 15 of 148 gives 0.0624 to 0.1605.
    rate = wilson(15, 148)
    assert (rate.low, rate.high) == (pytest.approx(0.0624, abs=5e-5), pytest.approx(0.1605, abs=5e-5))


@settings(deadline=None)
@given(COUNTS, COUNTS)
def test_newcombe_is_antisymmetric_and_contains_its_estimate(one: tuple[int, int], other: tuple[int, int]) -> None:
    difference, reverse = newcombe(*one, *other), newcombe(*other, *one)
    assert -1 <= difference.low <= difference.value <= difference.high <= 1
    assert difference.value == pytest.approx(-reverse.value)
    assert difference.low == pytest.approx(-reverse.high, abs=1e-9)
    assert (difference.n, reverse.n) == (one[1], other[1])


def test_newcombe_by_hand() -> None:
    # Newcombe 1998 (difference), method 10, example (a): 56/70 - 48/80 gives 0.0524 to 0.3339.
    difference = newcombe(56, 70, 48, 80)
    assert difference.value == pytest.approx(0.2)
    assert (difference.low, difference.high) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_no_share(successes: int, n: int) -> None:
    with pytest.raises(ValueError):
        wilson(successes, n)
    with pytest.raises(ValueError):
        newcombe(1, 2, successes, n)


def test_paired_by_hand() -> None:
    # Newcombe 1998 (paired differences), table II: 36, 12, 2 and 0 give 0.0569 to 0.3404.
    rate = paired(36, 12, 2, 0)
    assert (rate.value, rate.n) == (pytest.approx(0.2), 50)
    assert (rate.low, rate.high) == (pytest.approx(0.0569, abs=5e-5), pytest.approx(0.3404, abs=5e-5))


def test_texts_that_agree_make_it_narrower() -> None:
    alike, unlike = paired(80, 2, 8, 10), newcombe(82, 100, 88, 100)
    assert alike.value == pytest.approx(unlike.value)
    assert alike.high - alike.low < unlike.high - unlike.low


@settings(deadline=None)
@given(st.tuples(*[st.integers(0, 60)] * 4).filter(any))
def test_paired_is_antisymmetric_and_contains_its_estimate(counts: tuple[int, int, int, int]) -> None:
    both, first, second, neither = counts
    rate, reverse = paired(both, first, second, neither), paired(both, second, first, neither)
    assert -1 <= rate.low <= rate.value <= rate.high <= 1
    assert (rate.low, rate.high) == (pytest.approx(-reverse.high), pytest.approx(-reverse.low))


def test_paired_of_nothing() -> None:
    for counts in ((0, 0, 0, 0), (1, -1, 0, 3)):
        with pytest.raises(ValueError, match=r"no texts|negative"):
            paired(*counts)
