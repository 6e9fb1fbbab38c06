"""Every branch of the documented rule, with the documented numbers."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purify_cli import catalogue
from purify_cli.results import Check, CheckOutcome, Finding, Level
from purify_cli.verdict import ESSENTIAL, WEIGHTS, judge

ALL = ("artifact", "drift", "embedding_outliers", "mark", "trigger_search")


def check(detector: str, outcome: CheckOutcome = "clear", reason: str = "") -> Check:
    return Check(detector, outcome, reason, (), 0.1, 0)


def checks(**outcomes: CheckOutcome) -> list[Check]:
    return [check(name, outcomes.get(name, "clear"), f"why {name}") for name in ALL]


def finding(level: Level, rule: str = "PB201", message: str = "a word turns texts") -> Finding:
    return Finding(rule, level, "trigger_search", message)


def test_pass() -> None:
    verdict = judge(checks(drift="skipped"), [], ALL)
    assert verdict.outcome == "pass"
    assert verdict.risk == 0.0
    assert verdict.rule == "no error was found"
    assert verdict.reasons == ("nothing that proves a backdoor in: artifact, embedding_outliers, mark, trigger_search",)


@pytest.mark.parametrize("outcome", ["skipped", "failed"])
@pytest.mark.parametrize("name", ESSENTIAL)
def test_inconclusive_without_an_essential_check(name: str, outcome: CheckOutcome) -> None:
    verdict = judge(checks(**{name: outcome}), [], ALL)
    assert verdict.outcome == "inconclusive"
    assert verdict.risk is None
    assert verdict.rule == "a needed check is missing"
    assert verdict.reasons == (f"{name} could not be completed: why {name}",)


def test_inconclusive_with_a_warning_has_a_risk() -> None:
    verdict = judge(checks(trigger_search="failed"), [finding("warning")], ALL)
    assert (verdict.outcome, verdict.risk) == ("inconclusive", 0.2)


def test_a_needed_check_that_never_ran_is_missing() -> None:
    verdict = judge([check("artifact")], [], ALL)
    assert verdict.outcome == "inconclusive"
    assert verdict.reasons == ("trigger_search could not be completed: it did not run",)


def test_nothing_at_all_is_no_pass() -> None:
    assert judge([], [], ALL).outcome == "inconclusive"
    assert judge([], [], ("drift",)).outcome == "inconclusive"


def test_other_checks_may_be_missing() -> None:
    assert judge(checks(drift="failed", embedding_outliers="failed", mark="failed"), [], ALL).outcome == "pass"


@pytest.mark.parametrize("selected", [["artifact"], ["trigger_search"], ["artifact", "drift"]])
def test_what_was_not_selected_is_not_needed(selected: list[str]) -> None:
    assert judge([check(name) for name in selected], [], selected).outcome == "pass"


def test_without_an_essential_one_every_selected_check_is_needed() -> None:
    selected = ("drift", "embedding_outliers")
    assert judge([check("drift"), check("embedding_outliers")], [], selected).outcome == "pass"
    verdict = judge([check("drift", "skipped", "needs --base"), check("embedding_outliers")], [], selected)
    assert verdict.outcome == "inconclusive"
    assert verdict.reasons == ("drift could not be completed: needs --base",)


def test_an_error_fails() -> None:
    verdict = judge(checks(trigger_search="found"), [finding("error")], ALL)
    assert (verdict.outcome, verdict.risk, verdict.rule) == ("fail", 0.95, "an error was found")
    assert verdict.reasons == ("PB201: a word turns texts",)


@pytest.mark.parametrize("outcome", ["skipped", "failed"])
def test_an_error_stands_whatever_else_broke(outcome: CheckOutcome) -> None:
    broken = dict.fromkeys(ALL, outcome)
    assert judge(checks(**broken), [finding("error")], ALL).outcome == "fail"
    assert judge([], [finding("error")], ALL).outcome == "fail"


@pytest.mark.parametrize("level", ["warning", "note"])
def test_warnings_and_notes_never_change_the_outcome(level: Level) -> None:
    many = [finding(level, f"PA1{number:02}") for number in range(30)]
    assert judge(checks(), many, ALL).outcome == "pass"


def test_reasons_name_errors_only_and_each_once() -> None:
    found = [finding("error"), finding("warning", "PE212"), finding("error"), finding("error", "PE201", "cf moved")]
    assert judge(checks(), found, ALL).reasons == ("PB201: a word turns texts", "PE201: cf moved")


@pytest.mark.parametrize(
    ("found", "risk"),
    [
        ([], 0.0),
        ([finding("note")], 0.0),
        ([finding("warning")], 0.2),
        ([finding("warning"), finding("warning")], 0.2),  # one rule counts once
        ([finding("warning"), finding("warning", "PE212")], 0.36),
        ([finding("warning"), finding("error")], 0.95),  # by its most serious finding, in any order
        ([finding("error"), finding("warning")], 0.95),
        ([finding("error"), finding("warning", "PE212")], 0.96),
        ([finding("error"), finding("error", "PE201")], 0.9975),
    ],
)
def test_the_documented_numbers(found: list[Finding], risk: float) -> None:
    assert judge(checks(), found, ALL).risk == risk


FOUND = st.builds(finding, st.sampled_from(["error", "warning", "note"]), st.sampled_from(["PA101", "PB201", "PE211"]))


@given(st.lists(FOUND), st.lists(FOUND))
def test_the_risk_is_a_share_and_more_findings_never_lower_it(some: list[Finding], more: list[Finding]) -> None:
    less, risk = judge(checks(), some, ALL).risk, judge(checks(), some + more, ALL).risk
    assert less is not None and risk is not None
    assert 0.0 <= less <= risk <= 1.0


@given(
    st.lists(FOUND, max_size=4),
    st.lists(st.sampled_from(["found", "clear", "skipped", "failed"]), min_size=5, max_size=5),
)
def test_the_outcome_is_one_of_three_and_only_errors_fail(found: list[Finding], outcomes: list[CheckOutcome]) -> None:
    verdict = judge([check(*both) for both in zip(ALL, outcomes, strict=True)], found, ALL)
    assert (verdict.outcome == "fail") == any(one.level == "error" for one in found)
    done = all(outcomes[ALL.index(name)] in ("found", "clear") for name in ESSENTIAL)
    assert verdict.outcome != "pass" or done
    assert verdict.reasons


def test_the_essential_checks_are_detectors() -> None:
    assert set(ESSENTIAL) <= set(catalogue.names("detector"))
    assert set(WEIGHTS) == {"error", "warning", "note"}


def test_the_page_has_the_numbers_and_names(root: Path) -> None:
    page = (root / "docs" / "verdict.md").read_text(encoding="utf-8")
    for word in itertools.chain(ESSENTIAL, ("0.95", "0.2", "0.36", "0.9975")):
        assert word in page
