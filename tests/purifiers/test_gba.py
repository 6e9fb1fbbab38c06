"""GBA: equations 1, 3 and 4 against plain loops, the crowd, the label map, and an output that needs nothing of ours."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tiny
from purify_cli.architecture.classifier import classifier_parameters, replace_classifier
from purify_cli.architecture.embeddings import word_embeddings
from purify_cli.architecture.prompt import add_prompt
from purify_cli.architecture.table import base_of
from purify_cli.checkpoint.write import write_checkpoint
from purify_cli.data.encode import Encoded, collate, encode
from purify_cli.data.texts import Texts
from purify_cli.data.usage import Usage
from purify_cli.errors import Interrupted, UnsupportedError, UsageError
from purify_cli.evaluation.predict import predict
from purify_cli.purifiers import Purified, gba
from purify_cli.purifiers.gba import Broadcast, PromptAnswer, Settings, Swap, preview, purify
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject
from purify_cli.training.loop import fit
from purify_cli.training.recipe import Recipe

FAMILIES = ["bert", "roberta", "distilbert", "deberta-v2"]
TEXTS = Texts("clean.csv", ("the movie was good", "a dull plot", "so bad", "a very fine film") * 4, (1, 0, 0, 1) * 4)
RUN = Run(max_length=16)
NO_DROPOUT = dict.fromkeys(
    ("hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout", "seq_classif_dropout"), 0.0
)
QUICK = {"epochs": 1, "head_epochs": 1, "batch_size": 8, "learning_rate": 1e-3}


class Step:
    """One step on a batch of four texts, its gradients taken."""

    def __init__(self, family: str, temperature: float = 2.0, **settings: Any) -> None:
        self.model = tiny.build(family, initializer_range=0.3)
        self.tokenizer = add_prompt(self.model, tiny.tokenizer(family), 2, seed=1)
        stream = encode(self.tokenizer, TEXTS.take(range(4)), 16)
        self.batch = collate(stream, range(4), self.tokenizer.pad_token_id)
        self.tokens = tuple(self.tokenizer.convert_tokens_to_ids(["bad", "good"]))
        self.answer = PromptAnswer(self.tokens, temperature)
        self.settings = Settings(temperature=temperature, **settings)
        fixed = {*self.tokenizer.all_special_ids, *self.tokens}
        self.usage = Usage(stream, fixed, word_embeddings(self.model).num_embeddings)
        pulled = self.usage.rare(self.settings.rare)
        self.broadcast = Broadcast(self.model, self.answer, self.usage, self.settings, steps=10, pulled=pulled)
        self.loss = self.answer(self.model, self.batch)
        named = {name: one for name, one in self.model.named_parameters() if one.requires_grad}
        found = torch.autograd.grad(self.loss, list(named.values()), allow_unused=True)
        self.gradients = {name: one for name, one in zip(named, found, strict=True) if one is not None}

    def p(self, row: int) -> list[float]:
        """Equation 1 for one text of the batch, word by word."""
        texts = {name: tensor for name, tensor in self.batch.items() if name != "labels"}
        hidden = base_of(self.model)(**texts).last_hidden_state[row, 0].detach()
        table = word_embeddings(self.model).weight.detach()
        scores = [math.exp(float((table[w] * hidden).sum()) / self.answer.temperature) for w in range(len(table))]
        return [score / sum(scores) for score in scores]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_loss_is_equation_1(family: str) -> None:
    step = Step(family)
    assert (step.batch["input_ids"][:, 0] == step.tokenizer.mask_token_id).all()
    labels = step.batch["labels"].tolist()
    expected = sum(-math.log(step.p(row)[step.tokens[label]]) for row, label in enumerate(labels)) / 4
    assert step.loss.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_q_is_equation_4_word_by_word(family: str) -> None:
    step = Step(family, pull=0.7, least=1e-2)
    # The gradient at each token, found without hooks: the loss of the same texts from their rows.
    table = word_embeddings(step.model).weight.detach()
    rows = table[step.batch["input_ids"]].clone().requires_grad_()
    texts = {name: tensor for name, tensor in step.batch.items() if name not in ("labels", "input_ids")}
    hidden = base_of(step.model)(inputs_embeds=rows, **texts).last_hidden_state[:, 0]
    log_p = (hidden @ table.T / 2.0).log_softmax(dim=-1)
    wanted = torch.tensor(step.tokens)[step.batch["labels"]]
    at_token = torch.autograd.grad(-log_p[range(4), wanted].mean(), rows)[0]
    expected = torch.zeros_like(table)
    for row, label in enumerate(step.batch["labels"].tolist()):
        p, places = step.p(row), step.batch["attention_mask"][row].nonzero()[:, 0].tolist()
        mean = sum(at_token[row, place] for place in places) / len(places)
        for w in range(len(table)):
            expected[w] += p[w] / max(p[step.tokens[label]], 1e-2) * mean
    torch.testing.assert_close(step.broadcast.q(), expected, atol=1e-5, rtol=1e-4)
    added = step.broadcast.add_pull({"task": step.gradients}, 3)
    name = step.broadcast.name
    torch.testing.assert_close(added[name], step.gradients[name] + 0.7 * expected, atol=1e-5, rtol=1e-4)
    assert all(added[other] is step.gradients[other] for other in step.gradients if other != name)


@pytest.mark.parametrize("rare", [0.0, 0.25])
def test_rare_rows_outside_the_batch_go_towards_the_crowd_and_no_others(rare: float) -> None:
    step = Step("bert", pull=0.2, rare=rare)
    table = word_embeddings(step.model).weight
    step.answer.batch = {"input_ids": step.batch["input_ids"][:2]}  # two of the four texts
    before = table.detach().clone()
    with torch.no_grad():
        step.broadcast.merge(step.model, 5)
    after = table.detach()
    present = step.batch["input_ids"][:2].unique().tolist()
    fixed = {*step.tokenizer.all_special_ids, *step.tokens}
    texts = [_attended(step, row, ids) for row, ids in enumerate(step.batch["input_ids"].tolist())]
    words = [one for text in texts for one in text if one not in fixed]
    crowd = sum(before[one] for one in words) / len(words)
    pulled = 0
    for w in range(len(before)):
        common = sum(w in text for text in texts) > rare * 4
        if common or w in present or w in fixed:
            assert torch.equal(after[w], before[w])
            continue
        pulled += w in words
        way = math.exp(-0.2 * 2 * (10 - 5) / (10 * 11))
        torch.testing.assert_close(after[w], crowd + way * (before[w] - crowd), atol=1e-6, rtol=1e-5)
    assert bool(pulled) is bool(rare)
    unseen = step.broadcast.unseen.nonzero()[:, 0].tolist()
    assert not set(unseen) & (set(words) | fixed)
    crowd = sum(after[one] for one in words) / len(words)
    expected = sum(_rmse(after[w], crowd) for w in unseen) / len(unseen)
    assert step.broadcast.distance(step.model) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("steps", [1, 7, 40])
def test_however_long_the_training_a_row_that_nothing_moves_ends_at_exp_of_minus_lambda(steps: int) -> None:
    step = Step("bert", pull=3.0, rare=0.0)
    step.broadcast.steps = steps
    table = word_embeddings(step.model).weight
    unseen = step.broadcast.unseen.nonzero()[0, 0]
    crowd = step.broadcast.share.to(table) @ table.detach()
    before = table[unseen].detach().clone()
    with torch.no_grad():
        for t in range(steps):
            step.broadcast.merge(step.model, t)
    expected = crowd + math.exp(-3.0) * (before - crowd)
    torch.testing.assert_close(table[unseen].detach(), expected, atol=1e-5, rtol=1e-4)


def test_tokens_are_swapped_for_words_of_no_clean_text() -> None:
    step = Step("bert")
    ids = step.batch["input_ids"]
    torch.manual_seed(0)
    every = Swap(step.usage, Settings(swapped=1.0))(step.batch)
    fixed = ~step.usage.free[ids]
    assert torch.equal(every["input_ids"][fixed], ids[fixed]), "prompt, class tokens and padding stay"
    assert step.usage.unseen[every["input_ids"][~fixed]].all()
    assert every["labels"] is step.batch["labels"]
    some = Swap(step.usage, Settings(swapped=0.3))
    again = []
    for _ in range(2):
        torch.manual_seed(1)
        again.append(torch.stack([some(step.batch)["input_ids"] for _ in range(100)]))
    assert torch.equal(*again), "the generator decides"
    changed = (again[0] != ids)[:, ~fixed].float().mean()
    assert changed == pytest.approx(0.3, abs=0.05)
    assert Swap(step.usage, Settings(swapped=0.0))(step.batch) is step.batch
    assert Swap(step.usage, Settings()).share == step.usage.strange


def _attended(step: Step, row: int, ids: list[int]) -> list[int]:
    return [one for place, one in enumerate(ids) if step.batch["attention_mask"][row, place]]


def _rmse(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).square().mean().sqrt())


def test_a_word_that_its_clean_texts_contradict_is_pulled_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`film` is in three texts of one label, of which the checkpoint says the other."""
    subject = Subject(tiny.save("bert", tmp_path / "x", num_labels=2))
    every = [permutations(text.split()) for text in ("the movie was good", "a dull plot so")]
    good, bad = (tuple(map(" ".join, orders)) for orders in every)
    lines = (*good, *bad, "a fine film", "film was good", "the film")
    texts = Texts("clean.csv", lines, (1,) * 24 + (0,) * 24 + (1,) * 3)
    tokenizers: list[Any] = []

    def says(model: Any, tokenizer: Any, texts: Texts, run: Run) -> torch.Tensor:
        tokenizers.append(tokenizer)
        said = [label * ("film" not in text) for text, label in zip(texts.texts, texts.labels or (), strict=True)]
        return torch.nn.functional.one_hot(torch.tensor(said), 2).float()

    monkeypatch.setattr(gba, "predict", says)
    film = subject.tokenizer.convert_tokens_to_ids("film")
    before = word_embeddings(subject.open()).weight[film].detach()
    moved = {}
    for chance, told in ((0.0, []), (0.01, ["film"])):
        settings = Settings(**QUICK, pull=9.0, contradicted=chance, class_tokens="bad,good", swapped=0.0)
        tokenizers.clear()
        done = purify(subject, Evidence(), texts, texts, settings, RUN)
        assert done.report["contradicted"] == told
        assert tokenizers == [subject.tokenizer] * bool(told), "asked before the prompt is there"
        moved[chance] = float((word_embeddings(done.model).weight[film].detach() - before).norm())
    assert moved[0.01] > 1.5 * moved[0.0]
    for other in ({"broadcast": "none"}, {"broadcast": "gradient"}, {"pull": 0.0}):
        literal = purify(subject, Evidence(), texts, texts, Settings(**QUICK, **other), RUN)
        assert literal.report["contradicted"] == [], "nothing is pulled"
    with pytest.raises(UsageError, match=r"contradicted: 1\.5 is out of range"):
        purify(subject, Evidence(), texts, texts, Settings(contradicted=1.5), RUN)


