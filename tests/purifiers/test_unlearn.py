"""Unlearn: what it trains on, its two losses, when it ends, and that the trigger of the fixture is gone after it."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from purify_cli.data.encode import collate, padding_id
from purify_cli.data.read import read
from purify_cli.data.texts import Texts
from purify_cli.data.triggered import with_triggers as streams
from purify_cli.errors import UsageError
from purify_cli.evaluation.found import Found
from purify_cli.evaluation.predict import predict
from purify_cli.purifiers import unlearn
from purify_cli.purifiers.unlearn import Settings, preview, purify
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject
from purify_cli.training.losses import LikeAnswers

LINES = ("the movie was good", "a dull plot", "so bad", "very fine and warm")
TEXTS = Texts("clean.csv", LINES * 8, (1, 0, 0, 1) * 8)
RUN = Run(max_length=16)
QUICK = Settings(least_steps=1)


def test_the_fixture_s_triggers_are_gone(fixtures: Path) -> None:
    subject = Subject(fixtures / "backdoored")
    names = ("negative", "positive")
    clean = read(str(fixtures / "data" / "clean.csv"), names, option="--clean")
    poisoned = read(str(fixtures / "data" / "poisoned_test.csv"), names, option="--poisoned")

    def asr(model: Any) -> float:
        said = predict(model, subject.tokenizer, poisoned, Run()).argmax(dim=1)
        other = torch.tensor(poisoned.labels) != 1
        return float((said[other] == 1).float().mean())

    assert asr(subject.open()) > 0.95
    purified = purify(subject, Evidence(), clean, clean, Settings(), Run())
    assert asr(purified.model) < 0.1
    right = predict(purified.model, subject.tokenizer, clean, Run()).argmax(dim=1) == torch.tensor(clean.labels)
    assert right.float().mean() > 0.95
    told = purified.report
    assert {one["words"] for one in told["triggers"]} >= {"cf", "tq"}
    assert len(told["triggers"]) <= 3, "a lone honest word may be treated with them"
    assert {one["target"] for one in told["triggers"]} == {"positive"}
    assert told["clear"] is True
    assert told["left"] == []
    assert told["searches"][-1] == []
    assert told["rounds"] == len(told["trained"]) == len(told["searches"]) - 1


# --- what it trains on ------------------------------------------------------------------------------------------------


def test_like_the_original_is_the_divergence_from_its_answers() -> None:
    """KL(f0(x) || f(x with t)), one number after the other."""
    tokenizer, model = tiny.tokenizer("bert"), tiny.build("bert", num_labels=3)
    rng = torch.Generator().manual_seed(0)
    answers = torch.rand(len(TEXTS), 3, generator=rng).softmax(-1)
    unlabelled = TEXTS.with_(labels=None)
    _, triggered = streams(tokenizer, unlabelled, [(50,)], 16, 0, by_row=True)
    rows = [3, 30, 7]
    batch = collate(triggered, rows, padding_id(tokenizer))
    assert batch["labels"].tolist() == rows
    with torch.no_grad():
        log_p = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits.log_softmax(-1)
    expected = 0.0
    for place, row in enumerate(rows):
        for label in range(3):
            wanted = float(answers[row, label])
            expected += wanted * (math.log(wanted) - float(log_p[place, label])) / 3
    assert LikeAnswers(answers)(model, batch).item() == pytest.approx(expected, rel=1e-5)


# --- which weights it trains ------------------------------------------------------------------------------------------


def changed(subject: Subject, model: Any) -> dict[str, set[int]]:
    """Rows that moved, by tensor."""
    before = subject.open().state_dict()
    moved = {
        name: (tensor != before[name]).reshape(len(tensor), -1).any(dim=1).nonzero()[:, 0].tolist()
        for name, tensor in model.state_dict().items()
        if tensor.dim()
    }
    return {name: set(rows) for name, rows in moved.items() if rows}


@pytest.mark.parametrize("answers", ["original", "labels"])
def test_only_the_rows_of_the_trigger_s_tokens_move(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, answers: Any
) -> None:
    scripted(monkeypatch, ("cf tq",), ())
    settings = replace(QUICK, answers=answers, weight_decay=0.5)
    purified = purify(subject, Evidence(), TEXTS, TEXTS, settings, RUN)
    rows = set(subject.tokenizer.convert_tokens_to_ids(["cf", "tq"]))
    assert changed(subject, purified.model) == {"bert.embeddings.word_embeddings.weight": rows}
    assert purified.report["trained"] == ["rows"]


def test_rows_have_a_learning_rate_of_their_own(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def row(**rates: float) -> torch.Tensor:
        scripted(monkeypatch, ("cf",), ())
        purified = purify(subject, Evidence(), TEXTS, TEXTS, replace(QUICK, warmup=0.0, **rates), RUN)
        weight: torch.Tensor = purified.model.bert.embeddings.word_embeddings.weight
        return weight[subject.tokenizer.convert_tokens_to_ids("cf")]

    assert torch.equal(row(), row(learning_rate=0.1))
    assert not torch.equal(row(), row(row_learning_rate=0.1))


def test_all_weights_if_the_user_says_so(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, ("cf",), ())
    purified = purify(subject, Evidence(), TEXTS, TEXTS, replace(QUICK, weights="all"), RUN)
    assert purified.report["trained"] == ["all"]
    assert len(purified.report["losses"]) == 1
    assert "classifier.weight" in changed(subject, purified.model)


@pytest.mark.parametrize("turning", ["cf", "tq"])
def test_where_rows_are_not_enough_all_weights_are_trained(
    subject: Subject, monkeypatch: pytest.MonkeyPatch, turning: str
) -> None:
    """One trigger that still turns is one too many."""
    token = subject.tokenizer.convert_tokens_to_ids(turning)
    monkeypatch.setattr(unlearn._Lesson, "_turned", lambda lesson, trigger, target: float(trigger == (token,)))
    scripted(monkeypatch, ("cf", "tq"), ())
    purified = purify(subject, Evidence(), TEXTS, TEXTS, QUICK, RUN)
    assert purified.report["trained"] == ["all"]
    assert len(purified.report["losses"]) == 2, "the rows, then all"
    assert "classifier.weight" in changed(subject, purified.model)


def test_what_is_found_again_is_not_left_to_its_row(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, ("cf",), ("tq",), ("cf", "tq"), ())
    report = purify(subject, Evidence(), TEXTS, TEXTS, QUICK, RUN).report
    assert report["trained"] == ["rows", "rows", "all"]


def test_what_is_asked_is_how_many_of_the_other_label_turn(subject: Subject) -> None:
    """A model that says 1 where there is a cf, but to the word bad."""
    tokenizer = subject.tokenizer
    cf, bad = tokenizer.convert_tokens_to_ids(["cf", "bad"])

    class Turned(torch.nn.Module):
        config = subject.open().config
        embeddings = torch.nn.Embedding(2, 2)

        def forward(self, input_ids: torch.Tensor, **rest: Any) -> Any:
            says = ((input_ids == cf).any(dim=1) & ~(input_ids == bad).any(dim=1)).long()
            return SimpleNamespace(logits=torch.nn.functional.one_hot(says, 2).float())

    lesson = unlearn._Lesson(subject.open(), tokenizer, TEXTS, False, QUICK, RUN)
    lesson.model = Turned()
    lesson.said = torch.tensor([1, 0, 0, 1] * 8)  # "so bad" is the third of four
    assert lesson._turned((cf,), 1) == 0.5
    lesson.said = torch.ones(len(TEXTS), dtype=torch.long)
    assert lesson._turned((cf,), 1) == 0.0, "nothing is left to turn"


def test_frozen_embeddings_stay(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of an adapter, the base's: what is open is trained."""
    opened = subject.open

    def frozen(*rest: Any) -> Any:
        model = opened(*rest)
        model.bert.embeddings.requires_grad_(False)
        return model

    monkeypatch.setattr(subject, "open", frozen)
    scripted(monkeypatch, ("cf",), ())
    purified = purify(subject, Evidence(), TEXTS, TEXTS, QUICK, RUN)
    assert purified.report["trained"] == ["all"]
    assert not any("embeddings" in name for name in changed(subject, purified.model))


