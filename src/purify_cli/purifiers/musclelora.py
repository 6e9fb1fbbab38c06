"""MuScleLoRA: train on poisoned data with little capacity, scaled inner values, and gradients turned to clean texts.

Wu, Zhang, Cheng, Liu, Qin: "Acquiring Clean Language Models from Backdoor Poisoned Datasets by Downscaling Frequency
Space", ACL 2024. Claim: a backdoor is the low-frequency part of what is learned and is learned first. Three things
together hold it back while the task is learned (section 4):

- *low rank*: the base is frozen, with LoRA on the attention of each layer;
- *multiple radial scalings*: beside the layer before the last one,  h = W0 x + R (L x . S)  (equation 6), S a vector
  of factors;
- *gradient alignment*: the gradient g of an untrusted batch keeps its length along that of a clean batch, g_c, only:
  g_a = |g . g_c| / |g_c|^2 g_c  (equation 7), and what is followed is  (1 - mu) g_a + mu g  (equation 8), mu rising
  linearly over the epochs.

Needs a trustworthy base, the untrusted training texts and a few dozen clean ones with labels; a classifier gives its
encoder only. On every architecture of the table. Raises what the training raises; DataError for untrusted texts of one
class, or with a class that the clean texts lack, as what is aligned to them would never learn it.
Cost: two forward and backward passes a step, of which the backward ones need no gradient of the base, and two sets of
gradients of the modules.

Where we differ from paper or released code, and why:
- *The classifier learns.* The code freezes it as it was drawn; `frozen_classifier` does so too.
- *The regimes.* The paper follows equation 8 at each step, and so do we. The code follows g_a alone while the clean
  loss and the clean gradient are large, equation 8 afterwards, and g itself before `mu_from` if they are small:
  `regimes=reference`.
- *mu* of epoch e is mu_max (e - mu_from) / (epochs - mu_from), as in the code, and 0 before, so that it stays a step
  below mu_max.
- *Per tensor.* Equation 7 does not say of what g is the gradient; the code aligns each tensor on its own.
  `align=model` takes all as one vector.
- *Clean texts.* One batch a step, of all those that are trained on; the paper draws 96 (128 for Llama): `auxiliary`.
- *The layer.* BERT's pooler, RoBERTa's classifier.dense, as the code. The code gives Llama a second linear layer in
  the classifier, which no plain checkpoint can hold: decoders have the module on the last layer's feed-forward output.
- *S.* The paper's (1, 4, 8 ... 32) for BERT-base; the code ends at 28. For families without a vector of
  their own: decoders 1 to 4 as Llama; widths of 1024 and more 1 to 9 as both large models; else BERT-base's where the
  layer comes with the base (a pooler) and RoBERTa-base's where it is drawn with the classifier.
- *The learning rate* of encoders is 3e-4, for 5 epochs. At the paper's 2e-5 a small encoder learns nothing in 10
  epochs of 3,000 texts, and from 5 epochs to 10 it is the backdoor that is learned.
- *The last epoch* is taken; the code takes the best on clean dev texts.
- *The result* is merged into plain weights, or an adapter that peft loads (`output`): a scaled module in the layers is
  LoRA too, with S folded into L; one on top of them is in the pooler or the classifier, which peft saves whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from purify_cli.architecture.classifier import classifier_parameters
from purify_cli.architecture.scaled import (
    Place,
    Scaled,
    attach_low_rank,
    low_rank_adapter,
    merge_low_rank,
    penultimate_linear,
)
from purify_cli.architecture.table import Family, base_of
from purify_cli.data.encode import encode, length_limit
from purify_cli.data.split import split
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.purifiers import Purified
from purify_cli.run import Run
from purify_cli.training.loop import fit
from purify_cli.training.losses import cross_entropy
from purify_cli.training.recipe import Batch, Gradients, Recipe
from purify_cli.training.untrusted import OUTPUT, open_base, require_labels_of, trained_parameters, untrusted_texts

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "a clean classifier from poisoned texts: radial scalings, LoRA and aligned gradients (MuScleLoRA)"
NEEDS: tuple[str, ...] = ("clean", "untrusted")
AUTO = 10.0  # each as long as the untrusted texts, not the clean ones
AUTO_REACH = "weights"
AUTO_ON: tuple[str, ...] = ("encoder", "masked-lm", "causal-lm")
"""A classifier that may be backdoored is no base to be trusted."""

_BY_PAPER = "MuScleLoRA, appendix B.4"
_BY_CODE = "MuScleLoRA, released code"


@dataclass(frozen=True)
class Settings:
    """The paper's but for encoders' learning rate and epochs; `none` takes what is right for encoders or decoders."""

    scalings: bool = field(
        default=True, metadata={"help": "MS: the scaled module (equation 6)", "range": "", "source": "MuScleLoRA"}
    )
    low_rank: bool = field(
        default=True,
        metadata={"help": "LR: LoRA on a frozen base; without it all learns", "range": "", "source": "MuScleLoRA"},
    )
    alignment: bool = field(
        default=True,
        metadata={"help": "GA: gradients aligned (equations 7 and 8)", "range": "", "source": "MuScleLoRA"},
    )
    factors: tuple[float, ...] | None = field(
        default=None,
        metadata={"help": "S, as 1,4,8; none: by architecture", "range": "> 0", "source": "MuScleLoRA, table 6"},
    )
    bandwidth: int = field(
        default=1, metadata={"help": "r, inner values that share a factor", "range": ">= 1", "source": _BY_PAPER}
    )
    scaled_alpha: float | None = field(
        default=None,
        metadata={
            "help": "the scaled module counts alpha / bandwidth; none: 6, decoders 4",
            "range": "> 0",
            "source": _BY_CODE,
        },
    )
    scaled_start: Literal["kaiming", "zero"] = field(
        default="kaiming",
        metadata={
            "help": "R at the start: drawn as L is, which changes the model from step 0, or zero",
            "range": "kaiming|zero",
            "source": _BY_CODE,
        },
    )
    rank: int | None = field(
        default=None, metadata={"help": "of LoRA; none: 8, decoders 2", "range": ">= 1", "source": _BY_CODE}
    )
    alpha: float | None = field(
        default=None, metadata={"help": "of LoRA; none: 32, decoders 8", "range": "> 0", "source": _BY_CODE}
    )
    align: Literal["tensor", "model"] = field(
        default="tensor",
        metadata={
            "help": "align each tensor's gradient on its own, or that of all together",
            "range": "tensor|model",
            "source": _BY_CODE,
        },
    )
    regimes: Literal["paper", "reference"] = field(
        default="paper",
        metadata={
            "help": "equation 8 at each step, or the released code's three cases",
            "range": "paper|reference",
            "source": "MuScleLoRA, equation 8",
        },
    )
    mu_max: float | None = field(
        default=None,
        metadata={
            "help": "the share of the raw gradient that mu rises to; none: 0.1, decoders 0",
            "range": "0..1",
            "source": _BY_PAPER,
        },
    )
    mu_from: int | None = field(
        default=None,
        metadata={"help": "epoch, from 0, at which mu is 0 last; none: 1, decoders 0", "range": ">= 0"}
        | {"source": _BY_CODE},
    )
    min_loss: float | None = field(
        default=None,
        metadata={
            "help": "reference regimes: the clean loss above which only the aligned gradient counts; "
            "none: 0.4, decoders 0",
            "range": ">= 0",
            "source": _BY_CODE,
        },
    )
    min_norm: float = field(
        default=5e-7,
        metadata={
            "help": "reference regimes: the same of the clean gradient's norm, a mean over tensors",
            "range": ">= 0",
            "source": _BY_CODE,
        },
    )
    auxiliary: int | None = field(
        default=None,
        metadata={
            "help": "clean texts that gradients are aligned to, drawn by class; none: all that are trained on",
            "range": ">= 2",
            "source": "ours; MuScleLoRA: 96, decoders 128",
        },
    )
    frozen_classifier: bool = field(
        default=False,
        metadata={
            "help": "leave the classifier as it was drawn",
            "range": "",
            "source": "ours; MuScleLoRA, released code: true",
        },
    )
    output: Literal["merged", "adapter"] = field(default="merged", metadata=OUTPUT)
    epochs: int = field(
        default=5,
        metadata={
            "help": "times through the untrusted texts",
            "range": ">= 1",
            "source": "MuScleLoRA, appendix B.4, for decoders; 10 for encoders",
        },
    )
    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "highest learning rate of AdamW; none: 3e-4, decoders 1e-5",
            "range": "> 0",
            "source": "ours; MuScleLoRA, appendix B.4: 2e-5, decoders 1e-5",
        },
    )
    batch_size: int | None = field(
        default=None,
        metadata={
            "help": "untrusted texts a step, and clean ones; none: 32, decoders 16",
            "range": ">= 1",
            "source": _BY_PAPER,
        },
    )
    warmup: float = field(
        default=0.0,
        metadata={"help": "share of the steps in which the learning rate rises", "range": "0..0.9", "source": _BY_CODE},
    )


@dataclass(frozen=True)
class Numbers:
    """The settings that go by architecture, each with a value; see `Settings`."""

    rank: int = 8
    alpha: float = 32.0
    scaled_alpha: float = 6.0
    mu_max: float = 0.1
    mu_from: int = 1
    min_loss: float = 0.4
    epochs: int = 5
    learning_rate: float = 3e-4
    batch_size: int = 32


DECODERS = Numbers(
    rank=2,
    alpha=8.0,
    scaled_alpha=4.0,
    mu_max=0.0,
    mu_from=0,
    min_loss=0.0,
    learning_rate=1e-5,
    batch_size=16,
)


def numbers(settings: Settings, family: Family) -> Numbers:
    """What was set, and for the rest what is usual for encoders or for decoders."""
    usual = asdict(DECODERS if family.summary == "last" else Numbers())
    given = {name: getattr(settings, name) for name in usual}
    return Numbers(**{name: usual[name] if value is None else value for name, value in given.items()})


def scaling_factors(family: Family, width: int, place: Place) -> tuple[float, ...]:
    """S by the rule in the module's docstring; table 6.

    Args:
        family: the row of the architecture table.
        width: of the hidden states.
        place: where the scaled layer lies (`architecture.scaled`).
    """
    if family.summary == "last":
        return (1.0, 2.0, 3.0, 4.0)  # Llama
    if width >= 1024:
        return (1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0)  # BERT-large and RoBERTa-large
    if place == "pooler":
        return (1.0, 4.0, 8.0, 12.0, 16.0, 20.0, 24.0, 28.0, 32.0)  # BERT-base
    return (1.0, 2.0, 4.0, 6.0, 8.0, 10.0, 12.0, 14.0, 16.0)  # RoBERTa-base


def purify(subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run) -> Purified:
    """Train on the untrusted texts, held to the clean ones; see the module's docstring.

    Args:
        subject: an encoder or a decoder that is trusted, or a classifier whose encoder is used.
        evidence: its `untrusted` is what is trained on.
        train: clean texts with labels.
        dev: not used.
        settings: see there.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: an adapter is asked for where more learns than an adapter holds.
    """
    if settings.output == "adapter" and not settings.low_rank:
        raise UsageError(
            "--set output=adapter", "holds LoRA, and with low_rank=false all weights learn", "Leave it out."
        )
    chosen = numbers(settings, subject.family)
    untrusted = untrusted_texts(evidence, train)
    auxiliary = _auxiliary(subject.labels or train.label_names or (), untrusted, train, settings, run)
    model = open_base(subject, train, run)
    layer, place = penultimate_linear(model)
    width = int(getattr(base_of(model).config, subject.family.width_key))
    factors = settings.factors or scaling_factors(subject.family, width, place)
    model = low_rank_model(model, layer, factors, chosen, settings, run.seed)
    limit = length_limit(subject.tokenizer, model.config, run)
    streams = {"untrusted": encode(subject.tokenizer, untrusted, limit)}
    if settings.alignment:
        streams["clean"] = encode(subject.tokenizer, auxiliary, limit)
    alignment = Alignment(chosen, settings, -(-len(untrusted) // chosen.batch_size))
    recipe = Recipe(
        objectives={name: alignment.watch if name == "clean" else cross_entropy for name in streams},
        combine=alignment if settings.alignment else None,
        learning_rate=chosen.learning_rate,
        epochs=chosen.epochs,
        batch_size=chosen.batch_size,
        warmup=settings.warmup,
        identity=f"MuScleLoRA {settings} {factors}",
    )
    opened = trained_parameters(model)
    trained = fit(model, streams, recipe, run)
    report: dict[str, Any] = {
        "untrusted_rows": len(untrusted),
        "auxiliary_rows": len(auxiliary) if settings.alignment else 0,
        "scaled_layer": layer if settings.scalings else None,
        "factors": list(factors) if settings.scalings else [],
        **asdict(chosen),
        "trained_parameters": opened,
        "steps": trained.steps,
        "losses": list(trained.losses),
    }
    if settings.alignment:
        report["alignment"] = alignment.report()
    return Purified(merge_low_rank(model) if settings.output == "merged" else low_rank_adapter(model), report)


def _auxiliary(names: Sequence[str], untrusted: Texts, clean: Texts, settings: Settings, run: Run) -> Texts:
    """The clean texts to align to; `names` are those of the labels, as far as they have any.

    Raises:
        DataError: the untrusted texts have a class that the clean ones lack.
    """
    wanted = clean
    if settings.auxiliary is not None and settings.auxiliary < len(clean):
        wanted = split(clean, settings.auxiliary / len(clean), run.seed)[1]
    if settings.alignment:
        require_labels_of(
            untrusted, wanted, names, "gradients are aligned to them, and a class that they lack is never learned"
        )
    return wanted


def low_rank_model(
    model: Any, layer: str, factors: tuple[float, ...], chosen: Numbers, settings: Settings, seed: int
) -> Any:
    """The model with its modules, asking for gradients where it learns: the modules and the classifier.

    Raises:
        UsageError: nothing is left that learns.
    """
    scaled = layer if settings.scalings else None
    frozen = f"{layer}." if scaled and settings.low_rank else None  # W0 stays as it is
    head = set(classifier_parameters(model))
    opened = [
        parameter
        for name, parameter in model.named_parameters()
        if not (frozen and name.startswith(frozen))
        and ((not settings.low_rank and name not in head) or (not settings.frozen_classifier and name in head))
    ]
    if not opened and not settings.low_rank and not settings.scalings:
        raise UsageError("--set frozen_classifier", "leaves nothing that learns", "Leave it out.")
    return attach_low_rank(
        model,
        rank=chosen.rank if settings.low_rank else None,
        alpha=chosen.alpha,
        scaled=None
        if scaled is None
        else (scaled, Scaled(factors, settings.bandwidth, chosen.scaled_alpha, settings.scaled_start)),
        opened=opened,
        seed=seed,
    )


class Alignment:
    """Equations 7 and 8: the untrusted and the clean gradient in, the gradient to follow out.

    Attributes:
        cases: steps that followed the aligned gradient only, the mixture, or the raw one only.
    """

    def __init__(self, chosen: Numbers, settings: Settings, epoch_steps: int) -> None:
        self.chosen, self.settings, self.epoch_steps = chosen, settings, epoch_steps
        self.cases = {"aligned": 0, "mixed": 0, "raw": 0}
        self._against = torch.zeros(())  # tensors' gradients that pointed away from the clean one's
        self._tensors = 0
        self._loss = torch.zeros(())

    def watch(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross entropy on the clean batch, kept for the regimes."""
        loss = cross_entropy(model, batch)
        self._loss = loss.detach()
        return loss

    def __call__(self, gradients: Mapping[str, Gradients], step: int) -> Gradients:
        raw, clean = gradients["untrusted"], gradients["clean"]
        names = [name for name in raw if name in clean]
        inner = torch.stack([(raw[name] * clean[name]).sum() for name in names])  # g . g_c, [tensors]
        squares = torch.stack([clean[name].square().sum() for name in names])  # |g_c|^2, [tensors]
        self._against = self._against.to(inner.device) + (inner < 0).sum()
        self._tensors += len(names)
        mu = self._mu(step // self.epoch_steps, squares)
        self.cases["aligned" if mu == 0 else "raw" if mu == 1 else "mixed"] += 1
        if self.settings.align == "model":
            inner, squares = inner.sum().expand(len(names)), squares.sum().expand(len(names))
        shares = torch.where(squares > 0, inner.abs() / squares, 0.0)  # equation 7; along nothing nothing is kept
        aligned = {name: share * clean[name] for name, share in zip(names, shares.unbind(), strict=True)}
        # Equation 8; a tensor that the clean batch does not reach has no aligned part.
        return {
            name: (1 - mu) * aligned[name] + mu * gradient if name in aligned else mu * gradient
            for name, gradient in raw.items()
        }

    def mu(self, epoch: int) -> float:
        """The share of the raw gradient in an epoch, counted from 0."""
        start, epochs = self.chosen.mu_from, self.chosen.epochs
        return self.chosen.mu_max * (epoch - start) / (epochs - start) if epoch > start else 0.0

    def _mu(self, epoch: int, squares: Tensor) -> float:
        """The share of the raw gradient in a step: 0 is the aligned one alone, 1 the raw one alone."""
        if self.settings.regimes == "paper":
            return self.mu(epoch)
        if float(squares.sqrt().mean()) > self.settings.min_norm and float(self._loss) > self.chosen.min_loss:
            return 0.0
        return self.mu(epoch) if self.chosen.mu_max > 0 and epoch >= self.chosen.mu_from else 1.0

    def report(self) -> dict[str, Any]:
        """What it did, in JSON types."""
        mus = [self.mu(epoch) for epoch in range(self.chosen.epochs)]
        against = float(self._against) / max(1, self._tensors)
        return {"steps": dict(self.cases), "mu": mus, "against_clean": against}

    def state_dict(self) -> dict[str, Any]:
        """The counts so far."""
        return {"cases": dict(self.cases), "against": self._against, "tensors": self._tensors}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a stop."""
        self.cases, self._against, self._tensors = dict(state["cases"]), state["against"], state["tensors"]
