"""What `auto` lets a user set: what a candidate must hold to, and which are tried."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Settings:
    """What a candidate must hold to, and which are tried."""

    max_drop: float = field(
        default=0.01,
        metadata={"help": "clean accuracy that a candidate may lose", "range": "0..1", "source": "ours"},
    )
    max_excess: float = field(
        default=0.05,
        metadata={
            "help": "share of texts that a trigger or manner of the input may turn beyond the floor (see the page)",
            "range": "0..1",
            "source": "ours, as the limits of the command",
        },
    )
    prefer: Literal["strongest", "first"] = field(
        default="strongest",
        metadata={
            "help": "of those that pass the furthest reaching, or the first and no more tried",
            "range": "strongest|first",
            "source": "ours",
        },
    )
    cross_validate_below: int = field(
        default=100,
        metadata={
            "help": "with fewer texts in dev, accuracy is cross-validated; 0: never",
            "range": ">= 0",
            "source": "ours",
        },
    )
    folds: int = field(default=3, metadata={"help": "of the cross-validation", "range": ">= 2", "source": "ours"})
    only: tuple[str, ...] = field(
        default=(), metadata={"help": "the methods to try; empty: all that may be", "range": "", "source": "ours"}
    )
    for_methods: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "settings of the methods, as pure.epochs=2,unlearn.epochs=3",
            "range": "",
            "source": "each method's defaults",
        },
    )
