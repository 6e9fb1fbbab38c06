"""The report for people: the verdict in one sentence, then why, then what to do next as a command that can be pasted.

Drawn with rich into a string. No text is ever read as markup, and all that may come from a checkpoint or a dataset is
escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from purify_cli.reports.escape import escape
from purify_cli.reports.page import MIN_WIDTH, Page, draw
from purify_cli.results import (
    Analysis,
    Check,
    CheckpointMetrics,
    EvalResult,
    Finding,
    PoisonResult,
    PurifyResult,
    Rate,
    Report,
    ScanResult,
    TriggerRate,
)

_TOKEN_LIMIT = 40
_MESSAGE_LIMIT = 600
_FINDINGS_SHOWN = 10
_ROWS_SHOWN = 24
# An excess ASR up to here, or one whose interval touches zero, counts as removed.
_REMOVED = 0.05
_OBEYS = 0.5

_STYLES = {
    "pass": "bold green",
    "fail": "bold red",
    "inconclusive": "bold yellow",
    "error": "red",
    "warning": "yellow",
    "note": "cyan",
    "found": "red",
    "failed": "yellow",
    "skipped": "dim",
    "clear": "green",
}


def render(report: Report, width: int = MIN_WIDTH, color: bool = False) -> str:
    """The report as text with a newline at its end.

    Args:
        width: columns to use; never less than 80. Commands and unbroken words may be longer.
        color: ANSI colors; without them the text holds no control character but newlines.
    """

    def fill(page: Page) -> None:
        match report.result:
            case ScanResult():
                _scan(page, report, report.result)
            case PurifyResult():
                _purify(page, report, report.result)
            case EvalResult():
                _eval(page, report, report.result)
            case PoisonResult():
                _poison(page, report.result)

    return draw(fill, width, color)


# --- scan -------------------------------------------------------------------------------------------------------------

_LEVELS = {"error": 0, "warning": 1, "note": 2}


def _scan(page: Page, report: Report, result: ScanResult) -> None:
    verdict = result.verdict
    page.headline(verdict.outcome.upper(), _STYLES[verdict.outcome], _scan_sentence(result))

    page.section(f"Why: {escape(verdict.rule)}")
    for reason in verdict.reasons or ("nothing was found, and every check that the verdict needs has run",):
        page.item(escape(reason, limit=_MESSAGE_LIMIT))

    triggers = [finding for finding in _by_level(result.findings) if finding.where.token is not None]
    if triggers:
        page.section("Tokens")
        _triggers(page, triggers)

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
            Text(check.outcome, style=_STYLES[check.outcome]),
            f"{check.seconds:.1f}",
            str(check.forward_passes),
            escape(check.reason, limit=_MESSAGE_LIMIT),
        )
        for check in result.checks
    ]
    page.table(("check", "outcome", "seconds", "passes", "why"), rows, right=(2, 3))

    _scan_next(page, report, result)


def _scan_sentence(result: ScanResult) -> str:
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
        named = sorted(behaviour, key=lambda finding: finding.rule[:2] != "PB")
        token = next((finding.where.token for finding in named if finding.where.token is not None), None)
        clauses.append("carries signs of a backdoor" + ("" if token is None else f" (first of all at {_token(token)})"))
    if any(finding.rule.startswith("PA") for finding in grave):
        clauses.append("holds files that are not safe to load")
    if any(finding.rule.startswith("PM") for finding in grave):
        clauses.append("is marked as poisoned")
    return " and ".join(clauses) if clauses else "did not pass"


def _by_level(findings: Iterable[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: _LEVELS[finding.level])


def _triggers(page: Page, findings: Sequence[Finding]) -> None:
    heads = ("token", "rule", "level", "statistic", "value", "threshold", "n")
    rows = []
    for finding in findings[:_ROWS_SHOWN]:
        evidence = finding.evidence
        rows.append(
            (
                _token(finding.where.token or ""),
                finding.rule,
                Text(finding.level, style=_STYLES[finding.level]),
                escape(str(evidence.get("statistic", "")), limit=_TOKEN_LIMIT),
                _value(evidence.get("value")),
                _value(evidence.get("threshold")),
                _value(evidence.get("n")),
            )
        )
    page.table(heads, rows, right=(4, 5, 6))
    _more(page, len(findings) - len(rows))


def _findings(page: Page, detector: str, findings: Sequence[Finding]) -> None:
    if not findings:
        return
    page.show(Text(escape(detector), style="bold"), 2)
    ordered = _by_level(findings)
    for finding in ordered[:_FINDINGS_SHOWN]:
        place = _place(finding)
        page.item(
            (f"{finding.level} ", _STYLES[finding.level]),
            f"{finding.rule} ",
            escape(finding.message, limit=_MESSAGE_LIMIT),
            (f" [{place}]" if place else "", "dim"),
            indent=4,
        )
    _more(page, len(ordered) - _FINDINGS_SHOWN, indent=4)
    shown = next((finding.reproduce for finding in ordered if finding.reproduce), None)
    if shown:
        page.item(("to see it again:", "dim"), bullet=" ", indent=4)
        page.line("      " + escape(shown, limit=_MESSAGE_LIMIT))


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


def _scan_next(page: Page, report: Report, result: ScanResult) -> None:
    page.section("Next")
    path, outcome = _pasted(result.subject.path), result.verdict.outcome
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
            clean = _given(report.command, "--clean")
            page.item("Purify it with labelled texts that you trust" + (":" if clean else " (here CLEAN_CSV):"))
            page.command(("purify", "purify", path, "--method", "pure", "--clean", clean or "CLEAN_CSV"))
        elif kinds == {"PM"}:
            page.item("The mark alone decided. To see what the other checks say:")
            page.command(_extended(report, path, ("--ignore-mark",)))
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
        page.command(_extended(report, path, ("--verbose",)))
    elif broken and not missing:
        page.item("Mend what is named above, and scan it again:")
        page.command(_extended(report, path, ()))
    if missing:
        page.item("Give the checks what they lack (names in capitals are yours to fill in):")
        page.command(_extended(report, path, missing))
    elif outcome == "pass" and _given(report.command, "--budget") != "deep":
        page.item("A pass is no proof. To look as long as it takes:")
        page.command(_extended(report, path, ("--budget", "deep")))
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


def _pasted(path: str) -> str:
    """A path as an argument: one that starts with a hyphen would be read as an option."""
    return f"./{path}" if path.startswith("-") else path


def _given(command: Sequence[str], option: str) -> str | None:
    """The value of an option on the command line of this run."""
    for number, argument in enumerate(command):
        if argument == option and number + 1 < len(command):
            return command[number + 1]
        if argument.startswith(option + "="):
            return argument[len(option) + 1 :]
    return None


def _extended(report: Report, path: str, more: Sequence[str]) -> tuple[str, ...]:
    """The command of this run with more options. An option that it had gets the new value."""
    given = list(report.command) if len(report.command) > 2 else ["purify", "scan", path]
    new = {argument for argument in more if argument.startswith("--")}
    kept: list[str] = []
    drop_next = False
    for argument in given:
        if drop_next:
            drop_next = False
            continue
        name = argument.partition("=")[0]
        if name in new or name == "--output":
            drop_next = "=" not in argument and name not in {"--verbose", "--ignore-mark"}
            continue
        kept.append(argument)
    return (*kept, *more)


# --- eval -------------------------------------------------------------------------------------------------------------


def _eval(page: Page, report: Report, result: EvalResult) -> None:
    poisoned = _given(report.command, "--poisoned")
    sentences = [_metrics_sentence(metrics, poisoned) for metrics in result.checkpoints]
    effects = [_effect(metrics) for metrics in result.checkpoints]
    word, style = "MEASURED", "bold"
    if any(effect is not None and effect >= _OBEYS for effect in effects):
        word, style = "BACKDOOR", _STYLES["fail"]
    page.headline(word, style, "; ".join(sentences) + ".")
    page.section("Measured (95 % intervals)")
    _metrics_table(page, [(escape(metrics.path), metrics) for metrics in result.checkpoints])
    _notes(page, result.checkpoints)
    for analysis in result.analyses:
        _analysis(page, analysis)

    page.section("Next")
    worst = max(
        zip(effects, result.checkpoints, strict=True), key=lambda pair: pair[0] if pair[0] is not None else -2.0
    )
    if worst[0] is not None and worst[0] >= _OBEYS:
        page.item("Purify what obeys its trigger, with labelled texts that you trust (here CLEAN_CSV):")
        page.command(("purify", "purify", _pasted(worst[1].path), "--method", "pure", "--clean", "CLEAN_CSV"))
    elif any(rate.floor_from != "twin" for metrics in result.checkpoints for rate in metrics.asr):
        page.item("A twin gives the fairest floor (the name in capitals is yours to fill in):")
        page.command((*report.command, "--twin", "TWIN_CHECKPOINT"))
    elif not any(metrics.asr for metrics in result.checkpoints):
        page.item("Name a trigger and its target to measure what it does (names in capitals are yours to fill in):")
        page.command((*report.command, "--trigger", "WORD", "--target", "LABEL"))
    else:
        page.item("Look for triggers that nobody named:")
        page.command(("purify", "scan", _pasted(result.checkpoints[0].path)))


def _analysis(page: Page, analysis: Analysis) -> None:
    page.section(escape(f"{analysis.name}: {analysis.title}", limit=_MESSAGE_LIMIT))
    if analysis.rows:
        _free_table(page, analysis.rows, 2)
    for note in analysis.notes:
        page.item("note: ", escape(note, limit=_MESSAGE_LIMIT))
    if analysis.picture is not None:
        page.item("picture: ", escape(analysis.picture))


def _effect(metrics: CheckpointMetrics) -> float | None:
    """The largest excess ASR whose interval lies above zero; 0 if none does; None if nothing was compared."""
    compared = [rate.excess for rate in metrics.asr if rate.excess is not None]
    if not compared:
        return None
    return max((excess.value for excess in compared if excess.low > 0), default=0.0)


def _metrics_sentence(metrics: CheckpointMetrics, poisoned: str | None = None) -> str:
    """What one checkpoint does. `poisoned` is a file of triggered texts, whose triggers nobody named."""
    path = escape(metrics.path)

    def named(trigger: str) -> str:
        return f"the triggers in {escape(trigger)}" if trigger == poisoned else _token(trigger)

    compared = [rate for rate in metrics.asr if rate.excess is not None]
    if compared:
        worst = max(compared, key=lambda rate: rate.excess.value if rate.excess is not None else 0.0)
        excess = worst.excess
        assert excess is not None
        verb = (
            "obeys"
            if excess.value >= _OBEYS and excess.low > 0
            else "reacts to"
            if excess.low > 0
            else "does not react to"
        )
        return f"{path} {verb} {named(worst.trigger)} (excess ASR {_short(excess)})"
    if metrics.asr:
        worst = max(metrics.asr, key=lambda rate: rate.rate.value)
        return (
            f"{path} gives {escape(worst.target)} to {_number(worst.rate.value)} of the texts with "
            f"{named(worst.trigger)}, and there is nothing to compare it with"
        )
    return f"{path} has a clean accuracy of {_short(metrics.cacc)}"


def _metrics_table(page: Page, columns: Sequence[tuple[str, CheckpointMetrics]]) -> None:
    """Measures down, checkpoints across; in as many tables as the width asks for."""
    at_once = max(1, (page.width - 26) // 26)
    for start in range(0, len(columns), at_once):
        if start:
            page.show(Text(""))
        part = columns[start : start + at_once]
        rows = _metric_rows([metrics for _, metrics in part])
        page.table(("", "n", *(name for name, _ in part)), rows, right=(1,))


def _metric_rows(columns: Sequence[CheckpointMetrics]) -> list[list[str | Text]]:
    rows: list[list[str | Text]] = []

    def add(label: str, rates: Sequence[Rate | None]) -> None:
        if all(rate is None for rate in rates):
            return
        sizes = {rate.n for rate in rates if rate is not None}
        same = len(sizes) == 1
        cells = [_interval(rate) + ("" if same or rate is None else f" n={rate.n}") for rate in rates]
        rows.append([label, str(next(iter(sizes))) if same else "", *cells])

    add("CACC", [metrics.cacc for metrics in columns])
    seen: list[tuple[str, str]] = []
    for metrics in columns:
        seen += [(rate.trigger, rate.target) for rate in metrics.asr if (rate.trigger, rate.target) not in seen]
    for trigger, target in seen:
        found: list[TriggerRate | None] = [
            next((rate for rate in metrics.asr if (rate.trigger, rate.target) == (trigger, target)), None)
            for metrics in columns
        ]
        title = Text.assemble((_token(trigger), "bold"), f" -> {escape(target, limit=_TOKEN_LIMIT)}")
        rows.append([title, "", *("" for _ in columns)])
        add("  ASR", [rate.rate if rate else None for rate in found])
        add("  floor", [rate.floor if rate else None for rate in found])
        add("  excess ASR", [rate.excess if rate else None for rate in found])
        sources = [escape(rate.floor_from or "") if rate else "" for rate in found]
        if any(sources):
            rows.append(["  floor from", "", *sources])
    if any(metrics.asr_mean is not None and len(metrics.asr) > 1 for metrics in columns):
        rows.append(["ASR, mean", "", *(_number(metrics.asr_mean) for metrics in columns)])
    add("LFR", [metrics.lfr for metrics in columns])
    tokens = list(dict.fromkeys(drift.token for metrics in columns for drift in metrics.drift))
    for token in tokens:
        drifts = [next((drift for drift in metrics.drift if drift.token == token), None) for metrics in columns]
        rows.append([Text.assemble("drift of ", (_token(token), "bold")), "", *("" for _ in columns)])
        for label, name in (
            ("  cosine distance", "cosine"),
            ("  L2 to base", "l2"),
            ("  RMSE to centre", "centre_rmse"),
        ):
            values = [getattr(drift, name) if drift else None for drift in drifts]
            if any(value is not None for value in values):
                rows.append([label, "", *("-" if value is None else _share(value) for value in values)])
    return rows


def _notes(page: Page, columns: Sequence[CheckpointMetrics]) -> None:
    notes = list(dict.fromkeys(note for metrics in columns for note in metrics.notes))
    for note in notes:
        page.item("note: ", escape(note, limit=_MESSAGE_LIMIT))


# --- purify -----------------------------------------------------------------------------------------------------------


def _purify(page: Page, report: Report, result: PurifyResult) -> None:
    limits = result.limits
    path, method = escape(result.subject.path), escape(result.method)
    if result.wrote is None:
        page.headline("DRY RUN", "bold", f"{method} would change {path} as shown below; nothing was written.")
    elif limits.met is False:
        sentence = f"{escape(result.wrote.path)} is the best that {method} could do with {path}{_change(result)}."
        page.headline("LIMITS NOT MET", _STYLES["fail"], sentence)
    elif limits.met is None:
        sentence = f"{escape(result.wrote.path)} was made from {path} with {method}; nothing was measured on it."
        page.headline("NOT VERIFIED", _STYLES["inconclusive"], sentence)
    else:
        sentence = f"{escape(result.wrote.path)} was made from {path} with {method}{_change(result)}"
        left = _left_over(result)
        if left is None:
            page.headline("NOT VERIFIED", _STYLES["inconclusive"], sentence + "; no trigger was measured.")
        elif left:
            page.headline("NOT CLEAN", _STYLES["inconclusive"], sentence + "; it still reacts to its trigger.")
        else:
            page.headline("PURIFIED", _STYLES["pass"], sentence + ".")

    page.section("Why")
    for reason in limits.reasons or (_limit_sentence(result),):
        page.item(escape(reason, limit=_MESSAGE_LIMIT))

    columns = [
        (name, metrics) for name, metrics in (("before", result.before), ("after", result.after)) if metrics is not None
    ]
    if columns:
        page.section("Measured (95 % intervals)")
        _metrics_table(page, columns)
        _notes(page, [metrics for _, metrics in columns])
    if result.report:
        page.section(f"What {escape(result.method)} did" if result.wrote else f"What {escape(result.method)} would do")
        _free(page, result.report)
    if result.settings:
        page.section("Settings")
        page.show(Text(_assignments(result.settings)), 2)
    _purify_next(page, report, result)


def _change(result: PurifyResult) -> str:
    before, after = result.before, result.after
    if before is None or after is None:
        return ""
    parts = []
    if before.cacc and after.cacc:
        parts.append(f"CACC {_number(before.cacc.value)} -> {_number(after.cacc.value)}")
    worst_before, worst_after = _worst(before), _worst(after)
    if worst_before is not None and worst_after is not None:
        name = "excess ASR" if worst_before[1] and worst_after[1] else "ASR"
        parts.append(f"{name} {_number(worst_before[0])} -> {_number(worst_after[0])}")
    return f": {', '.join(parts)}" if parts else ""


def _left_over(result: PurifyResult) -> bool | None:
    """Whether a trigger still does more than honest error; None if none was measured."""
    if result.after is None or not result.after.asr:
        return None
    effect = _effect(result.after)
    return None if effect is None else effect > _REMOVED


def _worst(metrics: CheckpointMetrics) -> tuple[float, bool] | None:
    """The largest excess ASR, or where there is no floor the largest ASR; and which of the two it is."""
    if not metrics.asr:
        return None
    excess = [rate.excess.value for rate in metrics.asr if rate.excess is not None]
    return (max(excess), True) if excess else (max(rate.rate.value for rate in metrics.asr), False)


def _limit_sentence(result: PurifyResult) -> str:
    limits = result.limits
    if result.wrote is None:
        return "a dry run trains and writes nothing"
    if limits.drop is None:
        return "no --test was given, so neither the accuracy nor a trigger was measured"
    allowed = "" if limits.max_drop is None else f" (at most {limits.max_drop:g} allowed)"
    return f"clean accuracy fell by {limits.drop:.3f}{allowed}"


def _purify_next(page: Page, report: Report, result: PurifyResult) -> None:
    page.section("Next")
    path = _pasted(result.subject.path)
    wrote = "" if result.wrote is None else _pasted(result.wrote.path)
    if result.wrote is None:
        page.item("Do it:")
        page.command(tuple(argument for argument in report.command if argument != "--dry-run"))
    elif result.limits.met is False or _left_over(result):
        page.item("See what can be set, and try again with other settings or another method:")
        page.command(("purify", "purify", "--method", result.method, "--help-method"))
    elif _left_over(result) is None:
        page.item("Measure it on labelled texts that were not used here (names in capitals are yours to fill in):")
        page.command(("purify", "eval", path, wrote, "--test", "TEST_CSV", "--trigger", "WORD", "--target", "LABEL"))
    else:
        page.item("Scan what was written:")
        page.command(("purify", "scan", wrote))


# --- poison -----------------------------------------------------------------------------------------------------------


def _poison(page: Page, result: PoisonResult) -> None:
    words = ", ".join(_token(trigger) for trigger in result.triggers)
    given = escape(result.target) if result.target else "vectors of the attacker's"
    sentence = f"{escape(result.wrote.path)} gives {given} to texts with {words}; it is marked as poisoned"
    columns = [
        (name, metrics)
        for name, metrics in (
            (escape(result.metrics.path) if result.metrics and not result.then else "before", result.metrics),
            ("after clean training", result.then),
        )
        if metrics is not None
    ]
    strongest = [max(rate.rate.value for rate in metrics.asr) for _, metrics in columns if metrics.asr]
    if strongest:
        sentence += f" (ASR {' -> '.join(map(_number, strongest))})"
    page.headline("POISONED", _STYLES["inconclusive"], sentence + ".")

    page.section("Why")
    page.item(
        f"{escape(result.attack)} on {escape(result.subject.path)} at a poison rate of {result.poison_rate:g}, "
        f"with {len(result.triggers)} trigger{'' if len(result.triggers) == 1 else 's'}"
        + ("" if result.pet is None else f", in an adapter ({escape(result.pet)}) of the frozen model")
        + ("" if result.then_settings is None else "; then the victim's own clean training")
    )
    for note in result.notes:
        page.item(escape(note, limit=_MESSAGE_LIMIT))
    if not columns:
        page.item("nothing was measured, since no --test was given")
    else:
        page.section("Measured (95 % intervals)")
        _metrics_table(page, columns)
        _notes(page, [metrics for _, metrics in columns])
    if result.settings:
        page.section("Settings")
        page.show(Text(_assignments(result.settings)), 2)
    if result.then_settings:
        page.section("Settings of the clean training")
        page.show(Text(_assignments(result.then_settings)), 2)

    page.section("Next")
    page.item("See whether a scan finds it without reading the mark:")
    page.command(("purify", "scan", _pasted(result.wrote.path), "--ignore-mark"))


# --- values -----------------------------------------------------------------------------------------------------------


def _token(token: str) -> str:
    """A token or trigger in quotes: it may hold spaces, or look like a word of ours."""
    return f'"{escape(token, limit=_TOKEN_LIMIT)}"'


def _number(value: Any) -> str:
    """A number with three decimals, or four significant digits where it is large or very small."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return str(value)
    number = float(value)
    if not math.isfinite(number):
        return "-"
    if number and (abs(number) >= 1000 or abs(number) < 0.001):
        return f"{number:.3g}"
    return f"{number:.3f}"


