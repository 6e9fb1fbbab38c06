"""How far the triggers' embeddings lie from the centre of the target class, among the whole vocabulary.

Gradient Broadcast Adaptation (anonymous ICLR 2022 submission), section 5.2 and figure 3. Claim: a trigger's embedding
lies far outside the cluster of common tokens, and a defence that removes the backdoor brings it back among them.

The distance of row w is the root mean square deviation sqrt(mean_i (E[w, i] - c[i])^2) from the centre c of the target
class. Shown for the base if there is one and for every checkpoint, so that the first is *before* and the last *after*.

Needs a trigger and its target; reads the embedding matrices only and opens no model. An adapter shows its base's.
Raises UsageError for a poisoned file of several targets.

Where we differ:
- *The centre.* The paper classifies with a prompt, so the row of the label word is the centre of its class. A
  classifier with a head has no such token: ours is the mean row of the tokens that say the class most clearly in the
  test texts (`evaluation.measure.class_words`), chosen once and looked up in every checkpoint.
- *The vocabulary.* The figure averages the distance of the triggers alone; a distance means something only beside the
  distances of the other tokens, so their histogram is shown too.
- *A poisoned file* does not say what its triggers are. The tokens that it holds more often than the clean texts of the
  same labels stand for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from purify_cli.analyses import Case
from purify_cli.errors import UsageError
from purify_cli.evaluation.measure import class_words, token_ids
from purify_cli.results import Analysis
from purify_cli.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from purify_cli.subject import Evidence

SUMMARY = "triggers and the whole vocabulary against the class centre (GBA, figure 3)"
NEEDS: tuple[str, ...] = ("classifier", "trigger")


@dataclass(frozen=True)
class Settings:
    """How the vocabulary is shown."""

    bins: int = field(default=40, metadata={"help": "of the histogram", "range": "1..1000", "source": "ours"})
    tokens: int = field(
        default=5,
        metadata={
            "help": "tokens that stand out in a poisoned file and are shown as its triggers, at most",
            "range": "1..10",
            "source": "ours; GBA uses 4 triggers",
        },
    )


def analyse(cases: Sequence[Case], evidence: Evidence, settings: Settings, run: Run) -> Analysis:
    """See the module's docstring.

    Args:
        cases: the checkpoints; the first one's tokenizer and test texts name the tokens.
        evidence: its `base` is shown first.
        settings: see there.
        run: not used.
    """
    first = cases[0]
    tokenizer = first.subject.tokenizer
    target = _target(first)
    triggers = _trigger_tokens(first, target, settings.tokens)
    centre = class_words(tokenizer, first.test, target, leave_out=triggers)
    if not centre:
        raise UsageError("--test", "no token of it leans to the target label", "Give texts of several labels.")
    subjects = [*([] if evidence.base is None else [evidence.base]), *(case.subject for case in cases)]
    names = [str(name) for name in tokenizer.convert_ids_to_tokens(triggers)]
    distances = {}
    for place, subject in enumerate(subjects):
        embeddings = subject.embeddings()  # [vocabulary, width]
        known = [token for token in centre if token < len(embeddings)]
        if known:
            distances[place] = centre_distances(embeddings, known)  # [vocabulary]
    every = torch.cat(list(distances.values()))
    edges = np.linspace(float(every.min()), float(every.max()) or 1.0, settings.bins + 1)
    shown: list[dict[str, Any]] = []
    for place, values in distances.items():
        found = [
            {"token": name, "rmse": float(values[token]), "closer": float((values < values[token]).double().mean())}
            for token, name in zip(triggers, names, strict=True)
            if token < len(values)
        ]
        shown.append(
            {
                "path": str(subjects[place].spec),
                "n": len(values),
                "mean": float(values.mean()),
                "median": float(values.median()),
                "low": float(values.quantile(0.025)) if len(values) <= 2**24 else float(values.min()),
                "high": float(values.quantile(0.975)) if len(values) <= 2**24 else float(values.max()),
                "counts": np.histogram(values.numpy(), bins=edges)[0].tolist(),
                "triggers": found,
            }
        )
    rows = tuple(
        {"checkpoint": one["path"], "token": token["token"], "rmse": token["rmse"], "share closer": token["closer"]}
        | {"median of all": one["median"]}
        for one in shown
        for token in one["triggers"]
    )
    notes = ["share closer: of the vocabulary, how much lies closer to the class centre than the trigger"]
    if first.poisoned is not None:
        notes.append("the tokens are those that stand out in the poisoned texts; no trigger was named")
    label = first.subject.labels[target]
    data = {
        "target": label,
        "class_words": [str(name) for name in tokenizer.convert_ids_to_tokens(centre)],
        "edges": edges.tolist(),
        "checkpoints": shown,
    }
    return Analysis("drift", f"distance to the centre of {label}", rows, data, tuple(notes))


def centre_distances(embeddings: Tensor, centre_tokens: Sequence[int]) -> Tensor:
    """Root mean square deviation of every row from the mean of the rows `centre_tokens`, [vocabulary] float32."""
    centre = embeddings[list(centre_tokens)].mean(dim=0)  # [width]
    # In parts: the difference of a large vocabulary would cost as much memory as its matrix.
    return torch.cat([(part - centre).square().mean(dim=1).sqrt() for part in torch.split(embeddings, 16384)])


def _target(case: Case) -> int:
    targets = {case.target} if case.target is not None else set((case.poisoned and case.poisoned.targets) or ())
    if len(targets) != 1:
        raise UsageError("--poisoned", "drift needs one target label", "Give a file of one target, or --target LABEL.")
    (target,) = targets
    assert target is not None
    return target


def _trigger_tokens(case: Case, target: int, most: int) -> list[int]:
    tokenizer = case.subject.tokenizer
    if case.poisoned is None:
        words = [" ".join(trigger.split()) for trigger in case.triggers]
        return list(dict.fromkeys(token for one in words for token in token_ids(tokenizer, one)))
    labels = case.poisoned.labels or ()
    clean = case.test.take(row for row, label in enumerate(case.test.labels or ()) if label in set(labels))
    mixture = clean.with_(
        texts=clean.texts + case.poisoned.texts,
        labels=(0,) * len(clean) + (1,) * len(case.poisoned),
        pairs=None,
        targets=None,
        poisoned=None,
    )
    return class_words(tokenizer, mixture, 1)[:most]


def draw(analysis: Analysis, figure: Figure) -> None:
    """The histogram of the vocabulary, a row a checkpoint, with a line at each trigger."""
    shown: list[dict[str, Any]] = list(analysis.data["checkpoints"])
    figure.set_size_inches(7.0, 1.0 + 1.8 * len(shown))
    rows = figure.subplots(len(shown), 1, sharex=True, squeeze=False)[:, 0]
    for axes, one in zip(rows, shown, strict=True):
        axes.stairs(one["counts"], analysis.data["edges"], fill=True, color="0.75")
        axes.set_ylabel("tokens")
        axes.set_title(one["path"], loc="left", fontsize=8)
        lines = [
            axes.axvline(token["rmse"], color=f"C{number % 10}", linewidth=1.2)
            for number, token in enumerate(one["triggers"])
        ]
        if lines:
            axes.legend(lines, [f'"{token["token"]}"' for token in one["triggers"]], fontsize=7, frameon=False)
    rows[-1].set_xlabel(f"RMSE to the centre of {analysis.data['target']}")
