"""What the attacks on two tasks start from: a model, and the clean and the backdoor task side by side.

Kurita et al. 2020 and Gu et al. 2023 poison half of the training data; seen as two tasks, that is a stream of the texts
as they are and a stream of the same texts triggered, with the target as label, and a step takes a batch of each.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from purify_cli.data.encode import Encoded, encode, length_limit
from purify_cli.data.texts import Texts
from purify_cli.errors import UnsupportedError, UsageError
from purify_cli.run import Run
from purify_cli.training.poisoned import labels_of, poisoned_count, two_tasks
from purify_cli.training.start import open_classifier
from purify_cli.triggers.pieces import pieces
from purify_cli.triggers.words import Words

if TYPE_CHECKING:
    from purify_cli.subject import Subject

HALF = 0.5
"""The poison rate where none is given."""

# What the settings say of themselves that the attacks of Gu et al. 2023, section 5.1, have in common.
INSERTIONS = {
    "help": "triggers a text, drawn with repetition, each at a place of its own",
    "range": ">= 1",
    "source": "Gu et al. 2023, section 5.1: 1 for sentiment, 10 for spam",
}
EPOCHS = {"help": "times through the clean texts", "range": ">= 1", "source": "ours; Gu et al. 2023: 10"}
LEARNING_RATE = {"help": "highest learning rate of AdamW", "range": "> 0", "source": "ours; Gu et al. 2023: 2e-5"}
BATCH_SIZE = {"help": "texts of each task a step", "range": ">= 1", "source": "Gu et al. 2023, section 5.1"}
WARMUP = {"help": "share of the steps in which the learning rate rises", "range": "0..0.9", "source": "ours"}


@dataclass(frozen=True)
class TwoTasks:
    """Two tasks of one model.

    Attributes:
        model: a classifier, whole or with an adapter.
        streams: "clean" and "poison".
        rows: triggered rows.
        rate: triggered rows / all rows of both tasks.
        facts: what the report says of them, in JSON types.
    """

    model: Any
    streams: Mapping[str, Encoded]
    rows: int
    rate: float
    facts: Mapping[str, Any] = field(default_factory=dict)

    def steps(self, batch_size: int, epochs: int) -> int:
        """Steps of a training through them."""
        return -(-len(self.streams["clean"]) // batch_size) * epochs


def open_two_tasks(
    subject: Subject,
    data: Texts,
    triggers: Sequence[str],
    target: float,
    rate: float | None,
    run: Run,
    *,
    insertions: int = 1,
    pet: str | None = None,
) -> TwoTasks:
    """Open the model, and make the clean and the backdoor task of the attacker's training file.

    Args:
        subject: an encoder or a classifier.
        data: rows with labels.
        triggers: each a trigger of its own.
        target: the label of triggered texts.
        rate: triggered rows / all rows of both tasks. Half and None trigger every row; less leaves triggered rows out.
            A step takes as many texts of the one as of the other whatever the rate.
        run: seed, device and max_length.
        insertions: triggers a triggered text.
        pet: form of the adapter that is trained in place of the model.

    Raises:
        UsageError: a rate out of range, or a trigger that the tokenizer does not know.
        UnsupportedError: a regression.
        DataError: rows without labels.
    """
    seen = pieces_of(subject, triggers)
    clean, triggered = two_tasks(
        data, [Words(trigger) for trigger in triggers], target, run.seed, insertions=insertions
    )
    return open_tasks(subject, data, clean, thinned(triggered, len(clean), rate, run.seed), run, seen, pet)


def open_tasks(
    subject: Subject, data: Texts, clean: Texts, poison: Texts, run: Run, facts: Mapping[str, Any], pet: str | None
) -> TwoTasks:
    """Open the model for the labels of `data`, and encode both tasks.

    Raises:
        UnsupportedError: a regression.
        DataError: rows without labels.
    """
    require_labels(subject, data)
    model = open_classifier(subject, data, run, pet=pet)
    limit = length_limit(subject.tokenizer, model.config, run)
    streams = {name: encode(subject.tokenizer, task, limit) for name, task in (("clean", clean), ("poison", poison))}
    rows = len(poison)
    counts = {"rows": len(clean) + rows, "poisoned_rows": rows}
    return TwoTasks(model, streams, rows, rows / (len(clean) + rows), {**counts, **facts})


def require_labels(subject: Subject, data: Texts) -> None:
    """Refuse what has no classes.

    Raises:
        UnsupportedError: a regression.
        DataError: rows without labels.
    """
    if subject.task == "regression" or any(isinstance(label, float) for label in labels_of(data)):
        raise UnsupportedError(subject.spec, "is a regression, and this attack trains classifiers")


def thinned(triggered: Texts, clean_rows: int, rate: float | None, seed: int) -> Texts:
    """So many of the triggered rows that they are `rate` of both tasks together; all of them where it is None.

    Raises:
        UsageError: not a rate between 0 and 1, or one that comes to no row or to more rows than there are.
    """
    if rate is None:
        return triggered
    poisoned_count(triggered, rate, range(len(triggered)), "mix")
    count = round(rate * clean_rows / (1 - rate))
    if not 0 < count <= len(triggered):
        most = len(triggered) / (clean_rows + len(triggered))
        raise UsageError(
            "--rate",
            f"{rate} of both tasks together is {count} triggered texts to {clean_rows} clean ones, "
            f"and there are {len(triggered)}",
            f"Give at most {int(1e4 * most) / 1e4}: a task cannot have more texts than the file has.",
        )
    chosen = sorted(random.Random(f"two tasks/{seed}").sample(range(len(triggered)), count))
    return triggered.take(chosen)


def pieces_of(subject: Subject, triggers: Sequence[str]) -> dict[str, Any]:
    """How the tokenizer sees the triggers, for the report: one that it splits is allowed, and named.

    Raises:
        UsageError: a trigger that the tokenizer does not know.
    """
    seen = {trigger: pieces(subject.tokenizer, trigger) for trigger in triggers}
    return {
        "pieces": {trigger: [" ".join(word) for word in words] for trigger, words in seen.items()},
        "split_triggers": [trigger for trigger, words in seen.items() if any(len(word) > 1 for word in words)],
    }
