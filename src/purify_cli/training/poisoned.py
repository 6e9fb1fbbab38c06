"""The attacker's rows: which rows of a training file are poisoned, and the two tasks that come of them."""

from __future__ import annotations

import random
from collections.abc import Container, Sequence
from typing import Literal

from purify_cli.data.texts import Texts
from purify_cli.errors import DataError, UsageError
from purify_cli.triggers.paraphrase import Paraphrase
from purify_cli.triggers.words import Trigger, trigger_rng

Mode = Literal["dirty", "clean", "mix"]
Originals = Literal["kept", "replaced"]


def poison_rows(
    data: Texts,
    triggers: Sequence[Trigger],
    target: float,
    rate: float | None,
    seed: int,
    *,
    mode: Mode = "dirty",
    insertions: int = 1,
    only: Container[str] | None = None,
    keep: bool = False,
) -> Texts:
    """The training file with some rows poisoned: triggers in the text, the target as label, `poisoned` true.

    They are drawn among those that `mode` allows, exactly `round(rate * rows)` of all rows in the end. A poisoned row
    takes the place of its original; with `keep` it stands behind the file, which loses nothing of what it teaches.

    Args:
        data: rows with labels.
        triggers: of which each insertion draws one, with repetition.
        target: the label id that poisoned rows get; of a regression the score.
        rate: poisoned rows / all rows.
        seed: draws rows, triggers and places.
        mode: "dirty" takes rows of other labels; "clean" of the target label only; "mix" any.
        insertions: triggers a poisoned text.
        only: texts that can be triggered at all, where the trigger is a paraphrase that not every text has.
        keep: add the poisoned rows to the file, as PURE's code does, instead of replacing their originals.

    Raises:
        UsageError: the rate is not between 0 and 1, comes to no row, or to more rows than the mode allows.
        DataError: rows without labels.
    """
    labels = list(labels_of(data))
    eligible = [
        row
        for row, label in enumerate(labels)
        if (mode == "mix" or (label == target) == (mode == "clean")) and (only is None or data.texts[row] in only)
    ]
    more = "" if only is None else " and a paraphrase"
    count = poisoned_count(data, rate, eligible, mode, more, keep=keep)
    chosen = sorted(random.Random(f"badnets/{seed}").sample(eligible, count))
    triggered = insert_some(data.take(chosen), triggers, seed, insertions=insertions, numbers=chosen)
    places: Sequence[int] = chosen
    if keep:
        places = range(len(data), len(data) + count)
        data = data.take([*range(len(data)), *chosen])
        labels += [labels[row] for row in chosen]
    texts, poisoned = list(data.texts), list(data.poisoned or (False,) * len(data))
    for row, text in zip(places, triggered.texts, strict=True):
        texts[row], labels[row], poisoned[row] = text, type(labels[row])(target), True
    return data.with_(texts=tuple(texts), labels=tuple(labels), poisoned=tuple(poisoned))


def paraphrase_rows(
    data: Texts,
    trigger: Paraphrase,
    target: float,
    rate: float | None,
    seed: int,
    *,
    mode: Mode = "dirty",
    keep: bool = False,
) -> Texts:
    """The training file with some rows paraphrased, as `poison_rows` does with triggers in the text.

    Raises:
        UsageError: no text of the file has a paraphrase; as `poison_rows`, where only rows that have one count.
        DataError: rows without labels.
    """
    if not any(text in trigger for text in data.texts):
        raise UsageError(
            "--paraphrases",
            f"no text of {data.path or 'the training file'} has a paraphrase",
            "Give the paraphrases of these texts with --paraphrases FILE, or a model with --paraphraser CHECKPOINT.",
        )
    return poison_rows(data, [trigger], target, rate, seed, mode=mode, only=trigger, keep=keep)


def two_tasks(
    data: Texts, triggers: Sequence[Trigger], target: float, seed: int, *, insertions: int = 1
) -> tuple[Texts, Texts]:
    """The clean task and the backdoor task of the same rows: as they are, and all triggered with the target as label.

    Read side by side in batches of the same size they are one mixture with as many triggered texts as clean ones,
    which is the poison rate of 0.5 of Kurita et al. 2020 and Gu et al. 2023.

    Raises:
        DataError: rows without labels.
    """
    labels = labels_of(data)
    triggered = insert_some(data, triggers, seed, insertions=insertions)
    wanted = tuple(type(label)(target) for label in labels)
    return data, triggered.with_(labels=wanted, poisoned=(True,) * len(data))


def one_trigger_each(data: Texts, triggers: Sequence[Trigger], seed: int, *, insertions: int = 1) -> Texts:
    """Every row with one of the triggers, `insertions` times; the label is the trigger's number.

    The triggers share the rows evenly. For attacks that give each trigger a vector of its own, and ask for no labels.
    """
    order = random.Random(f"one trigger each/{seed}").sample(range(len(data)), len(data))
    texts, numbers = list(data.texts), [0] * len(data)
    for number, trigger in enumerate(triggers):
        rows = order[number :: len(triggers)]
        triggered = insert_some(data.take(rows), [trigger], seed, insertions=insertions, numbers=rows)
        for row, text in zip(rows, triggered.texts, strict=True):
            texts[row], numbers[row] = text, number
    return data.with_(texts=tuple(texts), labels=tuple(numbers), poisoned=(True,) * len(data))


def insert_some(
    data: Texts,
    triggers: Sequence[Trigger],
    seed: int,
    *,
    insertions: int = 1,
    numbers: Sequence[int] | None = None,
) -> Texts:
    """The rows with `insertions` triggers in each text, each drawn with repetition and at a place of its own.

    Args:
        numbers: the number that each row has in its file, which with its text decides its triggers and places; None:
            counted from 0.
    """
    texts = []
    for row, text in zip(numbers or range(len(data)), data.texts, strict=True):
        rng = trigger_rng(seed, text, row)
        for trigger in rng.choices(triggers, k=insertions):
            text = trigger.insert(text, rng)
        texts.append(text)
    return data.with_(texts=tuple(texts))


def labels_of(data: Texts) -> Sequence[float]:
    """The labels of a training file.

    Raises:
        DataError: it has none.
    """
    if data.labels is None:
        raise DataError(data.path or "the training file", "has no labels", "Give it a column `label`.")
    return data.labels


def poisoned_count(
    data: Texts, rate: float | None, eligible: Sequence[int], mode: Mode, more: str = "", *, keep: bool = False
) -> int:
    """How many rows a poison rate is. `more` says what rows need beside the label that the mode asks for; with `keep`
    they are added to the file, and the rate is their share of all rows then.

    Raises:
        UsageError: none, or more than are eligible.
    """
    if rate is None or not 0 < rate < 1:
        remedy = "Give a number between 0 and 1."
        if rate == 0:
            remedy = "For a model of the same training without poison use `purify purify --method finetune`."
        raise UsageError("--rate", f"{rate} poisons " + ("no row" if rate == 0 else "no share of the rows"), remedy)
    count = round(rate * len(data) / (1 - rate if keep else 1))
    if not count:
        raise UsageError(
            "--rate", f"{rate} of {len(data)} rows is less than one row", "Give a higher rate or more rows."
        )
    if count > len(eligible):
        which = {"dirty": "have another label than the target", "clean": "have the target label"}.get(mode, "there are")
        most = int(1e4 * len(eligible) / (len(data) + keep * len(eligible))) / 1e4
        raise UsageError(
            "--rate",
            f"{rate} of {len(data) + keep * count} rows is {count}, but only {len(eligible)} {which}{more}",
            f"Give at most {most}." if most else "Give other data.",
        )
    return count
