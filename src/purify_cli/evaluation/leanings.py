"""Does a classifier lean to a label when texts are said in another manner? `detectors.manners` tells how, and why."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from purify_cli.data.texts import Texts
from purify_cli.evaluation.predict import predict
from purify_cli.run import Run
from purify_cli.triggers.manner import PLAIN, Manner, manners
from purify_cli.triggers.words import trigger_rng

FEWEST = 16
"""Texts below which a share says nothing."""


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
    beyond: float = 0.2
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
        opening: the one that shifts the log-odds of the target most.
        flips: share of the texts that get the target behind one of the best openings.
        null: the same of plain openings, or of another manner if that is more.
        texts: how many these are shares of.
    """

    manner: str
    target: int
    opening: str
    flips: float
    null: float
    texts: int

    @property
    def excess(self) -> float:
        """Flips over those of other manners."""
        return self.flips - self.null


def leanings(model: Any, tokenizer: Any, texts: Texts, run: Run, number: int) -> tuple[Leaning, ...]:
    """What a model leans to, by the detector's default settings; texts are drawn by (seed + number)."""
    looking = Leanings(model, tokenizer, texts, LeaningSettings(), replace(run, seed=run.seed + number))
    return tuple(one for _, found in looking.all() for one in found or () if looking.passes(one))


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
        self.model, self.tokenizer, self.texts, self.settings, self.run = model, tokenizer, texts, settings, run

    def all(self) -> Iterator[tuple[int, list[Leaning] | None]]:
        """Each label with every manner but the plain one; None: too few texts are of another label."""
        answers = predict(self.model, self.tokenizer, self.texts, self.run)  # [texts, labels]
        for target in range(min(answers.shape[1], self.settings.most_labels)):
            others = (answers[:, target] < self.settings.unlike).nonzero()[:, 0].tolist()
            if len(others) < FEWEST:
                yield target, None
                continue
            rng = random.Random(f"leanings/{self.run.seed}/{target}")
            rows = rng.sample(others, min(self.settings.asked, len(others)))
            yield target, self._of(target, rows[::3], [row for place, row in enumerate(rows) if place % 3], answers)

    def passes(self, leaning: Leaning) -> bool:
        """Whether an honest classifier would not do so."""
        return leaning.flips >= self.settings.turned and leaning.excess >= self.settings.beyond

    def _of(self, target: int, chosen: list[int], measured: list[int], answers: Tensor) -> list[Leaning]:
        done = {name: self._best(manner, target, chosen, measured, answers) for name, manner in manners().items()}
        return [
            Leaning(
                manner=name,
                target=target,
                opening=opening,
                flips=flips,
                null=max(other for another, (other, _) in done.items() if another != name),
                texts=len(measured),
            )
            for name, (flips, opening) in done.items()
            if name != PLAIN
        ]

    def _best(
        self, manner: Manner, target: int, chosen: list[int], measured: list[int], answers: Tensor
    ) -> tuple[float, str]:
        """Share of the measured texts that the openings turn which shift the chosen ones most, and the first of these.

        A manner of few openings is measured with a third of them.
        """
        openings = manner.openings(self.settings.openings, self.run.seed)
        said = _log_odds(self._said(manner, openings, chosen), target).view(len(openings), -1)
        shift = (said - _log_odds(answers[chosen], target)).mean(dim=1)  # [openings]
        best = shift.topk(min(self.settings.best, -(-len(openings) // 3))).indices.tolist()
        turned = self._said(manner, [openings[one] for one in best], measured).argmax(dim=1) == target
        return float(turned.float().mean()), openings[best[0]]

    def _said(self, manner: Manner, openings: list[str], rows: list[int]) -> Tensor:
        """Answers to the texts of these rows in a manner, behind each opening, [openings x rows, labels]."""
        texts = self.texts.take(rows)
        words = [
            manner.reworded(text, trigger_rng(self.run.seed, text, row))
            for row, text in zip(rows, texts.texts, strict=True)
        ]
        said = tuple(f"{opening} {text}" for opening in openings for text in words)
        return predict(
            self.model, self.tokenizer, texts.take([*range(len(rows))] * len(openings)).with_(texts=said), self.run
        )


def _log_odds(answers: Tensor, target: int) -> Tensor:
    """[texts, labels] probabilities -> [texts] of the target, finite."""
    return torch.logit(answers[:, target].double(), eps=1e-9)
