from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tiny
from purify_cli.analyses import Case, cls_similarity
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject

SETTINGS = cls_similarity.Settings()


def slow_states(place: Path, family: str, texts: Texts) -> list[list[list[float]]]:
    """Text by text without padding: [text][depth][width]."""
    model, tokens = Subject(place).open(), Subject(place).tokenizer
    found = []
    for text in texts.texts:
        with torch.no_grad():
            states = model(**tokens(text, return_tensors="pt"), output_hidden_states=True).hidden_states
        place_of = -1 if family in tiny.DECODERS else 0
        found.append([one[0, place_of].tolist() for one in states])
    return found


def slow_cosine(left: list[float], right: list[float]) -> float:
    inner = sum(a * b for a, b in zip(left, right, strict=True))
    return inner / math.sqrt(sum(a * a for a in left)) / math.sqrt(sum(b * b for b in right))


@pytest.mark.parametrize("family", ["bert", "albert", "deberta-v2", "llama"])
def test_cosines_are_those_of_a_plain_loop(
    family: str, case: Callable[..., Case], checkpoints: Callable[..., Path]
) -> None:
    before, after = case(checkpoints(family)), case(checkpoints(family, seed=1))
    found = cls_similarity.analyse([before, after], Evidence(), SETTINGS, Run(batch_size=4))
    attacked = before.attacked(0)
    assert attacked is not None
    (shown,) = found.data["after"]
    assert found.data["n"] == {"clean": 6, "triggered": 6}
    for name, texts in (("clean", before.test), ("triggered", attacked)):
        pair = [slow_states(checkpoints(family, seed=seed), family, texts) for seed in (0, 1)]
        for depth, mean in enumerate(shown[name]["mean"]):
            slow = [slow_cosine(one[depth], two[depth]) for one, two in zip(*pair, strict=True)]
            assert mean == pytest.approx(sum(slow) / len(slow), abs=1e-5)
            assert shown[name]["median"][depth] == pytest.approx(statistics.median(slow), abs=1e-5)
            assert shown[name]["low"][depth] <= shown[name]["high"][depth]
    assert len(found.rows) == len(shown["clean"]["mean"]) == (5 if family == "albert" else 3)


def test_a_checkpoint_is_like_itself_and_the_base_comes_before(
    case: Callable[..., Case], checkpoints: Callable[..., Path]
) -> None:
    one = case(checkpoints("bert"), triggers=(), target=None)
    found = cls_similarity.analyse([one], Evidence(base=Subject(checkpoints("bert"))), SETTINGS, Run())
    (shown,) = found.data["after"]
    assert shown["clean"]["low"] == pytest.approx([1, 1, 1])
    assert "triggered" not in shown


@pytest.mark.parametrize("form", ["sequential", "prefix", "prompt"])
def test_adapters_have_states_too(
    form: str, case: Callable[..., Case], checkpoints: Callable[..., Path], adapters: Callable[..., Path]
) -> None:
    cases = [case(checkpoints("bert")), case(adapters("bert", form))]
    (shown,) = cls_similarity.analyse(cases, Evidence(), SETTINGS, Run()).data["after"]
    assert len(shown["clean"]["mean"]) == 3
    assert shown["clean"]["mean"][2] < 0.999


def test_other_shapes_cannot_be_compared(case: Callable[..., Case], checkpoints: Callable[..., Path]) -> None:
    other = case(checkpoints("bert", num_hidden_layers=3))
    with pytest.raises(UsageError, match="3 layers of width 32"):
        cls_similarity.analyse([case(checkpoints("bert")), other], Evidence(), SETTINGS, Run())
