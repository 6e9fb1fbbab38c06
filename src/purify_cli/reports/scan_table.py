"""The part of the report for people that tells of a scan."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from purify_cli.reports.escape import escape
from purify_cli.reports.next_command import extended, given, pasted
from purify_cli.reports.page import Page
from purify_cli.reports.values import MESSAGE_LIMIT, ROWS_SHOWN, STYLES, TOKEN_LIMIT, cell, left_out, quoted
from purify_cli.results import Check, Finding, Report, ScanResult

_FINDINGS_SHOWN = 10


def show_scan(page: Page, report: Report, result: ScanResult) -> None:
    """Writes the verdict, why, what was found, which checks ran, and what to do next."""
    verdict = result.verdict
    page.headline(verdict.outcome.upper(), STYLES[verdict.outcome], _sentence(result))

    page.section(f"Why: {escape(verdict.rule)}")
    for reason in verdict.reasons or ("nothing was found, and every check that the verdict needs has run",):
        page.item(escape(reason, limit=MESSAGE_LIMIT))

    triggers = [finding for finding in result.findings if finding.where.token is not None]
    if triggers:
        page.section("Tokens")
        _tokens(page, triggers)

    if result.findings:
        page.section("Findings")
        for check in result.checks:
            _findings(
                page, check.detector, [finding for finding in result.findings if finding.detector == check.detector]
            )

    page.section("Checks")
    rows = [
        (
            escape(check.detector),
            Text(check.outcome, style=STYLES[check.outcome]),
            f"{check.seconds:.1f}",
            str(check.forward_passes),
            escape(check.reason, limit=MESSAGE_LIMIT),
        )
        for check in result.checks
    ]
    page.table(("check", "outcome", "seconds", "passes", "why"), rows, right=(2, 3))

    _next(page, report, result)


def _sentence(result: ScanResult) -> str:
    verdict, path = result.verdict, escape(result.subject.path)
    risk = "" if verdict.risk is None else f" (risk {verdict.risk:.2f})"
    ran = sum(check.outcome in {"found", "clear"} for check in result.checks)
    checks = f"{len(result.checks)} check{'' if len(result.checks) == 1 else 's'}"
    if verdict.outcome == "pass":
        suspicious = sum(finding.level != "note" for finding in result.findings)
        warned = f", with {suspicious} warning{'' if suspicious == 1 else 's'}" if suspicious else ""
        sign = "no clear sign" if suspicious else "no sign"
        return f"{path} shows {sign} of a backdoor in {ran} of {checks}{warned}{risk}."
    if verdict.outcome == "inconclusive":
        return f"{path} could not be judged: {len(result.checks) - ran} of {checks} could not run to the end{risk}."
    return f"{path} {_accusation(result.findings)}{risk}."


def _accusation(findings: Sequence[Finding]) -> str:
    """What the error findings say, most telling first."""
    grave = [finding for finding in findings if finding.level == "error"] or list(findings)
    clauses = []
    behaviour = [finding for finding in grave if finding.rule[:2] in {"PE", "PB", "PW"}]
    if behaviour:
        named = sorted(behaviour, key=lambda finding: (finding.rule[:2] != "PB", finding.rule))
        token = next((finding.where.token for finding in named if finding.where.token is not None), None)
        clauses.append("carries signs of a backdoor" + ("" if token is None else f" (first of all at {quoted(token)})"))
    if any(finding.rule.startswith("PA") for finding in grave):
        clauses.append("holds files that are not safe to load")
    if any(finding.rule.startswith("PM") for finding in grave):
        clauses.append("is marked as poisoned")
    return " and ".join(clauses) if clauses else "did not pass"


def _tokens(page: Page, findings: Sequence[Finding]) -> None:
    heads = ("token", "rule", "level", "statistic", "value", "threshold", "n")
    rows = []
    for finding in findings[:ROWS_SHOWN]:
        evidence = finding.evidence
        rows.append(
            (
                quoted(finding.where.token or ""),
                finding.rule,
                Text(finding.level, style=STYLES[finding.level]),
                escape(str(evidence.get("statistic", "")), limit=TOKEN_LIMIT),
                cell(evidence.get("value")),
                cell(evidence.get("threshold")),
                cell(evidence.get("n")),
            )
        )
    page.table(heads, rows, right=(4, 5, 6))
    left_out(page, len(findings) - len(rows))


def _findings(page: Page, detector: str, findings: Sequence[Finding]) -> None:
    if not findings:
        return
    page.show(Text(escape(detector), style="bold"), 2)
    for finding in findings[:_FINDINGS_SHOWN]:
        place = _place(finding)
        page.item(
            (f"{finding.level} ", STYLES[finding.level]),
            f"{finding.rule} ",
            escape(finding.message, limit=MESSAGE_LIMIT),
            (f" [{place}]" if place else "", "dim"),
            indent=4,
        )
    left_out(page, len(findings) - _FINDINGS_SHOWN, indent=4)
    shown = next((finding.reproduce for finding in findings if finding.reproduce), None)
    if shown:
        page.item(("to see it again:", "dim"), bullet=" ", indent=4)
        page.line("      " + escape(shown, limit=MESSAGE_LIMIT))


def _place(finding: Finding) -> str:
    """Where a finding lies, but for what its message says anyway."""
    where = finding.where
    parts = [(None, where.file), ("tensor", where.tensor), ("layer", where.layer), ("head", where.head)]
    named = [
        escape(str(value)) if label is None else f"{label} {escape(str(value))}"
        for label, value in parts
        if value is not None and str(value) not in finding.message
    ]
    return ", ".join(named)


def _next(page: Page, report: Report, result: ScanResult) -> None:
    page.section("Next")
    path, outcome = pasted(result.subject.path), result.verdict.outcome
    verdict_reasons = result.verdict.reasons
    grave = [finding for finding in result.findings if finding.level == "error"]
    if outcome == "fail":
        kinds = {finding.rule[:2] for finding in grave}
        if "PA" in kinds:
            page.item("Do not load it. Keep the findings, and show them to whoever published it:")
            page.command(
                ("purify", "scan", path, "--only", "artifact", "--format", "json", "--output", "findings.json")
            )
        if kinds & {"PE", "PB", "PW"} or not kinds:
            clean = given(report.command, "--clean")
            page.item("Purify it with labelled texts that you trust" + (":" if clean else " (here CLEAN_CSV):"))
            page.command(("purify", "purify", path, "--method", "auto", "--clean", clean or "CLEAN_CSV"))
        elif kinds == {"PM"}:
            page.item("The mark alone decided. To see what the other checks say:")
            page.command(extended(report, path, ("--ignore-mark",)))
        return
    # An inconclusive verdict waits for the checks that its reasons name; options for the others would not change it.
    awaited = [
        check
        for check in result.checks
        if outcome == "pass" or any(reason.startswith(check.detector + " ") for reason in verdict_reasons)
    ] or list(result.checks)
    missing = _missing_options(awaited)
    broken = outcome == "inconclusive" and any(check.outcome == "failed" for check in awaited)
    if broken and any("a fault of ours" in check.reason for check in awaited):
        page.item("See what stopped the checks that failed:")
        page.command(extended(report, path, ("--verbose",)))
    elif broken and not missing:
        page.item("Mend what is named above, and scan it again:")
        page.command(extended(report, path, ()))
    if missing:
        page.item("Give the checks what they lack (names in capitals are yours to fill in):")
        page.command(extended(report, path, missing))
    elif outcome == "pass" and given(report.command, "--budget") != "deep":
        page.item("A pass is no proof. To look as long as it takes:")
        page.command(extended(report, path, ("--budget", "deep")))
    elif outcome == "pass":
        page.item("A pass is no proof. To measure a trigger that you suspect (names in capitals are yours to fill in):")
        page.command(("purify", "eval", path, "--test", "TEST_CSV", "--trigger", "WORD", "--target", "LABEL"))
    elif not broken:
        page.item("See which kinds of checkpoint each check can judge:")
        page.command(("purify", "methods"))


def _missing_options(checks: Sequence[Check]) -> tuple[str, ...]:
    """The options that checks ask for which could not run, with a word in capitals for each value."""
    wanted: list[str] = []
    for option, placeholder in (("--base", "BASE_CHECKPOINT"), ("--twin", "TWIN_CHECKPOINT"), ("--clean", "CLEAN_CSV")):
        if any(check.outcome in {"skipped", "failed"} and option in check.reason for check in checks):
            wanted += [option, placeholder]
    return tuple(wanted)
