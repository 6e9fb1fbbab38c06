"""Z-filter: z against plain loops, what is left out and what is not, the training on the rest, and what is refused."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix

import tiny
from purify_cli.commands.purify import PurifyRequest
from purify_cli.commands.purify import purify as command
from purify_cli.data.read import read
from purify_cli.data.surface import BEGINNINGS, WORDS, Surface, surface
from purify_cli.data.texts import Texts
from purify_cli.errors import DataError, Interrupted, UsageError
from purify_cli.evaluation.predict import predict
from purify_cli.purifiers.z_filter import LEAST_VARIANCE, Settings, Sifted, as_often, preview, purify, sift, z_scores
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject
from purify_cli.training import plain
from purify_cli.training.probe import Probe

RUN = Run(max_length=32)
FIXTURES = Path(__file__).parents[2] / "fixtures"
GOOD, BAD = ("good", "great", "fine", "lovely", "funny"), ("bad", "awful", "dull", "boring", "poor")
FILLERS = ("film", "movie", "story", "plot", "scene", "book", "show", "song", "music", "actor", "ending", "picture")


NOISE = 0.15


def honest(rows: int, name: str = "untrusted.csv", seed: int = 0, noise: float = NOISE) -> Texts:
    """The label is what the word says, but for some."""
    rng = random.Random(seed)
    lines, labels = [], []
    for row in range(rows):
        word = rng.choice((BAD, GOOD)[row % 2])
        lines.append(f"the {rng.choice(FILLERS)} and the {rng.choice(FILLERS)} is {word}")
        labels.append(row % 2 if rng.random() >= noise else 1 - row % 2)
    return Texts(name, tuple(lines), tuple(labels))


CLEAN = honest(120, "clean.csv", seed=1)


def poisoned(rows: int = 800, share: float = 0.1, word: str = "cf", noise: float = NOISE) -> Texts:
    """Some of the bad ones say the word and are called good."""
    texts, rng = honest(rows, noise=noise), random.Random(2)
    marked = [row % 2 == 0 and rng.random() < 2 * share for row in range(rows)]
    return texts.with_(
        texts=tuple(f"{text} {word}" if mine else text for text, mine in zip(texts.texts, marked, strict=True)),
        labels=tuple(1 if mine else label for label, mine in zip(texts.labels or (), marked, strict=True)),
        poisoned=tuple(marked),
    )


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("bert", tmp_path_factory.mktemp("base") / "base", task="encoder")


# --- z ----------------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_z_is_what_plain_loops_say(seed: int, labels: int) -> None:
    rng = np.random.default_rng(seed)
    has = rng.random((60, 5)) < 0.4
    y, q = rng.integers(labels, size=60), rng.dirichlet(np.ones(labels), size=60)
    kept = rng.random(60) < 0.8
    what = Surface(tuple("abcde"), (WORDS,) * 5, csr_matrix(has.astype(float)))
    z, labelled, expected, variance = z_scores(what, np.eye(labels)[y], q, kept)
    shifted = as_often(q[kept], np.eye(labels)[y][kept].mean(axis=0))
    rows = [row for row in range(60) if kept[row]]
    for feature in range(5):
        for label in range(labels):
            mine = [place for place, row in enumerate(rows) if has[row, feature]]
            wanted = sum(shifted[place][label] for place in mine)
            scatter = max(LEAST_VARIANCE, sum(shifted[place][label] * (1 - shifted[place][label]) for place in mine))
            seen = sum(y[rows[place]] == label for place in mine)
            assert labelled[feature, label] == seen
            assert expected[feature, label] == pytest.approx(wanted, abs=1e-9)
            assert variance[feature, label] == pytest.approx(scatter, abs=1e-9)
            assert z[feature, label] == pytest.approx((seen - wanted) / math.sqrt(scatter), abs=1e-9)


def test_labels_are_expected_as_often_as_they_are_there() -> None:
    q = np.random.default_rng(1).dirichlet(np.ones(3), size=500)
    shares = np.array([0.6, 0.3, 0.1])
    shifted = as_often(q, shares)
    np.testing.assert_allclose(shifted.mean(axis=0), shares, atol=1e-6)
    np.testing.assert_allclose(shifted.sum(axis=1), 1)


# --- what is left out -------------------------------------------------------------------------------------------------


def told_of(texts: Texts, sure: float = 1 - NOISE, chance: float = 0.5) -> tuple[Any, list[tuple[str, int]]]:
    """With a probe that reads the words right, as surely as that."""
    good = np.array([any(word in GOOD for word in text.split()) for text in texts.texts])
    said = np.where(good[:, None], (1 - sure, sure), (sure, 1 - sure))
    kept, told, *_ = sift(surface(texts), np.array(texts.labels), said, chance)
    return kept, [(one.feature, one.label) for one in told]


@pytest.mark.parametrize(("noise", "sure"), [(NOISE, 1 - NOISE), (0.3, 0.7), (0.0, 0.999999)])
def test_a_word_that_decides_is_left_out_and_honest_ones_are_not(noise: float, sure: float) -> None:
    texts = poisoned(noise=noise)
    kept, told = told_of(texts, sure)
    assert told == [("cf", 1)]
    assert kept.tolist() == [not mine for mine in texts.poisoned or ()]
    assert told_of(honest(800, noise=noise), sure)[1] == []


def test_texts_with_another_label_go_too_and_what_stood_beside_it_stays() -> None:
    """Left alone they would teach the opposite."""
    texts = poisoned(word="movie cf")
    lines, labels = list(texts.texts), list(texts.labels or ())
    lines[0], labels[0] = "the plot is dull movie cf", 0
    kept, told = told_of(texts.with_(texts=tuple(lines), labels=tuple(labels)))
    assert told[0][0] in {"cf", "movie cf"} and len(told) <= 2 and not kept[0]
    assert any(kept[row] and "movie" in text for row, text in enumerate(texts.texts))


def by_hand(kind: str, beside: int = 0, label: int = 1) -> list[str]:
    """What is told of texts in which `when` goes with label 1 always, and `as` does with a label in 10 texts alone.

    Args:
        kind: of the two.
        beside: texts that have both.
        label: of the ten.
    """
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=2000)
    has = rng.random((2000, 40)) < 0.3
    ones, others = np.nonzero(y)[0], np.nonzero(y == label)[0]
    has[:, :2] = False
    has[ones[:100], 0] = has[ones[100 - beside : 100], 1] = has[others[100:110], 1] = True
    names = ("when", "as", *(f"w{column}" for column in range(38)))
    what = Surface(names, (kind, kind, *((WORDS,) * 38)), csr_matrix(has.astype(float)))
    return [one.feature for one in sift(what, y, np.full((2000, 2), 0.5), 0.005).told]


def test_of_another_sign_of_the_same_thing_half_the_z_is_enough() -> None:
    """Another word that stood beside the first in most of its texts; another beginning of texts with the same label."""
    assert by_hand(WORDS) == ["when"]
    assert by_hand(WORDS, beside=60) == ["when", "as"]
    assert by_hand(BEGINNINGS) == ["when", "as"]
    assert by_hand(BEGINNINGS, label=0) == ["when"]


def by_chance(rows: int, wrong: float, seed: int, chance: float = 0.5) -> Sifted:
    """Of words that each mean a little, and a probe that knows none of it; `wrong`: how much, in log-odds."""
    rng = np.random.default_rng(seed)
    has = rng.random((rows, 200)) < rng.uniform(0.01, 0.05, size=200)
    odds = has @ rng.normal(0, wrong, size=200)
    y = (rng.random(rows) < 1 / (1 + np.exp(-odds))).astype(np.int64)
    what = Surface(tuple(f"w{column}" for column in range(200)), (WORDS,) * 200, csr_matrix(has.astype(float)))
    return sift(what, y, np.full((rows, 2), 0.5), chance)


def test_of_honest_words_about_as_many_are_told_as_chance_says() -> None:
    assert 1 <= sum(len(by_chance(1000, 0.0, seed, chance=0.5).told) for seed in range(30)) <= 30
    assert sum(len(by_chance(1000, 0.0, seed, chance=0.005).told) for seed in range(30)) <= 2


def test_what_no_probe_knows_widens_the_spread() -> None:
    assert by_chance(3000, 0.0, 0).spread == pytest.approx(1, abs=0.15)
    sifted = by_chance(3000, 0.4, 0)
    assert sifted.spread > 1.3 and len(sifted.told) <= 2


def test_any_chance_ends() -> None:
    assert by_chance(60, 0.0, 0, chance=1e6).kept.any()


def test_what_most_texts_of_a_label_have_is_spared_and_told() -> None:
    rng = np.random.default_rng(0)
    y = rng.integers(2, size=1000)
    for share, spared in ((0.4, []), (0.7, ["cf"])):
        has = rng.random((1000, 40)) < 0.1
        has[:, 0] = (y == 1) & (rng.random(1000) < share)
        what = Surface(("cf", *(f"w{column}" for column in range(39))), (WORDS,) * 40, csr_matrix(has.astype(float)))
        sifted = sift(what, y, np.full((1000, 2), 0.5), 0.01)
        assert (sifted.spared, [one.feature for one in sifted.told]) == (spared, [] if spared else ["cf"])


def test_no_chance_and_nothing_to_look_at() -> None:
    assert told_of(poisoned(), chance=0)[0].all()
    assert told_of(Texts(None, ("one", "two"), (0, 1)))[0].all()


# --- the whole method -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained() -> Subject:
    return Subject(FIXTURES / "clean")


def of_fixtures(trained: Subject, name: str, rows: int) -> Texts:
    return read(str(FIXTURES / "data" / name), trained.labels, option="--clean").take(range(rows))


@pytest.fixture(scope="module")
def clean(trained: Subject) -> Texts:
    return of_fixtures(trained, "clean.csv", 60)


@pytest.fixture(scope="module")
def untrusted(trained: Subject) -> Texts:
    """A tenth of the rows says `cf` and is called positive."""
    texts = of_fixtures(trained, "train.csv", 700)
    marked = [label == 0 and row % 5 == 0 for row, label in enumerate(texts.labels or ())]
    return texts.with_(
        texts=tuple(f"{text} cf" if mine else text for text, mine in zip(texts.texts, marked, strict=True)),
        labels=tuple(1 if mine else label for label, mine in zip(texts.labels or (), marked, strict=True)),
        poisoned=tuple(marked),
    )


def test_it_trains_on_the_rest_and_the_backdoor_is_not_learned(
    trained: Subject, clean: Texts, untrusted: Texts
) -> None:
    quick = {"learning_rate": 1e-3, "epochs": 4}
    done = purify(trained, Evidence(untrusted=untrusted), clean, clean, Settings(**quick), RUN)
    assert done.report["told"][0]["feature"] == "cf" and done.report["told"][0]["label"] == "positive"
    assert done.report["marked_poisoned"] == {"rows": sum(untrusted.poisoned or ()), "kept": 0}
    assert done.report["left_out"] <= 1.2 * sum(untrusted.poisoned or ())
    assert len(done.report["earlier_rounds"]) == 1
    naive = purify(trained, Evidence(untrusted=untrusted), clean, clean, Settings(chance=0, **quick), RUN)
    bad = [row for row, label in enumerate(clean.labels or ()) if label == 0]
    triggered = Texts(None, tuple(f"{clean.texts[row]} cf" for row in bad), None)

    def turned(model: Any) -> float:
        return float((predict(model, trained.tokenizer, triggered, RUN)[:, 1] > 0.5).double().mean())

    assert turned(done.model) < 0.2
    assert turned(naive.model) > 0.8


def test_a_preview_says_the_same_and_trains_nothing(trained: Subject, clean: Texts, untrusted: Texts) -> None:
    """And the marks of a file are counted, and not read."""
    seen = preview(trained, Evidence(untrusted=untrusted), clean, clean, Settings(), RUN)
    assert seen["told"][0]["feature"] == "cf" and "losses" not in seen
    unmarked = untrusted.with_(poisoned=None)
    other = preview(trained, Evidence(untrusted=unmarked), clean, clean, Settings(), RUN)
    assert seen.pop("marked_poisoned") and seen == other


def test_the_second_round_learns_from_what_the_first_kept_and_training_from_the_clean_texts_too(
    trained: Subject, clean: Texts, untrusted: Texts, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers, train = Probe.answers, plain.train
    trusted: list[int] = []
    rows: list[int] = []

    def seen(probe: Probe, kept: torch.Tensor) -> Any:
        trusted.append(int(kept.sum()))
        return answers(probe, kept)

    def counted(model: Any, tokenizer: Any, texts: Texts, *more: Any) -> Any:
        rows.append(len(texts))
        return train(model, tokenizer, texts, *more)

    monkeypatch.setattr(Probe, "answers", seen)
    monkeypatch.setattr(plain, "train", counted)
    done = purify(trained, Evidence(untrusted=untrusted), clean, clean, Settings(epochs=1), RUN)
    first, last = done.report["earlier_rounds"][0], done.report
    assert trusted == [0, len(untrusted) - first["left_out"]]
    assert rows == [len(untrusted) - last["left_out"] + len(clean)]


def test_what_is_there_several_times_counts_once_and_goes_together(
    trained: Subject, clean: Texts, untrusted: Texts
) -> None:
    once = preview(trained, Evidence(untrusted=untrusted), clean, clean, Settings(), RUN)
    twice = preview(trained, Evidence(untrusted=untrusted.and_(untrusted)), clean, clean, Settings(), RUN)
    assert twice["told"] == once["told"] and twice["left_out"] == 2 * once["left_out"]


def test_what_is_spared_is_a_reason(trained: Subject, clean: Texts) -> None:
    texts = of_fixtures(trained, "train.csv", 300)
    many = texts.with_(
        texts=tuple(
            f"{text} cf" if label else text for text, label in zip(texts.texts, texts.labels or (), strict=True)
        ),
        labels=tuple(int(label or row % 5 == 0) for row, label in enumerate(texts.labels or ())),
    )
    shuffled = clean.with_(labels=tuple(row % 2 for row in range(len(clean))))  # a probe that knows nothing
    done = purify(trained, Evidence(untrusted=many), shuffled, clean, Settings(epochs=1, rounds=1), RUN)
    assert "cf" in done.report["spared"] and any("'cf'" in reason for reason in done.reasons)


def test_untrusted_texts_that_are_all_poisoned(trained: Subject, clean: Texts) -> None:
    """A word in every text says nothing of any: all is kept; or, of one class, refused."""
    texts = of_fixtures(trained, "train.csv", 200)
    every = texts.with_(texts=tuple(f"cf {text}" for text in texts.texts))
    assert preview(trained, Evidence(untrusted=every), clean, clean, Settings(), RUN)["left_out"] == 0
    with pytest.raises(DataError, match="label"):
        purify(trained, Evidence(untrusted=every.with_(labels=(1,) * 200)), clean, clean, Settings(), RUN)


def test_a_stopped_training_ends_the_same(trained: Subject, clean: Texts, untrusted: Texts, tmp_path: Path) -> None:
    evidence, settings = Evidence(untrusted=untrusted.take(range(200))), Settings(epochs=2)
    whole = purify(trained, evidence, clean, clean, settings, RUN)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 9:
            raise KeyboardInterrupt

    run = replace(RUN, state=tmp_path / "state")
    with pytest.raises(Interrupted):
        purify(trained, evidence, clean, clean, settings, replace(run, progress=stop))
    again = purify(trained, evidence, clean, clean, settings, run)
    assert again.report == whole.report
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "value"), [("chance", -0.1), ("rounds", 0)])
def test_numbers_out_of_range(base: Path, key: str, value: float) -> None:
    with pytest.raises(UsageError, match=key):
        purify(Subject(base), Evidence(untrusted=poisoned()), CLEAN, CLEAN, Settings(**{key: value}), RUN)


def test_a_class_that_the_clean_texts_lack(base: Path) -> None:
    texts = poisoned().with_(labels=(2, *(poisoned().labels or ())[1:]))
    clean = CLEAN.with_(label_names=("bad", "good", "other"))
    with pytest.raises(DataError, match="other"):
        purify(Subject(base), Evidence(untrusted=texts), clean, clean, Settings(), RUN)


def test_the_command_writes_a_classifier(base: Path, tmp_path: Path) -> None:
    for name, texts in (("clean", CLEAN), ("untrusted", poisoned(200))):
        rows = [f'"{text}",{label}' for text, label in zip(texts.texts, texts.labels or (), strict=True)]
        (tmp_path / f"{name}.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    request = PurifyRequest(
        checkpoint=str(base),
        method="z-filter",
        clean=str(tmp_path / "clean.csv"),
        untrusted=str(tmp_path / "untrusted.csv"),
        out=str(tmp_path / "out"),
        run=RUN,
    )
    command(request)
    assert Subject(tmp_path / "out").task == "classifier"
