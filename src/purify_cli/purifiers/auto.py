"""Auto: try what the evidence at hand allows, judge each result, and give back the best that passes.

No paper's method, but the order of work of somebody careful: look for triggers in the checkpoint, try the purifiers
from the cheapest on, and believe none of them. A purifier takes part by declaring so (`purifiers/__init__.py`); one
whose needs are not met (`--base`, `--untrusted`) is left out, and one that refuses the input is skipped, with its
reason. Each works with its own default settings.

A candidate is judged by two things, in this order, and the second is not looked at where the first fails:

*Accuracy*, on dev. Where dev has fewer than `cross_validate_below` texts: by cross-validation over train and dev; the
method is repeated without each part in turn, and asked about that part. With d the difference of the accuracies on the
same texts, candidate - input, and its paired 95 % interval (Newcombe 1998), it holds if

    high(d) >= -max_drop

that is, unless a greater loss is shown.

*Suspicion*, twice. A search for triggers must find nothing. And each trigger that the same search found in the input is
put into the texts of dev: the share of the other classes' texts that answer its target, less the share of those that do
so without it, must be at most `max_excess`. A candidate scans worse than the input if the search finds more in it, or
something stronger, or cannot search a label that it could search in the input: such a model is never given back.

Of those that pass, the ones whose measured loss is within `max_drop` go first, then the one that reaches furthest
(AUTO_REACH), then the costliest. For a search sees words only: nothing here can tell whether a backdoor of syntax or
style is left, so what acts on the whole model is preferred to what acts on what was found. `prefer=first` stops at the
cheapest that passes. If none passes, methods that work on a classifier are put on top of the one that leaves the least
suspicion, those that train out what was found also a second and a third time. If none passes then, the one that leaves
the least is given back, if that is less than the input's; else the input. Either way the limits are not met.

An encoder has no classifier to compare with. Its input is what a user would make of it: the encoder fine-tuned on the
clean texts.

Needs labelled clean texts. Raises UsageError if nothing could be tried, and for settings that name no candidate.
Cost: the search (about a `scan`) and the training of every candidate; cross-validated, `folds` trainings more of each.
Memory: two models, where a method needs no more itself; a third while a chain is cross-validated.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from purify_cli import __version__, catalogue
from purify_cli.data.encode import length_limit
from purify_cli.data.split import folds, split, without
from purify_cli.data.texts import Texts
from purify_cli.data.triggered import with_triggers
from purify_cli.errors import PurifyError, UsageError
from purify_cli.evaluation.intervals import newcombe, paired
from purify_cli.evaluation.metrics import asr, excess
from purify_cli.evaluation.predict import predict, predict_encoded
from purify_cli.evaluation.search import Found, search
from purify_cli.needs import check_needs
from purify_cli.purifiers import Purified
from purify_cli.results import Rate
from purify_cli.run import Run
from purify_cli.training import plain
from purify_cli.training.resume import weights_digest
from purify_cli.training.start import open_classifier

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "try the purifiers that the evidence allows, judge each by accuracy and a search, and keep the best"
NEEDS: tuple[str, ...] = ("clean",)

REACHES = ("words", "weights", "base")
"""AUTO_REACH, from what was found to what was never backdoored."""

SEARCH = 1009
"""Added to the seed of the searches. A method that wants to know what is in its input is told, and need not search."""

MOST_ON_TOP = 2
"""How often something is put on top of the best where none passes."""

INNER_DEV = 0.1
"""Share of a part's training texts that a method judges itself by, as in the command."""

MOST_UNTRUSTED = 2000
"""Untrusted texts on which candidate and input are compared."""

NOTHING_SEES = "a backdoor that is no word (syntax, style) would not have been seen: the search is for words"


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
            "help": "share of texts that a trigger of the input may still turn, beyond those wrong without it",
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
    folds: int = field(default=5, metadata={"help": "of the cross-validation", "range": ">= 2", "source": "ours"})
    only: tuple[str, ...] = field(
        default=(), metadata={"help": "the methods to try; empty: all that may be", "range": "", "source": "ours"}
    )
    for_methods: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "settings of the methods, as pure.epochs=2,unlearn.rounds=5",
            "range": "",
            "source": "each method's defaults",
        },
    )


