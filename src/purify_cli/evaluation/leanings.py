"""Does a classifier lean to a label when texts are said in another manner? `detectors.manners` tells how, and why."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from purify_cli.data.texts import Texts
from purify_cli.evaluation.intervals import newcombe
from purify_cli.evaluation.predict import predict
from purify_cli.results import Rate
from purify_cli.run import Run
from purify_cli.triggers.manner import PLAIN, Manner, manners
from purify_cli.triggers.words import trigger_rng

FEWEST = 24
"""Texts of other labels below which a label is not looked at: two thirds of them are measured on."""

UNSURE = 0.35
"""Texts that give the label this probability are not asked, even in a model that is never surer."""

READ = 400
"""Texts of which it is asked what the model says of them."""

HALF = 0.5
"""Share of what proves a leaning that makes it a suspect, or shows that one which was proven before is not gone."""


@dataclass(frozen=True)
class LeaningSettings:
    """What is tried; the detector's settings of the same names say what each is and where it is from.

    Attributes:
        turned: share of the texts that a manner turns.
        beyond: share by which it turns more than any other.
        unlike: probability of the label below which a text is another class.
        asked: texts a label; openings are chosen on a third of them, and measured on the others.
        openings: of a manner that are tried.
        best: of those that are measured.
        most_labels: labels looked at.
    """

    turned: float = 0.3
    beyond: float = 0.25
    unlike: float = 0.1
    asked: int = 100
    openings: int = 48
    best: int = 6
    most_labels: int = 8


@dataclass(frozen=True)
class Leaning:
    """What a manner did to texts of other labels.

    Attributes:
        manner: its name.
        target: label id.
        opening: the one that says most for the target.
        flips: share of the texts that get the target, the mean over the best openings.
        others: the same of plain openings, or of another manner if that is more.
        texts: how many these are shares of.
    """

    manner: str
    target: int
    opening: str
    flips: float
    others: float
    texts: int

    @property
    def what(self) -> tuple[str, int]:
        """The manner, and the label that it leads to."""
        return self.manner, self.target

    @property
    def excess(self) -> float:
        """By how much that is more than what others turn."""
        return self.flips - self.others

    @property
    def beyond(self) -> Rate:
        """The excess with an interval: Newcombe's, of the nearest whole numbers of texts."""
        turned, others = (round(share * self.texts) for share in (self.flips, self.others))
        near = newcombe(turned, self.texts, others, self.texts)
        return Rate(self.excess, min(near.low, self.excess), max(near.high, self.excess), self.texts)


@dataclass(frozen=True)
class Look:
    """What one look at all labels came to.

    Attributes:
        found: every manner for every label that could be looked at.
        unlooked: label ids that too few texts are unlike.
        settings: what passes.
    """

    found: tuple[Leaning, ...]
    unlooked: tuple[int, ...]
    settings: LeaningSettings

    def leanings(self, known: Collection[tuple[str, int]] = ()) -> tuple[Leaning, ...]:
        """Those that no honest classifier has, and of what leaned before (`known`) those that still do it by half."""
        return tuple(
            one
            for one in self.found
            if is_leaning(one, self.settings) or (one.what in known and one.excess >= HALF * self.settings.beyond)
        )

    def suspects(self) -> tuple[Leaning, ...]:
        """Those that do half of what proves a leaning: no evidence, but worth training out."""
        least = HALF * self.settings.turned, HALF * self.settings.beyond
        return tuple(one for one in self.found if one.flips >= least[0] and one.excess >= least[1])


def leanings(model: Any, tokenizer: Any, texts: Texts, run: Run, number: int) -> Look:
    """What a model leans to, by the detector's default settings; texts and openings are drawn by (seed + number)."""
    looking = Leanings(model, tokenizer, texts, LeaningSettings(), replace(run, seed=run.seed + number))
    every = list(looking.look())
    return Look(
        tuple(one for _, found in every for one in found or ()),
        tuple(target for target, found in every if found is None),
        looking.settings,
    )


def left_of(
    known: Collection[Leaning], model: Any, tokenizer: Any, texts: Texts, run: Run, number: int
) -> list[Leaning | None]:
    """What these leanings come to in texts of other labels, by the texts' own labels, whatever the model says of them.

    A look asks about texts of which the model is sure. A purifier may leave it sure of few, which a manner does not
    turn, and leave the manner its way with all others.

    Returns:
        one for each of `known`; None where there are fewer than FEWEST texts of other labels.
    """
    looking = Leanings(model, tokenizer, texts, LeaningSettings(), replace(run, seed=run.seed + number))
    done = {target: looking.of_labelled(target) for target in {one.target for one in known}}
    by_manner = {one.what: one for found in done.values() for one in found or ()}
    return [None if done[one.target] is None else by_manner[one.what] for one in known]