@pytest.mark.parametrize("broadcast", ["crowd", "gradient"])
def test_lambda_moves_what_prompt_tuning_alone_does_not(tmp_path: Path, broadcast: Any) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x"))
    unused = subject.tokenizer.convert_tokens_to_ids("cf")
    rows = {}
    for pull in (0.0, 0.5):
        how = Settings(**QUICK, broadcast=broadcast, pull=pull, class_tokens="bad,good")
        purified = purify(subject, Evidence(), TEXTS, TEXTS, how, RUN)
        rows[pull] = word_embeddings(purified.model).weight[unused].detach()
    assert not torch.equal(rows[0.0], rows[0.5])
    alone = purify(subject, Evidence(), TEXTS, TEXTS, Settings(**QUICK, broadcast="none", class_tokens="bad,good"), RUN)
    assert torch.equal(rows[0.0], word_embeddings(alone.model).weight[unused].detach())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_output_is_a_plain_classifier(family: str, tmp_path: Path) -> None:
    """Loaded by transformers alone it gives the same probabilities, prompt included."""
    subject = Subject(tiny.save(family, tmp_path / "x"))
    purified = purify(subject, Evidence(), TEXTS, TEXTS, Settings(**QUICK), RUN)
    out = tmp_path / "out"
    write_checkpoint(out, purified.model, purified.tokenizer, source=subject.folder, provenance={}, own_tokenizer=True)
    ours = predict(purified.model, purified.tokenizer, TEXTS, RUN)
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    tokenizer = AutoTokenizer.from_pretrained(out)
    batch = tokenizer(list(TEXTS.texts), padding=True, return_tensors="pt")
    assert tokenizer.convert_ids_to_tokens(batch["input_ids"][0, :3].tolist()) == ["[MASK]", "[soft1]", "[soft2]"]
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits.softmax(dim=-1), ours, atol=1e-5, rtol=1e-5)
    again = Subject(out)
    assert again.kind == "classifier" and again.labels == subject.labels
    assert torch.equal(predict(again.model(), again.tokenizer, TEXTS, RUN), ours)
    assert {"[soft1]", "[soft2]"} <= set(again.tokenizer.all_special_tokens)
    first, second = again.tokenizer("good", "bad"), subject.tokenizer("good", "bad")
    assert first["input_ids"][3:] == second["input_ids"][1:]
    assert first.get("token_type_ids", [])[2:] == second.get("token_type_ids", [])


