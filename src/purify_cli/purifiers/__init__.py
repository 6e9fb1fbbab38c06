"""Purifiers: each changes the weights of a checkpoint so that a backdoor in it, if there is one, works no more.

A purifier is a module of this package whose name is its file's name:

    SUMMARY: str                 one line for `purify methods`
    NEEDS: tuple[str, ...]       of "weights", "classifier", "base", "twin", "clean", "untrusted"
    REGRESSION: bool             optional: it takes scores for labels, and checkpoints that give scores; absent: no
    Settings                     a frozen dataclass; each field's metadata has "help", "range" and "source"
    purify(subject, evidence, train, dev, settings, run) -> Purified
    preview(subject, evidence, train, dev, settings, run) -> dict      optional: what --dry-run shows

and, if `auto` may try it (absent: it may not, as the baselines), three constants, literals that are read unimported:

    AUTO: float                  its cost: passes over the clean texts, forward and backward as one, roughly
    AUTO_REACH: str              "words": only what a search found; "weights": all that the model holds; "base": starts
                                 from a base, or goes back to one. Of those that pass, the furthest reaching is taken
    AUTO_ON: tuple[str, ...]     tasks of the checkpoints that it is tried on; absent: all that NEEDS allows

`train` and `dev` are parts of the user's clean texts. A purifier returns a model and writes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Purified:
    """What came of a purification.

    Attributes:
        model: a transformers model in eval mode.
        report: what the method did, in JSON types; shown to the user and kept in the provenance.
        tokenizer: where the method had to change it; None: the subject's own.
        met: False where the method itself found that its result falls short: the limits are then not met.
        reasons: sentences on the outcome that the user must see, beside those of the limits.
    """

    model: Any
    report: Mapping[str, Any] = field(default_factory=dict)
    tokenizer: Any | None = None
    met: bool | None = None
    reasons: tuple[str, ...] = ()
