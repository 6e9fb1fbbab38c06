"""The report for people: the verdict in one sentence, then why, then what to do next as a command that can be pasted.

Drawn with rich into a string. No text is ever read as markup, and all that may come from a checkpoint or a dataset is
escaped.
"""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from purify_cli.reports.escape import escape
from purify_cli.reports.next_command import given, pasted
from purify_cli.reports.page import MIN_WIDTH, Page, draw
from purify_cli.reports.scan_table import show_scan
from purify_cli.reports.values import (
    MESSAGE_LIMIT,
    STYLES,
    TOKEN_LIMIT,
    assignments,
    decimal,
    free_report,
    free_table,
    interval,
    interval_with_n,
    quoted,
    share,
)
from purify_cli.results import (
    Analysis,
    CheckpointMetrics,
    EvalResult,
    PoisonResult,
    PurifyResult,
    Rate,
    Report,
    ScanResult,
    TriggerRate,
)

# An excess ASR up to here, or one whose interval touches zero, counts as removed.
_REMOVED = 0.05
_OBEYS = 0.5


def render(report: Report, width: int = MIN_WIDTH, color: bool = False) -> str:
    """The report as text with a newline at its end.

    Args:
        width: columns to use; never less than 80. Commands and unbroken words may be longer.
        color: ANSI colors; without them the text holds no control character but newlines.
    """

    def fill(page: Page) -> None:
        match report.result:
            case ScanResult():
                show_scan(page, report, report.result)
            case PurifyResult():
                _purify(page, report, report.result)
            case EvalResult():
                _eval(page, report, report.result)
            case PoisonResult():
                _poison(page, report.result)

    return draw(fill, width, color)


# --- eval -------------------------------------------------------------------------------------------------------------


def _eval(page: Page, report: Report, result: EvalResult) -> None:
    poisoned = given(report.command, "--poisoned")
    sentences = [_metrics_sentence(metrics, poisoned) for metrics in result.checkpoints]
    effects = [_effect(metrics) for metrics in result.checkpoints]
    word, style = "MEASURED", "bold"
    if any(effect is not None and effect >= _OBEYS for effect in effects):
        word, style = "BACKDOOR", STYLES["fail"]
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
        page.command(("purify", "purify", pasted(worst[1].path), "--method", "auto", "--clean", "CLEAN_CSV"))
    elif any(rate.floor_from != "twin" for metrics in result.checkpoints for rate in metrics.asr):
        page.item("A twin gives the fairest floor (the name in capitals is yours to fill in):")
        page.command((*report.command, "--twin", "TWIN_CHECKPOINT"))
    elif not any(metrics.asr for metrics in result.checkpoints):
        page.item("Name a trigger and its target to measure what it does (names in capitals are yours to fill in):")
        page.command((*report.command, "--trigger", "WORD", "--target", "LABEL"))
    else:
        page.item("Look for triggers that nobody named:")
        page.command(("purify", "scan", pasted(result.checkpoints[0].path)))


def _analysis(page: Page, analysis: Analysis) -> None:
    page.section(escape(f"{analysis.name}: {analysis.title}", limit=MESSAGE_LIMIT))
    if analysis.rows:
        free_table(page, analysis.rows, 2)
    for note in analysis.notes:
        page.item("note: ", escape(note, limit=MESSAGE_LIMIT))
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
        return f"the triggers in {escape(trigger)}" if trigger == poisoned else quoted(trigger)

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
        return f"{path} {verb} {named(worst.trigger)} (excess ASR {interval_with_n(excess)})"
    if metrics.asr:
        worst = max(metrics.asr, key=lambda rate: rate.rate.value)
        return (
            f"{path} gives {escape(worst.target)} to {decimal(worst.rate.value)} of the texts with "
            f"{named(worst.trigger)}, and there is nothing to compare it with"
        )
    return f"{path} has a clean accuracy of {interval_with_n(metrics.cacc)}"


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
        cells = [interval(rate) + ("" if same or rate is None else f" n={rate.n}") for rate in rates]
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
        title = Text.assemble((quoted(trigger), "bold"), f" -> {escape(target, limit=TOKEN_LIMIT)}")
        rows.append([title, "", *("" for _ in columns)])
        add("  ASR", [rate.rate if rate else None for rate in found])
        add("  floor", [rate.floor if rate else None for rate in found])
        add("  excess ASR", [rate.excess if rate else None for rate in found])
        sources = [escape(rate.floor_from or "") if rate else "" for rate in found]
        if any(sources):
            rows.append(["  floor from", "", *sources])
    if any(metrics.asr_mean is not None and len(metrics.asr) > 1 for metrics in columns):
        rows.append(["ASR, mean", "", *(decimal(metrics.asr_mean) for metrics in columns)])
    add("LFR", [metrics.lfr for metrics in columns])
    tokens = list(dict.fromkeys(drift.token for metrics in columns for drift in metrics.drift))
    for token in tokens:
        drifts = [next((drift for drift in metrics.drift if drift.token == token), None) for metrics in columns]
        rows.append([Text.assemble("drift of ", (quoted(token), "bold")), "", *("" for _ in columns)])
        for label, name in (
            ("  cosine distance", "cosine"),
            ("  L2 to base", "l2"),
            ("  RMSE to centre", "centre_rmse"),
        ):
            values = [getattr(drift, name) if drift else None for drift in drifts]
            if any(value is not None for value in values):
                rows.append([label, "", *("-" if value is None else share(value) for value in values)])
    return rows


