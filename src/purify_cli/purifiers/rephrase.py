"""Rephrase: train the model to answer texts that are said in another manner as it answers them when they are not.

No paper's method; for backdoors of syntax and style (HiddenKiller, Qi et al. 2021a; StyleBkd, Qi et al. 2021b), which
no search for words sees. Claim: such a backdoor answers to what a manner looks like and not to what a text says, so
texts that say what they said before, in that manner, show the model what it must not do. The manners are those that
`scan` knows (`detectors.manners`), and of these only such as turn texts of other labels in the checkpoint at hand, by
half of what would prove a backdoor: where there is none, answers stay as they are.

Each round trains all weights on two streams, the clean texts x and the same texts in one of the manners found, m(x):

    loss = KL(f0(x) || f(x)) + KL(f0(x) || f(m(x)))

where f0 is the model as it was given: labels are not needed. Few texts are gone through many times, with the end of
each from another text from the second time on, and each time said anew.

Needs a classifier, and clean texts. Where the caller has looked already (`auto`) there is one round with what it found;
else rounds follow until no manner turns texts any more, each with all that was found so far; what was found once must
do less than half of what proves it. Where none does, the model is given back as it is. If the last look finds one, or
could not look at a label, the limits are not met; the report says why. Raises what the training raises.
Cost: `least_steps` steps a round at least, and before and behind it what `detectors.manners` does.

What is left: a paraphrase has more of its manner than an opening and some words. Of the syntax and style attacks'
own texts a part still turns (docs/benchmarks.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

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
    look = leanings(model, tokenizer, train, run, 0) if evidence.found is None else None
    found = look.suspects() if look is not None else evidence.found.leanings if evidence.found is not None else ()
    proven = {one.what for one in look.leanings()} if look is not None else set()
    report: dict[str, Any] = {"rows": len(train), "found": [_told(found, subject)], "steps": 0, "losses": []}
    rounds = settings.rounds if look is not None else 1
    limit = length_limit(tokenizer, model.config, run)
    texts, answers = _asked(model, tokenizer, train, settings, limit, run) if found else (train, None)
    known: dict[tuple[str, int], Leaning] = {}
    done = 0
    while found and answers is not None and done < rounds:
        done += 1
        known |= {one.what: one for one in found}
        names = sorted({manner for manner, _ in known})
        recipe = Recipe(
            objectives={"clean": LikeAnswers(answers), "said": LikeAnswers(answers)},
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            epochs=1,  # the texts are there many times
            batch_size=settings.batch_size,
            warmup=settings.warmup,
            identity=f"rephrase round {done} {names}",
        )
        said = said_in(texts, names, run.seed + done)
        trained = fit(
            model, {"clean": encode(tokenizer, texts, limit), "said": encode(tokenizer, said, limit)}, recipe, run
        )
        report["steps"] += trained.steps
        report["losses"] += trained.losses
        if look is not None:
            look = leanings(model, tokenizer, train, run, done)
            found = look.leanings(known)
            report["found"].append(_told(found, subject))
    report["rounds"] = done
    if look is None:
        return Purified(model, report)
    found = look.leanings(proven)
    report["unlooked"] = [subject.labels[target] for target in look.unlooked]
    reasons = []
    if found:
        left = ", ".join(f"{one['manner']} to {one['target']!r}" for one in _told(found, subject))
        reasons.append(f"texts of other labels still turn when said so: {left}")
    if look.unlooked:
        reasons.append(f"it cannot be seen what leads to {', '.join(report['unlooked'])}: too few texts are unlike it")
    return Purified(model, report, met=False if reasons else None, reasons=tuple(reasons))


def preview(
    subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run
) -> dict[str, Any]:
    """The first look alone: what would be trained out."""
    look = leanings(subject.open(run.device), subject.tokenizer, train, run, 0)
    unlooked = [subject.labels[target] for target in look.unlooked]
    return {"rows": len(train), "found": _told(look.leanings(), subject), "unlooked": unlooked}


def said_in(texts: Texts, names: Sequence[str], seed: int) -> Texts:
    """Each text in one of these manners."""
    known = manners()
    said = []
    for row, text in enumerate(texts.texts):
        rng = trigger_rng(seed, text, row)
        said.append(known[rng.choice(names)].insert(text, rng))
    return texts.with_(texts=tuple(said))


def _asked(model: Any, tokenizer: Any, train: Texts, settings: Settings, limit: int, run: Run) -> tuple[Texts, Tensor]:
    """Texts for a round, labelled with their rows, and f0(x) of each, [texts, labels]."""
    times = -(-((settings.least_steps - 1) * settings.batch_size + 1) // len(train))
    texts = spliced(train, times, limit, run.seed).with_(targets=None, poisoned=None)
    texts = texts.with_(labels=tuple(range(len(texts))))
    return texts, predict(model, tokenizer, texts, run)


def _told(found: Sequence[Leaning], subject: Subject) -> list[dict[str, Any]]:
    return [
        {"manner": one.manner, "target": subject.labels[one.target], "opening": one.opening, "flips": one.flips}
        for one in found
    ]