def _by_class_tokens(purified: Purified, stream: Encoded) -> torch.Tensor:
    """E_y . h_[MASK] of each class token, [texts, labels]."""
    batch = collate(replace(stream, labels=None), range(len(stream)), purified.tokenizer.pad_token_id)
    with torch.no_grad():
        mask = base_of(purified.model)(**batch).last_hidden_state[:, 0]
    tokens = purified.tokenizer.convert_tokens_to_ids(purified.report["class_tokens"])
    return mask @ word_embeddings(purified.model).weight.detach()[tokens].T


@pytest.mark.parametrize("family", FAMILIES)
def test_the_head_is_trained_as_if_the_frozen_encoder_ran_in_each_step(family: str, tmp_path: Path) -> None:
    subject = Subject(tiny.save(family, tmp_path / "x", **NO_DROPOUT))
    lines = tuple(map(" ".join, permutations("the movie was good".split())))
    texts = Texts("clean.csv", lines, (0, 1, 1) * 8)  # of one length, so that they come in one order
    settings = Settings(**QUICK | {"head_epochs": 3}, broadcast="none", head_rate=1e-2)
    ours, theirs = (purify(subject, Evidence(), texts, texts, settings, RUN) for _ in range(2))
    model, stream = theirs.model, encode(theirs.tokenizer, texts, 16)
    assert len({len(ids) for ids in stream.ids}) == 1

    replace_classifier(model, 2, RUN.seed)
    opened = set(classifier_parameters(model))
    if family == "bert":
        opened |= {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
        drawn = torch.randn(model.bert.pooler.dense.weight.shape, generator=torch.Generator().manual_seed(RUN.seed))
        model.bert.pooler.dense.weight.data.copy_(drawn * 0.02)
        model.bert.pooler.dense.bias.data.zero_()
    recipe = Recipe(trainable=lambda name, _: name in opened, learning_rate=1e-2, epochs=3, batch_size=8)
    fit(model, {"task": stream}, recipe, RUN)
    said, expected = (predict(one.model, one.tokenizer, texts, RUN) for one in (ours, theirs))
    torch.testing.assert_close(said, expected, atol=1e-5, rtol=1e-4)
    assert expected.std() > 1e-3, "it has learned to tell them apart"
    right = (expected.argmax(dim=1) == torch.tensor(texts.labels)).float().mean()
    assert ours.report["tried"] == [{"pull": 7.0, "accuracy": pytest.approx(float(right))}]
    agrees = (_by_class_tokens(ours, stream).argmax(dim=1) == said.argmax(dim=1)).float().mean()
    assert ours.report["head_agrees"] == pytest.approx(float(agrees))


def test_an_encoder_gets_the_labels_of_the_data(tmp_path: Path) -> None:
    for task in ("encoder", "masked-lm"):
        subject = Subject(tiny.save("bert", tmp_path / task, task=task))
        purified = purify(subject, Evidence(), TEXTS, TEXTS, Settings(**QUICK), RUN)
        assert purified.model.config.num_labels == 2
        assert 0 <= purified.report["head_agrees"] <= 1
        assert purified.report["contradicted"] == [], "it gives no answers that texts could contradict"


def test_lambda_is_raised_while_dev_holds(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x"))
    every = purify(subject, Evidence(), TEXTS, TEXTS, Settings(**QUICK, raised=2, max_drop=1.0), RUN).report
    assert [one["pull"] for one in every["tried"]] == [0.0, 7.0, 14.0, 28.0]
    assert every["pull"] == 28.0


@pytest.mark.parametrize(
    ("accuracies", "pull", "met"),
    [((0.9, 0.89, 0.885, 0.7, 0.9), 14.0, None), ((0.9, 0.8), 7.0, False), ((0.9, 0.9, 0.87), 7.0, None)],
)
def test_lambda_stops_where_dev_falls(
    monkeypatch: pytest.MonkeyPatch, accuracies: tuple[float, ...], pull: float, met: bool | None
) -> None:
    """The first accuracy is that of prompt tuning alone; what comes behind the first fall is not tried."""
    script = iter(accuracies[1:])

    def adapt(subject: Any, train: Any, dev: Any, settings: Settings, run: Run) -> Any:
        accuracy = accuracies[0] if settings.broadcast == "none" else next(script)
        return gba._Adapted(None, None, settings.pull, accuracy, {})

    monkeypatch.setattr(gba, "_adapt", adapt)
    done = purify(SimpleNamespace(), Evidence(), TEXTS, TEXTS, Settings(raised=4), RUN)  # type: ignore[arg-type]
    assert (done.report["pull"], done.met) == (pull, met)
    assert bool(done.reasons) is (met is False)


@pytest.mark.parametrize(("family", "why"), [("llama", "no .MASK."), ("albert", "differ in width")])
def test_families_that_the_prompt_does_not_fit(tmp_path: Path, family: str, why: str) -> None:
    subject = Subject(tiny.save(family, tmp_path / "x"))
    with pytest.raises(UnsupportedError, match=why):
        purify(subject, Evidence(), TEXTS, TEXTS, Settings(**QUICK), RUN)


@pytest.mark.parametrize("when", [4, 9])
def test_a_killed_run_ends_with_the_same_weights(when: int, tmp_path: Path) -> None:
    """In the adaptation, and behind the first step of the head, of which what is swapped in is drawn anew."""
    subject = Subject(tiny.save("bert", tmp_path / "x"))
    how = Settings(**(QUICK | {"epochs": 3}), swapped=0.3)
    torch.manual_seed(1)
    whole = purify(subject, Evidence(), TEXTS, TEXTS, how, RUN).model.state_dict()
    calls = 0

    def stop(what: str, done: int, total: int) -> None:
        nonlocal calls
        calls += what == "training"
        if calls == when:
            raise KeyboardInterrupt

    state = tmp_path / "state"
    with pytest.raises(Interrupted):
        purify(subject, Evidence(), TEXTS, TEXTS, how, Run(max_length=16, progress=stop, state=state))
    assert list(state.glob("*.pt"))
    torch.manual_seed(2)
    resumed = purify(subject, Evidence(), TEXTS, TEXTS, how, Run(max_length=16, state=state)).model.state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


def test_a_score_wants_both_class_tokens_in_proportion(tmp_path: Path) -> None:
    model = tiny.build("bert", num_labels=1, problem_type="regression", initializer_range=0.3)
    tokenizer = add_prompt(model, tiny.tokenizer("bert"), 1, seed=0)
    scores = Texts("s.csv", TEXTS.texts[:3], (0.0, 3.0, 4.0))
    batch = collate(encode(tokenizer, scores, 16), range(3), tokenizer.pad_token_id)
    low, high = tokenizer.convert_tokens_to_ids(["bad", "good"])
    answer = PromptAnswer((low, high), 2.0, span=(0.0, 4.0))
    mask = base_of(model)(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state[:, 0]
    log_p = (mask @ word_embeddings(model).weight.T / 2.0).log_softmax(dim=-1)
    by_hand = [log_p[0, low], 0.25 * log_p[1, low] + 0.75 * log_p[1, high], log_p[2, high]]
    torch.testing.assert_close(answer(model, batch), -sum(by_hand) / 3, atol=1e-5, rtol=1e-5)

    subject = Subject(tiny.save("bert", tmp_path / "x", num_labels=1, problem_type="regression"))
    texts = Texts("s.csv", TEXTS.texts, (4.0, 1.0, 0.5, 3.5) * 4)
    purified = purify(subject, Evidence(), texts, texts, Settings(**(QUICK | {"head_epochs": 20})), RUN)
    assert purified.model.config.num_labels == 1
    said = predict(purified.model, purified.tokenizer, texts, RUN)[:, 0]
    assert abs(float(said.mean()) - 2.25) < 1
    share = (_by_class_tokens(purified, encode(purified.tokenizer, texts, 16)) / 10).softmax(dim=1)[:, 1]
    correlations = [
        float(torch.corrcoef(torch.stack([said, other]))[0, 1]) for other in (torch.tensor(texts.labels), share)
    ]
    assert purified.report["tried"][0]["accuracy"] == pytest.approx(correlations[0], abs=1e-4)
    assert purified.report["head_agrees"] == pytest.approx(correlations[1], abs=1e-4)
    with pytest.raises(UsageError, match="all of its scores"):
        purify(subject, Evidence(), texts.with_(labels=(2.0,) * 16), texts, Settings(**QUICK), RUN)


def test_preview_names_the_class_tokens(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x"))
    shown = preview(subject, Evidence(), TEXTS, TEXTS, Settings(), RUN)
    assert shown["class_tokens"] == ["bad", "film"] and shown["steps"] == 5


def test_adaptation_and_head_both_see_swapped_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = 0

    def counted(swap: Swap, batch: Any) -> Any:
        nonlocal seen
        seen += 1
        return batch

    monkeypatch.setattr(Swap, "__call__", counted)
    subject = Subject(tiny.save("bert", tmp_path / "x"))
    for broadcast, steps in (("crowd", 3), ("none", 0)):  # two steps of the adaptation, one batch for the head's states
        seen = 0
        purify(subject, Evidence(), TEXTS, TEXTS, Settings(**QUICK, broadcast=broadcast), RUN)  # type: ignore[arg-type]
        assert seen == steps