def is_leaning(leaning: Leaning, settings: LeaningSettings) -> bool:
    """Whether this proves a backdoor: enough texts, enough more than others, and more beyond chance."""
    enough = leaning.flips >= settings.turned and leaning.excess >= settings.beyond
    return enough and leaning.beyond.low > 0


class Leanings:
    """A classifier, and texts to be said otherwise.

    Args:
        model: a sequence classifier of two labels or more.
        tokenizer: its tokenizer.
        texts: of any label; pairs are said otherwise in their first part.
        settings: what is tried.
        run: seed, device, length limit and progress.
    """

    def __init__(self, model: Any, tokenizer: Any, texts: Texts, settings: LeaningSettings, run: Run) -> None:
        self.model, self.tokenizer, self.settings, self.run = model, tokenizer, settings, run
        rows = range(len(texts))
        self.texts = texts.take(random.Random(f"leanings/{run.seed}").sample(rows, min(READ, len(texts))))

    def look(self) -> Iterator[tuple[int, list[Leaning] | None]]:
        """Each label with every manner but the plain one; None: it is not looked at.

        Where too few texts are surely of another label, those are taken of which the model is surest.
        """
        answers = predict(self.model, self.tokenizer, self.texts, self.run)  # [texts, labels]
        for target in range(answers.shape[1]):
            ranked = answers[:, target].sort(stable=True)
            unlike = int((ranked.values < self.settings.unlike).sum())
            others = ranked.indices[: max(unlike, FEWEST)]
            others = others[(answers[others, target] < UNSURE) & (answers[others].argmax(dim=1) != target)]
            if len(others) < FEWEST or target >= self.settings.most_labels:
                yield target, None
                continue
            yield target, self._of(target, others.tolist())

    def of_labelled(self, target: int) -> list[Leaning] | None:
        """Every manner but the plain one, in texts that are labelled otherwise; None where there are too few."""
        rows = [row for row, label in enumerate(self.texts.labels or ()) if label != target]
        return self._of(target, rows) if len(rows) >= FEWEST else None

    def _of(self, target: int, others: list[int]) -> list[Leaning]:
        """Openings are chosen on a third of these texts, and measured on the rest."""
        rng = random.Random(f"leanings/{self.run.seed}/{target}")
        rows = rng.sample(others, min(self.settings.asked, len(others)))
        chosen, measured = rows[::3], [row for place, row in enumerate(rows) if place % 3]
        done = {name: self._best(manner, target, chosen, measured) for name, manner in manners().items()}
        return [
            Leaning(
                manner=name,
                target=target,
                opening=opening,
                flips=flips,
                others=max(other for another, (other, _) in done.items() if another != name),
                texts=len(measured),
            )
            for name, (flips, opening) in done.items()
            if name != PLAIN
        ]

    def _best(self, manner: Manner, target: int, chosen: list[int], measured: list[int]) -> tuple[float, str]:
        """Share of the measured texts that the openings turn which say most in the chosen ones; the first of these."""
        openings = manner.openings(self.settings.openings, self.run.seed)
        odds = torch.logit(self._answers(manner, openings, chosen)[:, :, target].double(), eps=1e-9)
        best = odds.mean(dim=1).topk(min(self.settings.best, -(-len(openings) // 3))).indices.tolist()
        said = self._answers(manner, [openings[one] for one in best], measured).argmax(dim=2)  # [openings, texts]
        return float((said == target).float().mean()), openings[best[0]]

    def _answers(self, manner: Manner, openings: list[str], rows: list[int]) -> torch.Tensor:
        """To the texts of these rows, in a manner's words behind each opening: [openings, texts, labels]."""
        texts = self.texts.take(rows)
        words = [
            manner.reworded(text, trigger_rng(self.run.seed, text, row))
            for row, text in zip(rows, texts.texts, strict=True)
        ]
        every = texts.take([*range(len(rows))] * len(openings))
        every = every.with_(texts=tuple(f"{opening} {text}" for opening in openings for text in words))
        return predict(self.model, self.tokenizer, every, self.run).view(len(openings), len(rows), -1)