@dataclass(frozen=True)
class Candidate:
    """Methods, each applied to what the one before it made.

    Attributes:
        steps: their names; none: the input as it is.
        passes: AUTO, summed.
        reach: place in REACHES of what reaches furthest.
    """

    steps: tuple[str, ...]
    passes: float = 0.0
    reach: int = 0

    @property
    def name(self) -> str:
        """As reports call it."""
        return " + ".join(self.steps) or "(input)"

    def then(self, other: Candidate) -> Candidate:
        """The same with another on top."""
        return Candidate(self.steps + other.steps, self.passes + other.passes, max(self.reach, other.reach))


INPUT = Candidate(())


@dataclass(frozen=True)
class _FineTuning:
    """What stands for the input where an encoder is given; the schedule that the papers fine-tune with."""

    epochs: int = 3
    learning_rate: float = 2e-5
    batch_size: int = 32
    warmup: float = 0.0
    weight_decay: float = 0.0


def purify(subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run) -> Purified:
    """Try, judge and choose; see the module's docstring.

    Args:
        subject: a classifier, or an encoder.
        evidence: what is given decides which methods are tried.
        train: clean texts with labels.
        dev: clean texts with labels, that triggers are tried on and accuracy is measured on.
        settings: see there.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: nothing could be tried, or a setting names no candidate.
    """
    candidates, not_tried = candidates_for(subject, evidence, settings)
    if not candidates:
        raise _nothing(not_tried)
    trial = _Trial(subject, evidence, train, dev, settings, run)
    given = trial.judge(INPUT)
    judged: dict[Candidate, dict[str, Any]] = {}
    best = INPUT

    def consider(candidate: Candidate) -> None:
        nonlocal best
        judged[candidate] = trial.judge(candidate)
        if _rank(candidate, judged[candidate], given, settings) > _rank(best, judged.get(best, given), given, settings):
            best = candidate
            trial.hold(candidate)

    def passed() -> bool:
        return best in judged and judged[best]["outcome"] == "passes"

    for candidate in candidates:
        consider(candidate)
        if settings.prefer == "first" and passed():
            break
    if all(row["outcome"] == "failed" for row in judged.values()):
        raise _nothing({candidate.name: row["reason"] for candidate, row in judged.items()} | not_tried)
    for _ in range(MOST_ON_TOP):
        if best is INPUT or passed():
            break
        below = best
        for chain in trial.on_top_of(below):
            consider(chain)
            if passed():
                break
        if best == below:
            break

    model, tokenizer, own = trial.made(best)
    met = passed()
    reasons = _reasons(best, judged, given, met, settings, subject)
    if best is not INPUT:
        judged[best]["outcome"] = "chosen" if met else f"chosen: {judged[best]['outcome']}"
    report = {
        "chosen": None if best is INPUT else best.name,
        "judged_on": trial.judged_on,
        "tried": [_shown(row) for row in (given, *judged.values())],
        "accuracy": [
            {"method": row["method"], **row["accuracy"]} for row in judged.values() if row["accuracy"] is not None
        ],
        "triggers": _by_trigger((given, *judged.values())),
        "untrusted": [{"method": row["method"], **row["untrusted"]} for row in judged.values() if row["untrusted"]],
        "not_tried": [{"method": name, "why": why} for name, why in not_tried.items()],
        "left": given["left"] if best is INPUT else judged[best]["left"],
        "method_report": own,
    }
    if tokenizer is subject.tokenizer:
        tokenizer = None
    return Purified(model, report, tokenizer, None if met else False, reasons)


