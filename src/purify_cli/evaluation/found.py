"""A search for triggers for those who act on it: all labels at once, and the triggers as token ids."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from purify_cli.data.texts import Texts
from purify_cli.evaluation.leanings import Leaning
from purify_cli.evaluation.search import SearchSettings, TriggerSearch
from purify_cli.run import Run

SHIFT = 0.3
"""Less than what `scan` asks for: to treat an honest word as well costs little, a trigger that is left costs all. Of
triggers that a victim had learned badly most shifted the log-odds 0.32 times as far as the strongest and more; of
honest words without company three did so 0.30 to 0.46 times in 16 searches and the fixture's."""


@dataclass(frozen=True)
class Found:
    """What one search came to.

    Attributes:
        triggers: token ids of each trigger.
        told: the same for a report: words, target label, and the share of sure texts that they turned.
        proven: how many of them prove a trigger; the others are told beside those.
        unsearched: labels for which the model is sure of too few texts, so that nothing was searched for.
        targets: label id of each trigger.
        leanings: manners that may be triggers (suspects), where they were looked for.
        rest: token ids of what may belong to what is proven (pieces of a word of which others were found, tokens of its
            letters), and label ids: to be treated with it, for to treat an honest word as well costs little.
    """

    triggers: tuple[tuple[int, ...], ...]
    told: tuple[dict[str, Any], ...]
    unsearched: tuple[str, ...]
    targets: tuple[int, ...] = ()
    leanings: tuple[Leaning, ...] = ()
    proven: int = 0
    rest: Mapping[tuple[int, ...], int] = field(default_factory=dict)


def search(model: Any, tokenizer: Any, texts: Texts, run: Run, number: int, *, pairs: bool = False) -> Found:
    """Search a model for triggers as `scan` does, with texts and places drawn by (seed + number); `pairs` as there."""
    model.eval()
    drawn = replace(run, seed=run.seed + number)
    looking = TriggerSearch(model, tokenizer, SearchSettings(pairs=pairs, shift=SHIFT), drawn)
    triggers: list[tuple[int, ...]] = []
    told: list[dict[str, Any]] = []
    unsearched: list[str] = []
    targets: list[int] = []
    proven = 0
    rest: dict[tuple[int, ...], int] = {}
    for target, suspects in looking.triggers(texts.texts, drawn):
        label = str(model.config.id2label[target])
        if suspects is None:
            unsearched.append(label)
        for suspect in suspects or ():
            triggers.append(tuple(looking.ids[list(suspect.words)].tolist()))
            told.append({"words": looking.vocabulary.text(suspect.words), "target": label, "flips": suspect.flips})
            targets.append(target)
            if looking.passes(suspect):
                proven += 1
                rest |= dict.fromkeys(looking.rest(suspect, texts.texts), target)
    return Found(tuple(triggers), tuple(told), tuple(unsearched), tuple(targets), proven=proven, rest=rest)
