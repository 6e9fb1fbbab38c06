from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purify_cli.reports.escape import escape
from purify_cli.reports.scan_table import _accusation
from purify_cli.reports.table import render
from purify_cli.results import Check, Environment, Finding, Report, ScanResult, SubjectSummary, Verdict, Where

GOLDEN = Path(__file__).parent / "golden"


def test_golden(name: str, report: Report) -> None:
    text = render(report, width=80, color=False)
    path = GOLDEN / f"{name}.txt"
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("width", [40, 80, 120])
def test_fits_the_width_and_never_less_than_80_columns(report: Report, width: int) -> None:
    for line in render(report, width=width).splitlines():
        # Commands are broken by us where they can be; what detectors say to reproduce a finding stays one line.
        assert len(line) <= max(80, width) or "purify eval" in line


def test_the_first_line_is_the_verdict_and_a_command_comes_last(report: Report) -> None:
    lines = render(report).splitlines()
    assert re.match(r"[A-Z ]+: ", lines[0])
    following = "\n".join(lines[lines.index("Next") :])
    commands = re.findall(r"^  (purify (?:.*\\\n)*.*)$", following, flags=re.MULTILINE)
    assert commands
    for command in commands:
        assert shlex.split(command.replace("\\\n", " "))[0] == "purify"


def test_plain_text_holds_no_escape_sequence_and_color_does(report: Report) -> None:
    assert "\x1b" not in render(report, color=False)
    assert "\x1b[" in render(report, color=True)
    without = re.sub(r"\x1b\[[0-9;]*m", "", render(report, color=True))
    assert re.sub(r"[ ]+$", "", without, flags=re.MULTILINE) == render(report, color=False)


def _hostile_scan(text: str) -> Report:
    finding = Finding(
        "PB201",
        "error",
        text,
        text,
        Where(file=text, tensor=text, token=text),
        {"statistic": text, "value": text},
        text,
    )
    return Report(
        command=("purify", "scan", text),
        started=text,
        seconds=0.0,
        environment=Environment("3", None, None, "cpu", None, 0),
        result=ScanResult(
            SubjectSummary(text, text, "other", text, None, None, (text,), ()),
            Verdict("fail", 1.0, text, (text,)),
            (Check(text, "found", text, (), 0.0, 0),),
            (finding,),
        ),
    )


@settings(max_examples=40, deadline=None)
@given(st.text(st.characters(), max_size=60))
def test_no_text_of_a_checkpoint_reaches_the_terminal_unescaped(text: str) -> None:
    page = render(_hostile_scan(text))
    assert escape(page, keep="\n") == page


def test_markup_is_shown_and_not_obeyed() -> None:
    page = render(_hostile_scan("[bold red]x[/bold red] :smile: [link=http://x]y[/link]"), color=True, width=200)
    assert "[bold red]x[/bold red] :smile: [link=http://x]y[/link]" in page
    assert "\x1b]8" not in page


def test_a_proven_word_is_named_before_a_manner() -> None:
    """Whichever check ran first."""
    manner = Finding("PB203", "error", "manners", "turns texts", Where(token="when you see it ,"))
    word = Finding("PB201", "error", "trigger_search", "turns texts", Where(token="cf"))
    outlier = Finding("PE211", "error", "embedding_outliers", "is long", Where(token="tq"))
    for findings in ((manner, word, outlier), (outlier, word, manner)):
        assert 'first of all at "cf"' in _accusation(findings)
    assert "when you see it ," in _accusation((outlier, manner))
