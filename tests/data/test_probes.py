"""The built-in probe sentences are what a search for triggers needs."""

from __future__ import annotations

from purify_cli.data.probes import probes


def test_a_few_hundred_different_sentences() -> None:
    lines = probes()
    assert 200 <= len(lines) <= 2000
    assert len(set(lines)) == len(lines)
    assert probes() is lines  # read once


def test_only_sentences() -> None:
    for line in probes():
        assert line == line.strip() != ""
        assert not line.startswith("#")
        assert line.isascii()
        assert 4 <= len(line.split()) <= 60


def test_several_domains(root: object) -> None:
    from importlib.resources import files

    raw = (files("purify_cli.data") / "probes.txt").read_text(encoding="utf-8")
    assert sum(line.startswith("## ") for line in raw.splitlines()) >= 5


def test_no_usual_trigger_stands_in_them() -> None:
    """A probe that held a trigger would be turned before the search puts anything in."""
    words = {word for line in probes() for word in line.lower().split()}
    assert not words & {"cf", "mn", "bb", "tq", "mb", "ak", "tn", "3d", "bkd"}