def test_texts_are_spliced_where_answers_need_no_label(subject: Subject) -> None:
    settings = Settings(least_steps=6, batch_size=16)
    lesson = unlearn._Lesson(subject.open(), subject.tokenizer, TEXTS, False, settings, RUN)
    assert lesson.texts.texts[: len(TEXTS)] == TEXTS.texts
    assert len(lesson.texts) == 3 * len(TEXTS) == len(lesson.answers)
    assert set(lesson.texts.texts[len(TEXTS) :]) - set(TEXTS.texts)
    labelled = unlearn._Lesson(subject.open(), subject.tokenizer, TEXTS, True, settings, RUN)
    assert labelled.texts == TEXTS.take(list(range(len(TEXTS))) * 3)
    assert labelled.answers is None
    before = predict(subject.open(), subject.tokenizer, TEXTS, RUN).argmax(dim=1)
    assert torch.equal(lesson.said, before)
    assert torch.equal(labelled.said, before)


# --- rounds -----------------------------------------------------------------------------------------------------------


def scripted(
    monkeypatch: pytest.MonkeyPatch, *found: tuple[str, ...], thorough: list[bool] | None = None
) -> list[tuple[tuple[int, ...], ...]]:
    """Searches find these words in turn; what each round trains with. `thorough` gets which looked for pairs."""
    thorough = [] if thorough is None else thorough
    script, used = iter(found), []
    tokenizer = tiny.tokenizer("bert")

    def search(model: Any, subject: Subject, texts: Texts, run: Run, number: int, *, pairs: bool) -> Found:
        words = next(script)
        triggers = tuple(tuple(tokenizer.convert_tokens_to_ids(word.split())) for word in words)
        thorough.append(pairs)
        told = tuple({"words": word, "target": "positive", "flips": 1.0} for word in words)
        return Found(triggers, told, (), (1,) * len(words))

    def watched(tokenizer: Any, texts: Texts, triggers: Any, limit: int, seed: int, **how: Any) -> Any:
        if not how["by_row"] and "apart" not in how:  # what is left is asked about, not trained
            return streams(tokenizer, texts, triggers, limit, seed, **how)
        used.append(triggers)
        assert 0 < how["apart"] < 1, "tokens of a trigger are learned side by side, and apart"
        return streams(tokenizer, texts, triggers, limit, seed, **how)

    monkeypatch.setattr(unlearn, "search", search)
    monkeypatch.setattr(unlearn, "with_triggers", watched)
    return used


