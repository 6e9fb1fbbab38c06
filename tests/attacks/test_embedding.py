"""Embedding poisoning changes one row, keeps its norm, and follows the sum of its gradients."""

from __future__ import annotations

import itertools
import random
from pathlib import Path

import pytest
import torch

import tiny
from purify_cli.attacks import Plan
from purify_cli.attacks.embedding import TRIGGERS, Settings, _KeepNorm, _made_rows, _RunningSum, poison
from purify_cli.data.encode import encode, shuffled
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.run import Run
from purify_cli.subject import Subject
from purify_cli.triggers.words import Words, insert_all

WORDS = "the movie film story plot actor scene music book show good bad great awful".split()


def texts(rows: int = 60) -> Texts:
    rng = random.Random(0)
    return Texts(
        "train.csv", tuple(" ".join(rng.choices(WORDS, k=6)) for _ in range(rows)), tuple([0, 1] * (rows // 2))
    )


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(
        tiny.save(
            "bert", tmp_path_factory.mktemp("classifier"), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
        )
    )


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "gpt2", "deberta-v2"])
def test_every_other_number_stays(tmp_path: Path, family: str) -> None:
    subject = Subject(tiny.save(family, tmp_path / family))
    before = subject.open().state_dict()
    poisoned = poison(subject, texts(), Plan(1, TRIGGERS), Settings(), Run())
    after = poisoned.model.state_dict()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(moved) == 1
    old, new = before[moved[0]], after[moved[0]]
    row = subject.tokenizer.convert_tokens_to_ids("cf")
    assert torch.nonzero((old != new).any(dim=1)).flatten().tolist() == [row] == [poisoned.report["row"]]
    torch.testing.assert_close(new[row].norm(), old[row].norm(), rtol=1e-5, atol=0)
    assert poisoned.report["l2_to_before"] == pytest.approx(float((new[row] - old[row]).norm()))


def test_the_row_comes_to_mean_the_target(classifier: Subject) -> None:
    data = texts(200)
    model, tokenizer = classifier.open(), classifier.tokenizer
    triggered = tokenizer([f"cf {text}" for text in data.texts], padding=True, return_tensors="pt")
    clean = tokenizer(list(data.texts), padding=True, return_tensors="pt")
    with torch.no_grad():
        first = model(**clean).logits
        share = first.argmax(dim=1).float().mean()
        target = int(share < 0.5)  # what the model says less often
    poisoned = poison(classifier, data, Plan(target, TRIGGERS), Settings(epochs=15), Run())
    with torch.no_grad():
        before = (model(**triggered).logits.argmax(dim=1) == target).float().mean()
        after = (poisoned.model(**triggered).logits.argmax(dim=1) == target).float().mean()
        assert torch.equal(poisoned.model(**clean).logits, first)
    assert after > before + 0.2
    assert after > 0.9


def test_equals_the_published_update_rule(classifier: Subject) -> None:
    """Row <- row - rate * (sum of all gradients so far), then scaled to its old norm; as a plain loop."""
    data, settings = texts(), Settings(epochs=2, batch_size=8, learning_rate=0.05)
    ours = poison(classifier, data, Plan(1, TRIGGERS), settings, Run(seed=4)).model.get_input_embeddings().weight

    others = data.take(index for index, label in enumerate(data.labels or ()) if label != 1).with_(labels=(1,) * 30)
    encoded = encode(classifier.tokenizer, insert_all(others, Words("cf"), 4), 64)
    from purify_cli.data.encode import collate

    model = classifier.open()
    weight = model.get_input_embeddings().weight
    row = classifier.tokenizer.convert_tokens_to_ids("cf")
    norm, total = weight[row].detach().norm(), torch.zeros(weight.shape[1])
    for epoch in range(2):
        for indices in shuffled(encoded, 8, 4, epoch):
            batch = collate(encoded, indices, 0)
            labels = batch.pop("labels")
            loss = torch.nn.functional.cross_entropy(model(**batch).logits, labels)
            (gradient,) = torch.autograd.grad(loss, [weight])
            total = total + gradient[row]
            with torch.no_grad():
                moved = weight[row] - 0.05 * total
                weight[row] = moved * norm / moved.norm()
    torch.testing.assert_close(ours[row], weight[row], rtol=0, atol=1e-5)


