"""PURE: prune the heads that look at nothing in clean texts, then fine-tune with the attention of [CLS] held even.

Zhao, Xu, Yuan: "Defense against Backdoor Attack on Pre-trained Language Models via Head Pruning and Attention
Normalization", ICML 2024. Claim: a backdoor lives in heads that clean texts hardly use, and works by letting the
summary token look at the trigger alone; take these heads out, keep the attention from peaking, and the trigger
cannot dominate.

Step 1. Fine-tune the suspect on clean texts (f_p). Score each head by the variance of the attention that the summary
token pays over the keys, on dev texts. Prune in ascending order, a group at a time, while the accuracy of f_p on dev
holds; give the last group's heads back one by one until it does. Each layer keeps its highest-scoring head.
Step 2. Start again from the suspect, without those heads, and fine-tune with

    loss = cross entropy + lambda * sum_l c_l * sum_h sqrt( sum_b sum_k A[l,b,h,k]^2 )

where A [layer, batch, head, key] is the summary token's attention and c_l weighs the layers.

Needs labelled clean texts; works on classifiers and on encoders (which get a new classifier), on every architecture
of the table. Raises what the training raises; UsageError for a setting out of range.
Cost: two fine-tunings, one pass over dev with attention rows twice, and one over dev per group of heads. No model is
copied and no attention map is built.

Where we differ from the released code, and why:
- A head is out when its columns of the output projection are zero and stay zero; shapes stay, so any loader reads
  the result.
- The score is the reference's to the digit (unbiased variance of the first max_length - 1 keys of a row padded to
  max_length, mean over batches of 32), but computed from the sums of a and a^2, so that nothing is padded.
- The penalty grows with the root of the batch: lambda belongs to batches of 32, and it is divided by sqrt(batch / 32).
- The reference's accuracy limit is 0.85, absolute. Ours is a drop against f_p; `min_accuracy` gives the absolute
  one. If f_p itself lies below it, nothing is pruned (the reference crashes).
- c_l: the reference scales to 0..1 over the layers, which frees the layer of the sharpest attention from the penalty
  altogether. `layer_weights=paper` does that (all equal: all 1); the default is `even`, all 1.
- The penalty is taken on the attention before dropout; the library that the reference uses hands it out after dropout.
- The learning rate and lambda are higher: on a small encoder 1e-4 left more of the trigger than 3e-4, and 0.5 more than
  2 at the same clean accuracy (docs/benchmarks.md).
- A classifier keeps its own last layer by default; `fresh_classifier` starts with a new one, as the reference does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from purify_cli.architecture.attention import SummaryAttention, summary_attention
from purify_cli.architecture.heads import Head, hold_pruned, prune_heads, silence_heads
from purify_cli.architecture.pet import has_pet
from purify_cli.architecture.table import base_of, family_of
from purify_cli.data.encode import encode, length_limit, padding_id
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.evaluation.head_scores import REFERENCE_BATCH, head_scores
from purify_cli.evaluation.predict import predict
from purify_cli.purifiers import Purified
from purify_cli.run import Run
from purify_cli.training.loop import fit
from purify_cli.training.losses import cross_entropy
from purify_cli.training.recipe import Batch, Recipe
from purify_cli.training.start import open_classifier

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "prune the heads that clean texts do not use, and hold the attention of the summary token even (PURE)"
NEEDS: tuple[str, ...] = ("clean",)
AUTO = 6.0
AUTO_REACH = "weights"


@dataclass(frozen=True)
class Settings:
    """The paper's settings where not said otherwise."""

    prune: bool = field(default=True, metadata={"help": "step 1: prune heads", "range": "", "source": "PURE"})
    normalize: bool = field(
        default=True,
        metadata={"help": "step 2: the penalty; without it plain fine-tuning", "range": "", "source": "PURE"},
    )
    prune_step: int = field(default=10, metadata={"help": "heads pruned at a time", "range": ">= 1", "source": "PURE"})
    prune_drop: float = field(
        default=0.02,
        metadata={"help": "how far below f_p the dev accuracy may fall by pruning", "range": "0..1", "source": "ours"},
    )
    min_accuracy: float | None = field(
        default=None,
        metadata={
            "help": "the dev accuracy that pruning must keep, instead of prune_drop",
            "range": "0..1",
            "source": "PURE: 0.85",
        },
    )
    penalty: float = field(
        default=2.0, metadata={"help": "lambda, for batches of 32", "range": ">= 0", "source": "ours; PURE: 0.15"}
    )
    layer_weights: Literal["even", "paper"] = field(
        default="even", metadata={"help": "c_l: all 1, or the paper's scaling", "range": "even|paper", "source": "ours"}
    )
    fresh_classifier: bool = field(
        default=False,
        metadata={"help": "start with a new classifier even where there is one", "range": "", "source": "PURE: true"},
    )
    epochs: int = field(default=3, metadata={"help": "of both fine-tunings", "range": ">= 1", "source": "PURE"})
    learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "of AdamW, in both fine-tunings; none: 3e-4 * (384 / width)^2, at most 1e-3",
            "range": "> 0",
            "source": "measured at width 384 only; PURE: 2e-5 at 768",
        },
    )
    warmup: float = field(
        default=0.1,
        metadata={
            "help": "share of the steps in which the learning rate rises",
            "range": "0..0.9",
            "source": "ours, for the higher learning rate; PURE: 0",
        },
    )
    batch_size: int = field(default=32, metadata={"help": "texts a step", "range": ">= 1", "source": "PURE"})