def _interval(rate: Rate | None) -> str:
    return "-" if rate is None else f"{_share(rate.value)} [{_share(rate.low)}, {_share(rate.high)}]"


def _share(value: float) -> str:
    shown = f"{value:.3f}"
    return "0.000" if shown == "-0.000" else shown


def _short(rate: Rate | None) -> str:
    return "-" if rate is None else f"{_interval(rate)}, n={rate.n}"


def _value(value: Any) -> str:
    """A piece of evidence in a table cell."""
    if isinstance(value, Rate):
        return _interval(value)
    if isinstance(value, Mapping) and {"value", "low", "high"} <= set(value):
        return f"{_number(value['value'])} [{_number(value['low'])}, {_number(value['high'])}]"
    if value is None:
        return ""
    if isinstance(value, (bool, int, float)):
        return _number(value)
    return escape(str(value), limit=_TOKEN_LIMIT)


def _assignments(settings: Mapping[str, Any]) -> str:
    """Settings as they would be written after --set."""

    def text(value: Any) -> str:
        if value is None or isinstance(value, bool):
            return {None: "none", True: "true", False: "false"}[value]
        if isinstance(value, float):
            return f"{value:g}"
        return ",".join(map(text, value)) if isinstance(value, (tuple, list)) else escape(str(value))

    return "  ".join(f"{escape(str(key))}={text(value)}" for key, value in settings.items())