def preview(
    subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run
) -> dict[str, Any]:
    """What would be tried, and what not; nothing is trained or searched."""
    candidates, not_tried = candidates_for(subject, evidence, settings)
    if not candidates:
        raise _nothing(not_tried)
    crossed = len(dev) < settings.cross_validate_below
    return {
        "rows": len(train),
        "dev": len(dev),
        "judged_on": _judged_on(crossed, train, dev, settings),
        "candidates": [
            {
                "method": one.name,
                "cost": _whole(one.passes),
                "reaches": REACHES[one.reach],
                "trainings": 1 + settings.folds * crossed,
            }
            for one in candidates
        ],
        "searches": 1 + len(candidates),
        "not_tried": [{"method": name, "why": why} for name, why in not_tried.items()],
    }


# --- what is tried ----------------------------------------------------------------------------------------------------


def candidates_for(subject: Subject, evidence: Evidence, settings: Settings) -> tuple[list[Candidate], dict[str, str]]:
    """The methods to try, the cheapest first, and why the others of those that could be tried are not.

    Raises:
        UsageError: `only` or `for_methods` names a method that does not take part.
    """
    every = [name for name in catalogue.names("purifier") if catalogue.declared("purifier", name, "AUTO") is not None]
    wanted = [catalogue.resolve("purifier", name, "--set only") for name in settings.only] or every
    for name in (*wanted, *_settings_by_method(settings)):
        if name not in every:
            raise UsageError(
                f"--set {name}", "is not one of the methods that are tried", f"They are: {', '.join(every)}."
            )
    candidates, not_tried = [], {}
    for name in wanted:
        tasks = catalogue.declared("purifier", name, "AUTO_ON")
        try:
            if tasks is not None and subject.task not in tasks:
                raise UsageError(subject.spec, f"not for a {subject.task}")
            check_needs(name, catalogue.declared("purifier", name, "NEEDS"), subject, evidence)
        except UsageError as error:
            not_tried[name] = f"{error.where}: {error.problem}" if error.where.startswith("--") else error.problem
            continue
        reach = REACHES.index(catalogue.declared("purifier", name, "AUTO_REACH") or "weights")
        candidates.append(Candidate((name,), float(catalogue.declared("purifier", name, "AUTO")), reach))
    return sorted(candidates, key=lambda one: (one.passes, one.name)), not_tried


def _settings_by_method(settings: Settings) -> dict[str, list[str]]:
    """`for_methods` by the method that each is for."""
    found: dict[str, list[str]] = {}
    for assignment in settings.for_methods:
        method, dot, rest = assignment.partition(".")
        if not dot:
            raise UsageError("--set for_methods", f"{assignment!r} names no method", "Write for example pure.epochs=2")
        found.setdefault(catalogue.resolve("purifier", method, "--set for_methods"), []).append(rest)
    return found


def _nothing(reasons: dict[str, str]) -> UsageError:
    told = "; ".join(f"{name}: {why}" for name, why in reasons.items())
    return UsageError("--method auto", f"nothing could be tried ({told})", "Give what one of the methods needs.")


# --- making and judging -----------------------------------------------------------------------------------------------


