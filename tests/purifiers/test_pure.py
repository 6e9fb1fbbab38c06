"""PURE against literal, slow transcriptions of the paper's two steps, and against a script of accuracies."""

from __future__ import annotations

import hashlib
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

import tiny
from purify_cli.architecture.attention import SummaryAttention, summary_attention
from purify_cli.architecture.heads import Head, head_grid, output_projections
from purify_cli.data.encode import collate, encode, padding_id
from purify_cli.data.texts import Texts
from purify_cli.evaluation.predict import predict
from purify_cli.purifiers import pure
from purify_cli.purifiers.pure import (
    Settings,
    _Normalized,
    head_scores,
    layer_weights,
    preview,
    prune_by_score,
    purify,
    resolved,
)
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject
from purify_cli.training.losses import cross_entropy

MAX_LENGTH = 16
WORDS = "the movie film story plot actor scene music book show good bad great awful and very slow".split()


def texts(rows: int, longest: int = 10) -> Texts:
    """Labelled by one word, of different lengths."""
    rng = random.Random(0)
    labels = [row % 2 for row in range(rows)]
    lines = (
        " ".join(["good" if label else "bad", *rng.choices(WORDS[:10], k=rng.randint(1, longest))]) for label in labels
    )
    return Texts("clean.csv", tuple(lines), tuple(labels))


def scored_texts() -> Texts:
    """Two batches of 32, the second short; one text fills all places, and one would fill more."""
    few = texts(36)
    full = " ".join(WORDS[place % len(WORDS)] for place in range(MAX_LENGTH - 2))
    lines = (*few.texts[:34], full + " " + full, full + " movie movie")
    return few.with_(texts=lines)


def summary_places(family: str, mask: Tensor) -> Tensor:
    """Where the summary token stands, [batch], in rows padded on the right."""
    return mask.sum(1) - 1 if family in tiny.DECODERS else torch.zeros(len(mask), dtype=torch.long)


