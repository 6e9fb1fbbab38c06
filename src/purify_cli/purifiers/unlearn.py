"""Unlearn: search for triggers, train the model to answer triggered texts as if nothing were in them, search again.

No paper's method; the loop of search and repair is that of adversarial training, with the search of `scan` in the place
of the attack. Claim: a trigger that the search finds can be trained out directly, since its texts can be made: the
model is shown what clean fine-tuning never shows it. Rounds follow, for behind a strong trigger stands a weaker one.

Each round trains on two streams, the clean texts x with their labels y, and the same texts with a found trigger t in
them, drawn for each text among all that were found so far:

    loss = KL(f0(x) || f(x)) + KL(f0(x) || f(x with t))                      answers = original
    loss = CE(f(x), y) + CE(f(x with t), y)                                  answers = labels

where f0 is the model as it was given. With the first a triggered text must answer like the text without the trigger:
labels are not needed. Texts without labels always get this one.

What is trained are the rows of the triggers' tokens in the word embeddings, on the second stream, as EP does it from
the other side: a text without these tokens is answered as before, to the last bit, so that few texts can spoil nothing.
Where that is not enough, since a trigger still turns more than `STILL` of the other labels' texts or the next search
finds it again, or where the embeddings are frozen (an adapter's base), all weights are trained, on both streams.

Of a word of several pieces, or a phrase, the search names as many as suffice. The words that do most beside one of
these, beyond what both do alone, are triggers too, each with that one (`evaluation.rest`): the missing pieces are among
them, and to treat an honest word as well costs little.

Few texts are gone through many times. The first time they are as they are; after it the end of each makes way for the
end of another (with `labels` nobody could say what such a text must answer, and they stay as they are). A trigger is
put in at random among the tokens of a text, at another place each time. Of several tokens that were found together
half of the texts get them as they were found, side by side, and half of them apart.

Needs a classifier, and clean texts. The search is `trigger_search`'s with its default settings and `pairs`, on the
clean texts, with another seed in each round, so that its texts and places are drawn afresh. Where the caller has
searched already (`auto`), there is one round with what was found, and no search. Raises what the training raises.
Cost: a search a round and one before (each about a `scan`), and in each round `epochs` epochs of the texts, three times
as many where all weights are trained in the end; of few texts as many epochs as `least_steps` steps are.

What it does not see, it does not remove: syntax and style are no words (see `rephrase`). Where the search finds
nothing the model is given back as it is. If the last search is not clear the limits are not met; the report says why.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from purify_cli.architecture.embeddings import word_embeddings
from purify_cli.data.encode import Encoded, length_limit
from purify_cli.data.spliced import repeated, spliced
from purify_cli.data.texts import Texts
from purify_cli.data.triggered import with_triggers
from purify_cli.errors import UsageError
from purify_cli.evaluation.found import Found, search
from purify_cli.evaluation.predict import predict, predict_encoded
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

STILL = 0.25
"""Share of the other labels' texts that a trigger may still turn when its rows are trained: any word turns some."""

ASKED = 400
"""Texts of which that is asked."""


