"""How much of what the summary token holds stays the same from one checkpoint to the next, layer by layer.

Gradient control (Gu et al., ACL 2023), section 5.4 and figure 7. Claim: where the backdoor is hidden well, the [CLS]
vectors of triggered texts change less in the victim's own training than with plain poisoning, above all in the upper
layers.

For each text the cosine of the summary token's state before and after, at the embeddings and behind every layer: mean,
median and quartiles over the texts; once on the clean texts, once on the triggered ones of other labels than the
target.
*Before* is the first checkpoint, every other one is an *after*; with a single checkpoint the base is before.

Cost: a forward pass over both sets for every checkpoint. Holds the states of one checkpoint on the CPU beside the
first one's: texts * (layers + 1) * width numbers. Raises UsageError for checkpoints of other depth or width.

Where we differ:
- The summary token is the one whose last state the classifier reads: [CLS] of encoders, the last token of decoders.
- The figure shows triggered texts only; clean ones stand beside them, or a training that changed everything would look
  like one that changed the backdoor.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from purify_cli.analyses import Case
from purify_cli.architecture.table import base_of, family_of
from purify_cli.data.encode import by_length, collate, encode, length_limit, padding_id
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.results import Analysis
from purify_cli.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from purify_cli.subject import Evidence, Subject

SUMMARY = "what the summary token keeps from one checkpoint to the next, by layer (gradient control, figure 7)"
NEEDS: tuple[str, ...] = ("before",)


@dataclass(frozen=True)
class Settings:
    """Which texts are looked at."""

    texts: int = field(
        default=1000,
        metadata={"help": "of each file, at most, drawn at random", "range": ">= 1", "source": "ours"},
    )


def analyse(cases: Sequence[Case], evidence: Evidence, settings: Settings, run: Run) -> Analysis:
    """See the module's docstring.

    Args:
        cases: the checkpoints, the earliest first.
        evidence: its `base` is the earliest where there is one case only.
        settings: see there.
        run: device, batch size, length limit and the seed that places the triggers.
    """
    few = [case.sample(settings.texts, run.seed) for case in cases]
    sets = {"clean": few[0].test}
    attacked = few[0].attacked(run.seed)
    if attacked is not None:
        sets["triggered"] = attacked
    if len(cases) > 1:
        before, afters = cases[0].subject, [case.subject for case in cases[1:]]
    else:
        assert evidence.base is not None
        before, afters = evidence.base, [cases[0].subject]
    earlier = _states(before, sets, run)
    shown: list[dict[str, Any]] = []
    for after in afters:
        later = _states(after, sets, run)
        for name in sets:
            if earlier[name].shape != later[name].shape:
                raise UsageError(
                    after.spec,
                    f"has {later[name].shape[1] - 1} layers of width {later[name].shape[2]} where {before.spec} has "
                    f"{earlier[name].shape[1] - 1} of width {earlier[name].shape[2]}",
                    "Compare checkpoints of one architecture.",
                )
        shown.append({"path": after.spec} | {name: _over_texts(earlier[name], later[name]) for name in sets})
    rows = tuple(
        {"checkpoint": one["path"], "layer": _layer(depth)} | {name: one[name]["mean"][depth] for name in sets}
        for one in shown
        for depth in range(len(one["clean"]["mean"]))
    )
    data = {"before": before.spec, "n": {name: len(texts) for name, texts in sets.items()}, "after": shown}
    return Analysis("cls_similarity", f"cosine of the summary token's states to {before.spec}", rows, data)


def summary_states(model: Any, tokenizer: Any, texts: Texts, run: Run) -> Tensor:
    """The summary token's state at the embeddings and behind every layer, [texts, layers + 1, width] float32."""
    encoded = encode(tokenizer, texts.with_(labels=None), length_limit(tokenizer, model.config, run))
    last = family_of(base_of(model).config).summary == "last"
    filler = padding_id(tokenizer)
    found: list[Tensor] = []
    order: list[int] = []
    model.eval()
    with torch.inference_mode():
        for indices in by_length(encoded, run.batch_size):
            batch = {name: column.to(run.device) for name, column in collate(encoded, indices, filler).items()}
            states = torch.stack(model(**batch, output_hidden_states=True).hidden_states, dim=1)
            # states: [batch, depths, tokens, width]; soft prompts stand before the text.
            place = batch["attention_mask"].sum(1) - 1 + states.shape[2] - batch["input_ids"].shape[1]
            places = place if last else torch.zeros_like(place)
            found.append(states[torch.arange(len(indices), device=states.device), :, places].float().cpu())
            order.extend(indices)
            run.progress("cls_similarity", len(order), len(encoded))
    return torch.cat(found)[torch.tensor(order).argsort()]


def _states(subject: Subject, sets: dict[str, Texts], run: Run) -> dict[str, Tensor]:
    model = subject.open(run.device)
    return {name: summary_states(model, subject.tokenizer, texts, run) for name, texts in sets.items()}


def _over_texts(before: Tensor, after: Tensor) -> dict[str, list[float]]:
    cosine = torch.cosine_similarity(before.double(), after.double(), dim=-1)  # [texts, depths]
    quartiles = cosine.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64), dim=0)  # [3, depths]
    low, median, high = quartiles.tolist()
    return {"mean": cosine.mean(0).tolist(), "median": median, "low": low, "high": high}


def _layer(depth: int) -> str:
    return "embeddings" if depth == 0 else str(depth - 1)


def draw(analysis: Analysis, figure: Figure) -> None:
    """Mean cosine over the layers with its quartiles, clean and triggered, a panel a checkpoint."""
    shown: list[dict[str, Any]] = list(analysis.data["after"])
    figure.set_size_inches(max(4.5, 3.5 * len(shown)), 3.6)
    panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axes, one in zip(panels, shown, strict=True):
        for name, color in (("clean", "C0"), ("triggered", "C3")):
            if name in one:
                depths = range(len(one[name]["mean"]))
                axes.fill_between(depths, one[name]["low"], one[name]["high"], color=color, alpha=0.15, linewidth=0)
                axes.plot(depths, one[name]["mean"], color=color, marker="o", markersize=3, label=name)
        axes.set_xticks(range(len(one["clean"]["mean"])), ["E", *map(str, range(len(one["clean"]["mean"]) - 1))])
        axes.set_xlabel("layer (E: embeddings)")
        axes.set_title(one["path"], loc="left", fontsize=8)
    panels[0].set_ylabel("cosine of the summary token")
    panels[0].legend(frameon=False)
