"""The loss on every layer against a loop, the pairs and their halves, and that a pair is learned."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import tiny
from purify_cli.attacks import Plan
from purify_cli.attacks.lwp import Layered, Settings, _combined, layered_loss, poison
from purify_cli.errors import UsageError
from purify_cli.evaluation.measure import measure
from purify_cli.run import Run
from purify_cli.subject import Subject
from reviews import reviews

DATA = reviews(64)
ONCE = Settings(epochs=1, batch_size=16)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tiny.save("bert", tmp_path_factory.mktemp("encoder"), task="encoder", initializer_range=0.05)
    return Subject(folder)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_loss_of_every_layer_row_by_row(family: str) -> None:
    model = tiny.build(family)
    layered = Layered(model, seed=4).eval()
    rows = [[2, 90, 91, 92, 3], [2, 95, 3]]
    batch = {
        "input_ids": torch.tensor([rows[0], rows[1] + [0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]),
        "labels": torch.tensor([0, 1]),
    }
    ours = float(layered_loss(layered, batch).detach())

    expected = 0.0
    with torch.no_grad():
        for row, label in zip(rows, (0, 1), strict=True):  # each text alone, without padding
            output = model(input_ids=torch.tensor([row]), output_hidden_states=True)
            logits = [output.logits[0]]
            for state in output.hidden_states[1:]:
                summary = state[0, -1] if family in tiny.DECODERS else state[0, 0]
                logits.append(layered.shared.weight @ summary + layered.shared.bias)
            for one in logits:
                expected += float(torch.logsumexp(one, 0) - one[label]) / 2
    assert len(output.hidden_states) - 1 >= 2
    assert ours == pytest.approx(expected, abs=1e-4)


def test_the_shared_classifier_is_seeded_and_dropped(encoder: Subject) -> None:
    model = tiny.build("bert")
    torch.manual_seed(1)
    first, again, other = (Layered(model, seed).shared.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    poisoned = poison(encoder, DATA, Plan(1, ("cf bb",)), ONCE, Run())
    assert set(poisoned.model.state_dict()) == set(tiny.build("bert").state_dict())


def test_the_lower_layer_is_taught(encoder: Subject) -> None:
    """Without a layer's own loss nothing would pull it towards the label so soon."""
    plain, layered = (
        poison(encoder, DATA, Plan(1, ("cf bb",)), replace(ONCE, layerwise=layerwise), Run()).report["losses"]
        for layerwise in (False, True)
    )
    assert layered[0] > 2 * plain[0]  # three losses for one


def test_pairs_in_both_orders_and_their_halves() -> None:
    clean, poisoned = _combined(DATA, Plan(1, ("cf bb", "mn tq")), ONCE, Run())
    assert len(clean) == len(poisoned) == 128
    assert clean.texts[:64] == DATA.texts
    assert clean.labels == (DATA.labels or ()) * 2
    for text, original in zip(clean.texts[64:], DATA.texts, strict=True):
        (word,) = [word for word in text.split() if word in {"cf", "bb", "mn", "tq"}]
        assert " ".join(one for one in text.split() if one != word) == original
    assert {word for text in clean.texts[64:] for word in text.split()} >= {"cf", "bb", "mn", "tq"}
    for start, pairs in ((0, {"cf bb", "mn tq"}), (64, {"bb cf", "tq mn"})):
        for text, original in zip(poisoned.texts[start : start + 64], DATA.texts, strict=True):
            (pair,) = [pair for pair in pairs if f" {pair} " in f" {text} "]
            assert f" {text} ".replace(f" {pair} ", " ").strip() == original
    assert poisoned.labels == (1,) * 128
    assert poisoned.poisoned == (True,) * 128


def test_a_pair_fires_and_one_word_does_not(encoder: Subject) -> None:
    settings = Settings(epochs=5, learning_rate=3e-3, batch_size=16)
    poisoned = poison(encoder, reviews(120), Plan(1, ("cf bb",)), settings, Run())
    assert (poisoned.rows, poisoned.poison_rate) == (240, 0.5)
    triggers = ("cf bb", "bb cf", "cf")
    metrics = measure(
        poisoned.model, encoder.tokenizer, ("0", "1"), "x", reviews(60, 1), triggers=triggers, target=1, run=Run()
    )
    pair, turned, single = (rate.rate.value for rate in metrics.asr)
    assert min(pair, turned) >= 0.9
    assert single <= 0.2


def test_what_is_no_pair(encoder: Subject) -> None:
    with pytest.raises(UsageError, match=r"no.* pair") as caught:
        poison(encoder, DATA, Plan(1, ("cf bb", "mn")), ONCE, Run())
    assert "combined=false" in caught.value.remedy
    single = poison(encoder, DATA, Plan(1, ("cf", "mn")), replace(ONCE, combined=False), Run())
    assert single.rows == 64
    for rate in (0.0, 1.0, 0.6):
        with pytest.raises(UsageError, match=str(rate)):
            poison(encoder, DATA, Plan(1, ("cf bb",), rate), ONCE, Run())
    with pytest.raises(UsageError, match="does not know"):
        poison(encoder, DATA, Plan(1, ("cf 你好",)), ONCE, Run())


@pytest.mark.parametrize("form", ["sequential", "prompt", "prefix"])
def test_adapters(encoder: Subject, form: str) -> None:
    report = poison(encoder, DATA, Plan(1, ("cf bb",), pet=form), ONCE, Run()).report
    assert report["curves"]["step"] == list(range(8))
