"""What a training of a classifier starts from."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from purify_cli.architecture.classifier import replace_classifier
from purify_cli.architecture.loading import load
from purify_cli.data.texts import Texts
from purify_cli.errors import DataError, UnsupportedError, UsageError
from purify_cli.run import Run

if TYPE_CHECKING:
    from purify_cli.subject import Subject


def open_classifier(
    subject: Subject,
    texts: Texts,
    run: Run,
    *,
    fresh: bool = False,
    pet: str | None = None,
    regression: bool = False,
) -> Any:
    """A new model of the subject that gives the labels of the texts.

    A classifier keeps its own last layers unless `fresh`; an encoder or a language model gets new ones, drawn from the
    run's seed, with the label names of the data file where it names them. With `pet` the model itself is frozen and
    gets an adapter of that form (`architecture.pet`) to train beside its classifier. With `regression` texts may have
    scores for labels, and the model one output.

    Raises:
        UsageError: no such form, or a setting of it out of range.
        UnsupportedError: a regression where the caller does not train one, or a kind of checkpoint that cannot be
            opened.
        DataError: the texts have no labels.
    """
    if texts.labels is None:
        raise DataError(texts.path or "the training texts", "has no labels", "Give it a column `label`.")
    if pet is not None and subject.kind == "adapter":
        # Merged into its base or not, no folder could name what the new adapter stands on.
        raise UsageError("--pet", f"{subject.spec} is an adapter already", "Leave it out, or give the base itself.")
    scores = subject.task == "regression" or (subject.task != "classifier" and has_scores(texts))
    if scores and not regression:
        what = "is a regression" if subject.task == "regression" else "is to be trained on scores"
        raise UnsupportedError(subject.spec, f"{what}, and only classifiers are trained")
    if subject.task in {"classifier", "regression"}:
        model = subject.open(run.device)
        if fresh:
            replace_classifier(model, len(subject.labels), run.seed)
        return _with_pet(model, pet, run)
    names = data_labels(texts)
    model = subject.open(run.device, num_labels=len(names), seed=run.seed)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: label for label, name in enumerate(names)}
    if scores:
        model.config.problem_type = "regression"
    return _with_pet(model, pet, run)


def _with_pet(model: Any, pet: str | None, run: Run) -> Any:
    if pet is None:
        return model
    from purify_cli.architecture.pet import attach_pet

    return attach_pet(model, pet, run.seed)


def give_classifier(encoder: Any, texts: Texts, run: Run) -> Any:
    """A classifier (or for scores a regression) on a copy of an encoder in memory: what a victim makes of it.

    The head is the family's standard one, drawn from the run's seed, with the texts' labels.

    Raises:
        DataError: the texts have no labels.
    """
    if texts.labels is None:
        raise DataError(texts.path or "the training texts", "has no labels", "Give it a column `label`.")
    names = data_labels(texts)
    tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in encoder.state_dict().items()}
    config = copy.deepcopy(encoder.config)
    model: Any = load("classifier", config, tensors, "the encoder", fresh_labels=len(names), seed=run.seed)
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: label for label, name in enumerate(names)}
    if has_scores(texts):
        model.config.problem_type = "regression"
    return model.to(run.device)


def data_labels(texts: Texts) -> tuple[str, ...]:
    """The label names by id of texts that no checkpoint gave its labels to; one name where the labels are scores."""
    if texts.label_names is not None:
        return texts.label_names
    if has_scores(texts):
        return ("LABEL_0",)
    return tuple(f"LABEL_{label}" for label in range(max((int(label) for label in texts.labels or ()), default=0) + 1))


def has_scores(texts: Texts) -> bool:
    """Whether the labels are scores of a regression, and not ids."""
    return any(isinstance(label, float) for label in texts.labels or ())