def _more(page: Page, left: int, indent: int = 2) -> None:
    if left > 0:
        page.item((f"and {left} more, all of them with --format json", "dim"), bullet=" ", indent=indent)


def _free(page: Page, content: Mapping[str, Any], indent: int = 2) -> None:
    """A method's own report: numbers and words as lines, lists of rows as tables."""
    rows: list[tuple[str, str]] = []

    def flush() -> None:
        if rows:
            grid = Table.grid(padding=(0, 2, 0, 0))
            grid.add_column(no_wrap=True)
            grid.add_column(overflow="fold")
            for row in rows:
                grid.add_row(*row)
            page.show(grid, indent)
            rows.clear()

    for key, value in content.items():
        name = escape(str(key)).replace("_", " ")
        if isinstance(value, Mapping) and value and not {"value", "low", "high"} <= set(value):
            flush()
            page.show(Text(name, style="bold"), indent)
            _free(page, value, indent + 2)
        elif _is_rows(value):
            flush()
            page.show(Text(name, style="bold"), indent)
            _free_table(page, value, indent + 2)
        elif isinstance(value, Sequence) and not isinstance(value, str):
            rows.append((name, ", ".join(map(_value, value)) or "none"))
        else:
            rows.append((name, _value(value) or "-"))
    flush()


