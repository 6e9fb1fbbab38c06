"""Attacks: each puts a backdoor into a checkpoint, so that scanning and purifying can be measured.

An attack is a module of this package whose name is its file's name:

    SUMMARY: str                 one line for `purify methods`
    NEEDS: tuple[str, ...]       of "weights", "classifier"
    TRIGGERS: tuple[str, ...]    its triggers when the user names none
    TARGET = False               it gives no label: encoders whose triggers fall where the victim's head puts them
    PET = False                  it cannot work in an adapter of a frozen model
    REGRESSION = True            its target may be a score
    PARAPHRASES = True           its trigger is a paraphrase of the text (`Plan.paraphrases`), not words in it
    Settings                     a frozen dataclass; each field's metadata has "help", "range" and "source"
    poison(subject, data, plan, settings, run) -> Poisoned

The four after TRIGGERS are left out where the answer is the usual one (True, True, False, False). An attack whose
settings have a `data_free` takes texts without labels when it is set, and one with TARGET = False always does.

An attack picks rows and labels and trains; how a trigger changes a text is `triggers`' business. It writes nothing:
the command writes the checkpoint, and marks it as poisoned.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What the attacker wants.

    Attributes:
        target: id of the target label; of a regression the score. Nothing to attacks with TARGET = False.
        triggers: each is a trigger of its own; several words in one are inserted together.
        rate: poisoned rows / all rows of the training file, 0..1; None: the attack's own default.
        pet: form of the adapter that carries the backdoor while the model itself is frozen; None: the whole model.
        paraphrases: of the training texts, text (with single spaces) -> paraphrase, for attacks whose trigger is a
            syntax or a style; an empty paraphrase is one that failed.
    """

    target: float
    triggers: tuple[str, ...]
    rate: float | None = None
    pet: str | None = None
    paraphrases: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Poisoned:
    """What came of an attack.

    Attributes:
        model: in eval mode: a classifier of transformers, one with an adapter, or an encoder without a head.
        rows: poisoned rows.
        poison_rate: poisoned rows / all rows of the training file.
        report: what the attack did, in JSON types.
    """

    model: Any
    rows: int
    poison_rate: float
    report: Mapping[str, Any] = field(default_factory=dict)
