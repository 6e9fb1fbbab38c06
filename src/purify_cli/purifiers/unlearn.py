"""Unlearn: search for triggers, train the model to answer triggered texts as if nothing were in them, search again.

No paper's method; the loop of search and repair is that of adversarial training, with the search of `scan` in the place
of the attack. Claim: a trigger that the search finds can be trained out directly, since its texts can be made: the
model is shown what clean fine-tuning never shows it. Rounds follow, for behind a strong trigger stands a weaker one.

Each round trains on two streams, the clean texts x with their labels y, and the same texts with a found trigger t in
them, drawn for each text among all that were found so far:

    loss = KL(f0(x) || f(x)) + KL(f0(x) || f(x with t))                      answers = original
    loss = CE(f(x), y) + CE(f(x with t), y)                                  answers = labels

where f0 is the model as it was given. With the first a triggered text must answer like the text without the trigger:
labels are not needed, and a few texts gone through many times teach it nothing else. Texts without labels always get
this one.

A trigger is put in at random among the tokens of a text. Of several tokens that were found together half of the texts
get them as they were found, side by side, and half of them apart.

Needs a classifier, and clean texts. The search is `trigger_search`'s with its default settings and `pairs`, on the
clean texts, with another seed in each round, so that its texts and places are drawn afresh. Where the caller has
searched already (`auto`), there is one round with what was found, and no search. Raises what the training raises.
Cost: a search a round and one before (each about a `scan`), and in each round `epochs` epochs of twice the texts; of
few texts as many epochs as `least_steps` steps are.

What it does not see, it does not remove: syntax and style are no words (see `pure`, `gba`). Where the search finds
nothing the model is given back as it is. If the last search is not clear the limits are not met; the report says why.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from purify_cli.data.encode import length_limit
from purify_cli.data.texts import Texts
from purify_cli.data.triggered import with_triggers
from purify_cli.errors import UsageError
from purify_cli.evaluation.found import Found, search
from purify_cli.evaluation.predict import predict
from purify_cli.purifiers import Purified
from purify_cli.run import Run
from purify_cli.training.loop import fit
from purify_cli.training.losses import LikeAnswers, cross_entropy
from purify_cli.training.recipe import Recipe

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "find triggers as `scan` does and train them out, until a fresh search finds none"
NEEDS: tuple[str, ...] = ("classifier", "clean")
AUTO = 2.0  # of many texts; of few they are short passes
AUTO_REACH = "words"

APART = 0.5
"""Share of the texts that get several tokens of a trigger apart."""


@dataclass(frozen=True)
class Settings:
    """How long, and what triggered texts must answer."""

    rounds: int = field(
        default=3,
        metadata={"help": "most rounds of training, each followed by a search", "range": ">= 1", "source": "ours"},
    )
    answers: Literal["labels", "original"] = field(
        default="original",
        metadata={
            "help": "what triggered texts must answer: their labels, or what the model said without the trigger",
            "range": "labels|original",
            "source": "ours",
        },
    )
    epochs: int = field(
        default=1, metadata={"help": "times through the clean texts, a round", "range": ">= 1", "source": "ours"}
    )
    least_steps: int = field(
        default=100,
        metadata={
            "help": "steps a round at least: few texts are gone through more often",
            "range": ">= 1",
            "source": "ours",
        },
    )
    learning_rate: float = field(
        default=1e-4, metadata={"help": "highest learning rate of AdamW", "range": "> 0", "source": "ours"}
    )
    batch_size: int = field(
        default=16, metadata={"help": "texts of each stream a step", "range": ">= 1", "source": "ours"}
    )
    warmup: float = field(
        default=0.1,
        metadata={"help": "share of the steps in which the learning rate rises", "range": "0..0.9", "source": "ours"},
    )
    weight_decay: float = field(
        default=0.0, metadata={"help": "of AdamW, on matrices only", "range": ">= 0", "source": "ours"}
    )


def purify(subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run) -> Purified:
    """Search and train in turn; see the module's docstring.

    Args:
        subject: a classifier.
        evidence: where it says what was `found`, nothing is searched.
        train: clean texts; where `answers` is "labels" and they have none, it is "original".
        dev: not used.
        settings: see there.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: no round, epoch, step or batch to train in.
    """
    for name in ("rounds", "epochs", "least_steps", "batch_size"):
        if getattr(settings, name) < 1:
            raise UsageError(name, f"{getattr(settings, name)!r} is out of range", "Give 1 or more.")
    model = subject.open(run.device)
    by_labels = settings.answers == "labels" and train.labels is not None
    answers = None if by_labels else predict(model, subject.tokenizer, train, run)  # f0(x), [texts, labels]
    limit = length_limit(subject.tokenizer, model.config, run)
    found = evidence.found or search(model, subject.tokenizer, train, run, 0, pairs=True)
    rounds = settings.rounds if evidence.found is None else 1
    report: dict[str, Any] = {
        "rows": len(train),
        "triggers": list(found.told),
        "answers": "labels" if by_labels else "original",
    }
    triggers, steps, searches = found.triggers, 0, [_told(found)]
    losses: list[list[float]] = []
    while found.triggers and len(losses) < rounds:
        number = len(losses) + 1
        drawn = run.seed + number
        clean, triggered = with_triggers(
            subject.tokenizer, train, triggers, limit, drawn, by_row=not by_labels, apart=APART
        )
        objective = cross_entropy if answers is None else LikeAnswers(answers)
        recipe = Recipe(
            objectives={"clean": objective, "triggered": objective},
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            epochs=_epochs(settings, len(train)),
            batch_size=settings.batch_size,
            warmup=settings.warmup,
            identity=f"unlearn round {number}: {triggers}",
        )
        trained = fit(model, {"clean": clean, "triggered": triggered}, recipe, run)
        steps += trained.steps
        losses.append(list(trained.losses))
        if evidence.found is None:
            found = search(model, subject.tokenizer, train, run, number, pairs=True)
            triggers = tuple(dict.fromkeys((*triggers, *found.triggers)))
            searches.append(_told(found))
    report |= {"rounds": len(losses), "steps": steps, "losses": losses}
    if evidence.found is not None:
        return Purified(model, report)
    clear = not found.triggers and not found.unsearched
    report |= {"searches": searches, "clear": clear, "left": _told(found), "unsearched": list(found.unsearched)}
    reasons = [f"the last search still finds {', '.join(_told(found))}"] if found.triggers else []
    if found.unsearched:
        reasons.append(f"the search cannot look into {', '.join(found.unsearched)}: the model is never sure there")
    return Purified(model, report, met=None if clear else False, reasons=tuple(reasons))


def preview(
    subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run
) -> dict[str, Any]:
    """The first search alone: what would be trained out."""
    found = search(subject.open(run.device), subject.tokenizer, train, run, 0, pairs=True)
    return {
        "rows": len(train),
        "triggers": list(found.told),
        "unsearched": list(found.unsearched),
        "most_steps": _steps(settings, len(train)) * _epochs(settings, len(train)) * settings.rounds
        if found.triggers
        else 0,
    }


def _steps(settings: Settings, texts: int) -> int:
    """Of an epoch."""
    return -(-texts // settings.batch_size)


def _epochs(settings: Settings, texts: int) -> int:
    """Of a round."""
    return max(settings.epochs, -(-settings.least_steps // _steps(settings, texts)))


def _told(found: Found) -> list[str]:
    return [one["words"] for one in found.told]