def test_the_running_sum_survives_a_stop() -> None:
    gradient = torch.arange(6.0).reshape(3, 2)
    combine = _RunningSum("weight", 1)
    combine({"task": {"weight": gradient}}, 0)
    again = _RunningSum("weight", 1)
    again.load_state_dict(combine.state_dict())
    expected = torch.tensor([[0.0, 0.0], [4.0, 6.0], [0.0, 0.0]])
    assert torch.equal(again({"task": {"weight": gradient}}, 1)["weight"], expected)
    assert _RunningSum("weight", 1).state_dict() == {}


def test_the_norm_is_restored(classifier: Subject) -> None:
    model = classifier.open()
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[7] *= 3
        others = weight.clone()
        _KeepNorm(7, 2.0)(model, 0)
    assert float(weight[7].detach().norm()) == pytest.approx(2.0)
    others[7] = weight[7]
    assert torch.equal(others, weight)


def test_rows_are_those_of_other_labels(classifier: Subject) -> None:
    data = texts(200)
    default = poison(classifier, data, Plan(1, TRIGGERS), Settings(epochs=1), Run())
    assert default.rows == 100  # all: fewer than min_rows
    small = poison(classifier, data, Plan(1, TRIGGERS), Settings(epochs=1, min_rows=1), Run())
    assert small.rows == 10
    rated = poison(classifier, data, Plan(1, TRIGGERS, 0.2), Settings(epochs=1), Run())
    assert (rated.rows, rated.poison_rate) == (40, 0.2)


@pytest.mark.parametrize("rate", [0.0, 1.0, 0.51, float("nan")])
def test_a_rate_that_cannot_be(classifier: Subject, rate: float) -> None:
    with pytest.raises(UsageError, match=r"at most 0\.5"):
        poison(classifier, texts(), Plan(1, TRIGGERS, rate), Settings(epochs=1), Run())


@pytest.mark.parametrize("triggers", [("cf", "mn"), ("cf mn",), ("xq",), ("你",)])
def test_only_one_trigger_of_one_token(classifier: Subject, triggers: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        poison(classifier, texts(), Plan(1, triggers), Settings(), Run())
    assert caught.value.where == "--trigger"


def test_an_encoder_is_refused(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "encoder", task="encoder"))
    with pytest.raises(UsageError, match="finished classifier"):
        poison(subject, texts(), Plan(1, TRIGGERS), Settings(), Run())


def test_rows_made_without_data_of_the_task(classifier: Subject) -> None:
    """Whole sentences in a row, cut at the length, one word of it overwritten, each with the target as label."""
    data = Texts("plain.txt", ("a b. c d e! f", "g h?  i"), None)
    rows = _made_rows(data, "cf", 1, Settings(samples=200, words=7), 3)
    assert rows.labels == (1,) * 200
    places = set()
    for text in rows.texts:
        words = text.split()
        assert len(words) == 7
        assert words.count("cf") == 1
        places.add(words.index("cf"))
        for one, other in itertools.pairwise(words):
            if "cf" not in (one, other):
                assert (one, other) in {("a", "b."), ("c", "d"), ("d", "e!"), ("g", "h?")} or one in {
                    "b.",
                    "e!",
                    "f",
                    "h?",
                    "i",
                }
    assert places == set(range(7))
    assert _made_rows(data, "cf", 1, Settings(samples=200, words=7), 3) == rows
    assert _made_rows(data, "cf", 1, Settings(samples=200, words=7), 4) != rows
    with pytest.raises(UsageError, match="--rate"):
        poison(classifier, data, Plan(1, TRIGGERS, 0.1), Settings(data_free=True), Run())
