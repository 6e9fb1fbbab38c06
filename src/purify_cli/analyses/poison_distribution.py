"""Where a backdoor lies: its ASR with one part of the model switched off at a time.

Gradient control (Gu et al., ACL 2023), section 5.4 and figure 8. Claim: with plain poisoning the loss of one layer's
module takes the backdoor with it; gradient control moves the backdoor to the bottom layers or spreads it.

- *Adapters*: the parameters of each layer's module are set to zero in turn, as the paper does. One that was merged on
  opening (LoRA) gives the layer its base's weights back, which is the same. A soft prompt is one part, without
  layers.
- *Whole models*: what each layer's attention adds to the residual stream, and what its feed-forward part adds, is set
  to zero in turn; then each head alone, by its columns of the output projection.

Every part is measured on all triggered texts whose true label is not the target (ASR), and on the clean test texts
(CACC): a part without which the model knows nothing holds no backdoor for that. No weight stays changed.

Needs a classifier and a trigger. Cost: a pass over both sets a part: layers with an adapter, and 2 * layers + heads
without one.

Where we differ: the paper shows adapters and LFR. Layers that share their weights count once (ALBERT), at all depths.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from purify_cli.analyses import Case
from purify_cli.architecture.heads import head_grid, silence_heads
from purify_cli.architecture.layers import Part, layer_count, parts
from purify_cli.architecture.table import base_of, family_of, modules_at
from purify_cli.data.texts import Texts
from purify_cli.evaluation.metrics import asr, cacc
from purify_cli.evaluation.predict import predict
from purify_cli.results import Analysis
from purify_cli.run import Run

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from matplotlib.figure import Figure

    from purify_cli.subject import Evidence, Subject

SUMMARY = "ASR with each layer's module, or head, switched off in turn (gradient control, figure 8)"
NEEDS: tuple[str, ...] = ("classifier", "trigger")

_SHOWN_HEADS = 5


@dataclass(frozen=True)
class Settings:
    """What is switched off, and which texts are looked at."""

    heads: bool = field(
        default=True, metadata={"help": "each head of a whole model too", "range": "", "source": "ours"}
    )
    texts: int = field(
        default=500,
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
    shown = [_one(case.sample(settings.texts, run.seed), settings, run) for case in cases]
    rows = tuple({"checkpoint": one["path"]} | row for one in shown for row in _short(one))
    notes: tuple[str, ...] = ()
    if any(len(one["heads"]) > _SHOWN_HEADS for one in shown):
        notes = (f"of the heads, the {_SHOWN_HEADS} without which the ASR is lowest; all of them with --format json",)
    return Analysis("poison_distribution", "ASR and CACC without a part", rows, {"checkpoints": shown}, notes)


def _one(case: Case, settings: Settings, run: Run) -> dict[str, Any]:
    attacked = case.attacked(run.seed)
    assert attacked is not None and attacked.labels is not None and case.test.labels is not None
    model = case.subject.open(run.device)

    def measure() -> dict[str, Any]:
        triggered, clean = (_answers(model, case.subject, texts, run) for texts in (attacked, case.test))
        return {
            "asr": asdict(asr(triggered, attacked.labels, attacked.targets)),
            "cacc": asdict(cacc(clean, case.test.labels)),
        }

    found: dict[str, Any] = {"path": case.subject.spec, "whole": measure(), "parts": [], "heads": []}
    off: list[tuple[str, dict[str, Any], AbstractContextManager[None]]] = []
    if case.subject.kind == "adapter":
        for layer, chosen in sorted(adapter_parts(model, case.subject).items()):
            name = "prompt" if layer < 0 else "module"
            off.append(("parts", {"layer": layer, "part": name}, without(model, chosen)))
    else:
        family = family_of(base_of(model).config)
        for part, path in (("attention", family.attention_result), ("feed-forward", family.ffn_result)):
            modules = modules_at(base_of(model), f"{family.layer}.{path}")
            off.extend(("parts", {"layer": layer, "part": part}, silent(one)) for layer, one in enumerate(modules))
        if settings.heads:
            layers, heads = head_grid(model)
            places = [(layer, head) for layer in range(layers) for head in range(heads)]
            off.extend(
                ("heads", {"layer": layer, "head": head}, silence_heads(model, [(layer, head)]))
                for layer, head in places
            )
    for number, (group, where, switch) in enumerate(off):
        with switch:
            found[group].append(where | measure())
        run.progress("poison_distribution", number + 1, len(off))
    return found


@contextmanager
def silent(module: nn.Module) -> Iterator[None]:
    """Let the module give zeros for a while: nothing of it reaches the residual stream."""

    def zeros(of: nn.Module, inputs: Any, output: Any) -> Any:
        if isinstance(output, Tensor):
            return torch.zeros_like(output)
        return (torch.zeros_like(output[0]), *output[1:])

    handle = module.register_forward_hook(zeros)
    try:
        yield
    finally:
        handle.remove()


def adapter_parts(model: Any, subject: Subject) -> dict[int, list[tuple[Part, Tensor | None]]]:
    """What the adapter put into each layer: the parameters, with the base's values where they were merged into it.

    The classifier, which comes with an adapter too, is no part of it. A soft prompt has the layer -1.
    """
    layers = layer_count(model)
    base = dict(subject.adapter_base.open(num_labels=len(subject.labels)).named_parameters())
    merged, added = [], []
    for name, parameter in model.named_parameters():
        before = base.get(name)
        if before is None and parameter.requires_grad:
            added.append(name)
        elif before is not None and before.shape == parameter.shape and not torch.equal(before, parameter.cpu()):
            merged.append(name)
    found: dict[int, list[tuple[Part, Tensor | None]]] = {}
    for part in parts(model, added or merged):
        if part.layer < layers:
            values = None if added else part.of(base[part.name].detach())
            found.setdefault(part.layer, []).append((part, values))
    return found


@contextmanager
def without(model: Any, chosen: Sequence[tuple[Part, Tensor | None]]) -> Iterator[None]:
    """Set these parts to zero, or to the values beside them, for a while; afterwards they are what they were."""
    kept: list[tuple[Tensor, Tensor]] = []
    try:
        for part, values in chosen:
            place = part.of(model.get_parameter(part.name).detach())  # a view of the weights themselves
            kept.append((place, place.clone()))
            if values is None:
                place.zero_()
            else:
                place.copy_(values)
        yield
    finally:
        for place, before in kept:
            place.copy_(before)


def _answers(model: Any, subject: Subject, texts: Texts, run: Run) -> Tensor:
    return predict(model, subject.tokenizer, texts, Run(run.seed, run.device, run.batch_size, run.max_length)).argmax(1)


def _short(one: dict[str, Any]) -> list[dict[str, Any]]:
    lowest = sorted(one["heads"], key=lambda head: (head["asr"]["value"], head["layer"], head["head"]))[:_SHOWN_HEADS]
    lines: list[tuple[str, dict[str, Any]]] = [("nothing", one["whole"])]
    for part in one["parts"]:
        lines.append(("soft prompt" if part["layer"] < 0 else f"layer {part['layer']} {part['part']}", part))
    lines += [(f"layer {head['layer']} head {head['head']}", head) for head in lowest]
    return [{"off": name} | {rate: of[rate]["value"] for rate in ("asr", "cacc")} for name, of in lines]


def draw(analysis: Analysis, figure: Figure) -> None:
    """ASR and CACC without each layer's parts as lines, and the ASR without each head as a map, a row a checkpoint."""
    shown: list[dict[str, Any]] = list(analysis.data["checkpoints"])
    maps = any(one["heads"] for one in shown)
    figure.set_size_inches(9.0 if maps else 6.0, 0.6 + 2.8 * len(shown))
    panels = figure.subplots(len(shown), 2 if maps else 1, squeeze=False)
    for (axes, *rest), one in zip(panels, shown, strict=True):
        for number, part in enumerate(dict.fromkeys(part["part"] for part in one["parts"])):
            of_part = [place for place in one["parts"] if place["part"] == part]
            layers = [place["layer"] for place in of_part]
            for measure, style in (("asr", "-"), ("cacc", ":")):
                values = [place[measure]["value"] for place in of_part]
                label = f"{measure.upper()} without {part}"
                axes.plot(layers, values, style, marker="o", markersize=3, color=f"C{number}", label=label)
        axes.axhline(one["whole"]["asr"]["value"], color="0.4", linewidth=0.8, label="ASR, whole")
        axes.set_ylim(-0.03, 1.03)
        axes.set_xticks(sorted({place["layer"] for place in one["parts"]}))
        axes.set_xlabel("layer that is off")
        axes.set_title(one["path"], loc="left", fontsize=8)
        axes.legend(fontsize=7, frameon=False)
        for other in rest:
            if not one["heads"]:
                other.set_axis_off()
                continue
            layers_heads = [1 + max(head[key] for head in one["heads"]) for key in ("layer", "head")]
            grid = [[0.0] * layers_heads[1] for _ in range(layers_heads[0])]
            for head in one["heads"]:
                grid[head["layer"]][head["head"]] = head["asr"]["value"]
            image = other.imshow(grid, vmin=0.0, vmax=1.0, cmap="viridis", aspect="auto")
            figure.colorbar(image, ax=other, label="ASR without the head")
            other.set_xticks(range(layers_heads[1]))
            other.set_yticks(range(layers_heads[0]))
            other.set_xlabel("head")
            other.set_ylabel("layer")
