"""95 % intervals of shares and of their differences."""

from __future__ import annotations

import math

from purify_cli.results import Rate

_ALPHA = 0.05


def wilson(successes: int, n: int) -> Rate:
    """`successes` of `n` with Wilson's score interval (Wilson 1927); 0 and n give exact 0 and 1 as outer limits.

    Raises:
        ValueError: n is 0, or `successes` is not in 0..n.
    """
    _check(successes, n)
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(successes, n, alpha=_ALPHA, method="wilson")
    return _rate(successes / n, 0.0 if successes == 0 else float(low), 1.0 if successes == n else float(high), n)


def newcombe(successes1: int, n1: int, successes2: int, n2: int) -> Rate:
    """Difference of two shares with Newcombe's hybrid score interval (Newcombe 1998, method 10).

    The shares are treated as independent. Where both are of the same texts the interval is on the wide side.

    Returns:
        successes1 / n1 - successes2 / n2 in -1..1; `n` is n1.

    Raises:
        ValueError: an n is 0, or successes are not in 0..n.
    """
    _check(successes1, n1)
    _check(successes2, n2)
    from statsmodels.stats.proportion import confint_proportions_2indep

    low, high = confint_proportions_2indep(
        successes1, n1, successes2, n2, method="newcomb", compare="diff", alpha=_ALPHA
    )
    return _rate(successes1 / n1 - successes2 / n2, max(-1.0, float(low)), min(1.0, float(high)), n1)


def paired(both: int, first: int, second: int, neither: int) -> Rate:
    """Difference of two shares of the same texts: Newcombe's score interval for paired data (Newcombe 1998, method 10).

    Args:
        both: texts that succeed in both.
        first: texts that succeed in the first only.
        second: texts that succeed in the second only.
        neither: texts that succeed in none.

    Returns:
        The first share - the second in -1..1.

    Raises:
        ValueError: no texts, or a negative count.
    """
    n = both + first + second + neither
    if min(both, first, second, neither) < 0:
        raise ValueError("a count is negative")
    one, other = wilson(both + first, n), wilson(both + second, n)
    product = (both + first) * (second + neither) * (both + second) * (first + neither)
    agreement = float(both * neither - first * second)
    if agreement > 0:
        agreement = max(agreement - n / 2, 0.0)  # the correction for continuity
    phi = agreement / math.sqrt(product) if product else 0.0
    value = (first - second) / n

    def width(below: float, above: float) -> float:
        return math.sqrt(max(0.0, below**2 - 2 * phi * below * above + above**2))

    low = value - width(one.value - one.low, other.high - other.value)
    high = value + width(one.high - one.value, other.value - other.low)
    return _rate(value, max(-1.0, low), min(1.0, high), n)


def _check(successes: int, n: int) -> None:
    if n <= 0:
        raise ValueError("a rate of no texts")
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} of {n} is no share")


def _rate(value: float, low: float, high: float, n: int) -> Rate:
    # The last bit of the limits is rounding; an interval that leaves out its own estimate would be absurd.
    return Rate(value, min(low, value), max(high, value), n)