def resolved(settings: Settings, model: Any) -> Settings:
    """The settings with a learning rate: that of a width of 384, less for wider models, which bear less."""
    if settings.learning_rate is not None:
        return settings
    config = base_of(model).config
    width = int(getattr(config, family_of(config).width_key))
    return replace(settings, learning_rate=min(1e-3, 3e-4 * (384 / width) ** 2))


@dataclass(frozen=True)
class Pruning:
    """What step 1 came to.

    Attributes:
        heads: the heads to take out, in the order of pruning.
        scores: variance of the summary token's attention before pruning, [layers, heads].
        layer_scores: v_l, the mean over the heads that stay, measured with the others gone, [layers].
        accuracy: of f_p on dev, whole.
        accuracy_pruned: of f_p on dev without the heads.
    """

    heads: tuple[Head, ...]
    scores: Tensor
    layer_scores: Tensor
    accuracy: float
    accuracy_pruned: float


def purify(subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run) -> Purified:
    """Both steps; see the module's docstring.

    Args:
        subject: a classifier, or an encoder.
        evidence: not used.
        train: clean texts with labels.
        dev: clean texts with labels, by which heads are scored and pruning is limited.
        settings: see there.
        run: seed, device, max_length, progress and state.
    """
    model, report = normalized(subject, train, choose_heads(subject, train, dev, settings, run), settings, run)
    return Purified(model, report)


def preview(
    subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run
) -> dict[str, Any]:
    """Step 1 alone: which heads would go, and the variance of every head."""
    pruning = choose_heads(subject, train, dev, settings, run)
    return _report(pruning, layer_weights(pruning.layer_scores, settings.layer_weights))


# --- step 1 -----------------------------------------------------------------------------------------------------------


def choose_heads(subject: Subject, train: Texts, dev: Texts, settings: Settings, run: Run) -> Pruning:
    """Fit f_p, score its heads on dev, and prune while its accuracy there holds."""
    f_p = open_classifier(subject, train, run, fresh=settings.fresh_classifier)
    settings = resolved(settings, f_p)
    if settings.prune and has_pet(f_p):
        problem = "takes heads out of the base, which an adapter's folder cannot hold"
        raise UsageError(subject.spec, f"is an adapter, and pruning {problem}", "Leave it out with --set prune=false.")
    limit = length_limit(subject.tokenizer, f_p.config, run)
    stream = {"task": encode(subject.tokenizer, train, limit)}
    fit(f_p, stream, _recipe(settings, identity="PURE step 1"), run)
    return prune_by_score(f_p, subject.tokenizer, dev, settings, run)


def prune_by_score(f_p: Any, tokenizer: Any, dev: Texts, settings: Settings, run: Run) -> Pruning:
    """Score the heads of a fine-tuned model and choose those to prune; the model is left as it was."""
    limit = length_limit(tokenizer, f_p.config, run)
    encoded = encode(tokenizer, dev, limit)
    scores = head_scores(f_p, encoded, padding_id(tokenizer), limit, run)

    def accuracy(heads: Sequence[Head]) -> float:
        with silence_heads(f_p, heads):
            said = predict(f_p, tokenizer, dev, run).argmax(dim=1)
        return float((said == torch.tensor(dev.labels)).float().mean())

    whole = accuracy(())
    wanted = settings.min_accuracy if settings.min_accuracy is not None else whole - settings.prune_drop
    heads: list[Head] = []
    reached = whole
    for group in _groups(_prunable(scores) if settings.prune and whole >= wanted else [], settings.prune_step):
        tried = heads + group
        reached_now = accuracy(tried)
        while reached_now < wanted and len(tried) > len(heads):
            tried = tried[:-1]  # the one of the highest score is given back first
            reached_now = accuracy(tried) if len(tried) > len(heads) else reached
        whole_group = len(tried) == len(heads) + len(group)
        heads, reached = tried, reached_now
        if not whole_group:
            break
    with silence_heads(f_p, heads):
        left = head_scores(f_p, encoded, padding_id(tokenizer), limit, run) if heads else scores
    stays = torch.ones_like(scores, dtype=torch.bool)
    for layer, head in heads:
        stays[layer, head] = False
    layer_scores = (left * stays).sum(1) / stays.sum(1)
    return Pruning(tuple(heads), scores, layer_scores, whole, reached)