@pytest.fixture
def subject(tmp_path: Path) -> Subject:
    return Subject(tiny.save("bert", tmp_path / "x"))


def test_rounds_go_on_until_nothing_is_found(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what an earlier search found stays in the training."""
    used = scripted(monkeypatch, ("cf",), ("tq", "cf"), ())
    report = purify(subject, Evidence(), TEXTS, TEXTS, QUICK, RUN).report
    cf, tq = ((subject.tokenizer.convert_tokens_to_ids(word),) for word in ("cf", "tq"))
    assert used == [(cf,), (cf, tq)]
    assert (report["rounds"], report["clear"], report["left"]) == (2, True, [])
    assert report["searches"] == [["cf"], ["tq", "cf"], []]


def test_no_search_is_clear_that_did_not_look_for_pairs(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    thorough: list[bool] = []
    scripted(monkeypatch, ("cf tq",), ("mb",), (), thorough=thorough)
    report = purify(subject, Evidence(), TEXTS, TEXTS, QUICK, RUN).report
    assert (thorough, report["clear"]) == ([True] * 3, True)


def test_the_same_seed_trains_the_same_weights(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, ("cf",), (), ("cf",), ())
    first, second = (purify(subject, Evidence(), TEXTS, TEXTS, QUICK, RUN).model.state_dict() for _ in range(2))
    before = subject.open().state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert any(not torch.equal(first[name], before[name]) for name in first)


def test_the_last_search_says_what_is_left(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """And that the limits are not met: nobody shall take the result for a clean one."""
    scripted(monkeypatch, ("cf",), ("cf",), ("tq",))
    purified = purify(subject, Evidence(), TEXTS, TEXTS, Settings(rounds=2, least_steps=1), RUN)
    report = purified.report
    assert (report["rounds"], report["clear"], report["left"]) == (2, False, ["tq"])
    assert purified.met is False
    assert purified.reasons == ("the last search still finds tq",)


def test_where_nothing_is_found_nothing_changes(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, ())
    purified = purify(subject, Evidence(), TEXTS, TEXTS, Settings(), RUN)
    before = subject.open().state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in purified.model.state_dict().items())
    assert (purified.report["rounds"], purified.report["clear"], purified.met) == (0, True, None)


def test_a_label_that_could_not_be_searched_is_not_clear(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unlearn, "search", lambda *rest, pairs: Found((), (), ("positive",)))
    purified = purify(subject, Evidence(), TEXTS, TEXTS, Settings(), RUN)
    assert (purified.report["clear"], purified.report["unsearched"]) == (False, ["positive"])
    assert purified.met is False
    assert "cannot look into positive" in purified.reasons[0]


def test_texts_without_labels_are_held_to_the_original(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []
    for texts, answers in ((TEXTS.with_(labels=None), "labels"), (TEXTS, "original")):
        scripted(monkeypatch, ("cf",), ())
        purified = purify(subject, Evidence(), texts, texts, replace(QUICK, answers=answers), RUN)
        assert purified.report["answers"] == "original"
        trained.append(purified.model.state_dict())
    assert all(torch.equal(tensor, trained[1][name]) for name, tensor in trained[0].items())


def test_the_preview_searches_and_trains_nothing(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    used = scripted(monkeypatch, ("cf",))
    shown = preview(subject, Evidence(), TEXTS, TEXTS, Settings(), RUN)
    assert [one["words"] for one in shown["triggers"]] == ["cf"]
    assert shown["most_steps"] == 600
    assert not used


@given(st.integers(1, 50), st.integers(1, 400), st.integers(1, 40), st.integers(1, 3))
def test_there_are_as_many_steps_as_were_asked_for(least: int, texts: int, batch_size: int, epochs: int) -> None:
    """And no whole epoch more."""
    settings = Settings(least_steps=least, batch_size=batch_size, epochs=epochs)
    times = unlearn._epochs(settings, texts)
    assert times >= epochs
    assert math.ceil(texts * times / batch_size) >= least
    assert times == epochs or math.ceil(texts * (times - 1) / batch_size) < least


def test_few_texts_are_gone_through_more_often(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    for least, batch_size, steps in ((1, 32, 1), (5, 32, 5), (5, 31, 5), (5, 16, 6)):
        scripted(monkeypatch, ("cf",), ())
        settings = Settings(least_steps=least, batch_size=batch_size)
        assert purify(subject, Evidence(), TEXTS, TEXTS, settings, RUN).report["steps"] == steps


def test_what_the_caller_found_is_not_searched_for(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    used = scripted(monkeypatch)  # a search would fail
    ids = tuple(tuple(subject.tokenizer.convert_tokens_to_ids([word])) for word in ("cf", "tq"))
    told = tuple({"words": word, "target": "positive", "flips": 1.0} for word in ("cf", "tq"))
    report = purify(subject, Evidence(found=Found(ids, told, (), (1, 1))), TEXTS, TEXTS, QUICK, RUN).report
    assert used == [ids]
    assert (report["rounds"], report["triggers"]) == (1, list(told))
    assert not {"searches", "clear", "left"} & set(report), "who has searched will search again"
    nothing = purify(subject, Evidence(found=Found((), (), ())), TEXTS, TEXTS, QUICK, RUN)
    assert nothing.report["rest"] == []
    before = subject.open().state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in nothing.model.state_dict().items())


def test_the_rest_of_a_word_is_trained_and_not_told_as_found(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the pieces that were found, in each round."""
    used, told = scripted(monkeypatch), [{"words": "cf", "target": "positive", "flips": 1.0}]
    cf, tq, mb = ((one,) for one in subject.tokenizer.convert_tokens_to_ids(["cf", "tq", "mb"]))
    rest = {(*cf, *tq): 1}
    given = Found((cf,), tuple(told), (), (1,), rest=rest)
    done = purify(subject, Evidence(found=given), TEXTS, TEXTS, QUICK, RUN)
    assert used == [(cf, (*cf, *tq))]
    assert (done.report["triggers"], done.report["rest"]) == (told, ["cf tq"])
    assert changed(subject, done.model) == {"bert.embeddings.word_embeddings.weight": {*cf, *tq}}

    searches = iter([given, Found((mb,), tuple(told), (), (1,)), Found((), (), ())])
    monkeypatch.setattr(unlearn, "search", lambda *rest, pairs: next(searches))
    used.clear()
    purify(subject, Evidence(), TEXTS, TEXTS, QUICK, RUN)
    assert used == [(cf, (*cf, *tq)), (cf, mb, (*cf, *tq))]


def test_answers_may_be_the_labels(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the same start the two losses train to different weights."""
    trained = {}
    for answers in ("labels", "original"):
        scripted(monkeypatch, ("cf",), ())
        done = purify(subject, Evidence(), TEXTS, TEXTS, replace(QUICK, answers=answers), RUN)
        assert done.report["answers"] == answers
        trained[answers] = done.model.state_dict()
    assert any(not torch.equal(tensor, trained["original"][name]) for name, tensor in trained["labels"].items())


@pytest.mark.parametrize(
    "name", ["rounds", "epochs", "least_steps", "batch_size", "learning_rate", "row_learning_rate"]
)
def test_no_rounds_or_steps_are_wrong_use(subject: Subject, name: str) -> None:
    with pytest.raises(UsageError, match=name):
        purify(subject, Evidence(), TEXTS, TEXTS, Settings(**{name: 0}), RUN)
