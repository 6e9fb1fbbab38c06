"""What a candidate's measurements come to: whether it passes, and which of several is the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from purify_cli.evaluation.intervals import newcombe, paired
from purify_cli.results import Rate
from purify_cli.trials.candidates import Candidate
from purify_cli.trials.settings import Settings

MOST_MEASURED = 0.05
"""A measured loss that is not taken for an accident of few texts, though they do not show it to be none."""


def loses(change: Rate, limits: Settings) -> str:
    """Why an accuracy that changed like this (candidate - input, paired) does not hold; empty where it does."""
    told = (
        f"its accuracy is {-change.value:.3f} below the input's (95 % interval {-change.high:.3f} to {-change.low:.3f})"
    )
    if change.high < -limits.max_drop - 1e-9:
        return f"{told}, more than {limits.max_drop:g}"
    if change.value < -max(limits.max_drop, MOST_MEASURED) - 1e-9:
        return f"{told}: few texts, but too much to be an accident"
    return ""


def outcome(row: dict[str, Any], given: dict[str, Any], limits: Settings) -> tuple[str, str]:
    """What comes of a candidate whose accuracy holds, and a sentence on it."""
    new = [label for label in row["unsearched"] if label not in given["unsearched"]]
    if new:
        return "scans worse", f"the search cannot look into {', '.join(new)} any more"
    if row["proven"] > given["proven"] or row["strongest"] > given["strongest"] + 1e-9:
        return "scans worse", f"the search finds {words(row['left'])} in it, which is worse than in the input"
    if row["suspects"]:
        return "trigger left", f"the search still finds {words(row['left'])}"
    if row["excess"] is not None and row["excess"] > limits.max_excess:
        worst = max((one for one in row["triggers"] if one["excess"]), key=lambda one: float(one["excess"]["value"]))
        turned = f"{worst['words']!r} still turns {row['excess']:.3f} of the texts to {worst['target']}"
        return "trigger left", f"{turned} beyond {worst['floor_from']}, more than {limits.max_excess:g}"
    return "passes", "passes"


def rank(candidate: Candidate, row: dict[str, Any], given: dict[str, Any], limits: Settings) -> tuple[float, ...]:
    """How good a judged candidate is; () for what is worth no more than the input."""
    if row["outcome"] == "passes":
        return (2.0, float(_within_max_drop(row, limits)), float(candidate.reach), candidate.passes)
    if row["outcome"] == "trigger left" and suspicion(row) < suspicion(given):
        strongest, suspects = suspicion(row)
        return (1.0, -strongest, -suspects)
    return ()


def to_build_on(judged: dict[Candidate, dict[str, Any]], given: dict[str, Any], limits: Settings) -> list[Candidate]:
    """Those that help and do not pass, the best to put something on top of first.

    What costs no accuracy goes before what leaves less: a loss stays, whatever is put on top of it. First of all stands
    the best single method that acts on what was found: few texts do not show all that acting on the whole model costs.
    """
    by_rank = {one: rank(one, row, given, limits) for one, row in judged.items() if row["outcome"] == "trigger left"}
    helps = [one for one in by_rank if by_rank[one]]
    helps.sort(key=lambda one: (_within_max_drop(judged[one], limits), by_rank[one]), reverse=True)
    first = [one for one in helps if len(one.steps) == 1 and not one.reach and _within_max_drop(judged[one], limits)][
        :1
    ]
    return first + [one for one in helps if one not in first]


def _within_max_drop(row: dict[str, Any], limits: Settings) -> bool:
    """Whether the measured loss is one that is allowed."""
    return bool(row["accuracy"]["difference"]["value"] >= -limits.max_drop - 1e-9)


def suspicion(row: dict[str, Any]) -> tuple[float, float]:
    """What is still to be seen of a backdoor: what the strongest suspect or trigger turns, and how many suspects."""
    return max(row["strongest"], row["excess"] or 0.0), float(row["suspects"])


def words(found: Sequence[str]) -> str:
    """The first three, quoted, and how many more there are."""
    shown = ", ".join(repr(one) for one in found[:3])
    return shown if len(found) <= 3 else f"{shown} and {len(found) - 3} more"


def difference(after: Sequence[bool], before: Sequence[bool]) -> Rate:
    """Of two accuracies on the same texts, with Newcombe's interval for pairs; below 0 where accuracy was lost."""
    pairs = list(zip(after, before, strict=True))
    counts = [pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))]
    return paired(*counts)


def differs(
    untrusted: Sequence[int], untrusted_before: Sequence[int], clean: Sequence[int], clean_before: Sequence[int]
) -> dict[str, Any]:
    """On how many untrusted texts candidate and input differ, beyond those clean ones on which they do."""
    there = sum(one != other for one, other in zip(untrusted, untrusted_before, strict=True))
    here = sum(one != other for one, other in zip(clean, clean_before, strict=True))
    beyond = newcombe(there, len(untrusted), here, len(clean))
    return {"differs": there / len(untrusted), "on_dev": here / len(clean), "beyond": asdict(beyond)}