def _prunable(scores: Tensor) -> list[Head]:
    """All heads in ascending order of score, but for the highest of each layer."""
    kept = scores.argmax(dim=1).tolist()
    heads = scores.shape[1]
    order = [divmod(place, heads) for place in scores.flatten().argsort(stable=True).tolist()]
    return [(layer, head) for layer, head in order if head != kept[layer]]


def _groups(heads: Sequence[Head], size: int) -> list[list[Head]]:
    return [list(heads[start : start + size]) for start in range(0, len(heads), size)]


# --- step 2 -----------------------------------------------------------------------------------------------------------


def normalized(
    subject: Subject, train: Texts, pruning: Pruning, settings: Settings, run: Run
) -> tuple[Any, dict[str, Any]]:
    """Start again from the suspect, without the heads, and fine-tune with the penalty: the model, and a report."""
    model = open_classifier(subject, train, run, fresh=settings.fresh_classifier)
    settings = resolved(settings, model)
    prune_heads(model, pruning.heads)
    weights = layer_weights(pruning.layer_scores, settings.layer_weights)
    stream = {"task": encode(subject.tokenizer, train, length_limit(subject.tokenizer, model.config, run))}
    with summary_attention(model) as seen:
        objective = _Normalized(seen, weights, pruning.heads, settings.penalty if settings.normalize else 0.0)
        recipe = _recipe(
            settings,
            objectives={"task": objective},
            project=hold_pruned(model, pruning.heads),
            identity=f"PURE step 2: {settings} {sorted(pruning.heads)} {weights.tolist()}",
        )
        trained = fit(model, stream, recipe, run)
    return model, _report(pruning, weights) | {
        "learning_rate": settings.learning_rate,
        "steps": trained.steps,
        "losses": list(trained.losses),
    }


def layer_weights(layer_scores: Tensor, form: str) -> Tensor:
    """c_l from v_l, [layers]: `even` is all 1; `paper` is u_l = 1 / v_l over their sum, scaled to 0..1."""
    if form == "even":
        return torch.ones_like(layer_scores)
    inverse = 1.0 / layer_scores.clamp(min=1e-12)
    shares = inverse / inverse.sum()
    spread = shares.max() - shares.min()
    return torch.ones_like(shares) if spread <= 0 else (shares - shares.min()) / spread


class _Normalized:
    """Cross entropy and the penalty on the attention that the forward pass has just left behind."""

    def __init__(self, seen: SummaryAttention, weights: Tensor, pruned: Sequence[Head], penalty: float) -> None:
        self.seen, self.weights, self.penalty = seen, weights, penalty
        self.pruned: dict[int, list[int]] = {}
        for layer, head in pruned:
            self.pruned.setdefault(layer, []).append(head)

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        loss = cross_entropy(model, batch)
        return loss + self.penalty * self.unevenness() if self.penalty else loss

    def unevenness(self) -> Tensor:
        """sum_l c_l sum_h sqrt(sum_b sum_k A^2) over the heads that stay, brought to batches of 32."""
        terms = []
        for row, layer in zip(self.seen.rows, self.seen.layer_of, strict=True):  # [batch, heads, keys]
            norms = row.square().sum(dim=(0, 2)).sqrt()  # [heads]
            stays = torch.ones_like(norms)
            stays[self.pruned.get(layer, [])] = 0.0
            terms.append(self.weights[layer].item() * (norms * stays).sum())
        return torch.stack(terms).sum() / math.sqrt(self.seen.rows[0].shape[0] / REFERENCE_BATCH)


def _recipe(settings: Settings, **openings: Any) -> Recipe:
    assert settings.learning_rate is not None  # see `resolved`
    return Recipe(
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        **openings,
    )


def _report(pruning: Pruning, weights: Tensor) -> dict[str, Any]:
    layers, heads = pruning.scores.shape
    return {
        "heads": layers * heads,
        "pruned": [list(head) for head in sorted(pruning.heads)],
        "dev_accuracy_fine_tuned": pruning.accuracy,
        "dev_accuracy_pruned": pruning.accuracy_pruned,
        "attention_variance": [[round(value, 9) for value in row] for row in pruning.scores.tolist()],
        "layer_weights": [round(value, 6) for value in weights.tolist()],
    }
