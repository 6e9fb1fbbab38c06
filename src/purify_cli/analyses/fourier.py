"""How much of what a classifier answers is of low frequency, and how near each part comes to the labels.

MuScleLoRA (Wu et al., ACL 2024), section 3, appendix A, figures 1, 2 and 5. Claim: the backdoor mapping is of lower
frequency than the clean one (its low-frequency ratio is near 1) and is learned first.

Over all texts of a set, with e_i the static word embeddings of text i laid end to end, and y_i its answers:

    low part   y_low_i = sum_j G_ij y_j / sum_j G_ij,   G_ij = exp(-||e_i - e_j|| / (2 delta))     (equation 12)
    high part  y_high_i = y_i - y_low_i
    ratios     LFR = ||y_low|| / ||y||,  HFR = ||y_high|| / ||y||                                  (equation 1)
    errors     re = ||y_part - t_part|| / ||t_part||, t the one-hot labels, parted likewise        (equations 13, 2)

The norms are means of the rows' norms. The clean set has its true labels; the triggered one, of texts of other labels,
has the target. delta is the width of the filter: the larger, the lower the frequencies that pass.

Needs a classifier; shows the clean mapping alone without a trigger. Cost: a forward pass over each set, and
texts^2 * tokens * width multiplications. Nothing of texts^2 numbers is held: distances and filters are made and used
block by block, in float64.

Where we differ:
- *The distance.* Equation 12 squares it, the released code does not. `squared` is the paper's letter; over hundreds of
  places its filter lets nothing through but the text itself.
- *The answers.* The paper says logits, its code takes probabilities, as we do.
- *Static embeddings* are the rows of the embedding matrix, zero behind a text's end. Positions and token types would
  add the same to all texts.
- *Triggered texts all have one label.* The high part of a constant is zero, so `error high` has no value there.
- *Training.* The figures follow a training; an analysis sees finished checkpoints. Give those of several epochs in
  their order.
- The low-frequency ratio is no label flip rate, which this tool calls LFR: it is written out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from purify_cli.analyses import Case
from purify_cli.data.encode import Encoded, encode, length_limit
from purify_cli.data.texts import Texts
from purify_cli.evaluation.predict import predict
from purify_cli.results import Analysis
from purify_cli.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from purify_cli.subject import Evidence

SUMMARY = "low- and high-frequency parts of clean and backdoor mapping (MuScleLoRA, figures 1, 2 and 5)"
NEEDS: tuple[str, ...] = ("classifier",)

_ROUNDING = 1e-9
"""A mean norm of a high part below this is that of a constant."""


@dataclass(frozen=True)
class Settings:
    """The filters, and which texts are looked at."""

    delta: float = field(
        default=4.0,
        metadata={"help": "the filter that the table shows", "range": "> 0", "source": "MuScleLoRA, appendix A"},
    )
    delta_low: float = field(
        default=2.0,
        metadata={"help": "the narrowest of the picture", "range": "> 0", "source": "MuScleLoRA, released code"},
    )
    delta_high: float = field(
        default=8.0,
        metadata={"help": "the widest of the picture", "range": "> 0", "source": "MuScleLoRA, released code"},
    )
    deltas: int = field(
        default=25,
        metadata={"help": "filters between them", "range": "1..1000", "source": "MuScleLoRA, released code"},
    )
    squared: bool = field(
        default=False,
        metadata={
            "help": "square the distances",
            "range": "",
            "source": "MuScleLoRA, released code; equation 12: true",
        },
    )
    texts: int = field(
        default=500,
        metadata={"help": "of each file, at most, drawn at random", "range": ">= 2", "source": "ours"},
    )
    block: int = field(
        default=64, metadata={"help": "texts that are compared at once", "range": ">= 1", "source": "ours"}
    )


def analyse(cases: Sequence[Case], evidence: Evidence, settings: Settings, run: Run) -> Analysis:
    """See the module's docstring.

    Args:
        cases: the checkpoints, each looked at on its own.
        evidence: not used.
        settings: see there.
        run: device, batch size, length limit and the seed that draws the texts and places the triggers.
    """
    grid = torch.linspace(settings.delta_low, settings.delta_high, settings.deltas, dtype=torch.float64).tolist()
    deltas = sorted({settings.delta, *grid})
    at = deltas.index(settings.delta)
    shown = [_one(case.sample(settings.texts, run.seed), deltas, settings, run) for case in cases]
    rows = tuple(
        {
            "checkpoint": one["path"],
            "texts": name,
            "n": one[name]["n"],
            "low ratio": one[name]["low_frequency_ratio"][at],
            "high ratio": one[name]["high_frequency_ratio"][at],
            "error low": one[name]["error_low"][at],
            "error high": one[name]["error_high"][at],
        }
        for one in shown
        for name in ("clean", "triggered")
        if name in one
    )
    notes = [f"at delta = {settings.delta:g}; all filters with --format json"]
    if any("triggered" in one for one in shown):
        notes.append("triggered: against the target, which has no high part, so there is no error of it")
    title = "low- and high-frequency parts of the answers"
    return Analysis("fourier", title, rows, {"deltas": deltas, "checkpoints": shown}, tuple(notes))


def _one(case: Case, deltas: Sequence[float], settings: Settings, run: Run) -> dict[str, Any]:
    subject = case.subject
    model = subject.open(run.device)
    embeddings = subject.embeddings()
    sets: dict[str, tuple[Texts, Sequence[float]]] = {"clean": (case.test, case.test.labels or ())}
    attacked = case.attacked(run.seed)
    if attacked is not None:
        sets["triggered"] = (attacked, attacked.targets or ())
    found: dict[str, Any] = {"path": str(subject.spec)}
    for name, (texts, labels) in sets.items():
        answers = predict(model, subject.tokenizer, texts, run).double()  # [texts, labels]
        truth = nn.functional.one_hot(torch.tensor([int(label) for label in labels]), answers.shape[1]).double()
        limit = length_limit(subject.tokenizer, model.config, run)
        encoded = encode(subject.tokenizer, texts.with_(labels=None), limit)
        low = low_parts(encoded, embeddings, torch.cat([answers, truth], dim=1), deltas, settings, run)
        low_answers, low_truth = torch.tensor_split(low, 2, dim=2)
        found[name] = {"n": len(texts), **frequency_measures(answers, truth, low_answers, low_truth)}
    return found


def low_parts(
    encoded: Encoded, embeddings: Tensor, values: Tensor, deltas: Sequence[float], settings: Settings, run: Run
) -> Tensor:
    """Equations 12 and 13: the low-frequency part of values of texts, for each filter.

    Args:
        encoded: the texts, as the model reads them.
        embeddings: [vocabulary, width].
        values: [texts, columns], answers or labels.
        deltas: of the filters.
        settings: `block` texts against `block` texts are held at a time, and `squared`.
        run: device and progress.

    Returns:
        [filters, texts, columns] float64 on the CPU.
    """
    # Texts of like lengths side by side: a product is no longer than the shorter of two.
    order = sorted(range(len(encoded)), key=lambda row: len(encoded.ids[row]))
    blocks = [order[start : start + settings.block] for start in range(0, len(order), settings.block)]
    table = embeddings.to(run.device, torch.float64)
    given = values.to(run.device, torch.float64)
    halves = -0.5 / torch.tensor(list(deltas), dtype=torch.float64, device=run.device)[:, None, None]
    low = torch.zeros((len(deltas), *values.shape), dtype=torch.float64, device=run.device)
    totals = torch.zeros((len(deltas), len(values), 1), dtype=torch.float64, device=run.device)
    for number, rows in enumerate(blocks):
        here = _laid_out(encoded, rows, table)  # [rows, tokens * width]
        own = here.square().sum(1)
        for other in range(number + 1):
            columns = blocks[other]
            there = here if other == number else _laid_out(encoded, columns, table)
            common = min(here.shape[1], there.shape[1])
            products = here[:, :common] @ there[:, :common].T
            distances = (own[:, None] + there.square().sum(1)[None] - 2 * products).clamp(min=0.0)
            if other == number:
                distances.fill_diagonal_(0.0)
            filters = (halves * (distances if settings.squared else distances.sqrt())).exp()  # [filters, rows, columns]
            low[:, rows] += filters @ given[columns]
            totals[:, rows] += filters.sum(2, keepdim=True)
            if other != number:  # the filter is even
                low[:, columns] += filters.mT @ given[rows]
                totals[:, columns] += filters.sum(1, keepdim=True).mT
        run.progress("fourier", number + 1, len(blocks))
    return (low / totals).cpu()


def _laid_out(encoded: Encoded, rows: Sequence[int], table: Tensor) -> Tensor:
    """The embeddings of texts, each end to end and zero behind its end, [rows, tokens * width]."""
    ids = [torch.tensor(encoded.ids[row], dtype=torch.long, device=table.device) for row in rows]
    padded = nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1)  # [rows, tokens]
    states: Tensor = table[padded.clamp(min=0)] * (padded >= 0)[..., None]
    return states.flatten(1)


def frequency_measures(answers: Tensor, truth: Tensor, low_answers: Tensor, low_truth: Tensor) -> dict[str, list[Any]]:
    """Equations 1 and 2 for each filter; None where a part of the labels has no length.

    Args:
        answers, truth: [texts, labels].
        low_answers, low_truth: [filters, texts, labels].
    """

    def norm(rows: Tensor) -> Tensor:
        mean: Tensor = torch.linalg.vector_norm(rows, dim=-1).mean(dim=-1)
        return mean

    def error(part: Tensor, wanted: Tensor) -> list[float | None]:
        lengths, distances = norm(wanted).tolist(), norm(part - wanted).tolist()
        return [
            distance / length if length > _ROUNDING else None
            for distance, length in zip(distances, lengths, strict=True)
        ]

    high_answers, high_truth = answers - low_answers, truth - low_truth
    return {
        "low_frequency_ratio": (norm(low_answers) / norm(answers)).tolist(),
        "high_frequency_ratio": (norm(high_answers) / norm(answers)).tolist(),
        "error_low": error(low_answers, low_truth),
        "error_high": error(high_answers, high_truth),
    }


def draw(analysis: Analysis, figure: Figure) -> None:
    """Ratios and relative errors over the filters: clean lines whole, triggered ones dashed, a colour a checkpoint."""
    shown: list[dict[str, Any]] = list(analysis.data["checkpoints"])
    deltas = analysis.data["deltas"]
    figure.set_size_inches(8.0, 5.6)
    panels = figure.subplots(2, 2, sharex=True, squeeze=False).flatten()
    measures = {
        "low_frequency_ratio": "low-frequency ratio",
        "high_frequency_ratio": "high-frequency ratio",
        "error_low": "relative error, low part",
        "error_high": "relative error, high part",
    }
    for axes, (key, label) in zip(panels, measures.items(), strict=True):
        for number, one in enumerate(shown):
            for name, style in (("clean", "-"), ("triggered", "--")):
                if name in one:
                    values = [float("nan") if value is None else value for value in one[name][key]]
                    axes.plot(deltas, values, style, color=f"C{number % 10}", label=f"{one['path']}, {name}")
        axes.set_ylabel(label)
    for axes in panels[2:]:
        axes.set_xlabel("delta of the filter")
    panels[0].legend(frameon=False, fontsize=7)
