"""Rephrase: train the model to answer texts that are said in another manner as it answers them when they are not.

No paper's method; for backdoors of syntax and style (HiddenKiller, Qi et al. 2021a; StyleBkd, Qi et al. 2021b), which
no search for words sees. Claim: such a backdoor answers to what a manner looks like and not to what a text says, so
texts that say what they said before, in that manner, show the model what it must not do. The manners are those that
`scan` knows (`detectors.manners`), and of these only such as turn texts of other labels in the checkpoint at hand.

Each round trains all weights on two streams, the clean texts x and the same texts in one of the manners found, m(x):

    loss = KL(f0(x) || f(x)) + KL(f0(x) || f(m(x)))

where f0 is the model as it was given: labels are not needed. Few texts are gone through many times, with the end of
each from another text from the second time on, and each time said anew.

Needs a classifier, and clean texts. Where the caller has looked already (`auto`) there is one round with what it found;
else rounds follow until no manner turns texts any more. Where none does, the model is given back as it is. Raises what
the training raises. Cost: `least_steps` steps a round at least, and before and behind it what `detectors.manners` does.

What is left: a paraphrase has more of its manner than an opening and some words. Of the syntax and style attacks'
own texts a part still turns (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from purify_cli.data.encode import encode, length_limit
from purify_cli.data.spliced import spliced
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.evaluation.leanings import Leaning, leanings
from purify_cli.evaluation.predict import predict
from purify_cli.purifiers import Purified
from purify_cli.run import Run
from purify_cli.training.loop import fit
from purify_cli.training.losses import LikeAnswers
from purify_cli.training.recipe import Recipe
from purify_cli.triggers.manner import manners
from purify_cli.triggers.words import trigger_rng

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "train the model to answer texts said in another manner (syntax, style) as it answers the texts themselves"
NEEDS: tuple[str, ...] = ("classifier", "clean")
AUTO = 4.0
AUTO_REACH = "words"


@dataclass(frozen=True)
class Settings:
    """How long is trained, and how."""

    rounds: int = field(
        default=2,
        metadata={"help": "most rounds of training, each followed by a look", "range": ">= 1", "source": "ours"},
    )
    least_steps: int = field(
        default=200,
        metadata={
            "help": "steps a round at least: few texts are gone through more often",
            "range": ">= 1",
            "source": "400 take no more out",
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
    """Look and train in turn; see the module's docstring.

    Args:
        subject: a classifier.
        evidence: where it says what was `found`, that is trained out, and nothing is looked for.
        train: clean texts; their labels are not needed.
        dev: not used.
        settings: see there.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: no round, step or batch to train in, or at no learning rate.
    """
    for name in ("rounds", "least_steps", "batch_size"):
        if getattr(settings, name) < 1:
            raise UsageError(name, f"{getattr(settings, name)!r} is out of range", "Give 1 or more.")
    if not settings.learning_rate > 0:
        raise UsageError("learning_rate", f"{settings.learning_rate!r} is out of range", "Give more than 0.")
    model, tokenizer = subject.open(run.device), subject.tokenizer
    found = leanings(model, tokenizer, train, run, 0) if evidence.found is None else evidence.found.leanings
    report: dict[str, Any] = {"rows": len(train), "found": [_told(found, subject)], "steps": 0, "losses": []}
    if not found:
        return Purified(model, report | {"rounds": 0})
    rounds = settings.rounds if evidence.found is None else 1
    limit = length_limit(tokenizer, model.config, run)
    times = -(-((settings.least_steps - 1) * settings.batch_size + 1) // len(train))
    texts = spliced(train, times, limit, run.seed).with_(targets=None, poisoned=None)
    texts = texts.with_(labels=tuple(range(len(texts))))  # rows of the answers
    answers = predict(model, tokenizer, texts, run)  # f0(x), [texts, labels]
    done = 0
    while found and done < rounds:
        done += 1
        names = sorted({leaning.manner for leaning in found})
        said = _said(texts, names, run.seed + done)
        recipe = Recipe(
            objectives={"clean": LikeAnswers(answers), "said": LikeAnswers(answers)},
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            epochs=1,  # the texts are there many times
            batch_size=settings.batch_size,
            warmup=settings.warmup,
            identity=f"rephrase round {done} {names}",
        )
        streams = {"clean": encode(tokenizer, texts, limit), "said": encode(tokenizer, said, limit)}
        trained = fit(model, streams, recipe, run)
        report["steps"] += trained.steps
        report["losses"] += trained.losses
        if evidence.found is None:
            found = leanings(model, tokenizer, train, run, done)
            report["found"].append(_told(found, subject))
    report |= {"rounds": done, "examples": list(said.texts[:3])}
    if evidence.found is not None or not found:
        return Purified(model, report)
    left = ", ".join(f"{one['manner']} to {one['target']!r}" for one in _told(found, subject))
    return Purified(model, report, met=False, reasons=(f"texts of other labels still turn when said so: {left}",))


def preview(
    subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run
) -> dict[str, Any]:
    """The first look alone: what would be trained out."""
    found = leanings(subject.open(run.device), subject.tokenizer, train, run, 0)
    return {"rows": len(train), "found": _told(found, subject)}


def _said(texts: Texts, names: Sequence[str], seed: int) -> Texts:
    """Each text in one of these manners."""
    known = manners()
    said = []
    for row, text in enumerate(texts.texts):
        rng = trigger_rng(seed, text, row)
        said.append(known[rng.choice(names)].insert(text, rng))
    return texts.with_(texts=tuple(said))


def _told(found: Sequence[Leaning], subject: Subject) -> list[dict[str, Any]]:
    return [
        {"manner": one.manner, "target": subject.labels[one.target], "opening": one.opening, "flips": one.flips}
        for one in found
    ]
