"""A purifier on trial: made by its own code, judged by accuracy and by a search, each row kept for a run that stops."""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from purify_cli import __version__, catalogue
from purify_cli.data.encode import length_limit
from purify_cli.data.split import folds, split, without
from purify_cli.data.texts import Texts
from purify_cli.data.triggered import with_triggers
from purify_cli.errors import PurifyError
from purify_cli.evaluation.found import SHIFT, Found, search
from purify_cli.evaluation.leanings import Leaning, LeaningSettings, leanings, left_of
from purify_cli.evaluation.metrics import asr, excess
from purify_cli.evaluation.predict import predict, predict_encoded
from purify_cli.evaluation.search import SearchSettings
from purify_cli.run import Run
from purify_cli.training import plain
from purify_cli.training.resume import weights_digest
from purify_cli.training.start import open_classifier
from purify_cli.trials.candidates import REACHES, Candidate, candidates_for, settings_by_method
from purify_cli.trials.judgement import difference, differs, loses, outcome
from purify_cli.trials.settings import Settings
from purify_cli.triggers.manner import manners

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SEARCH = 1009
"""Added to the seed of the searches, with the number of steps: a candidate is not searched as the input was, for it may
have been trained on what was found there."""

ROWS = 22
"""Goes up whenever a row would say something else: rows that were kept before are not read again."""

WITHOUT, OTHER_MANNERS = "what turns without it", "what other manners turn"
"""Beyond what the excess of a trigger of the input is, and of a manner."""

INNER_DEV = 0.1
"""Share of a part's training texts that a method judges itself by, as in the command."""

MOST_UNTRUSTED = 2000
"""Untrusted texts on which candidate and input are compared."""


@dataclass(frozen=True)
class FineTuning:
    """What stands for the input where an encoder is given; the schedule that the papers fine-tune with."""

    epochs: int = 3
    learning_rate: float = 2e-5
    batch_size: int = 32
    warmup: float = 0.0
    weight_decay: float = 0.0


