"""What measurements come to: outcomes, the order of candidates, and the sign of a difference."""

from __future__ import annotations

from typing import Any

import pytest

from purify_cli.purifiers.auto import Settings
from purify_cli.results import Rate
from purify_cli.trials.candidates import Candidate
from purify_cli.trials.judgement import MOST_MEASURED, difference, loses, outcome, rank, to_build_on

LIMITS = Settings()


def test_one_that_is_stronger_is_worse_though_there_are_fewer() -> None:
    given = {"suspects": 3, "proven": 1, "strongest": 0.9, "unsearched": []}
    row = {
        "suspects": 1,
        "proven": 1,
        "strongest": 0.95,
        "unsearched": [],
        "left": ["cf"],
        "excess": 0.0,
        "triggers": [],
    }
    assert outcome(row, given, LIMITS)[0] == "scans worse"
    assert outcome(row | {"strongest": 0.9}, given, LIMITS)[0] == "trigger left"
    weaker = row | {"strongest": 0.9, "suspects": 5}
    assert outcome(weaker, given, LIMITS)[0] == "trigger left", "what a strong one hid is told beside a weakened one"
    assert outcome(weaker | {"proven": 2}, given, LIMITS)[0] == "scans worse"
    assert outcome(row | {"suspects": 0, "strongest": 0.0}, given, LIMITS)[0] == "passes"
    hidden = row | {"suspects": 0, "strongest": 0.0, "unsearched": ["positive"]}
    assert outcome(hidden, given, LIMITS)[0] == "scans worse"
    assert outcome(hidden, given | {"unsearched": ["positive"]}, LIMITS)[0] == "passes"


def test_what_few_texts_do_not_show_is_no_excuse_for_a_great_loss() -> None:
    """Of 150 texts 14 more wrong and 7 more right are no proof that more than 0.01 is lost; 21 and 12 neither."""
    base = [True] * 120 + [False] * 30

    def change(lost: int, won: int) -> Rate:
        return difference([False] * lost + [True] * (120 - lost) + [True] * won + [False] * (30 - won), base)

    little, much, proven = change(14, 7), change(21, 12), change(30, 0)
    assert all(one.high > -LIMITS.max_drop for one in (little, much)) and proven.high < -LIMITS.max_drop
    assert little.value > -MOST_MEASURED > much.value
    assert loses(little, LIMITS) == ""
    assert "its accuracy is 0.060 below the input's" in loses(much, LIMITS) and "accident" in loses(much, LIMITS)
    assert "more than 0.01" in loses(proven, LIMITS)
    assert loses(much, Settings(max_drop=0.1)) == ""


def test_a_measured_loss_comes_after_none() -> None:
    def row(loss: float) -> dict[str, Any]:
        return {"outcome": "passes", "accuracy": {"difference": {"value": -loss}}}

    strong, weak = Candidate(("a",), 9.0, 2), Candidate(("b",), 1.0, 0)
    assert rank(weak, row(0.01), {}, LIMITS) > rank(strong, row(0.02), {}, LIMITS)
    assert rank(weak, row(0.01), {}, LIMITS) < rank(strong, row(0.009), {}, LIMITS)


def test_what_costs_no_accuracy_is_built_on_before_what_leaves_less() -> None:
    def row(left: float, loss: float, outcome: str = "trigger left") -> dict[str, Any]:
        measured = {"strongest": left, "excess": None, "suspects": 1}
        return {"outcome": outcome, "accuracy": {"difference": {"value": -loss}}} | measured

    given = row(1.0, 0.0, "input")
    judged = {
        Candidate(("lossy",)): row(0.2, 0.03),
        Candidate(("worse",)): row(0.1, 0.0, "scans worse"),
        Candidate(("some",)): row(0.6, 0.01),
        Candidate(("half",)): row(0.5, 0.01),
        Candidate(("none",)): row(1.0, 0.0),
    }
    assert [one.name for one in to_build_on(judged, given, LIMITS)] == ["half", "some", "lossy"]
    whole = Candidate(("whole model",), reach=1)
    order = [one.name for one in to_build_on(judged | {whole: row(0.1, 0.0)}, given, LIMITS)]
    assert order == ["half", "whole model", "some", "lossy"], "few texts do not show all that it costs"
    chain = Candidate(("half", "half"))  # what the first was put on gives way to the best of the others
    order = [one.name for one in to_build_on(judged | {whole: row(0.1, 0.0), chain: row(0.2, 0.0)}, given, LIMITS)]
    assert order == ["half", "whole model", "half + half", "some", "lossy"]
    only = {Candidate(("lossy",)): row(0.2, 0.03), whole: row(0.5, 0.0)}
    assert [one.name for one in to_build_on(only, given, LIMITS)] == ["whole model", "lossy"]
    assert to_build_on({Candidate(("worse",)): row(0.1, 0.0, "loses accuracy")}, given, LIMITS) == []


def test_the_difference_of_accuracies_is_paired_and_has_its_sign() -> None:
    before = [True] * 90 + [False] * 10
    after = [False] * 12 + [True] * 78 + [True] * 1 + [False] * 9
    found = difference(after, before)
    assert found.value == pytest.approx(-0.11)
    assert found.high < 0 < difference(before, after).value
    assert difference(before, before).high > 0
