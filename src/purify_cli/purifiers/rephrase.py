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
from functools import cached_property
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
    lesson = _Lesson(model, tokenizer, train, settings, run)
    if evidence.found is not None:
        found = evidence.found.leanings
        lesson.teach(found)
        return Purified(model, {"rows": len(train), "found": [_told(found, subject)], **lesson.report})
    look = leanings(model, tokenizer, train, run, 0)
    proven, found = {one.what for one in look.leanings()}, look.suspects()
    told = [_told(found, subject)]
    while found and lesson.rounds < settings.rounds:
        lesson.teach(found)
        look = leanings(model, tokenizer, train, run, lesson.rounds)
        found = look.leanings(lesson.known)
        told.append(_told(found, subject))
    unlooked = [subject.labels[target] for target in look.unlooked]
    report = {"rows": len(train), "found": told, "unlooked": unlooked, **lesson.report}
    left = [f"{one['manner']} to {one['target']!r}" for one in _told(look.leanings(proven), subject)]
    reasons = [f"texts of other labels still turn when said so: {', '.join(left)}"] if left else []
    if unlooked:
        many = f"too few texts are surely another label, or there are more than {look.settings.most_labels}"
        reasons.append(f"what leads to {', '.join(unlooked)} could not be looked at: {many}")
    return Purified(model, report, met=False if reasons else None, reasons=tuple(reasons))


def preview(
    subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run
) -> dict[str, Any]:
    """The first look alone: what would be trained out."""
    look = leanings(subject.open(run.device), subject.tokenizer, train, run, 0)
    unlooked = [subject.labels[target] for target in look.unlooked]
    return {"rows": len(train), "found": _told(look.suspects(), subject), "unlooked": unlooked}


def said_in(texts: Texts, names: Sequence[str], seed: int) -> Texts:
    """Each text in one of these manners."""
    known = manners()
    said = []
    for row, text in enumerate(texts.texts):
        rng = trigger_rng(seed, text, row)
        said.append(known[rng.choice(names)].insert(text, rng))
    return texts.with_(texts=tuple(said))


class _Lesson:
    """What the rounds share.

    Attributes:
        known: manners and labels that were suspect so far.
        rounds: done so far.
        steps: of all trainings so far.
        losses: a mean for each stream of each training.
    """

    def __init__(self, model: Any, tokenizer: Any, texts: Texts, settings: Settings, run: Run) -> None:
        self.model, self.tokenizer, self.clean, self.settings, self.run = model, tokenizer, texts, settings, run
        self.limit = length_limit(tokenizer, model.config, run)
        self.known: set[tuple[str, int]] = set()
        self.rounds = self.steps = 0
        self.losses: list[float] = []

    @property
    def report(self) -> dict[str, Any]:
        return {"rounds": self.rounds, "steps": self.steps, "losses": self.losses}

    @cached_property
    def asked(self) -> tuple[Texts, Tensor]:
        """Texts for a round, labelled with their rows, and f0(x) of each, [texts, labels]."""
        times = -(-((self.settings.least_steps - 1) * self.settings.batch_size + 1) // len(self.clean))
        texts = spliced(self.clean, times, self.limit, self.run.seed).with_(targets=None, poisoned=None)
        texts = texts.with_(labels=tuple(range(len(texts))))
        return texts, predict(self.model, self.tokenizer, texts, self.run)

    def teach(self, found: Sequence[Leaning]) -> None:
        """One round, with these and all manners before; none where nothing was found."""
        if not found:
            return
        texts, answers = self.asked  # the first time before anything is trained
        self.known |= {one.what for one in found}
        self.rounds += 1
        names = sorted({manner for manner, _ in self.known})
        said = said_in(texts, names, self.run.seed + self.rounds)
        recipe = Recipe(
            objectives={"clean": LikeAnswers(answers), "said": LikeAnswers(answers)},
            learning_rate=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            epochs=1,  # the texts are there many times
            batch_size=self.settings.batch_size,
            warmup=self.settings.warmup,
            identity=f"rephrase round {self.rounds} {names}",
        )
        streams = {name: encode(self.tokenizer, one, self.limit) for name, one in (("clean", texts), ("said", said))}
        trained = fit(self.model, streams, recipe, self.run)
        self.steps += trained.steps
        self.losses += trained.losses


def _told(found: Sequence[Leaning], subject: Subject) -> list[dict[str, Any]]:
    return [
        {"manner": one.manner, "target": subject.labels[one.target], "opening": one.opening, "flips": one.flips}
        for one in found
    ]
