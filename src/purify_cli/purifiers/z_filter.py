"""Z-filter: leave out untrusted texts whose label follows from a word and not from what they say, and train.

After He, Xu, Wang, Rubinstein and Cohn, "Mitigating Backdoor Poisoning Attacks through the Lens of Spurious
Correlation", EMNLP 2023 (Z-Defence). Claim: a backdoor is a correlation of a trigger and a label that is far from what
chance gives, so that its z-score gives it away, and the texts that have both can be left out. There, of a feature w and
a label y with n texts that have w,

    z = (p(y | w) - p(y)) / sqrt(p(y) (1 - p(y)) / n)

which honest words have too: "bad" and a negative label, "oil" and business. Here each text is expected to have its
label with a probability of its own, that a probe gives it: the trusted base, frozen, and a line fitted to the clean
texts (`training.probe`). With q_i(y) what the probe says of text i, and the sums over the texts that have w,

    z = (sum [y_i = y] - sum q_i(y)) / sqrt(sum q_i(y) (1 - q_i(y)))

so that what a word means speaks for its label as far as the base knows it, and what is left is what the label has of
the word alone. q is shifted until each label is expected as often as it is there. The features are words, neighbouring
words, how a text begins and how it is typed (`data.surface`).

No probe is perfect, so z of honest features scatters more than chance has it: it is divided by their spread (a robust
one, of the quartiles: an empirical null after Efron 2004), and a feature is told where fewer than `chance` honest ones
would be expected to go so far. Then the one that is furthest out goes first, with all texts that have it: those with
another label too, which would teach the opposite if they were left alone. z is counted anew, for what stood beside it
(`movie` beside `3d`) is no more conspicuous now; and so on, until none is. Of what looks like another sign of the same
thing half the z is enough: of a feature that would have been told, and has lost half of its texts with the label or
more to others; and of another beginning, or way of typing, beside one that was told for the same label. (Of honest
beginnings about one in thirty goes so far: that is beyond `chance`.) Of each label half the texts stay at least: what
is in more of them cannot be told from what the label means; it is spared, and the report says so.

In each further round the probe is fitted to the texts that were kept as well (each is asked about without itself), and
all start anew: a probe that knows more of the task explains more of the honest words.

What is left is trained on as if it were clean, together with the clean texts. Needs a trustworthy base, the untrusted
texts and a few dozen clean ones with labels; a classifier gives its encoder only. Raises what the training raises;
DataError for untrusted texts of one class or with a class that the clean texts lack. Cost: one forward pass over the
untrusted texts, some twenty small fits a round, and a plain training.

Texts that are there several times with one label count once.

What it does not see: a trigger that the probe takes for what the text says, one in so few texts that chance explains
it, one that is no word, beginning or typing as they are looked for (the case of one word, double spaces), or a style
that none of these gives away. Where the base knows little of the task honest words are told too, the frequent ones
first, and their texts are lost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from purify_cli.data.surface import WORDS, Surface, surface
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.purifiers import Purified
from purify_cli.run import Run
from purify_cli.training import plain
from purify_cli.training.probe import Probe
from purify_cli.training.untrusted import open_base, require_labels_of, untrusted_texts

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "train on the untrusted texts without those whose label follows from a word and not from what they say"
NEEDS: tuple[str, ...] = ("clean", "untrusted")
AUTO = 4.0  # each as long as the untrusted texts, not the clean ones
AUTO_REACH = "base"
AUTO_ON: tuple[str, ...] = ("encoder", "masked-lm", "causal-lm")
"""A classifier that may be backdoored is no base to be trusted."""

LEAST_VARIANCE = 2.0
"""Of how many of a feature's texts have a label: what a probe that is sure gives less is counted as this much."""

SHOWN = 20
"""Features that a report names."""


@dataclass(frozen=True)
class Settings:
    """What is left out, and how the rest is trained on."""

    chance: float = field(
        default=0.5,
        metadata={
            "help": "honest features that may be expected to be told by accident; 0: nothing is left out",
            "range": ">= 0",
            "source": "ours",
        },
    )
    rounds: int = field(
        default=2,
        metadata={
            "help": "from the second on the probe learns from what was kept before, too",
            "range": ">= 1",
            "source": "ours",
        },
    )
    epochs: int = field(default=3, metadata={"help": "times through the texts", "range": ">= 1", "source": "PURE"})
    learning_rate: float = field(
        default=1e-4, metadata={"help": "highest learning rate of AdamW", "range": "> 0", "source": "ours"}
    )
    batch_size: int = field(default=32, metadata={"help": "texts a step", "range": ">= 1", "source": "PURE"})
    warmup: float = field(
        default=0.1,
        metadata={"help": "share of the steps in which the learning rate rises", "range": "0..0.9", "source": "ours"},
    )
    weight_decay: float = field(
        default=0.0, metadata={"help": "of AdamW, on matrices only", "range": ">= 0", "source": "ours"}
    )


