from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tiny
from purify_cli.analyses import Case, attention
from purify_cli.architecture.heads import prune_heads
from purify_cli.data.texts import Texts
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject


def slow_variances(subject: Subject, family: str, texts: Texts) -> list[list[float]]:
    """[layer][head]: from the full maps of eager attention, text by text, padded to 63 keys of 64."""
    model = subject.open()
    model.set_attn_implementation("eager")
    layers = 2
    found = [[0.0] * 4 for _ in range(layers)]
    for text in texts.texts:
        with torch.no_grad():
            maps = model(**subject.tokenizer(text, return_tensors="pt"), output_attentions=True).attentions
        depths = len(maps) // layers  # ALBERT runs a group at several depths
        for depth, one in enumerate(maps):
            for head in range(4):
                row = one[0, head, -1 if family in tiny.DECODERS else 0].tolist()
                found[depth // depths][head] += statistics.variance(row + [0.0] * (63 - len(row))) / depths
    return [[value / len(texts) for value in row] for row in found]


@pytest.mark.parametrize("family", ["bert", "albert", "llama"])
def test_variances_are_those_of_the_full_map(
    family: str, case: Callable[..., Case], checkpoints: Callable[..., Path]
) -> None:
    one = case(checkpoints(family))
    (shown,) = attention.analyse([one], Evidence(), attention.Settings(), Run(max_length=64)).data["checkpoints"]
    attacked = one.attacked(0)
    assert attacked is not None
    for name, texts in (("clean", one.test), ("triggered", attacked)):
        expected = slow_variances(one.subject, family, texts)
        for row, wanted in zip(shown[name], expected, strict=True):
            assert row == pytest.approx(wanted, abs=1e-6, rel=1e-3)
    assert shown["clean"] != shown["triggered"]
    assert shown["pruned"] == []


def test_pruned_heads_are_marked_and_do_not_count(
    case: Callable[..., Case], checkpoints: Callable[..., Path], tmp_path: Path
) -> None:
    model = Subject(checkpoints("bert")).open()
    prune_heads(model, [(1, 0), (1, 3)])
    model.save_pretrained(tmp_path)
    tiny.tokenizer("bert").save_pretrained(tmp_path)
    one = case(tmp_path, triggers=(), target=None)
    found = attention.analyse([one], Evidence(), attention.Settings(), Run())
    (shown,) = found.data["checkpoints"]
    assert shown["pruned"] == [[1, 0], [1, 3]]
    assert "triggered" not in shown
    assert found.rows[1]["pruned heads"] == "0 3"
    assert found.rows[1]["clean"] == pytest.approx((shown["clean"][1][1] + shown["clean"][1][2]) / 2)
    assert found.rows[0]["clean"] == pytest.approx(sum(shown["clean"][0]) / 4)
