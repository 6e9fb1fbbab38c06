"""How unevenly each head's summary token looks at the text: clean and triggered texts side by side.

PURE (Zhao, Xu, Yuan, ICML 2024): the variance over the keys of the attention that the summary token pays, by which PURE
prunes heads. Claim: heads that a backdoor uses pay even attention to clean texts and look at the trigger alone.

The score is PURE's (`evaluation.head_scores`), on the clean test texts and, if a trigger was given, on the triggered
ones of other labels than the target. Heads that are pruned, whose columns of the output projection are all zero, are
marked: their attention is computed and reaches nothing.

Cost: a forward pass over both sets. No full attention map is made.

Where we differ: PURE scores a fine-tuned copy on held-out texts, and clean ones only. Here the checkpoint is as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from purify_cli.analyses import Case
from purify_cli.architecture.heads import pruned_heads
from purify_cli.data.encode import encode, length_limit, padding_id
from purify_cli.evaluation.head_scores import head_scores
from purify_cli.results import Analysis
from purify_cli.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from purify_cli.subject import Evidence

SUMMARY = "variance of the summary token's attention by head, clean and triggered, pruned heads marked (PURE)"
NEEDS: tuple[str, ...] = ()


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
        cases: the checkpoints, each looked at on its own.
        evidence: not used.
        settings: see there.
        run: device, batch size, length limit and the seed that places the triggers.
    """
    shown = [_one(case.sample(settings.texts, run.seed), run) for case in cases]
    rows = tuple({"checkpoint": one["path"]} | row for one in shown for row in _short(one))
    title = "variance of the summary token's attention, mean over the heads that are not pruned"
    return Analysis("attention", title, rows, {"checkpoints": shown})


def _one(case: Case, run: Run) -> dict[str, Any]:
    model, tokenizer = case.subject.open(run.device), case.subject.tokenizer
    limit = length_limit(tokenizer, model.config, run)
    sets = {"clean": case.test, "triggered": case.attacked(run.seed)}
    found: dict[str, Any] = {"path": case.subject.spec, "pruned": [list(head) for head in pruned_heads(model)]}
    for name, texts in sets.items():
        if texts is not None:
            encoded = encode(tokenizer, texts.with_(labels=None), limit)
            found[name] = head_scores(model, encoded, padding_id(tokenizer), limit, run).tolist()  # [layers, heads]
            run.progress("attention", len(found) - 2, len(sets))
    return found


def _short(one: dict[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for layer in range(len(one["clean"])):
        pruned = [head for where, head in one["pruned"] if where == layer]
        row: dict[str, Any] = {"layer": layer}
        for name in ("clean", "triggered"):
            if name in one:
                kept = [score for head, score in enumerate(one[name][layer]) if head not in pruned]
                row[name] = sum(kept) / len(kept) if kept else None
        rows.append(row | {"pruned heads": " ".join(map(str, pruned)) or "none"})
    return rows


def draw(analysis: Analysis, figure: Figure) -> None:
    """A map of layers and heads for clean and for triggered texts, a row a checkpoint; pruned heads are crossed out."""
    shown: list[dict[str, Any]] = list(analysis.data["checkpoints"])
    names = [name for name in ("clean", "triggered") if any(name in one for one in shown)]
    figure.set_size_inches(4.2 * len(names), 0.6 + 2.8 * len(shown))
    for panels, one in zip(figure.subplots(len(shown), len(names), squeeze=False), shown, strict=True):
        highest = max(max(map(max, one[name])) for name in names)
        for axes, name in zip(panels, names, strict=True):
            image = axes.imshow(one[name], vmin=0.0, vmax=highest or 1.0, cmap="viridis", aspect="auto")
            if one["pruned"]:
                layers, heads = zip(*one["pruned"], strict=True)
                axes.scatter(heads, layers, marker="x", color="red", s=24)
            axes.set_title(f"{name}: {one['path']}", loc="left", fontsize=8)
            axes.set_xticks(range(len(one[name][0])))
            axes.set_yticks(range(len(one[name])))
            axes.set_xlabel("head")
            axes.set_ylabel("layer")
        figure.colorbar(image, ax=list(panels), label="attention variance")