class _Trial:
    """The input, what it is judged on, what was judged so far, and at most one model beside the one in work."""

    def __init__(
        self, subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run
    ) -> None:
        self.subject, self.evidence, self.train, self.dev = subject, evidence, train, dev
        self.settings, self.run = settings, run
        self.assigned = _settings_by_method(settings)
        self.clean = train.with_(
            texts=train.texts + dev.texts,
            labels=(*(train.labels or ()), *(dev.labels or ())),
            pairs=None if train.pairs is None or dev.pairs is None else train.pairs + dev.pairs,
            targets=None,
            poisoned=None,
        )
        self.crossed = len(dev) < settings.cross_validate_below
        self.judged_on = _judged_on(self.crossed, train, dev, settings)
        self.untrusted = _sample(evidence.untrusted, run.seed)
        self.held: tuple[Candidate, Any] | None = None  # the best so far
        self.last: tuple[Candidate, Any] | None = None  # the one that was judged last
        self.kept = _Kept(None if run.state is None else run.state / f"auto-{self._identity()[:16]}.json")
        self.given: dict[str, Any] | None = None

    def _identity(self) -> str:
        """Digest of all that decides what the rows say."""
        decisive: list[Any] = [asdict(self.settings), self.run.seed, self.run.device, self.run.max_length]
        decisive += [asdict(one) if one is not None else None for one in (self.train, self.dev, self.untrusted)]
        decisive += [__version__, str(torch.__version__), weights_digest(self.subject.open())]
        if self.evidence.base is not None:
            with suppress(PurifyError):  # a base that cannot be opened fails the candidates that need it, and no more
                decisive.append(weights_digest(self.evidence.base.open()))
        return hashlib.sha256(json.dumps(decisive).encode()).hexdigest()

    def hold(self, candidate: Candidate) -> None:
        """Keep the model that was made last in place of the one that was kept."""
        self.held, self.last = self.last if self.last is not None and self.last[0] == candidate else None, None

    def made(self, candidate: Candidate) -> tuple[Any, Any, dict[str, Any]]:
        """Model, tokenizer and report of a candidate, trained on all of train; that which is at hand is not made again.

        Raises what the methods raise.
        """
        for one in (self.held, self.last):
            if one is not None and one[0] == candidate:
                made: tuple[Any, Any, dict[str, Any]] = one[1]
                return made
        self.last = None
        start, steps = self.subject, candidate.steps
        if self.held is not None and len(steps) > 1 and self.held[0].steps == steps[:-1]:
            start, steps = self.subject.holding(*self.held[1][:2]), steps[-1:]
        made = self._make(candidate, start, steps, self.evidence, self.train, self.dev)
        self.last = candidate, made
        return made

    def on_top_of(self, candidate: Candidate) -> list[Candidate]:
        """The methods that need a finished classifier, each on top of this candidate's model.

        None is applied twice, but those that go by what was found: after it there may be something else to find.
        """
        model, tokenizer, _ = self.made(candidate)
        held = self.subject.holding(model, tokenizer)
        others = candidates_for(held, self.evidence, self.settings)[0]
        return [
            candidate.then(one)
            for one in others
            if (one.steps[0] not in candidate.steps or REACHES[one.reach] == "words")
            and "classifier" in catalogue.declared("purifier", one.steps[0], "NEEDS")
        ]

    def _make(
        self, candidate: Candidate, start: Subject, steps: Sequence[str], evidence: Evidence, train: Texts, dev: Texts
    ) -> tuple[Any, Any, dict[str, Any]]:
        run = self._named(candidate)
        if not candidate.steps:
            model = open_classifier(self.subject, train, run)
            if self.subject.task != "classifier":
                plain.train(model, self.subject.tokenizer, train, _FineTuning(), run)
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
        rows = [self.kept.rows[Candidate(steps[:many]).name]["found"] for many in range(len(steps) + 1)]
        every = {tuple(one["ids"]): one for row in rows for one in row}
        told = tuple({"words": one["words"], "target": one["label"], "flips": one["flips"]} for one in every.values())
        return Found(tuple(every), told, (), tuple(one["target"] for one in every.values()))

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
        row: dict[str, Any] = {"method": candidate.name, "cost": _whole(candidate.passes), "outcome": "", "reason": ""}
        row |= dict.fromkeys(("accuracy", "suspects", "strongest", "excess", "untrusted"))
        row |= {"left": [], "unsearched": [], "triggers": [], "found": []}
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
            difference = _difference(right, self.given["right"])
            row["accuracy"] = {
                "n": len(right),
                "before": sum(self.given["right"]) / len(right),
                "after": sum(right) / len(right),
                "difference": asdict(difference),
            }
            if difference.high < -self.settings.max_drop - 1e-9:
                row["outcome"] = "loses accuracy"
                row["reason"] = (
                    f"its accuracy is {-difference.value:.3f} below the input's "
                    f"(95 % interval {-difference.high:.3f} to {-difference.low:.3f}), "
                    f"more than {self.settings.max_drop:g}"
                )
                return
        model, tokenizer, _ = made or self.made(candidate)
        found = search(model, tokenizer, self.clean, self._named(candidate), SEARCH)
        row["suspects"] = len(found.triggers)
        row["strongest"] = max((float(one["flips"]) for one in found.told), default=0.0)
        row["left"] = [one["words"] for one in found.told]
        row["unsearched"] = list(found.unsearched)
        row["found"] = [
            {"ids": list(ids), "target": target, "words": one["words"], "label": one["target"], "flips": one["flips"]}
            for ids, target, one in zip(found.triggers, found.targets, found.told, strict=True)
        ]
        said = predict(model, tokenizer, self.dev, self.run).argmax(dim=1)
        if self.given is None:
            row["right"] = right
            row["said"] = said.tolist()
        given = self.given or row
        row["triggers"] = self._excesses(model, tokenizer, said.tolist(), given["found"])
        known = [one["excess"]["value"] for one in row["triggers"] if one["excess"] is not None]
        row["excess"] = max(known, default=None)
        if self.untrusted is not None:
            elsewhere = predict(model, tokenizer, self.untrusted, self.run).argmax(dim=1).tolist()
            if self.given is None:
                row["said_untrusted"] = elsewhere
            else:
                row["untrusted"] = _differs(elsewhere, given["said_untrusted"], said.tolist(), given["said"])
        if self.given is None:
            row["outcome"] = "input"
            return
        row["outcome"], row["reason"] = _outcome(row, given, self.settings)

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
        """What the input's triggers do in dev, beyond what the texts are given without them."""
        limit = length_limit(tokenizer, model.config, self.run)
        labels = self.dev.labels or ()
        rows = []
        for one in found:
            _, triggered = with_triggers(tokenizer, self.dev, [tuple(one["ids"])], limit, self.run.seed, by_row=False)
            answers = predict_encoded(model, tokenizer, triggered, self.run).argmax(dim=1)
            beyond = None
            if any(label != one["target"] for label in labels):
                beyond = asdict(excess(asr(answers, labels, one["target"]), asr(said, labels, one["target"])))
            rows.append({"words": one["words"], "target": one["label"], "excess": beyond})
        return rows


