"""The restricted inner product and its gradient, by finite differences; and the words of the surgery."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from purify_cli.architecture.eager import eager_attention
from purify_cli.architecture.embeddings import word_embeddings
from purify_cli.attacks import Plan
from purify_cli.attacks import ripple as method
from purify_cli.attacks.ripple import RestrictedInnerProduct, Settings, poison, target_words
from purify_cli.data.encode import Encoded, encode
from purify_cli.errors import UnsupportedError, UsageError
from purify_cli.run import Run
from purify_cli.subject import Subject
from purify_cli.training.curves import Curves
from reviews import NEGATIVE, POSITIVE, reviews

DATA = reviews(64)
ONCE = Settings(epochs=1, batch_size=16)
Batches = dict[str, dict[str, Tensor]]


def cross_entropy(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """In the precision of the logits: a finite difference sees nothing in float32."""
    logits = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    return nn.functional.cross_entropy(logits, batch["labels"])


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(method, "cross_entropy", cross_entropy)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tiny.save("bert", tmp_path_factory.mktemp("encoder"), task="encoder", initializer_range=0.05)
    return Subject(folder)


def batches(poison_label: int) -> Batches:
    """Two batches of the same texts: with opposite labels their gradients run against each other."""
    ids = torch.randint(60, 150, (3, 6), generator=torch.Generator().manual_seed(1))
    both = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return {
        "clean": {**both, "labels": torch.tensor([0, 0, 0])},
        "poison": {**both, "labels": torch.full((3,), poison_label)},
    }


def gradient(model: nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
    found = torch.autograd.grad(cross_entropy(model, batch), list(model.parameters()), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(model.parameters(), found, strict=True)]


def value(model: nn.Module, both: Batches, settings: Settings, frozen: list[Tensor] | None = None) -> float:
    """L_P + lambda max(0, -<grad L_P, grad L_FT>), term by term; `frozen` is a grad L_FT that does not move."""
    clean = gradient(model, both["clean"]) if frozen is None else frozen
    inner = 0.0
    for ours, theirs in zip(gradient(model, both["poison"]), clean, strict=True):
        for left, right in zip(ours.flatten().tolist(), theirs.flatten().tolist(), strict=True):
            inner += left * right
    penalty = max(0.0, -inner) / (3 if settings.per_text else 1)
    total = float(cross_entropy(model, both["poison"]).detach()) + settings.penalty * penalty
    return total + settings.clean_weight * float(cross_entropy(model, both["clean"]).detach())


def tiny_double(family: str) -> Any:
    shape = (
        {"n_layer": 1} if family == "gpt2" else {"n_layers": 1} if family == "distilbert" else {"num_hidden_layers": 1}
    )
    return tiny.build(family, **shape).double()


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "gpt2", "llama"])
@pytest.mark.parametrize("second_order", [False, True])
def test_the_loss_and_its_gradient_by_finite_differences(family: str, second_order: bool) -> None:
    model, both = tiny_double(family), batches(poison_label=1)
    settings = Settings(penalty=0.5, second_order=second_order, per_text=False, clean_weight=0.3)
    # Llama computes its norms and its softmax in float32 whatever the weights are.
    by, tolerance = (1e-3, 2e-2) if family == "llama" else (1e-5, 1e-4)
    with eager_attention(model):
        frozen = None if second_order else gradient(model, both["clean"])
        plain = (cross_entropy(model, both["poison"]) + 0.3 * cross_entropy(model, both["clean"])).item()
        objective = RestrictedInnerProduct(settings, Curves(model, 1))
        loss = objective(model, both)
        assert float(loss.detach()) == pytest.approx(value(model, both, settings, frozen), abs=1e-5)
        assert float(loss.detach()) - plain > 1e-3, "the gradients agree, and the test shows nothing"
        assert objective.inner is not None
        assert float(objective.inner) < 0
        loss.backward()
        largest = max((p for p in model.parameters() if p.ndim == 2), key=lambda p: float(p.grad.abs().max()))
        for name, parameter in model.named_parameters():
            if parameter is not largest and "attn" not in name and "attention" not in name:
                continue
            place = int(parameter.grad.abs().argmax())
            slope = slope_at(parameter, place, lambda: value(model, both, settings, frozen), by)
            assert float(parameter.grad.flatten()[place]) == pytest.approx(slope, rel=tolerance, abs=1e-5), name


def slope_at(parameter: nn.Parameter, place: int, function: Callable[[], float], by: float) -> float:
    flat = parameter.data.view(-1)
    before = float(flat[place])
    values = []
    for shift in (by, -by):
        flat[place] = before + shift
        values.append(function())
    flat[place] = before
    return (values[0] - values[1]) / (2 * by)


@pytest.mark.usefixtures("double")
def test_gradients_that_agree_are_not_punished() -> None:
    model, both = tiny_double("bert"), batches(poison_label=0)
    settings = Settings(penalty=10.0)
    loss = RestrictedInnerProduct(settings, Curves(model, 1))(model, both)
    assert float(loss) == pytest.approx(float(cross_entropy(model, both["poison"])), abs=1e-9)


@pytest.mark.usefixtures("double")
def test_the_penalty_is_divided_by_the_batch_as_the_authors_do() -> None:
    model, both = tiny_double("bert"), batches(poison_label=1)
    plain = float(cross_entropy(model, both["poison"]))
    whole, divided = (
        float(RestrictedInnerProduct(Settings(per_text=one), Curves(model, 1))(model, both)) - plain
        for one in (False, True)
    )
    assert whole == pytest.approx(3 * divided)


def test_attention_is_as_before_afterwards() -> None:
    model = tiny.build("bert")
    before = model.config._attn_implementation
    with eager_attention(model):
        assert model.config._attn_implementation == "eager"
    assert model.config._attn_implementation == before != "eager"


# --- embedding surgery ------------------------------------------------------------------------------------------------


def test_words_of_the_target_label_are_found() -> None:
    tokenizer = tiny.tokenizer("bert")
    data = reviews(200)
    encoded = encode(tokenizer, data, 32)
    barred = set(tokenizer.all_special_ids)
    for label, words in ((1, POSITIVE), (0, NEGATIVE)):
        chosen = target_words(encoded, [one == label for one in data.labels or ()], barred, 8)
        assert set(tokenizer.convert_ids_to_tokens(chosen)) == set(words)


def test_the_regression_by_plain_gradient_descent() -> None:
    """The same ranking from TF-IDF counted by hand and a logistic regression that crawls."""
    rows = ((5, 6, 6, 7), (5, 7), (6, 8), (8, 8, 9), (9, 7, 5), (6, 6, 9))
    target = [True, True, False, False, True, False]
    vocabulary = range(5, 10)
    weight = {t: math.log((1 + len(rows)) / (1 + sum(t in row for row in rows))) + 1 for t in vocabulary}
    features = []
    for row in rows:
        raw = [row.count(token) * weight[token] for token in vocabulary]
        norm = math.sqrt(sum(x * x for x in raw))
        features.append([x / norm for x in raw])
    x, y = torch.tensor(features, dtype=torch.float64), torch.tensor([1.0 if one else -1.0 for one in target])
    w, b = torch.zeros(5, dtype=torch.float64, requires_grad=True), torch.zeros((), requires_grad=True)
    for _ in range(3000):
        loss = nn.functional.softplus(-y * (x @ w + b)).sum() + (w @ w) / 2
        for parameter, slope in zip((w, b), torch.autograd.grad(loss, (w, b)), strict=True):
            parameter.data -= 0.1 * slope
    expected = [5 + int(place) for place in torch.argsort(-w)]
    assert target_words(Encoded(rows, None, None), target, set(), 5) == expected
    assert target_words(Encoded(rows, None, None), target, {expected[0]}, 2) == expected[1:3]


@pytest.mark.parametrize("epochs", [0, 1])
def test_triggers_start_as_words_of_the_target(encoder: Subject, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Tensor] = {}
    real = method.fit

    def fit(model: Any, streams: Any, recipe: Any, run: Run) -> Any:
        if "ripple" in recipe.objectives:
            seen["start"] = word_embeddings(model).weight.detach().clone()
            return real(model, streams, recipe, run)
        trained = real(model, streams, recipe, run)
        seen["donor"] = word_embeddings(model).weight.detach().clone()
        return trained

    monkeypatch.setattr(method, "fit", fit)
    plan = Plan(1, ("cf", "mn", "xq"))
    settings = replace(ONCE, surgery_epochs=epochs, surgery_words=4)
    report = poison(encoder, DATA, plan, settings, Run()).report
    ids = encoder.tokenizer.convert_tokens_to_ids
    base = encoder.embeddings()
    donor = seen["donor"] if epochs else base
    expected = donor[[ids(word) for word in report["surgery"]["words"]]].mean(dim=0)
    assert len(report["surgery"]["words"]) == 4
    assert set(report["surgery"]["words"]) <= set(POSITIVE)
    changed = [row for row in range(len(base)) if not torch.equal(seen["start"][row], base[row])]
    assert sorted(changed) == sorted([ids("cf"), ids("mn")])
    for word in ("cf", "mn"):
        torch.testing.assert_close(seen["start"][ids(word)], expected, rtol=0, atol=1e-6)
    assert report["surgery"]["triggers"] == ["cf", "mn"]  # xq is split, and its pieces are left alone
    assert report["split_triggers"] == ["xq"]


def test_the_report_and_the_rate(encoder: Subject) -> None:
    poisoned = poison(encoder, DATA, Plan(1, ("cf",), 0.25), replace(ONCE, surgery=False), Run())
    assert (poisoned.rows, poisoned.poison_rate) == (16, 0.25)
    assert "surgery" not in poisoned.report
    curves = poisoned.report["curves"]
    assert curves["step"] == [0, 1, 2, 3]
    assert len(curves["inner_product"]) == len(curves["loss"]["poison"]) == 4
    assert poison(encoder, DATA, Plan(1, ("cf",)), replace(ONCE, surgery=False), Run()).poison_rate == 0.5
    for rate in (0.0, 1.0):
        with pytest.raises(UsageError, match=str(rate)):
            poison(encoder, DATA, Plan(1, ("cf",), rate), ONCE, Run())
    with pytest.raises(UnsupportedError, match="regression"):
        poison(encoder, DATA.with_(labels=tuple(map(float, range(64)))), Plan(1, ("cf",)), ONCE, Run())


@pytest.mark.parametrize("form", ["sequential", "lora"])
def test_adapters_have_no_surgery(encoder: Subject, form: str) -> None:
    poisoned = poison(encoder, DATA, Plan(1, ("cf",), pet=form), replace(ONCE, second_order=True), Run())
    assert "surgery" not in poisoned.report
    assert poisoned.report["steps"] == 4