def full_maps(family: str, model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
    """[batch, heads, query, key] of every depth, as transformers itself gives them."""
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps: tuple[Tensor, ...] = model(**batch, output_attentions=True).attentions
    return maps


def layers_of(family: str, model: Any) -> list[int]:
    """The layer that each depth runs; ALBERT runs each of its groups at several depths."""
    if family != "albert":
        return list(range(model.config.num_hidden_layers))
    depths, groups = model.config.num_hidden_layers, model.config.num_hidden_groups
    return [depth * groups // depths for depth in range(depths)]


def reference_scores(family: str, model: Any, data: Texts) -> Tensor:
    """As the released code scores heads: everything padded to max_length, full maps, torch.var, batches of 32."""
    tokenizer = tiny.tokenizer(family)
    encoded = tokenizer(
        list(data.texts), padding="max_length", truncation=True, max_length=MAX_LENGTH, return_tensors="pt"
    )
    assert encoded["attention_mask"].sum(1).max() == MAX_LENGTH
    batches = []
    for start in range(0, len(data), 32):
        batch = {name: column[start : start + 32] for name, column in encoded.items()}
        places = summary_places(family, batch["attention_mask"])
        depths = []
        for one in full_maps(family, model, batch):
            rows = one[torch.arange(len(places)), :, places]  # [batch, heads, key]
            depths.append(torch.var(rows[:, :, : MAX_LENGTH - 1], dim=-1, unbiased=True).mean(0))
        layer_of = layers_of(family, model)
        batches.append(
            torch.stack(
                [
                    torch.stack([depths[depth] for depth in range(len(depths)) if layer_of[depth] == layer]).mean(0)
                    for layer in range(max(layer_of) + 1)
                ]
            )
        )
    return torch.stack(batches).mean(0)  # a short last batch weighs as much as a full one


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_scores_are_the_reference_s(family: str) -> None:
    model, tokenizer, data = tiny.build(family), tiny.tokenizer(family), scored_texts()
    expected = reference_scores(family, tiny.build(family), data)
    for batch_size in (7, 64):
        run = Run(batch_size=batch_size, max_length=MAX_LENGTH)
        ours = head_scores(model, encode(tokenizer, data, MAX_LENGTH), padding_id(tokenizer), MAX_LENGTH, run)
        assert ours.shape == head_grid(model)
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-4)
    assert expected.std() > 1e-4  # heads can be told apart, or the rest would prove nothing


# --- the penalty ------------------------------------------------------------------------------------------------------

WEIGHTS = torch.tensor([0.7, 1.3, 0.2, 0.9])
OUT: tuple[Head, ...] = ((0, 1), (1, 0), (1, 3))


def batch_of(family: str, rows: int) -> dict[str, Tensor]:
    tokenizer = tiny.tokenizer(family)
    return collate(encode(tokenizer, texts(rows), 64), range(rows), padding_id(tokenizer))


def literal_penalty(family: str, batch: dict[str, Tensor]) -> float:
    """sum_l c_l sum_h sqrt( sum_b sum_k A^2 ), one number after the other."""
    model = tiny.build(family)
    inputs = {name: column for name, column in batch.items() if name != "labels"}
    places = summary_places(family, inputs["attention_mask"])
    total = 0.0
    for one, layer in zip(full_maps(family, model, inputs), layers_of(family, model), strict=True):
        for head in range(one.shape[1]):
            if (layer, head) in OUT:
                continue
            squares = 0.0
            for row in range(one.shape[0]):
                for key in range(one.shape[3]):
                    squares += float(one[row, head, places[row], key]) ** 2
            total += float(WEIGHTS[layer]) * math.sqrt(squares)
    return total


def measured(family: str, batch: dict[str, Tensor], penalty: float = 1.0) -> tuple[Tensor, Tensor, Any]:
    """(unevenness, loss, model) of one forward pass, both differentiable."""
    model = tiny.build(family)
    with summary_attention(model) as seen:
        objective = _Normalized(seen, WEIGHTS, OUT, penalty)
        loss = objective(model, batch)
        return objective.unevenness(), loss, model


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_penalty_is_the_paper_s(family: str) -> None:
    batch = batch_of(family, 5)
    uneven, _, _ = measured(family, batch)
    expected = literal_penalty(family, batch) / math.sqrt(5 / 32)
    assert uneven.item() == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_the_penalty_means_the_same_in_every_batch() -> None:
    """In a batch of 32 it is the equation itself; the same texts twice change nothing."""
    batch = batch_of("bert", 32)
    uneven, _, _ = measured("bert", batch)
    assert uneven.item() == pytest.approx(literal_penalty("bert", batch), rel=1e-5)
    twice, _, _ = measured("bert", {name: torch.cat([column, column]) for name, column in batch.items()})
    assert twice.item() == pytest.approx(uneven.item(), rel=1e-5)


def test_the_loss_is_cross_entropy_plus_lambda_times_the_penalty() -> None:
    batch = batch_of("bert", 8)
    plain = cross_entropy(tiny.build("bert"), batch).item()
    uneven, loss, model = measured("bert", batch, penalty=0.5)
    assert loss.item() == pytest.approx(plain + 0.5 * uneven.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(uneven, [model.bert.encoder.layer[1].attention.self.query.weight])
    assert gradient.abs().sum() > 0
    gradient = gradient.reshape(4, -1)  # a head each
    assert gradient[[0, 3]].abs().max() == 0, "a pruned head is no part of the penalty"
    assert gradient[[1, 2]].abs().max() > 0
    assert measured("bert", batch, penalty=0.0)[1].item() == pytest.approx(plain, rel=1e-6)


def test_even_attention_has_the_smallest_penalty() -> None:
    def unevenness(row: Sequence[float]) -> float:
        seen = SummaryAttention(rows=[torch.tensor(row).reshape(1, 1, -1).expand(32, -1, -1)], layer_of=[0])
        return _Normalized(seen, torch.ones(1), (), 1.0).unevenness().item()

    assert unevenness([0.25] * 4) == pytest.approx(math.sqrt(32 * 0.25))
    assert unevenness([1.0, 0.0, 0.0, 0.0]) == pytest.approx(math.sqrt(32))


# --- the layers' weights ----------------------------------------------------------------------------------------------


def test_layer_weights_by_hand() -> None:
    # u = 1/v = 10, 5, 2.5; shares of 17.5; to 0..1: (5 - 2.5) / (10 - 2.5) = 1/3 in the middle.
    weights = layer_weights(torch.tensor([0.1, 0.2, 0.4]), "paper")
    torch.testing.assert_close(weights, torch.tensor([1.0, 1 / 3, 0.0]))
    assert layer_weights(torch.tensor([0.1, 0.2, 0.4]), "even").tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("form", ["paper", "even"])
@pytest.mark.parametrize("scores", [[0.3, 0.3, 0.3], [0.3], [0.0, 0.0]])
def test_layer_weights_where_the_paper_divides_by_zero(form: str, scores: list[float]) -> None:
    assert layer_weights(torch.tensor(scores), form).tolist() == [1.0] * len(scores)


# --- pruning ----------------------------------------------------------------------------------------------------------

LAYERS, HEADS = 3, 8
SCORES = torch.randperm(LAYERS * HEADS, generator=torch.Generator().manual_seed(3)).reshape(LAYERS, HEADS) / 100.0
BEST = {(layer, int(SCORES[layer].argmax())) for layer in range(LAYERS)}
ASCENDING = sorted(
    ((layer, head) for layer in range(LAYERS) for head in range(HEADS) if (layer, head) not in BEST),
    key=lambda place: SCORES[place].item(),
)


def silenced(model: Any) -> frozenset[Head]:
    projections, _ = output_projections(model)
    gone = set()
    for layer, projection in enumerate(projections):
        weight = projection.weight  # [out, in]
        for head, columns in enumerate(weight.chunk(HEADS, dim=1)):
            if columns.eq(0).all():
                gone.add((layer, head))
    return frozenset(gone)


def pruned(
    monkeypatch: pytest.MonkeyPatch, accuracy: Callable[[frozenset[Head]], float], **settings: Any
) -> tuple[pure.Pruning, list[frozenset[Head]]]:
    """What is pruned where the accuracy without some heads is as told; and the sets that were tried, in order."""
    model = tiny.build("bert", num_hidden_layers=LAYERS, num_attention_heads=HEADS)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    dev = texts(100).with_(labels=(1,) * 100)
    tried: list[frozenset[Head]] = []

    def scripted(model: Any, tokenizer: Any, asked: Texts, run: Run) -> Tensor:
        assert asked is dev
        tried.append(silenced(model))
        right = round(100 * accuracy(tried[-1]))
        return torch.tensor([[0.0, 1.0]] * right + [[1.0, 0.0]] * (100 - right))

    def scores(model: Any, *rest: Any) -> Tensor:
        return SCORES + 1.0 if silenced(model) else SCORES

    monkeypatch.setattr(pure, "predict", scripted)
    monkeypatch.setattr(pure, "head_scores", scores)
    pruning = prune_by_score(model, tiny.tokenizer("bert"), dev, Settings(**settings), Run())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), "the model is left as it was"
    return pruning, tried


def test_prunes_in_ascending_order_ten_at_a_time_and_never_a_layer_s_best(monkeypatch: pytest.MonkeyPatch) -> None:
    pruning, tried = pruned(monkeypatch, lambda gone: 0.9)
    assert list(pruning.heads) == ASCENDING
    assert not set(pruning.heads) & BEST
    assert [len(gone) for gone in tried] == [0, 10, 20, 21]
    assert tried[1] == set(ASCENDING[:10])
    assert (pruning.accuracy, pruning.accuracy_pruned) == (pytest.approx(0.9), pytest.approx(0.9))
    torch.testing.assert_close(pruning.scores, SCORES)
    # One head is left in each layer, and counts as it scores with the others gone.
    torch.testing.assert_close(pruning.layer_scores, SCORES.max(dim=1).values + 1.0)


def test_gives_the_last_group_back_one_by_one_the_highest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pruning, tried = pruned(monkeypatch, lambda gone: 0.9 if len(gone) <= 17 else 0.8)
    assert list(pruning.heads) == ASCENDING[:17]
    assert [len(gone) for gone in tried] == [0, 10, 20, 19, 18, 17]
    assert tried[3] == set(ASCENDING[:19])
    assert pruning.accuracy_pruned == pytest.approx(0.9)


def test_gives_back_all_of_a_group_that_cannot_be_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    pruning, _ = pruned(monkeypatch, lambda gone: 0.89 if len(gone) <= 10 else 0.8 if gone else 0.9)
    assert list(pruning.heads) == ASCENDING[:10]
    assert pruning.accuracy_pruned == pytest.approx(0.89)


@pytest.mark.parametrize(("drop", "left"), [(0.02, 10), (0.05, 20), (0.2, 21), (0.0, 0)])
def test_the_drop_is_against_f_p(monkeypatch: pytest.MonkeyPatch, drop: float, left: int) -> None:
    steps = {0: 0.9, 10: 0.89, 20: 0.86, 21: 0.75}
    pruning, _ = pruned(monkeypatch, lambda gone: steps.get(len(gone), 0.0), prune_drop=drop)
    assert len(pruning.heads) == left


def test_min_accuracy_is_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    pruning, _ = pruned(monkeypatch, lambda gone: 0.95 - len(gone) / 200, min_accuracy=0.87)
    assert len(pruning.heads) == 16


def test_below_the_limit_nothing_is_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    pruning, _ = pruned(monkeypatch, lambda gone: 0.8, min_accuracy=0.85)
    assert pruning.heads == ()
    assert pruning.accuracy_pruned == pruning.accuracy == pytest.approx(0.8)
    torch.testing.assert_close(pruning.layer_scores, SCORES.mean(dim=1))


def test_normalize_only_prunes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    pruning, tried = pruned(monkeypatch, lambda gone: 0.9, prune=False)
    assert pruning.heads == ()
    assert len(tried) == 1


def test_prune_step(monkeypatch: pytest.MonkeyPatch) -> None:
    _, tried = pruned(monkeypatch, lambda gone: 0.9, prune_step=7)
    assert [len(gone) for gone in tried] == [0, 7, 14, 21]


# --- the whole --------------------------------------------------------------------------------------------------------

FAST: dict[str, Any] = {"epochs": 1, "learning_rate": 1e-3, "batch_size": 16, "prune_step": 2, "prune_drop": 1.0}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.parametrize("family", ["bert", "roberta", "albert", "deberta-v2", "gpt2", "qwen3"])
def test_pruned_heads_stay_out_and_the_result_loads_in_plain_transformers(tmp_path: Path, family: str) -> None:
    folder = tiny.save(family, tmp_path / "suspect")
    before = digests(folder)
    subject, run = Subject(folder), Run(max_length=MAX_LENGTH)
    purified = purify(subject, Evidence(), texts(48), texts(16), Settings(**FAST), run)
    layers, heads = head_grid(purified.model)
    gone = [tuple(head) for head in purified.report["pruned"]]
    assert len(gone) == layers * (heads - 1)  # all but the best of each layer: the accuracy may fall to nothing
    projections, row = output_projections(purified.model)
    for layer, projection in enumerate(projections):
        by_head = projection.weight.chunk(heads, dim=0 if row.transposed else 1)
        for head, columns in enumerate(by_head):
            assert bool(columns.eq(0).all()) == ((layer, head) in gone)
    purified.model.save_pretrained(tmp_path / "purified")
    subject.tokenizer.save_pretrained(tmp_path / "purified")
    plain = AutoModelForSequenceClassification.from_pretrained(tmp_path / "purified").eval()
    torch.testing.assert_close(
        predict(plain, subject.tokenizer, texts(9), run),
        predict(purified.model, subject.tokenizer, texts(9), run),
    )
    assert digests(folder) == before


def test_starts_again_from_the_suspect(tmp_path: Path) -> None:
    """So slow that nothing moves: what is left is the suspect without some heads, not f_p."""
    subject = Subject(tiny.save("bert", tmp_path / "suspect"))
    seen: list[float] = []
    original = pure.prune_by_score

    def looked(f_p: Any, *rest: Any) -> pure.Pruning:
        with torch.no_grad():
            f_p.classifier.weight += 5.0  # whatever f_p came to must not reach the result
        seen.append(f_p.classifier.weight.detach().mean().item())
        return original(f_p, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pure, "prune_by_score", looked)
        settings = Settings(**FAST | {"learning_rate": 1e-9})
        after = purify(subject, Evidence(), texts(32), texts(16), settings, Run()).model.state_dict()
    before = subject.open().state_dict()
    assert seen
    moved = {name for name in before if not torch.allclose(before[name], after[name], atol=1e-5)}
    assert moved == {f"bert.encoder.layer.{layer}.attention.output.dense.weight" for layer in (0, 1)}


def test_the_penalty_evens_the_attention_out(tmp_path: Path) -> None:
    """The wrong sign, or a penalty without a gradient, would end with attention as sharp as before or sharper."""
    subject = Subject(tiny.save("bert", tmp_path / "suspect"))
    data, run = texts(64), Run()
    encoded = encode(subject.tokenizer, data, 64)

    def sharpness(model: Any) -> float:
        return head_scores(model, encoded, padding_id(subject.tokenizer), 64, run).mean().item()

    after = {}
    for normalize in (True, False):
        settings = Settings(prune=False, normalize=normalize, penalty=1.0, epochs=6, learning_rate=3e-3, batch_size=16)
        purified = purify(subject, Evidence(), data, texts(16), settings, run)
        assert purified.report["pruned"] == []
        after[normalize] = sharpness(purified.model)
    before = sharpness(subject.open())
    assert after[True] < 0.7 * before
    assert after[True] < 0.7 * after[False]


def test_an_encoder_gets_a_classifier_and_a_classifier_keeps_its_own(tmp_path: Path) -> None:
    encoder = Subject(tiny.save("bert", tmp_path / "encoder", task="encoder"))
    purified = purify(encoder, Evidence(), texts(32), texts(16), Settings(**FAST), Run())
    assert purified.model.config.num_labels == 2

    classifier = Subject(tiny.save("bert", tmp_path / "classifier"))
    before = classifier.open().state_dict()["classifier.weight"]
    slow = FAST | {"learning_rate": 1e-9}
    for fresh in (False, True):
        settings = Settings(**slow, fresh_classifier=fresh)
        model = purify(classifier, Evidence(), texts(32), texts(16), settings, Run()).model
        assert torch.allclose(model.classifier.weight, before, atol=1e-4) != fresh


def test_preview_shows_the_heads_and_changes_nothing(tmp_path: Path) -> None:
    folder = tiny.save("bert", tmp_path / "suspect")
    before, subject = digests(folder), Subject(folder)
    looked_at = {name: value.clone() for name, value in subject.model().state_dict().items()}
    shown = preview(subject, Evidence(), texts(48), texts(16), Settings(**FAST), Run())
    assert digests(folder) == before
    for name, value in subject.model().state_dict().items():
        assert torch.equal(value, looked_at[name])
    done = purify(subject, Evidence(), texts(48), texts(16), Settings(**FAST), Run()).report
    assert shown["pruned"] == done["pruned"] != []
    assert shown["heads"] == 8
    assert [len(row) for row in shown["attention_variance"]] == [4, 4]
    assert shown["attention_variance"] == done["attention_variance"]
    assert shown["layer_weights"] == [1.0, 1.0]
    assert "steps" not in shown


@pytest.mark.parametrize(("width", "rate"), [(384, 3e-4), (768, 7.5e-5), (128, 1e-3), (32, 1e-3)])
def test_wider_models_get_a_smaller_learning_rate(width: int, rate: float) -> None:
    model = SimpleNamespace(config=SimpleNamespace(model_type="bert", hidden_size=width))
    assert resolved(Settings(), model).learning_rate == pytest.approx(rate)
    assert resolved(Settings(learning_rate=2e-5), model).learning_rate == 2e-5
