"""Analyses: each shows one thing about checkpoints and judges nothing. It knows no other analysis.

An analysis is a module of this package whose name is its file's name:

    SUMMARY: str                 one line for `purify methods`
    NEEDS: tuple[str, ...]       of "classifier" (no regression), "trigger" (words or a poisoned file) and "before"
                                 (a second checkpoint, or a base); the command sees to them before a model is opened
    Settings                     a frozen dataclass; each field's metadata has "help", "range" and "source"
    analyse(cases, evidence, settings, run) -> Analysis
    draw(analysis, figure)       the picture, on a matplotlib figure that it is handed

`analyse` gives numbers (`results.Analysis`), and `draw` sees nothing else: whoever has the JSON can draw the picture.
The module imports no matplotlib. Strings reach `draw` escaped.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.triggers.words import Words, insert_all

if TYPE_CHECKING:
    from purify_cli.subject import Subject


@dataclass(frozen=True)
class Case:
    """A checkpoint, and the texts that it is looked at with, in its own label ids: one name may have several ids.

    Attributes:
        subject: the checkpoint.
        test: clean texts with labels.
        triggers: words to insert into them, each string a trigger of its own.
        target: the label id that the triggers should give.
        poisoned: texts that carry a trigger already, with true labels; instead of `triggers`.
    """

    subject: Subject
    test: Texts
    triggers: tuple[str, ...] = ()
    target: int | None = None
    poisoned: Texts | None = None

    def sample(self, most: int, seed: int) -> Case:
        """The same with at most so many texts of each file, drawn at random and left in their order."""
        poisoned = None if self.poisoned is None else _sample(self.poisoned, most, seed)
        return replace(self, test=_sample(self.test, most, seed), poisoned=poisoned)

    def triggered(self, seed: int) -> Texts | None:
        """Triggered texts with their true labels and `targets`; None if no trigger was given.

        The poisoned file as it is; or all test texts with the first trigger, then with the next: of a whole test file
        the very texts that eval's ASR is measured on.

        Raises:
            UsageError: a trigger without a target.
        """
        if self.poisoned is not None:
            if self.poisoned.targets is not None:
                return self.poisoned
            return self.poisoned.with_(targets=(self._target(),) * len(self.poisoned))
        if not self.triggers:
            return None
        copies = [insert_all(self.test, Words(words), seed) for words in self.triggers]
        together = self.test.take(list(range(len(self.test))) * len(copies))
        return together.with_(
            texts=tuple(text for copy in copies for text in copy.texts),
            targets=(self._target(),) * len(together),
        )

    def attacked(self, seed: int) -> Texts | None:
        """Those of the triggered texts whose true label is not the target; None if no trigger was given.

        Raises:
            UsageError: there is none among them, or there are no labels to tell.
        """
        triggered = self.triggered(seed)
        if triggered is None:
            return None
        pairs = zip(triggered.labels or (), triggered.targets or (), strict=False)
        rows = [row for row, (label, target) in enumerate(pairs) if label != target]
        if not rows:
            where = "--test" if self.poisoned is None else "--poisoned"
            raise UsageError(where, "has no text of another label than the target", "An attack is measured on those.")
        return triggered.take(rows)

    def _target(self) -> int:
        if self.target is None:
            raise UsageError("--trigger", "needs a target label", "Give --target LABEL.")
        return self.target


def _sample(texts: Texts, most: int, seed: int) -> Texts:
    if len(texts) <= most:
        return texts
    return texts.take(sorted(random.Random(f"analysis/{seed}").sample(range(len(texts)), most)))