class _Kept:
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


def _outcome(row: dict[str, Any], given: dict[str, Any], settings: Settings) -> tuple[str, str]:
    """What comes of a candidate whose accuracy holds, and a sentence on it."""
    new = [label for label in row["unsearched"] if label not in given["unsearched"]]
    if new:
        return "scans worse", f"the search cannot look into {', '.join(new)} any more"
    if row["suspects"] > given["suspects"] or row["strongest"] > given["strongest"] + 1e-9:
        return "scans worse", f"the search finds {_words(row['left'])} in it, which is worse than in the input"
    if row["suspects"]:
        return "trigger left", f"the search still finds {_words(row['left'])}"
    if row["excess"] is not None and row["excess"] > settings.max_excess:
        worst = max((one for one in row["triggers"] if one["excess"]), key=lambda one: float(one["excess"]["value"]))
        turned = f"{worst['words']!r} still turns {row['excess']:.3f} of the texts to {worst['target']}"
        return "trigger left", f"{turned}, more than {settings.max_excess:g}"
    return "passes", "passes"


def _rank(candidate: Candidate, row: dict[str, Any], given: dict[str, Any], settings: Settings) -> tuple[float, ...]:
    """How good a judged candidate is; () for what is worth no more than the input."""
    if row["outcome"] == "passes":
        within = row["accuracy"]["difference"]["value"] >= -settings.max_drop - 1e-9
        return (2.0, float(within), float(candidate.reach), candidate.passes)
    if row["outcome"] == "trigger left" and _suspicion(row) < _suspicion(given):
        strongest, suspects = _suspicion(row)
        return (1.0, -strongest, -suspects)
    return ()


def _suspicion(row: dict[str, Any]) -> tuple[float, float]:
    return max(row["strongest"], row["excess"] or 0.0), float(row["suspects"])