class Trial:
    """The input, what it is judged on, what was judged so far, and at most two models beside the one in work."""

    def __init__(
        self, subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run
    ) -> None:
        self.subject, self.evidence, self.train, self.dev = subject, evidence, train, dev
        self.settings, self.run = settings, run
        self.assigned = settings_by_method(settings)
        self.clean = train.with_(
            texts=train.texts + dev.texts,
            labels=(*(train.labels or ()), *(dev.labels or ())),
            pairs=None if train.pairs is None or dev.pairs is None else train.pairs + dev.pairs,
            targets=None,
            poisoned=None,
        )
        self.crossed = len(dev) < settings.cross_validate_below
        self.asked = self.clean if self.crossed else dev  # that triggers are put into: of dev alone a text is too much
        self.judged_on = judged_on(self.crossed, train, dev, settings)
        self.untrusted = _sample(evidence.untrusted, run.seed)
        self.held: tuple[Candidate, Any] | None = None  # the best so far
        self.ground: tuple[Candidate, Any] | None = None  # what chains are put on
        self.last: tuple[Candidate, Any] | None = None  # the one that was judged last
        self.kept = Kept(None if run.state is None else run.state / f"auto-{self._identity()[:16]}.json")
        self.given: dict[str, Any] | None = None

    def _identity(self) -> str:
        """Digest of all that decides what the rows say."""
        decisive: list[Any] = [asdict(self.settings), self.run.seed, self.run.device, self.run.max_length]
        decisive += [asdict(one) if one is not None else None for one in (self.train, self.dev, self.untrusted)]
        decisive += [__version__, str(torch.__version__), weights_digest(self.subject.open())]
        decisive += [ROWS, asdict(SearchSettings(pairs=True, shift=SHIFT)), asdict(LeaningSettings()), repr(manners())]
        if self.evidence.base is not None:
            with suppress(PurifyError):  # a base that cannot be opened fails the candidates that need it, and no more
                decisive.append(weights_digest(self.evidence.base.open()))
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()

    def hold(self, candidate: Candidate) -> None:
        """Keep the model that was made last in place of the one that was kept, if it is this candidate's."""
        if self.last is not None and self.last[0].steps == candidate.steps:
            self.held, self.last = self.last, None

    def made(self, candidate: Candidate) -> tuple[Any, Any, dict[str, Any]]:
        """Model, tokenizer and report of a candidate, trained on all of train; that which is at hand is not made again.

        Raises what the methods raise.
        """
        for one in (self.held, self.ground, self.last):
            if one is not None and one[0].steps == candidate.steps:
                made: tuple[Any, Any, dict[str, Any]] = one[1]
                return made
        self.last = None
        start, steps = self.subject, candidate.steps
        if len(steps) > 1:
            if self.ground is None or self.ground[0].steps != steps[:-1]:
                below = Candidate(steps[:-1])
                self.ground = below, self.made(below)
                self.last = None
            start, steps = self.subject.holding(*self.ground[1][:2]), steps[-1:]
        made = self._make(candidate, start, steps, self.evidence, self.train, self.dev)
        self.last = candidate, made
        return made

    def on_top_of(self, candidate: Candidate) -> list[Candidate]:
        """The methods that need a finished classifier, each on top of this candidate's model.

        None is applied twice, but those that go by what was found: after it there may be something else to find. What
        starts from a base gains nothing by what was done before.
        """
        below = self.subject
        if below.task != "classifier" or below.kind == "adapter":
            below = below.holding(*self.made(candidate)[:2])
        others = candidates_for(below, self.evidence, self.settings)[0]
        return [
            candidate.then(one)
            for one in others
            if (one.steps[0] not in candidate.steps or REACHES[one.reach] == "words")
            and REACHES[one.reach] != "base"
            and "classifier" in catalogue.declared("purifier", one.steps[0], "NEEDS")
        ]

    def _make(
        self, candidate: Candidate, start: Subject, steps: Sequence[str], evidence: Evidence, train: Texts, dev: Texts
    ) -> tuple[Any, Any, dict[str, Any]]:
        run = self._named(candidate)
        if not candidate.steps:
            model = open_classifier(self.subject, train, run)
            if self.subject.task != "classifier":
                plain.train(model, self.subject.tokenizer, train, FineTuning(), run)
            return model, self.subject.tokenizer, {}
        current, done = start, len(candidate.steps) - len(steps)
        for number, step in enumerate(steps, start=done):
            method = catalogue.load("purifier", step)
            settings = catalogue.fill(method.Settings, self.assigned.get(step, ()))
            known = replace(evidence, found=self._found(candidate.steps[:number]))
            purified = method.purify(current, known, train, dev, settings, run)
            tokenizer = purified.tokenizer or current.tokenizer
            if number + 1 < len(candidate.steps):
                current = self.subject.holding(purified.model, tokenizer)
        return purified.model, tokenizer, dict(purified.report)

    def _found(self, steps: tuple[str, ...]) -> Found:
        """All that was found in the input, and in what each of these steps made of it."""
        rows = [self.kept.rows[Candidate(steps[:many]).name] for many in range(len(steps) + 1)]
        every = {tuple(one["ids"]): one for row in rows for one in row["found"]}
        told = tuple({"words": one["words"], "target": one["label"], "flips": one["flips"]} for one in every.values())
        leaning = {one.what: one for row in rows for one in (Leaning(**kept) for kept in row["suspected"])}
        targets = tuple(one["target"] for one in every.values())
        rest = {tuple(one["ids"]): one["target"] for row in rows for one in row["rest"]}
        return Found(tuple(every), told, (), targets, tuple(leaning.values()), rest=rest)

    def _may_have_pairs(self, candidate: Candidate) -> bool:
        """Whether pairs are looked for: in the input, in what learned from untrusted texts, and where several tokens
        were found in the step before. Elsewhere that would double the time of a search, to find what was not there.
        """
        if not candidate.steps or self.evidence.untrusted is not None:
            return True
        return any(len(ids) > 1 for ids in self._found(candidate.steps[:-1]).triggers)

    def _named(self, candidate: Candidate) -> Run:
        def progress(stage: str, done: int, total: int) -> None:
            self.run.progress(f"{candidate.name}: {stage}", done, total)

        return replace(self.run, progress=progress)

    def judge(self, candidate: Candidate) -> dict[str, Any]:
        """A row on a candidate, in JSON types; the input's is what the others are compared with.

        Raises what making the input raises; what a candidate raises becomes its reason.
        """
        self.last = None
        row = self.kept.get(candidate.name, lambda: self._judged(candidate))
        if not candidate.steps:
            self.given = row
        return row

    def _judged(self, candidate: Candidate) -> dict[str, Any]:
        started = time.monotonic()
        row: dict[str, Any] = {"method": candidate.name, "cost": whole(candidate.passes), "outcome": "", "reason": ""}
        row |= dict.fromkeys(("accuracy", "suspects", "proven", "strongest", "excess", "untrusted"))
        lists = ("left", "unsearched", "triggers", "found", "rest", "leanings", "suspected", "unlooked")
        row |= {part: [] for part in lists}
        try:
            self._measure(candidate, row)
        except PurifyError as error:
            if not candidate.steps:
                raise
            row |= {"outcome": "failed", "reason": str(error)}
        return row | {"seconds": round(time.monotonic() - started, 1)}

    def _measure(self, candidate: Candidate, row: dict[str, Any]) -> None:
        """Fill a row, in the order of the module's docstring, as far as it must be known."""
        made = None
        if self.crossed:
            right = self._right_by_folds(candidate)
        else:
            made = self.made(candidate)
            right = self._right(made, self.dev)
        if self.given is not None:
            paired = difference(right, self.given["right"])
            row["accuracy"] = {
                "n": len(right),
                "before": sum(self.given["right"]) / len(right),
                "after": sum(right) / len(right),
                "difference": asdict(paired),
            }
            lost = loses(paired, self.settings)
            if lost:
                row["outcome"], row["reason"] = "loses accuracy", lost
                return
        model, tokenizer, _ = made or self.made(candidate)
        seed, pairs = SEARCH + len(candidate.steps), self._may_have_pairs(candidate)
        found = search(model, tokenizer, self.clean, self._named(candidate), seed, pairs=pairs)
        row["weights"] = weights_digest(model)
        row |= self._look(candidate, model, tokenizer, row["weights"], seed)
        leaning = [Leaning(**one) for one in row["leanings"]]
        row["suspects"] = len(found.triggers) + len(leaning)
        row["proven"] = found.proven + len(leaning)
        row["strongest"] = max(
            (*(float(one["flips"]) for one in found.told), *map(self._no_more, leaning)), default=0.0
        )
        row["left"] = [*(one["words"] for one in found.told), *(f"{one.opening} ..." for one in leaning)]
        names = model.config.id2label
        row["unsearched"] = [*found.unsearched, *(f"{names[target]} (said otherwise)" for target in row["unlooked"])]
        row["found"] = [
            {"ids": list(ids), "target": target, "words": one["words"], "label": one["target"], "flips": one["flips"]}
            for ids, target, one in zip(found.triggers, found.targets, found.told, strict=True)
        ]
        row["rest"] = [{"ids": list(ids), "target": target} for ids, target in found.rest.items()]
        said = predict(model, tokenizer, self.asked, self.run).argmax(dim=1)
        if self.given is None:
            row["right"] = right
            row["said"] = said.tolist()
        given = self.given or row
        if self.given is not None and row["weights"] == self.given["weights"]:
            row["triggers"] = self.given["triggers"]  # what is the input still is not asked again
        else:
            row["triggers"] = self._excesses(model, tokenizer, said.tolist(), given["found"])
            row["triggers"] += self._excesses_of_manners(candidate, model, tokenizer, given["leanings"])
        for one in row["triggers"]:
            if one["floor_from"] == OTHER_MANNERS and one["excess"] is None:
                row["unsearched"].append(f"{one['target']} (said otherwise, by the texts' labels)")
        known = [one["excess"]["value"] for one in row["triggers"] if one["excess"] is not None]
        row["excess"] = max(known, default=None)
        if self.untrusted is not None:
            elsewhere = predict(model, tokenizer, self.untrusted, self.run).argmax(dim=1).tolist()
            if self.given is None:
                row["said_untrusted"] = elsewhere
            else:
                row["untrusted"] = differs(elsewhere, given["said_untrusted"], said.tolist(), given["said"])
        if self.given is None:
            row["outcome"] = "input"
            return
        row["outcome"], row["reason"] = outcome(row, given, self.settings)

    def _look(self, candidate: Candidate, model: Any, tokenizer: Any, weights: str, seed: int) -> dict[str, Any]:
        """What it leans to, and the labels that cannot be looked at. What is the input still is not asked again."""
        if self.given is not None and weights == self.given["weights"]:
            return {part: self.given[part] for part in ("leanings", "suspected", "unlooked")}
        look = leanings(model, tokenizer, self.clean, self._named(candidate), seed)
        return {
            "leanings": [asdict(one) for one in look.leanings(self._known())],
            "suspected": [asdict(one) for one in look.suspects()],
            "unlooked": list(look.unlooked),
        }

    def _known(self) -> dict[tuple[str, int], Leaning]:
        """What the input leans to."""
        every = (Leaning(**one) for one in (self.given or {"leanings": ()})["leanings"])
        return {one.what: one for one in every}

    def _no_more(self, leaning: Leaning) -> float:
        """The share that it turns; of what the input leans to, no more than there: other texts, another share."""
        before = self._known().get(leaning.what, leaning)
        return min(leaning.flips, before.flips)

    def _right(self, made: tuple[Any, Any, Any], texts: Texts) -> list[bool]:
        model, tokenizer, _ = made
        said = predict(model, tokenizer, texts, self.run).argmax(dim=1).tolist()
        return [one == label for one, label in zip(said, texts.labels or (), strict=True)]

    def _right_by_folds(self, candidate: Candidate) -> list[bool]:
        """Whether each clean text is answered right by a model that did not see it."""
        if not candidate.steps and self.subject.task == "classifier":
            return self._right(self.made(candidate), self.clean)
        right = [False] * len(self.clean)
        for rows in folds(self.clean, self.settings.folds, self.run.seed):
            rest = without(self.clean, rows)
            train, dev = split(rest, INNER_DEV, self.run.seed)
            evidence = replace(self.evidence, clean=rest)
            made = self._make(candidate, self.subject, candidate.steps, evidence, train, dev if len(dev) else train)
            for row, one in zip(rows, self._right(made, self.clean.take(rows)), strict=True):
                right[row] = one
            del made
        return right

    def _excesses(
        self, model: Any, tokenizer: Any, said: Sequence[int], found: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """What the input's triggers do, beyond what the texts are given without them."""
        limit = length_limit(tokenizer, model.config, self.run)
        labels = self.asked.labels or ()
        rows = []
        for one in found:
            _, triggered = with_triggers(tokenizer, self.asked, [tuple(one["ids"])], limit, self.run.seed, by_row=False)
            answers = predict_encoded(model, tokenizer, triggered, self.run).argmax(dim=1)
            beyond = None
            if any(label != one["target"] for label in labels):
                beyond = asdict(excess(asr(answers, labels, one["target"]), asr(said, labels, one["target"])))
            rows.append({"words": one["words"], "target": one["label"], "excess": beyond, "floor_from": WITHOUT})
        return rows

    def _excesses_of_manners(
        self, candidate: Candidate, model: Any, tokenizer: Any, leaning: Sequence[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """What the input's manners do in clean texts of other labels, beyond what other manners do there.

        In all that are clean, for dev alone may have few; and in the same ones, with the same openings to choose from,
        in each candidate: the rows are to be compared.
        """
        known = [Leaning(**one) for one in leaning]
        left = left_of(known, model, tokenizer, self.clean, self._named(candidate), SEARCH)
        return [
            {
                "words": f"{was.opening} ...",
                "target": str(model.config.id2label[was.target]),
                "excess": None if one is None else asdict(one.beyond),
                "floor_from": OTHER_MANNERS,
            }
            for was, one in zip(known, left, strict=True)
        ]


class Kept:
    """Rows that are judged already, so that a command that was stopped does not judge them again."""

    def __init__(self, file: Path | None) -> None:
        self.file = file
        self.rows: dict[str, Any] = {}
        if file is not None:
            with suppress(OSError, ValueError):
                self.rows = dict(json.loads(file.read_text(encoding="utf-8")))

    def get(self, name: str, judge: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of this name, judged if there is none."""
        if name not in self.rows:
            self.rows[name] = judge()
            if self.file is not None:
                with suppress(OSError):  # a full disk is no reason to lose what was judged
                    self.file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                    beside = self.file.with_suffix(f".{os.getpid()}")
                    beside.write_text(json.dumps(self.rows), encoding="utf-8")
                    beside.replace(self.file)
        return dict(self.rows[name])


def judged_on(crossed: bool, train: Texts, dev: Texts, settings: Settings) -> str:
    if crossed:
        return f"{settings.folds} folds of {len(train) + len(dev)} texts"
    return f"{len(dev)} texts of dev"


def _sample(texts: Texts | None, seed: int) -> Texts | None:
    if texts is None or not len(texts):
        return None
    rows = range(len(texts))
    chosen = random.Random(f"auto/{seed}").sample(rows, min(MOST_UNTRUSTED, len(texts)))
    return texts.take(sorted(chosen))


def whole(number: float) -> float:
    """2.0 is shown as 2."""
    return int(number) if number.is_integer() else number