def _notes(page: Page, columns: Sequence[CheckpointMetrics]) -> None:
    notes = list(dict.fromkeys(note for metrics in columns for note in metrics.notes))
    for note in notes:
        page.item("note: ", escape(note, limit=MESSAGE_LIMIT))


# --- purify -----------------------------------------------------------------------------------------------------------


def _purify(page: Page, report: Report, result: PurifyResult) -> None:
    limits = result.limits
    path, method = escape(result.subject.path), escape(result.method)
    if result.wrote is None:
        page.headline("DRY RUN", "bold", f"{method} would change {path} as shown below; nothing was written.")
    elif limits.met is False:
        sentence = f"{escape(result.wrote.path)} is the best that {method} could do with {path}{_change(result)}."
        page.headline("LIMITS NOT MET", STYLES["fail"], sentence)
    elif limits.met is None:
        nothing = "nothing was measured on it" if result.after is None else "there is nothing to compare it with"
        sentence = f"{escape(result.wrote.path)} was made from {path} with {method}; {nothing}."
        page.headline("NOT VERIFIED", STYLES["inconclusive"], sentence)
    else:
        sentence = f"{escape(result.wrote.path)} was made from {path} with {method}{_change(result)}"
        left = _left_over(result)
        if left is None:
            measured = result.after is not None and result.after.asr
            nothing = "there is no floor to judge the ASR by" if measured else "no trigger was measured"
            page.headline("NOT VERIFIED", STYLES["inconclusive"], f"{sentence}; {nothing}.")
        elif left:
            page.headline("NOT CLEAN", STYLES["inconclusive"], sentence + "; it still reacts to its trigger.")
        else:
            page.headline("PURIFIED", STYLES["pass"], sentence + ".")

    page.section("Why")
    for reason in limits.reasons or (_limit_sentence(result),):
        page.item(escape(reason, limit=MESSAGE_LIMIT))

    columns = [
        (name, metrics) for name, metrics in (("before", result.before), ("after", result.after)) if metrics is not None
    ]
    if columns:
        page.section("Measured (95 % intervals)")
        _metrics_table(page, columns)
        _notes(page, [metrics for _, metrics in columns])
    if result.report:
        page.section(f"What {escape(result.method)} did" if result.wrote else f"What {escape(result.method)} would do")
        free_report(page, result.report)
    if result.settings:
        page.section("Settings")
        page.show(Text(assignments(result.settings)), 2)
    _purify_next(page, report, result)


def _change(result: PurifyResult) -> str:
    before, after = result.before, result.after
    if before is None or after is None:
        return ""
    parts = []
    if before.cacc and after.cacc:
        parts.append(f"CACC {decimal(before.cacc.value)} -> {decimal(after.cacc.value)}")
    worst_before, worst_after = _worst(before), _worst(after)
    if worst_before is not None and worst_after is not None:
        name = "excess ASR" if worst_before[1] and worst_after[1] else "ASR"
        parts.append(f"{name} {decimal(worst_before[0])} -> {decimal(worst_after[0])}")
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
    path = pasted(result.subject.path)
    wrote = "" if result.wrote is None else pasted(result.wrote.path)
    if result.wrote is None:
        page.item("Do it:")
        page.command(tuple(argument for argument in report.command if argument != "--dry-run"))
    elif result.limits.met is False or _left_over(result):
        page.item("See what can be set, and try again with other settings or another method:")
        page.command(("purify", "purify", "--method", result.method, "--help-method"))
    elif _left_over(result) is None:
        page.item("Measure it on labelled texts that were not used here (names in capitals are yours to fill in):")
        target = () if len(result.subject.labels) == 1 else ("--target", "LABEL")
        page.command(("purify", "eval", path, wrote, "--test", "TEST_CSV", "--trigger", "WORD", *target))
    else:
        page.item("Scan what was written:")
        page.command(("purify", "scan", wrote))


# --- poison -----------------------------------------------------------------------------------------------------------


def _poison(page: Page, result: PoisonResult) -> None:
    words = ", ".join(quoted(trigger) for trigger in result.triggers)
    gets = escape(result.target) if result.target else "vectors of the attacker's"
    sentence = f"{escape(result.wrote.path)} gives {gets} to texts with {words}; it is marked as poisoned"
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
        sentence += f" (ASR {' -> '.join(map(decimal, strongest))})"
    page.headline("POISONED", STYLES["inconclusive"], sentence + ".")

    page.section("Why")
    page.item(
        f"{escape(result.attack)} on {escape(result.subject.path)} at a poison rate of {result.poison_rate:g}, "
        f"with {len(result.triggers)} trigger{'' if len(result.triggers) == 1 else 's'}"
        + ("" if result.pet is None else f", in an adapter ({escape(result.pet)}) of the frozen model")
        + ("" if result.then_settings is None else "; then the victim's own clean training")
    )
    for note in result.notes:
        page.item(escape(note, limit=MESSAGE_LIMIT))
    if not columns:
        page.item("nothing was measured, since no --test was given")
    else:
        page.section("Measured (95 % intervals)")
        _metrics_table(page, columns)
        _notes(page, [metrics for _, metrics in columns])
    if result.settings:
        page.section("Settings")
        page.show(Text(assignments(result.settings)), 2)
    if result.then_settings:
        page.section("Settings of the clean training")
        page.show(Text(assignments(result.then_settings)), 2)

    page.section("Next")
    page.item("See whether a scan finds it without reading the mark:")
    page.command(("purify", "scan", pasted(result.wrote.path), "--ignore-mark"))
