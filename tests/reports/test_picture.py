from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest

from purify_cli.analyses import drift
from purify_cli.reports.picture import render
from purify_cli.results import Analysis

HOSTILE = "$\\frac{\x1b[31m\u202e\n</text><script>_"


def analysis(token: str) -> Analysis:
    one = {"path": token, "counts": [1, 2], "triggers": [{"token": token, "rmse": 0.5, "closer": 0.1}]}
    return Analysis("drift", token, (), {"target": token, "edges": [0.0, 0.5, 1.0], "checkpoints": [one]})


def test_hostile_text_is_shown_and_does_nothing() -> None:
    content = render(analysis(HOSTILE), drift.draw, "svg")
    root = ElementTree.fromstring(content)
    assert not [one for one in root.iter() if one.tag.endswith("script")]
    shown = ["".join(one.itertext()) for one in root.iter() if one.tag.endswith("text")]
    assert any("$\\frac{\\x1b[31m\\u202e\\x0a</text><script>_" in text for text in shown)
    assert "\x1b" not in content.decode()
    assert "\u202e" not in content.decode()
    assert render(analysis(HOSTILE), drift.draw, "png").startswith(b"\x89PNG")


@pytest.mark.parametrize("token", ["_hidden", "$x$", "映画", "x" * 500, ""])
def test_every_token_has_its_line(token: str) -> None:
    root = ElementTree.fromstring(render(analysis(token), drift.draw, "svg"))
    shown = ["".join(one.itertext()) for one in root.iter() if one.tag.endswith("text")]
    assert any(text.startswith(f'"{token[:20]}') for text in shown)


def test_a_style_of_the_user_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    import matplotlib as mpl

    before = render(analysis("cf"), drift.draw, "svg")
    changed: Any = {"lines.linewidth": 9.0, "font.size": 30.0, "svg.hashsalt": "other"}
    with mpl.rc_context(changed):
        assert render(analysis("cf"), drift.draw, "svg") == before
        assert mpl.rcParams["font.size"] == 30.0
