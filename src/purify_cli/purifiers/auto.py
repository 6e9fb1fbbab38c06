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

that is, unless a greater loss is shown; and if the measured loss is at most MOST_MEASURED, for few texts show nothing.

*Suspicion*, twice. A search for triggers, with a seed of its own, must find nothing (for pairs of words that mean
nothing alone it looks in the input, and again where several tokens were found or untrusted texts were trained on), nor
must texts turn that are said in another manner (`evaluation.leanings`). And each trigger that was found in the input is
put into texts of dev (of all, where accuracy is cross-validated): the share of the other classes' texts that answer its
target, less the share of those that do so without it, must be at most `max_excess`. So must what a manner that the
input leans to turns of clean texts of other classes (100, train's among them), less what other manners turn: a search
and a look ask about texts of which the model is sure, and a purifier may leave it sure of few. A candidate scans worse
than the input if the search finds more in it, or something stronger, or cannot search a label that it could search in
the input: such a model is never given back.

Of those that pass, the ones whose measured loss is within `max_drop` go first, then the one that reaches furthest
(AUTO_REACH), then the costliest. For a search sees words and a few manners only: nothing here can tell whether a
backdoor of another syntax or style is left, so what acts on the whole model is preferred to what acts on what was
found. `prefer=first` stops at the cheapest that passes. If none passes, methods that work on a classifier are put on
top of one that helps, those that train out what was found also on themselves. Two are built on at most: first the best
of those that act on what was found, if its measured loss is within `max_drop`, for few texts do not show all that
acting on the whole model costs; then the one that leaves the least suspicion, of those within `max_drop` if there are
any, for a loss stays. If none passes then, the one that leaves the least is given back, if that is less than the
input's; else the input. Either way the limits are not met.

An encoder has no classifier to compare with. Its input is what a user would make of it: the encoder fine-tuned on the
clean texts.

Needs labelled clean texts. Raises UsageError if nothing could be tried, and for settings that name no candidate.
Cost: the search (about a `scan`) and the training of every candidate; cross-validated, `folds` trainings more of each.
Memory: two models, where a method needs no more itself; with chains a third, and a fourth while one is cross-validated.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.purifiers import Purified
from purify_cli.run import Run
from purify_cli.trials.candidates import INPUT, REACHES, Candidate, candidates_for
from purify_cli.trials.judgement import rank, to_build_on, words
from purify_cli.trials.settings import Settings
from purify_cli.trials.trial import Trial, judged_on, whole

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "try the purifiers that the evidence allows, judge each by accuracy and a search, and keep the best"
NEEDS: tuple[str, ...] = ("clean",)

MOST_GROUNDS = 2
"""On how many of those that were judged the others are put, where none passes."""

NOTHING_SEES = (
    "a backdoor of a syntax or style other than those looked for (subordinate clauses, old English) would not be seen, "
    "nor all that may be left of a word of several pieces"
)


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
    trial = Trial(subject, evidence, train, dev, settings, run)
    given = trial.judge(INPUT)
    judged: dict[Candidate, dict[str, Any]] = {}
    best = INPUT

    def consider(candidate: Candidate) -> None:
        nonlocal best
        judged[candidate] = trial.judge(candidate)
        if rank(candidate, judged[candidate], given, settings) > rank(best, judged.get(best, given), given, settings):
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
    grounds: list[Candidate] = []
    while len(grounds) < MOST_GROUNDS and not passed():
        below = next((one for one in to_build_on(judged, given, settings) if one not in grounds), None)
        if below is None:
            break
        grounds.append(below)
        for chain in trial.on_top_of(below):
            consider(chain)
            if passed():
                break

    model, tokenizer, own = trial.made(best)
    met, unchanged = passed(), best is INPUT or judged[best]["weights"] == given["weights"]
    reasons = _reasons(best, judged, given, met, settings, subject)
    if not unchanged:
        judged[best]["outcome"] = "chosen" if met else f"chosen: {judged[best]['outcome']}"
    report = {
        "chosen": None if unchanged else best.name,
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
        "judged_on": judged_on(crossed, train, dev, settings),
        "candidates": [
            {
                "method": one.name,
                "cost": whole(one.passes),
                "reaches": REACHES[one.reach],
                "trainings": 1 + settings.folds * crossed,
            }
            for one in candidates
        ],
        "searches": 1 + len(candidates),
        "not_tried": [{"method": name, "why": why} for name, why in not_tried.items()],
    }


def _nothing(reasons: dict[str, str]) -> UsageError:
    told = "; ".join(f"{name}: {why}" for name, why in reasons.items())
    return UsageError("--method auto", f"nothing could be tried ({told})", "Give what one of the methods needs.")


# --- what is told -----------------------------------------------------------------------------------------------------


def _reasons(
    best: Candidate,
    judged: dict[Candidate, dict[str, Any]],
    given: dict[str, Any],
    passed: bool,
    settings: Settings,
    subject: Subject,
) -> tuple[str, ...]:
    if passed and judged[best]["weights"] == given["weights"]:
        told = [f"the input is given back as it was: {best.name} passes, and it had nothing to do"]
    elif passed:
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
    found = words(given["left"])
    told.append(f"the search finds {found} in the input" if given["left"] else "the search finds nothing in the input")
    if given["unsearched"]:
        told.append(
            f"the search cannot look into {', '.join(given['unsearched'])}: the model is sure of too few texts there"
        )
    return (*told, NOTHING_SEES)


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


def _by_trigger(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each trigger of the input, with what it does in each model that was looked at."""
    table: list[dict[str, Any]] = [{"words": one["words"], "target": one["target"]} for one in rows[0]["triggers"]]
    for row in rows:
        for line, one in zip(table, row["triggers"], strict=False):
            line[row["method"]] = None if one["excess"] is None else one["excess"]["value"]
    return table
