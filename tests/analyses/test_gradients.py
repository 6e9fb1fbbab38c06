from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from purify_cli.analyses import Case, gradients
from purify_cli.data.encode import encode, shuffled
from purify_cli.data.texts import Texts
from purify_cli.run import Run
from purify_cli.subject import Evidence

_LAYER = re.compile(r"\.(?:layer|layers|h|albert_layer_groups)\.(\d)\.")


def slow_gradients(model: Any, tokens: Any, texts: Texts) -> dict[str, list[float]]:
    """Layer by name -> every number of its gradient, by `backward` and the parameters' names."""
    model.zero_grad()
    logits = model(**tokens(list(texts.texts), padding=True, return_tensors="pt")).logits
    functional.cross_entropy(logits, torch.tensor(texts.labels)).backward()
    found: dict[str, list[float]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is None or not parameter.requires_grad:
            continue
        layer = _LAYER.search(name)
        where = layer[1] if layer else "embeddings" if re.search(r"embed|wte|wpe|prompt_encoder", name) else "output"
        found.setdefault(where, []).extend(parameter.grad.flatten().tolist())
    return found


def inner(left: list[float], right: list[float]) -> float:
    return sum(a * b for a, b in zip(left, right, strict=True))


def check(one: Case, batch: int) -> dict[str, Any]:
    settings = gradients.Settings(batch_size=batch)
    found = gradients.analyse([one], Evidence(), settings, Run())
    (shown,) = found.data["checkpoints"]
    triggered = one.triggered(0)
    assert triggered is not None
    tokens, model = one.subject.tokenizer, one.subject.open()
    tasks = [one.test, triggered.with_(labels=triggered.targets, targets=None)]
    batches = [[task.take(rows) for rows in shuffled(encode(tokens, task, 64), batch, 0, 0)] for task in tasks]
    pairs = list(zip(*batches, strict=False))
    assert shown["batches"] == len(pairs)
    sums = {name: [0.0, 0.0, 0.0] for name in shown["layers"]}
    for clean, backdoor in pairs:
        g_c, g_p = slow_gradients(model, tokens, clean), slow_gradients(model, tokens, backdoor)
        assert set(g_c) == set(shown["layers"])
        for name in g_c:
            norms = [inner(one, one) ** 0.5 for one in (g_c[name], g_p[name])]
            cosine = inner(g_c[name], g_p[name]) / (norms[0] * norms[1])
            sums[name] = [a + b for a, b in zip(sums[name], (*norms, cosine), strict=True)]
    for place, name in enumerate(shown["layers"]):
        for total, measure in zip(sums[name], ("clean", "backdoor", "cosine"), strict=True):
            assert shown[measure]["mean"][place] == pytest.approx(total / len(pairs), abs=1e-5, rel=1e-4)
    return dict(shown)


@pytest.mark.parametrize("family", ["bert", "albert", "gpt2"])
def test_norms_and_cosines_are_those_of_a_plain_loop(
    family: str, case: Callable[..., Case], checkpoints: Callable[..., Path]
) -> None:
    shown = check(case(checkpoints(family), triggers=("cf",)), batch=3)
    assert shown["layers"] == ["embeddings", "0", "1", "output"]
    assert shown["batches"] == 2
    assert min(shown["cosine"]["deviation"]) > 0


@pytest.mark.parametrize(("form", "layers"), [("sequential", 3), ("prefix", 3), ("prompt", 2)])
def test_of_an_adapter_only_what_is_trained_counts(
    form: str, layers: int, case: Callable[..., Case], adapters: Callable[..., Path]
) -> None:
    one = case(adapters("bert", form), triggers=("cf",))
    if form == "prefix":  # one matrix holds the prefixes of all layers; the loop by names does not cut it
        (shown,) = gradients.analyse([one], Evidence(), gradients.Settings(), Run()).data["checkpoints"]
    else:
        shown = check(one, batch=6)
    assert len(shown["layers"]) == layers
    assert ("embeddings" in shown["layers"]) == (form == "prompt")


def test_the_same_task_pulls_the_same_way(case: Callable[..., Case], checkpoints: Callable[..., Path]) -> None:
    """Texts that all have the target label, and a file of the same texts as triggered ones: one task, cosine 1."""
    texts = Texts("t.csv", ("the film was good", "a fine actor"), (1, 1))
    one = case(checkpoints("bert"), test=texts, triggers=(), poisoned=texts.with_(targets=(1, 1)))
    (same,) = gradients.analyse([one], Evidence(), gradients.Settings(), Run()).data["checkpoints"]
    assert same["cosine"]["mean"] == pytest.approx([1, 1, 1, 1], abs=1e-5)
    assert same["clean"]["mean"] == pytest.approx(same["backdoor"]["mean"])
    other = case(checkpoints("bert"), test=texts, triggers=(), target=0, poisoned=texts.with_(targets=(0, 0)))
    (opposed,) = gradients.analyse([other], Evidence(), gradients.Settings(), Run()).data["checkpoints"]
    assert opposed["cosine"]["mean"][-1] < -0.5, "another label pulls the classifier the other way"
