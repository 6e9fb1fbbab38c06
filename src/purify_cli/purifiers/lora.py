"""LoRA alone on poisoned data: a baseline of MuScleLoRA, less capacity and nothing else.

Zhu et al. (NeurIPS 2022) find that parameter-efficient tuning learns a backdoor later than the task; Wu et al. (ACL
2024, MuScleLoRA, table 1) take it for a baseline. LoRA (Hu et al., ICLR 2022) on queries and values of each layer, a
frozen base, a new classifier, trained on the untrusted texts. Claim there: SST-2 and BERT-base, ASR 53 to 96 where all
weights together have 77 to 100.

Needs a trustworthy base and the untrusted training texts; the clean ones say what the labels are and are not trained
on. Raises what the training raises; DataError for untrusted texts of one class. Cost: one training, no gradient of the
base.

Where we differ: the projections are named by family, which peft's defaults may change. The classifier learns, and the
pooler under it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from purify_cli.data.texts import Texts
from purify_cli.purifiers import Purified
from purify_cli.run import Run
from purify_cli.training.untrusted import (
    BATCH_SIZE,
    EPOCHS,
    LEARNING_RATE,
    OUTPUT,
    WARMUP,
    WEIGHT_DECAY,
    fit_adapter,
)

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "train LoRA on the untrusted texts, the base frozen: a baseline of MuScleLoRA"
NEEDS: tuple[str, ...] = ("clean", "untrusted")


@dataclass(frozen=True)
class Settings:
    """The paper's for encoders, but for the learning rate."""

    rank: int = field(
        default=8, metadata={"help": "of the products", "range": "1..1024", "source": "MuScleLoRA, B.4; decoders 2"}
    )
    alpha: float = field(
        default=32.0,
        metadata={
            "help": "the products count alpha / rank",
            "range": "> 0",
            "source": "MuScleLoRA, released code; decoders 8",
        },
    )
    output: Literal["merged", "adapter"] = field(default="merged", metadata=OUTPUT)
    epochs: int = field(default=10, metadata=EPOCHS)
    learning_rate: float = field(default=3e-4, metadata=LEARNING_RATE)
    batch_size: int = field(default=32, metadata=BATCH_SIZE)
    warmup: float = field(default=0.0, metadata=WARMUP)
    weight_decay: float = field(default=0.0, metadata=WEIGHT_DECAY)


def purify(subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run) -> Purified:
    """Train on the untrusted texts; see the module's docstring.

    Args:
        subject: an encoder or a decoder that is trusted, or a classifier whose encoder is used.
        evidence: its `untrusted` is what is trained on.
        train: clean texts, for the labels.
        dev: not used.
        settings: see there.
        run: seed, device, max_length, progress and state.
    """
    form = f"lora:rank={settings.rank},alpha={settings.alpha:g}"
    model, report = fit_adapter(subject, evidence, train, form, settings, run)
    if settings.output == "merged":
        model = model.merge_and_unload().eval()
    return Purified(model, report)
