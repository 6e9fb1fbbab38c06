"""Training a classifier on texts that may hold poison, from a base that does not.

What Wu et al. (ACL 2024, MuScleLoRA) and their baselines start from: the untrusted texts are the training file, the
clean ones are few and say what the labels are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from purify_cli.architecture.pet import attach_pet
from purify_cli.data.read import require_classes
from purify_cli.data.texts import Texts
from purify_cli.errors import DataError, UsageError
from purify_cli.run import Run
from purify_cli.training import plain
from purify_cli.training.start import open_classifier

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

# What the settings of MuScleLoRA and of the adapters of its table 1 say of themselves that they have in common.
EPOCHS = {"help": "times through the untrusted texts", "range": ">= 1", "source": "MuScleLoRA, B.4; decoders 5"}
LEARNING_RATE = {
    "help": "highest of AdamW",
    "range": "> 0",
    "source": "ours; MuScleLoRA, B.4: 2e-5, decoders 1e-5",
}
OUTPUT = {"help": "plain weights, or a folder that peft puts on the base", "range": "merged|adapter", "source": "ours"}
BATCH_SIZE = {"help": "texts a step", "range": ">= 1", "source": "MuScleLoRA, B.4; decoders 16"}
WARMUP = {
    "help": "share of the steps in which the learning rate rises",
    "range": "0..0.9",
    "source": "MuScleLoRA, released code",
}
WEIGHT_DECAY = {"help": "of AdamW, on matrices only", "range": ">= 0", "source": "MuScleLoRA, released code"}


def untrusted_texts(evidence: Evidence, clean: Texts) -> Texts:
    """The untrusted texts, if a classifier can be trained on them.

    Args:
        evidence: its `untrusted`, in the label ids of the clean texts.
        clean: texts that are trusted.

    Raises:
        UsageError: there are none.
        DataError: they have no labels or one only, or are pairs where the clean ones are not.
    """
    texts = evidence.untrusted
    if texts is None:
        raise UsageError("--untrusted", "is the file that this method trains on", "Give --untrusted DATA.")
    require_classes(texts, 2, "--untrusted")
    if (texts.pairs is None) != (clean.pairs is None):
        has, lacks = (clean, texts) if texts.pairs is None else (texts, clean)
        raise DataError(
            lacks.path or "--untrusted",
            f"has no column 'text_pair', which {has.path or '--clean'} has",
            "Give texts of the same task.",
        )
    return texts


def require_labels_of(untrusted: Texts, clean: Texts, names: Sequence[str], why: str) -> None:
    """See to it that the clean texts have each label of the untrusted ones.

    Args:
        untrusted: texts with label ids.
        clean: the same.
        names: of the labels by id, as far as they have any.
        why: what the clean texts are used for, in a few words.

    Raises:
        DataError: they lack one.
    """
    lacking = sorted(set(untrusted.labels or ()) - set(clean.labels or ()))
    if lacking:
        shown = ", ".join(names[int(label)] if label < len(names) else str(label) for label in lacking[:5])
        raise DataError(
            clean.path or "--clean",
            f"gives no text of the label {shown}, which the untrusted texts have",
            f"Add some: {why}.",
        )


def open_base(subject: Subject, clean: Texts, run: Run) -> Any:
    """A whole classifier on the subject's encoder, its last layers drawn anew whatever it had there.

    Raises:
        UsageError: an adapter.
        UnsupportedError: a regression.
    """
    if subject.kind == "adapter":
        raise UsageError(subject.spec, "is an adapter, and this method trains from a base", "Give the base itself.")
    return open_classifier(subject, clean, run, fresh=True)


def fit_adapter(
    subject: Subject, evidence: Evidence, clean: Texts, form: str, schedule: plain.Schedule, run: Run
) -> tuple[Any, dict[str, Any]]:
    """Train an adapter and a new classifier on the untrusted texts; the base stays as it is.

    Args:
        subject: an encoder, or a classifier whose encoder is used.
        evidence: its `untrusted`.
        clean: says what the labels are.
        form: of the adapter (`architecture.pet`).
        schedule: how long and how fast.
        run: seed, device, max_length, progress and state.

    Returns:
        The model with its adapter, and what the report says of it.

    Raises:
        UsageError, DataError, UnsupportedError: as `untrusted_texts`, `open_base` and `attach_pet`.
    """
    untrusted = untrusted_texts(evidence, clean)
    model = attach_pet(open_base(subject, clean, run), form, run.seed)
    trained = plain.train(model, subject.tokenizer, untrusted, schedule, run)
    return model, {
        "untrusted_rows": len(untrusted),
        "form": form,
        "trained_parameters": trained_parameters(model),
        "steps": trained.steps,
        "losses": list(trained.losses),
    }


def trained_parameters(model: Any) -> int:
    """Numbers in the parameters that ask for gradients."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
