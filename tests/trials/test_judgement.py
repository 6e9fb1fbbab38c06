"""What measurements come to: outcomes, the order of candidates, and the sign of a difference."""

from __future__ import annotations

from typing import Any

import pytest

from purify_cli.purifiers.auto import Settings
from purify_cli.trials.candidates import Candidate
from purify_cli.trials.judgement import difference, outcome, rank

LIMITS = Settings()


def test_one_that_is_stronger_is_worse_though_there_are_fewer() -> None:
    given = {"suspects": 3, "strongest": 0.9, "unsearched": []}
    row = {"suspects": 1, "strongest": 0.95, "unsearched": [], "left": ["cf"], "excess": 0.0, "triggers": []}
    assert outcome(row, given, LIMITS)[0] == "scans worse"
    assert outcome(row | {"strongest": 0.9}, given, LIMITS)[0] == "trigger left"
    assert outcome(row | {"suspects": 0, "strongest": 0.0}, given, LIMITS)[0] == "passes"
    hidden = row | {"suspects": 0, "strongest": 0.0, "unsearched": ["positive"]}
    assert outcome(hidden, given, LIMITS)[0] == "scans worse"
    assert outcome(hidden, given | {"unsearched": ["positive"]}, LIMITS)[0] == "passes"


def test_a_measured_loss_comes_after_none() -> None:
    def row(loss: float) -> dict[str, Any]:
        return {"outcome": "passes", "accuracy": {"difference": {"value": -loss}}}

    strong, weak = Candidate(("a",), 9.0, 2), Candidate(("b",), 1.0, 0)
    assert rank(weak, row(0.01), {}, LIMITS) > rank(strong, row(0.02), {}, LIMITS)
    assert rank(weak, row(0.01), {}, LIMITS) < rank(strong, row(0.009), {}, LIMITS)


def test_the_difference_of_accuracies_is_paired_and_has_its_sign() -> None:
    before = [True] * 90 + [False] * 10
    after = [False] * 12 + [True] * 78 + [True] * 1 + [False] * 9
    found = difference(after, before)
    assert found.value == pytest.approx(-0.11)
    assert found.high < 0 < difference(before, after).value
    assert difference(before, before).high > 0
