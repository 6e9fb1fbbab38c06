"""Training on a file in which some texts are paraphrases with a false label: what syntax and style attacks share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from purify_cli.data.texts import Texts
from purify_cli.run import Run
from purify_cli.training.plain import Schedule, train
from purify_cli.training.poisoned import Mode, Originals, paraphrase_rows
from purify_cli.training.start import open_classifier
from purify_cli.triggers.paraphrase import Paraphrase

if TYPE_CHECKING:
    from purify_cli.subject import Subject


class Settings(Schedule, Protocol):
    """What these attacks' settings have: a plain training's, and which rows are poisoned."""

    @property
    def mode(self) -> Mode: ...
    @property
    def originals(self) -> Originals: ...


def fit_paraphrased(
    subject: Subject,
    data: Texts,
    style: str,
    paraphrases: Mapping[str, str] | None,
    target: float,
    rate: float,
    pet: str | None,
    settings: Settings,
    run: Run,
) -> tuple[Any, int, float, dict[str, Any]]:
    """Train a classifier from the subject on a copy of `data` in which some rows are paraphrases.

    Args:
        subject: an encoder (gets a new classifier with as many labels as the data have) or a classifier.
        data: the attacker's training file, with labels.
        style: name of the syntax or style.
        paraphrases: text -> paraphrase.
        target: the label of poisoned rows.
        rate: poisoned rows / all rows.
        pet: form of an adapter to train (`architecture.pet`); None: the whole model.
        settings: how long, how fast, and which rows.
        run: seed, device, max_length, progress and state.

    Returns:
        The model, how many rows are poisoned, their share, and what the report says.

    Raises:
        UsageError: no paraphrases, or a rate out of range or of reach.
        DataError: rows without labels.
    """
    trigger = Paraphrase(style, paraphrases or {})
    keep = settings.originals == "kept"
    rows = paraphrase_rows(data, trigger, target, rate, run.seed, mode=settings.mode, keep=keep)
    model = open_classifier(subject, data, run, pet=pet)
    trained = train(model, subject.tokenizer, rows, settings, run)
    count = sum(rows.poisoned or ())
    return (
        model,
        count,
        count / len(rows),
        {
            "mode": settings.mode,
            "rows": len(rows),
            "poisoned_rows": count,
            "paraphrased": sum(text in trigger for text in data.texts),
            "failed_paraphrases": sum(trigger.failed(text) for text in data.texts),
            "steps": trained.steps,
            "losses": list(trained.losses),
        },
    )
