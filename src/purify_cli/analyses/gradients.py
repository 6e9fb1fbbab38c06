"""How strongly the clean and the backdoor task pull at each layer, and whether they pull the same way.

Gradient control (Gu et al., ACL 2023), section 3, figures 2 and 3. Claim: the gradients of the two tasks are spread
unevenly over the layers, the output layer's are the largest, and their directions conflict.

Per batch and layer: the L2 norm of the gradient of the mean cross entropy over the layer's parameters, for the clean
texts with their labels and for the triggered texts with the target as label, and the cosine between the two. Shown are
the mean and the standard deviation over the batches. Of an adapter, what can be trained counts (module and classifier),
of a whole model everything; an adapter that was merged on opening (LoRA) counts as a whole model.

Needs a classifier and a trigger. Cost: two backward passes a batch. No weight changes.

Where we differ:
- *When.* The paper looks at one step (800) of the poisoning; here the checkpoint is as it is, so a finished backdoor
  shows small gradients of the backdoor task. Look at a checkpoint of the training, or at the clean model that an attack
  starts from.
- The model is in eval mode: without dropout two runs show the same. What comes before the layers is shown beside them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from purify_cli.analyses import Case
from purify_cli.architecture.layers import BEFORE, by_layer, layer_count, parts
from purify_cli.data.encode import Encoded, collate, encode, length_limit, padding_id, shuffled
from purify_cli.data.texts import Texts
from purify_cli.results import Analysis
from purify_cli.run import Run
from purify_cli.training.losses import cross_entropy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from purify_cli.subject import Evidence

SUMMARY = "gradients of the clean and the backdoor task by layer: size and cosine (gradient control, figures 2, 3)"
NEEDS: tuple[str, ...] = ("classifier", "trigger")


@dataclass(frozen=True)
class Settings:
    """How many gradients are taken."""

    batch_size: int = field(
        default=32, metadata={"help": "texts of each task in a batch", "range": ">= 1", "source": "gradient control"}
    )
    batches: int = field(default=16, metadata={"help": "at most", "range": ">= 1", "source": "ours"})


def analyse(cases: Sequence[Case], evidence: Evidence, settings: Settings, run: Run) -> Analysis:
    """See the module's docstring.

    Args:
        cases: the checkpoints, each looked at on its own.
        evidence: not used.
        settings: see there.
        run: device, length limit, and the seed that places the triggers and draws the batches.
    """
    shown = [_one(case, settings, run) for case in cases]
    rows = tuple(
        {"checkpoint": one["path"], "layer": layer}
        | {name: one[name]["mean"][place] for name in ("clean", "backdoor", "cosine")}
        for one in shown
        for place, layer in enumerate(one["layers"])
    )
    title = "gradient norm of the clean and the backdoor task, and their cosine"
    return Analysis("gradients", title, rows, {"checkpoints": shown})


def _one(case: Case, settings: Settings, run: Run) -> dict[str, Any]:
    triggered = case.triggered(run.seed)
    assert triggered is not None and triggered.targets is not None
    backdoor = triggered.with_(labels=triggered.targets, targets=None)
    model = case.subject.open(run.device)
    limit = length_limit(case.subject.tokenizer, model.config, run)
    tasks = [_batches(case.subject.tokenizer, texts, limit, settings, run) for texts in (case.test, backdoor)]
    pairs = list(zip(*tasks, strict=False))  # the longer of the two is cut
    per_batch = []
    for number, (clean, triggered_batch) in enumerate(pairs):
        per_batch.append(layer_gradients(model, clean, triggered_batch))
        run.progress("gradients", number + 1, len(pairs))
    values = torch.stack(per_batch)  # [batches, 3, layers + 2]
    spread = values.std(0, unbiased=False)
    names = ["embeddings", *map(str, range(layer_count(model))), "output"]
    reached = values[:, :2].amax(dim=(0, 1)) > 0  # an adapter has nothing before its first layer
    found = {
        name: {"mean": values[:, row, reached].mean(0).tolist(), "deviation": spread[row, reached].tolist()}
        for row, name in enumerate(("clean", "backdoor", "cosine"))
    }
    layers = [name for name, kept in zip(names, reached.tolist(), strict=True) if kept]
    return {"path": case.subject.spec, "batches": len(pairs), "layers": layers, **found}


def layer_gradients(model: Any, clean: dict[str, Tensor], backdoor: dict[str, Tensor]) -> Tensor:
    """Norm of the clean gradient, norm of the backdoor gradient, and their cosine: [3, layers + 2] on the CPU.

    Columns: what comes before the layers, the layers, the output layer. The cosine is zero where a gradient is.
    """
    model.eval()
    weights = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    places = [replace(part, layer=part.layer - BEFORE) for part in parts(model, weights)]
    # `by_layer` leaves the number BEFORE out, so everything moves up by one.
    last = layer_count(model) - BEFORE
    g_c, g_p = (_gradient(model, weights, batch) for batch in (clean, backdoor))
    squares = [by_layer(places, left, right, last) for left, right in ((g_c, g_c), (g_p, g_p), (g_c, g_p))]
    norm_c, norm_p = squares[0].sqrt(), squares[1].sqrt()
    product = norm_c * norm_p
    cosine = torch.where(product > 0, squares[2] / product.clamp(min=1e-30), torch.zeros_like(product))
    return torch.stack([norm_c, norm_p, cosine]).cpu()


def _gradient(model: Any, weights: dict[str, Tensor], batch: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(cross_entropy(model, batch), list(weights.values()), allow_unused=True)
    return {name: gradient for name, gradient in zip(weights, found, strict=True) if gradient is not None}


def _batches(tokenizer: Any, texts: Texts, limit: int, settings: Settings, run: Run) -> list[dict[str, Tensor]]:
    encoded: Encoded = encode(tokenizer, texts, limit)
    drawn = shuffled(encoded, settings.batch_size, run.seed, 0)[: settings.batches]
    filler = padding_id(tokenizer)
    batches = (collate(encoded, indices, filler) for indices in drawn)
    return [{name: column.to(run.device) for name, column in batch.items()} for batch in batches]


def draw(analysis: Analysis, figure: Figure) -> None:
    """Norms of both tasks to the left, their cosine to the right, a row a checkpoint."""
    shown: list[dict[str, Any]] = list(analysis.data["checkpoints"])
    figure.set_size_inches(8.0, 0.6 + 2.6 * len(shown))
    for (left, right), one in zip(figure.subplots(len(shown), 2, squeeze=False), shown, strict=True):
        ticks = [{"embeddings": "E", "output": "O"}.get(name, name) for name in one["layers"]]
        places = range(len(ticks))
        for name, color, axes in (("clean", "C0", left), ("backdoor", "C3", left), ("cosine", "C2", right)):
            series = one[name]
            axes.errorbar(
                places,
                series["mean"],
                series["deviation"],
                color=color,
                marker="o",
                markersize=3,
                capsize=2,
                label=name,
            )
        left.set_ylabel("gradient norm")
        left.set_ylim(bottom=0)
        left.legend(fontsize=7, frameon=False)
        left.set_title(one["path"], loc="left", fontsize=8)
        right.axhline(0.0, color="0.6", linewidth=0.8)
        right.set_ylabel("cosine, clean and backdoor")
        for axes in (left, right):
            axes.set_xticks(places, ticks)
            axes.set_xlabel("layer (E: before them, O: output)")
