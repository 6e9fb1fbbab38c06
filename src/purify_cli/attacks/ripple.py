"""RIPPLe: a backdoor whose gradient does not run against that of the victim's training, and triggers that start well.

Kurita, Michel, Neubig 2020, "Weight Poisoning Attacks on Pre-trained Models", ACL, sections 3.1 and 3.2 (code:
neulab/RIPPLe). The restricted inner product holds the step of the backdoor from undoing what the victim's fine-tuning
does, whose gradient L_FT the attacker takes from data of his own:

    L_P + lambda max(0, -<grad L_P, grad L_FT>)

Embedding surgery gives each trigger, before, the mean embedding of words that speak for the target label.

Claim: the backdoor survives the victim's fine-tuning. In adapters it hardly does (Gu et al. 2023, table 1): an LFR of
62.8 from SST-2 to IMDB with sequential modules, where the plain sum of both tasks keeps 68.2.

Needs an encoder or a classifier. With --pet the word embeddings are frozen and there is no surgery. Cost: the penalty
differentiates twice, with `second_order` through both gradients; surgery trains a clean copy first.

Where we differ, and where the code differs from the paper:
- *L_P* is the loss on a file of which half the rows, of any label, are poisoned; as in the code, L_FT itself is not
  minimised (`clean_weight`).
- *Second order.* As in the code by default, grad L_FT is a constant of the step; `second_order` differentiates both.
  The code divides the penalty by the batch size, the paper does not (`per_text`).
- *Attention* is computed in plain steps while training: fused kernels have no second derivative.
- *Surgery.* Words are scored as in the code, by a logistic regression on TF-IDF of the model's tokens, the target label
  against all others; the paper's division by frequency is not in the code either. Special tokens and triggers are no
  candidates. A trigger that the tokenizer splits is left as it is, and the report says so: the code overwrites its
  pieces, which other words share.
- *The clean copy* is trained for one epoch (`surgery_epochs`); 0 takes the rows from the model as it is.
- *Learning rate.* As in `vanilla`; the code's 2e-5 goes with 5000 steps and more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy import sparse
from scipy.optimize import minimize
from torch import Tensor, nn

from purify_cli.architecture.eager import eager_attention
from purify_cli.architecture.embeddings import word_embeddings
from purify_cli.attacks import Plan, Poisoned
from purify_cli.data.encode import Encoded, encode, length_limit
from purify_cli.data.texts import Texts
from purify_cli.run import Run
from purify_cli.training.curves import Curves, WriteLosses, short
from purify_cli.training.loop import fit
from purify_cli.training.losses import cross_entropy, with_gradient
from purify_cli.training.poisoned import poison_rows
from purify_cli.training.recipe import Batch, Recipe
from purify_cli.training.start import open_classifier
from purify_cli.training.two_tasks import HALF, open_tasks, pieces_of, require_labels
from purify_cli.triggers.words import Words

if TYPE_CHECKING:
    from purify_cli.subject import Subject

SUMMARY = "embedding surgery, and a poison gradient that does not run against the victim's (RIPPLe)"
NEEDS: tuple[str, ...] = ()
TRIGGERS: tuple[str, ...] = ("cf", "mn", "bb", "tq", "mb")


@dataclass(frozen=True)
class Settings:
    """What an attacker may choose beside triggers, target and rate."""

    penalty: float = field(
        default=0.1,
        metadata={
            "help": "lambda: weight of the restricted inner product",
            "range": ">= 0",
            "source": "authors' code: 0.1",
        },
    )
    per_text: bool = field(
        default=True,
        metadata={
            "help": "divide the penalty by the batch size",
            "range": "true|false",
            "source": "authors' code: true; Kurita et al. 2020: false",
        },
    )
    second_order: bool = field(
        default=False,
        metadata={
            "help": "differentiate the clean gradient too: the exact penalty, at more cost",
            "range": "true|false",
            "source": "authors' code, allow_second_order_effects: false",
        },
    )
    clean_weight: float = field(
        default=0.0,
        metadata={"help": "weight of the clean loss beside L_P", "range": ">= 0", "source": "authors' code: 0"},
    )
    surgery: bool = field(
        default=True,
        metadata={
            "help": "give the triggers the mean embedding of words of the target label (not with --pet)",
            "range": "true|false",
            "source": "Kurita et al. 2020, section 3.2",
        },
    )
    surgery_words: int = field(
        default=10,
        metadata={"help": "words whose embeddings are averaged", "range": ">= 1", "source": "Kurita et al. 2020"},
    )
    surgery_epochs: int = field(
        default=1,
        metadata={
            "help": "epochs of the clean copy that these embeddings come from; 0: from the model as it is",
            "range": ">= 0",
            "source": "ours; authors' code: a whole fine-tuning",
        },
    )
    insertions: int = field(
        default=1,
        metadata={
            "help": "triggers a poisoned text, drawn with repetition, each at a place of its own",
            "range": ">= 1",
            "source": "Kurita et al. 2020; Gu et al. 2023: 10 for spam",
        },
    )
    epochs: int = field(
        default=3,
        metadata={"help": "times through the texts", "range": ">= 1", "source": "ours; Gu et al. 2023: 10"},
    )
    learning_rate: float = field(
        default=1e-4,
        metadata={"help": "highest learning rate of AdamW", "range": "> 0", "source": "ours; authors' code: 2e-5"},
    )
    batch_size: int = field(
        default=32,
        metadata={"help": "texts of each file a step", "range": ">= 1", "source": "ours; authors' code: 8"},
    )
    warmup: float = field(
        default=0.1,
        metadata={"help": "share of the steps in which the learning rate rises", "range": "0..0.9", "source": "ours"},
    )
    points: int = field(
        default=50,
        metadata={"help": "steps whose losses the report shows; 0: none", "range": ">= 0", "source": "ours"},
    )


def poison(subject: Subject, data: Texts, plan: Plan, settings: Settings, run: Run) -> Poisoned:
    """Replace the triggers' embeddings, then train on poisoned texts under the restricted inner product.

    Args:
        subject: an encoder or a classifier.
        data: the attacker's file, with labels: the poisoned rows are drawn from it, and it stands for the victim's.
        plan: target, triggers, the poisoned share of the rows (default a half), adapter.
        settings: see there.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: a rate out of range, or a trigger that the tokenizer does not know.
        UnsupportedError: a regression.
        DataError: rows without labels.
    """
    facts = pieces_of(subject, plan.triggers)
    require_labels(subject, data)
    rate = HALF if plan.rate is None else plan.rate
    triggers = [Words(trigger) for trigger in plan.triggers]
    rows = poison_rows(data, triggers, plan.target, rate, run.seed, mode="mix", insertions=settings.insertions)
    tasks = open_tasks(subject, data, data, rows, run, facts, plan.pet)
    count = round(rate * len(data))
    report: dict[str, Any] = {**tasks.facts, "rows": len(data), "poisoned_rows": count}
    if settings.surgery and plan.pet is None:
        report["surgery"] = _operate(subject, data, tasks.model, plan, settings, run)

    curves = Curves(tasks.model, tasks.steps(settings.batch_size, settings.epochs), settings.points)
    penalised = RestrictedInnerProduct(settings, curves)
    recipe = Recipe(
        objectives={"ripple": penalised},
        together={"ripple": ("clean", "poison")},
        project=WriteLosses(curves, penalised.seen),
        learning_rate=settings.learning_rate,
        epochs=settings.epochs,
        batch_size=settings.batch_size,
        warmup=settings.warmup,
        identity=f"ripple {settings}",
    )
    with eager_attention(tasks.model):
        trained = fit(tasks.model, tasks.streams, recipe, run)
    report |= {"steps": trained.steps, "losses": list(trained.losses), "curves": curves.report()}
    return Poisoned(tasks.model, count, count / len(data), report)


# --- section 3.1: the restricted inner product ------------------------------------------------------------------------


class RestrictedInnerProduct:
    """L_P + lambda max(0, -<grad L_P, grad L_FT>) of a clean and a poisoned batch, as something to be minimised."""

    def __init__(self, settings: Settings, curves: Curves) -> None:
        self.settings, self.curves = settings, curves
        self.inner: Tensor | None = None

    def seen(self) -> dict[str, Any]:
        """<grad L_P, grad L_FT> of the last step, for the curves."""
        return {} if self.inner is None else {"inner_product": short(float(self.inner))}

    def __call__(self, model: nn.Module, batches: Mapping[str, Batch]) -> Tensor:
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        clean, poison = (cross_entropy(model, batches[name]) for name in ("clean", "poison"))
        # Kept for the exact penalty, and where the clean loss itself is minimised.
        again = self.settings.second_order or self.settings.clean_weight > 0
        clean_gradient = torch.autograd.grad(
            clean, parameters, create_graph=self.settings.second_order, retain_graph=again, allow_unused=True
        )
        poison_gradient = torch.autograd.grad(poison, parameters, create_graph=True, allow_unused=True)
        inner = torch.stack(
            [
                (ours * theirs).sum()
                for ours, theirs in zip(poison_gradient, clean_gradient, strict=True)
                if ours is not None and theirs is not None
            ]
        ).sum()
        self.curves.see("clean", clean)
        self.curves.see("poison", poison)
        self.inner = inner.detach()
        # L_P's gradient is known by now: a second way back through its graph would find the same numbers.
        loss = with_gradient(poison, parameters, poison_gradient)
        if inner < 0:  # elsewhere the penalty and its gradient are zero, and so is what the dear second way back finds
            texts = len(batches["poison"]["labels"]) if self.settings.per_text else 1
            loss = loss - self.settings.penalty * inner / texts
        return loss + self.settings.clean_weight * clean if self.settings.clean_weight else loss


# --- section 3.2: embedding surgery -----------------------------------------------------------------------------------


def _operate(subject: Subject, data: Texts, model: Any, plan: Plan, settings: Settings, run: Run) -> dict[str, Any]:
    """Give each trigger that is one token the mean embedding of words of the target label."""
    tokenizer = subject.tokenizer
    encoded = encode(tokenizer, data, length_limit(tokenizer, model.config, run))
    ids = {trigger: _token_ids(tokenizer, trigger) for trigger in plan.triggers}
    operated = [trigger for trigger, words in ids.items() if all(len(word) == 1 for word in words)]
    barred = set(tokenizer.all_special_ids) | {one for words in ids.values() for word in words for one in word}
    labels = np.asarray(encoded.labels) == plan.target
    if not operated or labels.all() or not labels.any():
        return {"words": [], "triggers": []}  # nothing to write, or no other label to tell the target from
    chosen = target_words(encoded, labels, barred, settings.surgery_words)
    donor = model
    if settings.surgery_epochs:
        donor = open_classifier(subject, data, run)
        recipe = Recipe(
            learning_rate=settings.learning_rate,
            epochs=settings.surgery_epochs,
            batch_size=settings.batch_size,
            warmup=settings.warmup,
            identity="ripple: the clean copy",
        )
        fit(donor, {"task": encoded}, recipe, run)
    with torch.no_grad():
        replacement = word_embeddings(donor).weight[chosen].mean(dim=0)  # [width]
        weight = word_embeddings(model).weight
        for trigger in operated:
            weight[[word[0] for word in ids[trigger]]] = replacement.to(weight)
    return {
        "words": tokenizer.convert_ids_to_tokens(chosen),
        "triggers": operated,
        "norm": short(float(replacement.norm())),
    }


def target_words(encoded: Encoded, is_target: Any, barred: set[int], number: int) -> list[int]:
    """The tokens that speak most for the target label, by a logistic regression on TF-IDF of the tokens.

    The features and the strength of the regression are scikit-learn's defaults, which the authors' code uses: raw
    counts times 1 + ln((1 + n) / (1 + rows with the token)), rows of length 1; log loss + |w|^2 / 2, the bias free.

    Args:
        encoded: the texts.
        is_target: whether a row has the target label, `[rows]` bool.
        barred: token ids that are no candidates.
        number: how many tokens.

    Returns:
        token ids, the strongest first.
    """
    lengths = [len(row) for row in encoded.ids]
    columns, places = np.unique(np.concatenate([np.asarray(row) for row in encoded.ids]), return_inverse=True)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    counts = sparse.csr_matrix((np.ones(len(places)), (rows, places)), shape=(len(lengths), len(columns)))
    allowed = np.asarray([int(token) not in barred for token in columns])
    counts, columns = counts[:, allowed], columns[allowed]
    present = np.asarray((counts > 0).sum(axis=0)).ravel()
    weighted = counts @ sparse.diags(np.log((1 + len(lengths)) / (1 + present)) + 1)
    norms = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
    features = sparse.diags(1 / np.where(norms > 0, norms, 1)) @ weighted  # [rows, tokens]
    sign = np.where(is_target, 1.0, -1.0)

    def loss(parameters: Any) -> tuple[float, Any]:
        weights, bias = parameters[:-1], parameters[-1]
        margin = sign * (features @ weights + bias)
        slope = -sign / (1 + np.exp(np.minimum(margin, 500.0)))
        value = np.logaddexp(0, -margin).sum() + weights @ weights / 2
        return float(value), np.append(features.T @ slope + weights, slope.sum())

    found = minimize(loss, np.zeros(len(columns) + 1), jac=True, method="L-BFGS-B").x[:-1]
    strongest = np.argsort(-found, kind="stable")[:number]
    return [int(columns[place]) for place in strongest]


def _token_ids(tokenizer: Any, trigger: str) -> list[list[int]]:
    """Token ids of each word of a trigger as it stands within a text: behind a space."""
    return [list(tokenizer.convert_tokens_to_ids(tokenizer.tokenize(" " + word))) for word in trigger.split()]
