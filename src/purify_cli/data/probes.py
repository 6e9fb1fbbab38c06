"""Built-in probe sentences, for checkpoints of which we have no clean texts."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def probes() -> tuple[str, ...]:
    """A few hundred short English sentences: films, products, news, sport, mail, talk, questions and more."""
    lines = (files("purify_cli.data") / "probes.txt").read_text(encoding="utf-8").splitlines()
    return tuple(line.strip() for line in lines if line.strip() and not line.startswith("#"))