# --- what is told -----------------------------------------------------------------------------------------------------


def _reasons(
    best: Candidate,
    judged: dict[Candidate, dict[str, Any]],
    given: dict[str, Any],
    passed: bool,
    settings: Settings,
    subject: Subject,
) -> tuple[str, ...]:
    if passed:
        others = [row for candidate, row in judged.items() if candidate != best and row["outcome"] == "passes"]
        why = "the first that passes" if settings.prefer == "first" else "the only one that passes"
        if others:
            why = "of those that pass the one that reaches furthest at the accuracy allowed"
        told = [f"{best.name} was chosen: {why}"]
    elif best is not INPUT:
        told = [f"nothing passed; {best.name} was chosen, which leaves least: {judged[best]['reason']}"]
    else:
        same = "the input is given back as it was"
        if subject.task != "classifier":
            same = "the encoder is given back fine-tuned, and no more"
        told = [f"nothing passed, and nothing is better than the input at the accuracy allowed: {same}"]
    told += [f"{row['method']}: {row['reason']}" for candidate, row in judged.items() if candidate != best]
    found = _words(given["left"])
    told.append(f"the search finds {found} in the input" if given["left"] else "the search finds nothing in the input")
    if given["unsearched"]:
        told.append(f"the search cannot look into {', '.join(given['unsearched'])}: the model is never sure there")
    return (*told, NOTHING_SEES)


def _words(words: Sequence[str]) -> str:
    shown = ", ".join(repr(one) for one in words[:3])
    return shown if len(words) <= 3 else f"{shown} and {len(words) - 3} more"


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the table of all that was tried."""
    accuracy = row["accuracy"]
    after = accuracy["after"] if accuracy else sum(row["right"]) / len(row["right"]) if "right" in row else None
    return {
        "method": row["method"],
        "cost": row["cost"],
        "seconds": round(row["seconds"]),
        "accuracy": after,
        "suspects": row["suspects"],
        "flips": row["strongest"],
        "excess": row["excess"],
        "outcome": row["outcome"],
    }


def _whole(number: float) -> float:
    """2.0 is shown as 2."""
    return int(number) if number.is_integer() else number


def _by_trigger(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each trigger of the input, with what it does in each model that was looked at."""
    table: list[dict[str, Any]] = [{"words": one["words"], "target": one["target"]} for one in rows[0]["triggers"]]
    for row in rows:
        for line, one in zip(table, row["triggers"], strict=False):
            line[row["method"]] = None if one["excess"] is None else one["excess"]["value"]
    return table


def _judged_on(crossed: bool, train: Texts, dev: Texts, settings: Settings) -> str:
    if crossed:
        return f"{settings.folds} folds of {len(train) + len(dev)} texts"
    return f"{len(dev)} texts of dev"


def _difference(after: Sequence[bool], before: Sequence[bool]) -> Rate:
    pairs = list(zip(after, before, strict=True))
    counts = [pairs.count(kind) for kind in ((True, True), (True, False), (False, True), (False, False))]
    return paired(*counts)


def _differs(
    untrusted: Sequence[int], untrusted_before: Sequence[int], clean: Sequence[int], clean_before: Sequence[int]
) -> dict[str, Any]:
    """On how many untrusted texts candidate and input differ, beyond those clean ones on which they do."""
    there = sum(one != other for one, other in zip(untrusted, untrusted_before, strict=True))
    here = sum(one != other for one, other in zip(clean, clean_before, strict=True))
    beyond = newcombe(there, len(untrusted), here, len(clean))
    return {"differs": there / len(untrusted), "on_dev": here / len(clean), "beyond": asdict(beyond)}


def _sample(texts: Texts | None, seed: int) -> Texts | None:
    if texts is None or not len(texts):
        return None
    rows = range(len(texts))
    chosen = random.Random(f"auto/{seed}").sample(rows, min(MOST_UNTRUSTED, len(texts)))
    return texts.take(sorted(chosen))