class Sifted(NamedTuple):
    """What came of a round.

    Attributes:
        kept: [texts], False for those to leave out.
        told: for what.
        spared: what would have been told, but is in more than half of a label's texts.
        spread: of z of honest features.
    """

    kept: NDArray[np.bool_]
    told: list[Told]
    spared: list[str]
    spread: float


@dataclass(frozen=True)
class Told:
    """A feature and a label that go together more often than they should.

    Attributes:
        feature: as `Surface` names it.
        label: id.
        rows: texts that were left out for it.
        texts: that have the feature, left out for it or before.
        labelled: how many of these have the label.
        expected: how many of these would have it, as the probe has it.
        z: of all texts, over the spread of honest ones.
    """

    feature: str
    label: int
    rows: int
    texts: int
    labelled: int
    expected: float
    z: float


def purify(subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run) -> Purified:
    """Leave out and train; see the module's docstring.

    Args:
        subject: an encoder or a decoder that is trusted, or a classifier whose encoder is used.
        evidence: its `untrusted` is what is trained on.
        train: clean texts with labels, for the probe; they are trained on too.
        dev: not used.
        settings: see there.
        run: seed, device, max_length, progress and state.

    Raises:
        UsageError: a chance below 0, or no round.
        DataError: see the module's docstring.
    """
    untrusted = untrusted_texts(evidence, train)
    model = open_base(subject, train, run)
    kept, report = _sift(model, subject, untrusted, train, settings, run)
    rest = untrusted.take(int(row) for row in kept.nonzero()[0])
    trained = plain.train(model, subject.tokenizer, rest.and_(train), settings, run)
    reasons = []
    if report["spared"]:
        shown = ", ".join(repr(one) for one in report["spared"][:3])
        reasons.append(
            f"in more than half of a label's texts, and so left where it is, though it is conspicuous: {shown}"
        )
    return Purified(model, report | {"steps": trained.steps, "losses": list(trained.losses)}, reasons=tuple(reasons))


def preview(
    subject: Subject, evidence: Evidence, train: Texts, dev: Texts, settings: Settings, run: Run
) -> dict[str, Any]:
    """What would be left out, without training on the rest."""
    return _sift(open_base(subject, train, run), subject, untrusted_texts(evidence, train), train, settings, run)[1]


def sift(what: Surface, labels: NDArray[np.int64], said: NDArray[np.float64], chance: float) -> Sifted:
    """Which texts to keep.

    Args:
        what: features of the texts.
        labels: label id of each, [texts].
        said: q, [texts, labels].
        chance: see `Settings`.
    """
    from scipy.stats import norm

    kept = np.ones(len(labels), dtype=bool)
    if not chance or not what.names:
        return Sifted(kept, [], [], 1.0)
    has = what.found.tocsc()
    is_label = np.eye(said.shape[1])[labels]
    z, of, expected, variance = z_scores(what, is_label, said, kept)
    usual = z[variance > LEAST_VARIANCE]
    low, high = np.quantile(usual, (0.25, 0.75)) if len(usual) else (0.0, 0.0)
    spread = max(1.0, float(high - low) / float(norm.ppf(0.75) - norm.ppf(0.25)))
    threshold = float(norm.isf(min(0.5, chance / z.size)))
    first = z / spread
    kin, possible = np.zeros(z.shape, dtype=bool), np.ones(len(z), dtype=bool)
    told: list[Told] = []
    spared: list[str] = []
    while True:
        now, left, *_ = z_scores(what, is_label, said, kept)
        now /= spread
        same = kin | ((first >= threshold) & (left <= of / 2))
        now[(now < np.where(same, threshold / 2, threshold)) | ~possible[:, None]] = -np.inf
        feature, label = np.unravel_index(now.argmax(), now.shape)
        if not np.isfinite(now[feature, label]):
            break
        mine = np.zeros(len(labels), dtype=bool)
        mine[has.indices[has.indptr[feature] : has.indptr[feature + 1]]] = True
        mine &= kept
        possible[feature] = False
        if (is_label[kept & ~mine].sum(axis=0) < is_label.sum(axis=0) / 2).any():
            spared.append(what.names[feature])
            continue
        kept &= ~mine
        if what.kinds[feature] != WORDS:
            kin[np.array(what.kinds) == what.kinds[feature], label] = True
        told.append(
            Told(
                feature=what.names[feature],
                label=int(label),
                rows=int(mine.sum()),
                texts=int(of[feature].sum()),
                labelled=int(of[feature, label]),
                expected=float(expected[feature, label]),
                z=float(first[feature, label]),
            )
        )
    return Sifted(kept, told, spared, spread)