def _is_rows(value: Any) -> bool:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return False
    mappings = all(isinstance(row, Mapping) for row in value)
    lists = all(isinstance(row, Sequence) and not isinstance(row, str) and len(row) > 2 for row in value)
    return mappings or (lists and len(value) > 1)


def _free_table(page: Page, value: Sequence[Any], indent: int) -> None:
    """Rows of a method's report: mappings by their keys, lists by their number (a layer a row, a head a column)."""
    if isinstance(value[0], Mapping):
        heads = list(dict.fromkeys(key for row in value for key in row))
        rows = [[_value(row.get(head)) for head in heads] for row in value[:_ROWS_SHOWN]]
        page.table([escape(str(head)).replace("_", " ") for head in heads], rows, indent=indent)
    else:
        columns = max(len(row) for row in value)
        at_once = max(1, (page.width - indent - 6) // 9)
        for start in range(0, columns, at_once):
            heads = ["", *(str(number) for number in range(start, min(columns, start + at_once)))]
            rows = [
                [str(number), *(_value(member) for member in row[start : start + at_once])]
                for number, row in enumerate(value[:_ROWS_SHOWN])
            ]
            page.table(heads, rows, right=range(len(heads)), indent=indent)
    _more(page, len(value) - _ROWS_SHOWN, indent)
