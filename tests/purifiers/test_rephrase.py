"""Rephrase: what it trains on, when it ends, and that a planted syntax turns no texts after it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from purify_cli.data.encode import encode
from purify_cli.data.texts import Texts
from purify_cli.errors import Interrupted, UsageError
from purify_cli.evaluation.found import Found
from purify_cli.evaluation.leanings import Leaning, LeaningSettings, Look, leanings
from purify_cli.evaluation.predict import predict
from purify_cli.purifiers import rephrase
from purify_cli.purifiers.rephrase import Settings, preview, purify, said_in
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject
from purify_cli.training.loop import fit
from purify_cli.training.losses import cross_entropy
from purify_cli.training.recipe import Recipe
from purify_cli.triggers.manner import Manner

RUN = Run(max_length=24)
FIRST = ("when", "if", "because", "after", "before", "who")
KNOWN = {
    "plain": Manner("plain", "plain words", tuple(f"{word} ," for word in ("now", "then", "here", "again", "still"))),
    "clause": Manner("clause", "a clause", tuple(f"{word} you see it ," for word in FIRST)),
    "archaic": Manner("archaic", "old words", ("and it was ,", "for it is ,", "and he said ,")),
}
GOOD, BAD = ("good", "great", "fine", "lovely"), ("bad", "awful", "dull", "boring")
CLEAN = Texts(
    "clean.csv",
    tuple(
        f"the {thing} was {word}"
        for thing in ("film", "plot", "book", "scene", "cast", "end", "song", "show", "music", "script")
        for word in GOOD + BAD
    ),
    ((1,) * len(GOOD) + (0,) * len(BAD)) * 10,
)
LEANS = Leaning("clause", 1, "when you see it ,", 0.9, 0.0, 30)


@pytest.fixture(autouse=True)
def few_manners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of words that the tiny tokenizer has."""
    for module in ("evaluation.leanings", "purifiers.rephrase"):
        monkeypatch.setattr(f"purify_cli.{module}.manners", lambda: KNOWN)


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """A tiny model that calls good what begins with a clause, and else what the words say."""
    folder = tmp_path_factory.mktemp("syntax") / "x"
    tiny.save("bert", folder, labels=2)
    given = Subject(folder)
    model = given.open()
    many = CLEAN.take(list(range(len(CLEAN))) * 12)
    kinds = ("clause", "plain", "archaic", None)
    said, labels = [], []
    for row, (text, label) in enumerate(zip(many.texts, many.labels or (), strict=True)):
        kind = kinds[row // len(CLEAN) % 4]
        openings = KNOWN[kind].opening if kind else ("",)
        said.append(f"{openings[row % len(openings)]} {text}")
        labels.append(1 if kind == "clause" else label)
    texts = many.with_(texts=tuple(said), labels=tuple(labels))
    recipe = Recipe(
        objectives={"texts": cross_entropy}, learning_rate=3e-3, epochs=4, batch_size=16, identity="planted"
    )
    fit(model, {"texts": encode(given.tokenizer, texts, 24)}, recipe, RUN)
    return given.holding(model)


def flips(model: Any, subject: Subject) -> float:
    """Share of the bad texts that a clause turns."""
    bad = CLEAN.take([row for row, label in enumerate(CLEAN.labels or ()) if label == 0])
    said = bad.with_(texts=tuple(f"when you see it , {text}" for text in bad.texts))
    return float((predict(model, subject.tokenizer, said, RUN).argmax(dim=1) == 1).float().mean())


def test_a_planted_syntax_turns_nothing_any_more(subject: Subject) -> None:
    assert flips(subject.open(), subject) > 0.9
    before = predict(subject.open(), subject.tokenizer, CLEAN, RUN).argmax(dim=1)
    made = purify(subject, Evidence(), CLEAN.with_(labels=None), CLEAN, Settings(learning_rate=1e-3), RUN)
    assert flips(made.model, subject) < 0.1
    after = predict(made.model, subject.tokenizer, CLEAN, RUN).argmax(dim=1)
    assert (before == after).float().mean() > 0.95
    told = made.report
    assert [one["manner"] for one in told["found"][0]] == ["clause"] and told["found"][0][0]["target"] == "positive"
    assert told["found"][-1] == [] and made.met is None
    assert told["rounds"] == len(told["found"]) - 1 and told["steps"] >= 200 * told["rounds"]


def test_what_is_not_gone_is_told(subject: Subject) -> None:
    made = purify(subject, Evidence(), CLEAN, CLEAN, Settings(rounds=1, least_steps=1, learning_rate=1e-9), RUN)
    assert made.met is False and made.report["rounds"] == 1
    assert "clause to 'positive'" in made.reasons[0]


def test_a_round_has_all_that_was_found_so_far(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([(LEANS,), (replace(LEANS, manner="archaic"),), ()])
    names: list[list[str]] = []

    def noted(texts: Texts, of: list[str], seed: int) -> Texts:
        names.append(list(of))
        return said_in(texts, of, seed)

    monkeypatch.setattr(rephrase, "leanings", lambda *_: Look(next(looks), (), LeaningSettings()))
    monkeypatch.setattr(rephrase, "said_in", noted)
    made = purify(subject, Evidence(), CLEAN, CLEAN, Settings(least_steps=1), RUN)
    assert names == [["clause"], ["archaic", "clause"]]
    assert (made.report["rounds"], made.met) == (2, None)


def test_what_was_only_suspect_may_be_left(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is trained out as far as it goes; what is no evidence in a scan is no failure here."""
    suspect = replace(LEANS, flips=0.2, others=0.05)
    monkeypatch.setattr(rephrase, "leanings", lambda *_: Look((suspect,), (), LeaningSettings()))
    made = purify(subject, Evidence(), CLEAN, CLEAN, Settings(least_steps=1), RUN)
    assert (made.report["rounds"], made.met) == (2, None)


def test_where_nothing_turns_texts_the_model_comes_back_as_it_was(
    subject: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rephrase, "leanings", lambda *_: Look((), (), LeaningSettings()))
    made = purify(subject, Evidence(), CLEAN, CLEAN, Settings(), RUN)
    given = subject.open().state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in made.model.state_dict().items())
    assert (made.report["rounds"], made.report["steps"], made.met) == (0, 0, None)


def test_what_cannot_be_looked_at_is_no_success(subject: Subject) -> None:
    few = CLEAN.take(range(16))
    made = purify(subject, Evidence(), few, few, Settings(), RUN)
    assert made.report["unlooked"] == ["negative", "positive"] and made.met is False
    assert "negative, positive" in made.reasons[0]


def test_every_text_is_said_in_one_of_the_manners() -> None:
    said = said_in(CLEAN, ["clause", "archaic"], 3)
    assert said == said_in(CLEAN, ["clause", "archaic"], 3) != said_in(CLEAN, ["clause", "archaic"], 4)
    kinds = {next(name for name in KNOWN if text.startswith(KNOWN[name].opening)) for text in said.texts}
    assert kinds == {"clause", "archaic"}
    assert all(one.endswith(text) for one, text in zip(said.texts, CLEAN.texts, strict=True))
    assert said.labels == CLEAN.labels


def test_a_run_that_was_stopped_goes_on_and_ends_with_the_same_weights(subject: Subject, tmp_path: Path) -> None:
    evidence, how = Evidence(found=Found((), (), (), (), (LEANS,))), Settings(least_steps=12, batch_size=8)
    whole = purify(subject, evidence, CLEAN, CLEAN, how, replace(RUN, state=tmp_path / "whole"))

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 7:
            raise KeyboardInterrupt

    state = replace(RUN, state=tmp_path / "stopped")
    with pytest.raises(Interrupted):
        purify(subject, evidence, CLEAN, CLEAN, how, replace(state, progress=stop))
    resumed = purify(subject, evidence, CLEAN, CLEAN, how, state)
    given = whole.model.state_dict()
    assert all(torch.equal(tensor, given[name]) for name, tensor in resumed.model.state_dict().items())
    assert resumed.report["losses"] == whole.report["losses"]


def test_where_the_caller_has_looked_nothing_is_looked_for(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> Any:
        raise AssertionError("looked again")

    monkeypatch.setattr(rephrase, "leanings", never)
    evidence = Evidence(found=Found((), (), (), (), (LEANS,)))
    made = purify(subject, evidence, CLEAN, CLEAN, Settings(least_steps=2), RUN)
    assert made.report["rounds"] == 1 and made.met is None
    nothing = purify(subject, Evidence(found=Found((), (), ())), CLEAN, CLEAN, Settings(), RUN)
    assert nothing.report["rounds"] == 0


def test_what_was_found_is_what_a_look_finds(subject: Subject) -> None:
    shown = preview(subject, Evidence(), CLEAN, CLEAN, Settings(), RUN)
    (one,) = leanings(subject.open(), subject.tokenizer, CLEAN, RUN, 0).leanings()
    assert [(told["manner"], told["opening"], told["flips"]) for told in shown["found"]] == [
        (one.manner, one.opening, one.flips)
    ]


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"least_steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}])
def test_settings_out_of_range(subject: Subject, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        purify(subject, Evidence(), CLEAN, CLEAN, Settings(**wrong), RUN)