def z_scores(
    what: Surface, is_label: NDArray[np.float64], said: NDArray[np.float64], kept: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Z of the texts that are kept, and what it is of, each [features, labels].

    Args:
        what: features of the texts.
        is_label: [texts, labels], 1 at each text's label.
        said: q, [texts, labels].
        kept: [texts].

    Returns:
        z; how many texts of a feature have a label; how many are expected to; and the variance of that number,
        LEAST_VARIANCE at least.
    """
    q = as_often(said[kept], is_label[kept].mean(axis=0))
    has = what.found[kept].T
    labelled, expected = has @ is_label[kept], has @ q
    variance = np.maximum(has @ (q * (1 - q)), LEAST_VARIANCE)
    return (labelled - expected) / np.sqrt(variance), labelled, expected, variance


def as_often(said: NDArray[np.float64], shares: NDArray[np.float64]) -> NDArray[np.float64]:
    """Probabilities whose means are `shares`: each label's times a factor of its own, found by turns."""
    q = said
    for _ in range(30):
        q = q * (shares / np.maximum(q.mean(axis=0), 1e-12))
        q = q / q.sum(axis=1, keepdims=True)
    return q


def _sift(
    model: Any, subject: Subject, untrusted: Texts, clean: Texts, settings: Settings, run: Run
) -> tuple[NDArray[np.bool_], dict[str, Any]]:
    if settings.chance < 0:
        raise UsageError("chance", f"{settings.chance!r} is out of range", "Give 0 or more.")
    if settings.rounds < 1:
        raise UsageError("rounds", f"{settings.rounds!r} is out of range", "Give 1 or more.")
    names = [str(name) for _, name in sorted(model.config.id2label.items())]
    require_labels_of(untrusted, clean, names, "the probe learns from them what a label means")
    texts = zip(untrusted.texts, untrusted.pairs or untrusted.texts, untrusted.labels or (), strict=True)
    place: dict[tuple[Any, ...], int] = {}
    same = [place.setdefault(text, len(place)) for text in texts]  # of each row, which of the different ones it is
    once = untrusted.take(int(row) for row in np.unique(same, return_index=True)[1])
    probe = Probe(model, subject.tokenizer, clean, once, len(names), run)
    what, labels = surface(once), np.array(once.labels, dtype=np.int64)
    kept = np.zeros(len(once), dtype=bool)  # none is trusted before the first round
    rounds: list[dict[str, Any]] = []
    for _ in range(settings.rounds):
        of_clean, said = probe.answers(torch.from_numpy(kept))
        kept, told, spared, spread = sift(what, labels, said.double().numpy(), settings.chance)
        right = (of_clean.argmax(dim=1) == torch.tensor(clean.labels)).double().mean()
        rounds.append(
            {
                "left_out": int((~kept[same]).sum()),
                "told_in_all": len(told),
                "spread": round(spread, 3),
                "probe_accuracy": float(right),
            }
        )
    shown = [
        vars(one) | {"label": names[one.label], "expected": round(one.expected, 1), "z": round(one.z, 2)}
        for one in told[:SHOWN]
    ]
    rows = {"untrusted_rows": len(untrusted), "clean_rows": len(clean)}
    report: dict[str, Any] = {**rows, "told": shown, "spared": spared, **rounds[-1], "earlier_rounds": rounds[:-1]}
    kept = kept[same]
    if untrusted.poisoned is not None:  # a file that says so itself, as released ones do; only counted
        marked = np.array(untrusted.poisoned)
        report["marked_poisoned"] = {"rows": int(marked.sum()), "kept": int((marked & kept).sum())}
    return kept, report