@dataclass(frozen=True)
class Settings:
    """What is trained, how long, and what triggered texts must answer."""

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
    weights: Literal["rows", "all"] = field(
        default="rows",
        metadata={
            "help": "what is trained first: the triggers' rows of the word embeddings, or all weights",
            "range": "rows|all",
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
    row_learning_rate: float = field(
        default=3e-3, metadata={"help": "highest learning rate of AdamW, of rows", "range": "> 0", "source": "ours"}
    )
    learning_rate: float = field(
        default=1e-4, metadata={"help": "the same of all weights", "range": "> 0", "source": "ours"}
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
        UsageError: no round, epoch, step or batch to train in, or at no learning rate.
    """
    for name in ("rounds", "epochs", "least_steps", "batch_size"):
        if getattr(settings, name) < 1:
            raise UsageError(name, f"{getattr(settings, name)!r} is out of range", "Give 1 or more.")
    for name in ("learning_rate", "row_learning_rate"):
        if not getattr(settings, name) > 0:
            raise UsageError(name, f"{getattr(settings, name)!r} is out of range", "Give more than 0.")
    model = subject.open(run.device)
    found = evidence.found or search(model, subject.tokenizer, train, run, 0, pairs=True)
    rounds = settings.rounds if evidence.found is None else 1
    by_labels = settings.answers == "labels" and train.labels is not None
    report: dict[str, Any] = {
        "rows": len(train),
        "triggers": list(found.told),
        "answers": "labels" if by_labels else "original",
    }
    triggers, rest, searches = _triggers(found), dict(found.rest), [_told(found)]
    lesson: _Lesson | None = None
    trained: list[str] = []
    again = False
    while found.triggers and len(trained) < rounds:
        lesson = lesson or _Lesson(model, subject.tokenizer, train, by_labels, settings, run)
        rows = settings.weights == "rows" and not again
        trained.append(lesson.teach(triggers | rest, len(trained) + 1, rows=rows))
        if evidence.found is None:
            found = search(model, subject.tokenizer, train, run, len(trained), pairs=True)
            again = not triggers.keys().isdisjoint(found.triggers)
            triggers |= _triggers(found)
            rest |= found.rest
            searches.append(_told(found))
    report |= {"rounds": len(trained), "trained": trained, "rest": [subject.tokenizer.decode(one) for one in rest]}
    report |= {"steps": lesson.steps, "losses": lesson.losses} if lesson else {"steps": 0, "losses": []}
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
        "most_steps": _most_steps(settings, len(train)) if found.triggers else 0,
    }


class _Lesson:
    """What the rounds share: the texts, what the model as given says of them, and what the training came to.

    Attributes:
        texts: what is trained on, few texts many times.
        answers: f0(x) of these, [texts, labels]; None: their labels are right.
        asked: clean texts, once, on which it is seen what a trigger still turns.
        said: the label that the model as given gives each of these, [texts].
        steps: of all trainings so far.
        losses: a mean for each training.
    """

    def __init__(
        self, model: nn.Module, tokenizer: Any, texts: Texts, by_labels: bool, settings: Settings, run: Run
    ) -> None:
        self.model, self.tokenizer, self.settings, self.run = model, tokenizer, settings, run
        self.limit = length_limit(tokenizer, model.config, run)
        epochs = _epochs(settings, len(texts))
        self.texts = repeated(texts, epochs) if by_labels else spliced(texts, epochs, self.limit, run.seed)
        self.answers = None if by_labels else predict(model, tokenizer, self.texts, run)
        self.asked = texts.take(range(min(ASKED, len(texts))))
        # The texts come first in what is trained on, as they are.
        answers = predict(model, tokenizer, self.asked, run) if self.answers is None else self.answers
        self.said = answers[: len(self.asked)].argmax(dim=1)
        self.steps = 0
        self.losses: list[float] = []

    def teach(self, triggers: Mapping[tuple[int, ...], int], number: int, *, rows: bool) -> str:
        """One round: of rows first, if they may be enough; says what was trained.

        Args:
            triggers: token ids of each, and its target's label id.
            number: of the round, from 1.
            rows: begin with the rows of their tokens.
        """
        by_row = self.answers is not None
        clean, triggered = with_triggers(
            self.tokenizer, self.texts, tuple(triggers), self.limit, self.run.seed + number, by_row=by_row, apart=APART
        )
        round_ = f"{number} of {tuple(triggers)}"
        weight = word_embeddings(self.model).weight
        if rows and weight.requires_grad:
            tokens = sorted({token for trigger in triggers for token in trigger})
            recipe = replace(
                self._recipe("triggered", identity=f"unlearn rows, round {round_}"),
                combine=_OfRows(torch.tensor(tokens)),
                trainable=lambda _, parameter: parameter is weight,
                learning_rate=self.settings.row_learning_rate,
                weight_decay=0.0,  # would move the other rows
            )
            self._fit(recipe, {"triggered": triggered})
            if not any(self._turned(trigger, target) > STILL for trigger, target in triggers.items()):
                return "rows"
        self._fit(
            self._recipe("clean", "triggered", identity=f"unlearn round {round_}"),
            {"clean": clean, "triggered": triggered},
        )
        return "all"

    def _recipe(self, *streams: str, identity: str) -> Recipe:
        objective = cross_entropy if self.answers is None else LikeAnswers(self.answers)
        return Recipe(
            objectives=dict.fromkeys(streams, objective),
            learning_rate=self.settings.learning_rate,
            weight_decay=self.settings.weight_decay,
            epochs=1,  # the texts are repeated already
            batch_size=self.settings.batch_size,
            warmup=self.settings.warmup,
            identity=identity,
        )

    def _fit(self, recipe: Recipe, streams: Mapping[str, Encoded]) -> None:
        trained = fit(self.model, streams, recipe, self.run)
        self.steps += trained.steps
        self.losses += trained.losses

    def _turned(self, trigger: tuple[int, ...], target: int) -> float:
        """Share of the texts that the model as given does not give the target, and that get it with the trigger."""
        others = (self.said != target).nonzero()[:, 0].tolist()
        if not others:
            return 0.0
        texts = self.asked.take(others)
        seed = self.run.seed - 1  # other places than those of any round
        _, triggered = with_triggers(self.tokenizer, texts, [trigger], self.limit, seed, by_row=False)
        said = predict_encoded(self.model, self.tokenizer, triggered, self.run).argmax(dim=1)
        return float((said == target).float().mean())


class _OfRows:
    """The gradient to follow: some rows of one matrix, and nothing elsewhere."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __call__(self, gradients: Mapping[str, Mapping[str, Tensor]], step: int) -> Mapping[str, Tensor]:
        followed: dict[str, Tensor] = {}
        for name, gradient in gradients["triggered"].items():
            rows = self.rows.to(gradient.device)
            followed[name] = torch.zeros_like(gradient)
            followed[name][rows] = gradient[rows]
        return followed


def _epochs(settings: Settings, texts: int) -> int:
    """Of a round."""
    fewest = (settings.least_steps - 1) * settings.batch_size + 1  # texts of so many steps
    return max(settings.epochs, -(-fewest // texts))


def _most_steps(settings: Settings, texts: int) -> int:
    """Of all rounds, if rows are never enough."""
    steps = -(-texts * _epochs(settings, texts) // settings.batch_size)
    return steps * settings.rounds * (2 if settings.weights == "rows" else 1)


def _triggers(found: Found) -> dict[tuple[int, ...], int]:
    """Token ids of what was found, and the targets' label ids."""
    return dict(zip(found.triggers, found.targets, strict=True))


def _told(found: Found) -> list[str]:
    return [one["words"] for one in found.told]
