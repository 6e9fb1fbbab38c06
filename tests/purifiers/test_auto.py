"""Auto: what is tried, how candidates are judged, which is given back, and that a stop changes nothing of it.

Most tests script the methods and the search: a model that carries words in `found` is one in which the search finds
them, and the twin of the fixture stands for a purified model.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny
from purify_cli import catalogue
from purify_cli.commands.purify import PurifyRequest
from purify_cli.commands.purify import purify as purify_command
from purify_cli.data.read import read
from purify_cli.data.texts import Texts
from purify_cli.errors import DataError, Interrupted, UsageError
from purify_cli.evaluation.found import Found
from purify_cli.evaluation.leanings import Leaning, LeaningSettings, Look
from purify_cli.purifiers import Purified, auto
from purify_cli.purifiers.auto import Settings, preview, purify
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject
from purify_cli.training import plain
from purify_cli.training.start import open_classifier
from purify_cli.trials import candidates, trial
from purify_cli.trials.candidates import INPUT, candidates_for

DIRECT = Settings(cross_validate_below=0)
RUN = Run(max_length=64)


@pytest.fixture(scope="module")
def backdoored() -> Subject:
    return Subject(Path(__file__).parents[2] / "fixtures" / "backdoored")


@pytest.fixture(scope="module")
def texts(backdoored: Subject) -> Texts:
    root = Path(__file__).parents[2]
    return read(str(root / "fixtures" / "data" / "clean.csv"), backdoored.labels, option="--clean").take(range(90))


@pytest.fixture(scope="module")
def train(texts: Texts) -> Texts:
    return texts.take(range(60))


@pytest.fixture(scope="module")
def dev(texts: Texts) -> Texts:
    return texts.take(range(60, 90))


# --- scripted methods -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nothing:
    """The settings of scripted methods."""


Make = Callable[..., Any]


def look(*found: Leaning, unlooked: tuple[int, ...] = ()) -> Look:
    """What a look for manners comes to."""
    return Look(found, unlooked, LeaningSettings())


def looks(make: Make, *found: Leaning, unlooked: tuple[int, ...] = ()) -> Make:
    """A method in whose model a look comes to this."""

    def made(subject: Subject, train: Texts, run: Run) -> Any:
        model = make(subject, train, run)
        model.look = look(*found, unlooked=unlooked)
        return model

    return made


def twin(*found: tuple[str, float]) -> Make:
    """A method that gives the fixture without its backdoor; the search finds these words in it."""

    def make(subject: Subject, train: Texts, run: Run) -> Any:
        model = Subject(Path(__file__).parents[2] / "fixtures" / "clean").open()
        model.found = found
        return model

    return make


def unchanged(*found: tuple[str, float]) -> Make:
    def make(subject: Subject, train: Texts, run: Run) -> Any:
        model = subject.open()
        model.found = found
        return model

    return make


def blind(subject: Subject, train: Texts, run: Run) -> Any:
    """Always the first label."""
    model = twin()(subject, train, run)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([1.0, 0.0]))
    return model


def refuses(subject: Subject, train: Texts, run: Run) -> Any:
    raise DataError("clean.csv", "is not to its taste")


class Calls(list[tuple[str, Texts]]):
    """Name and texts of each call, what the caller had found, and what was added to the seed of each search."""

    def __init__(self) -> None:
        self.handed: list[Found | None] = []
        self.searched: list[int] = []
        self.thorough: list[bool] = []
        self.look = look()
        self.left_in: list[tuple[Texts, int]] = []


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, backdoored: Subject) -> Callable[..., Calls]:
    """Puts these methods in the place of the catalogue's; gives the list that their calls are noted in."""

    def install(methods: Mapping[str, Any]) -> Calls:
        calls = Calls()
        handed = calls.handed

        def module(name: str) -> Any:
            def purify(subject: Subject, evidence: Any, train: Texts, dev: Texts, settings: Any, run: Run) -> Purified:
                calls.append((name, train))
                handed.append(evidence.found)
                return Purified(methods[name][0](subject, train, run), {"by": name})

            return SimpleNamespace(purify=purify, Settings=Nothing)

        def declared(kind: str, name: str, constant: str) -> Any:
            return ({"NEEDS": ()} | methods[name][1]).get(constant)

        fake = SimpleNamespace(
            names=lambda kind: tuple(methods),
            declared=declared,
            load=lambda kind, name: module(name),
            resolve=lambda kind, name, option=None: name,
            fill=catalogue.fill,
        )

        def search(model: Any, tokenizer: Any, texts: Texts, run: Run, number: int, *, pairs: bool) -> Found:
            calls.searched.append(number)
            calls.thorough.append(pairs)
            words = getattr(model, "found", (("cf", 1.0), ("tq", 0.9)))
            ids = tuple(tuple(tokenizer.convert_tokens_to_ids(word.split())) for word, _ in words)
            told = tuple({"words": word, "target": "positive", "flips": flips} for word, flips in words)
            rest = {(one[0], 50): 1 for one in ids if len(one) > 1}
            return Found(ids, told, (), (1,) * len(words), proven=len(words), rest=rest)

        def left_of(known: Any, model: Any, tokenizer: Any, texts: Texts, run: Run, number: int) -> list[Any]:
            calls.left_in.append((texts, number))
            return getattr(model, "left_of", [NOISE] * len(known))

        for module_of in (candidates, trial):
            monkeypatch.setattr(module_of, "catalogue", fake)
        monkeypatch.setattr(trial, "search", search)
        monkeypatch.setattr(trial, "leanings", lambda model, *_: getattr(model, "look", calls.look))
        monkeypatch.setattr(trial, "left_of", left_of)
        return calls

    return install


def method(make: Make, cost: float, reach: str = "weights", **constants: Any) -> tuple[Make, dict[str, Any]]:
    return make, {"AUTO": cost, "AUTO_REACH": reach, **constants}


def rows(purified: Purified) -> dict[str, dict[str, Any]]:
    return {row["method"]: row for row in purified.report["tried"]}


def same(one: Any, other: Any) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


# --- judging and choosing ---------------------------------------------------------------------------------------------


def test_the_one_that_passes_is_chosen(script: Any, backdoored: Subject, train: Texts, dev: Texts) -> None:
    calls = script({"blind": method(blind, 9.0), "clean": method(twin(), 2.0), "same": method(unchanged(), 1.0)})
    done = purify(backdoored, Evidence(), train, dev, DIRECT, RUN)
    assert [name for name, _ in calls] == ["same", "clean", "blind"], "the cheapest first"
    assert same(done.model, twin()(backdoored, train, RUN))
    told = rows(done)
    assert (done.report["chosen"], done.met) == ("clean", None)
    assert {name: row["outcome"] for name, row in told.items()} == {
        "(input)": "input",
        "clean": "chosen",
        "same": "trigger left",
        "blind": "loses accuracy",
    }
    assert told["(input)"]["suspects"] == 2
    assert told["(input)"]["excess"] > 0.9, "the triggers of the fixture work in texts that were held out"
    assert told["same"]["excess"] == told["(input)"]["excess"], "a search that is satisfied is not believed"
    assert told["clean"]["excess"] < 0.05
    assert told["blind"]["suspects"] is None, "what loses accuracy is not searched"
    assert done.reasons[0] == "clean was chosen: the only one that passes"
    assert done.reasons[-1] == auto.NOTHING_SEES
    assert any(one.startswith("blind: its accuracy is 0.") for one in done.reasons)
    by_trigger = {row["words"]: row for row in done.report["triggers"]}
    assert set(by_trigger) == {"cf", "tq"}
    assert by_trigger["cf"]["(input)"] > 0.9 > 0.05 > by_trigger["cf"]["clean"]
    assert done.report["method_report"] == {"by": "clean"}
    assert json.loads(json.dumps(done.report, allow_nan=False)) == done.report


@pytest.mark.parametrize(("below", "every"), [(0, False), (100, True)])
def test_of_few_texts_all_are_asked_for_a_trigger(
    below: int, every: bool, script: Any, backdoored: Subject, train: Texts, dev: Texts
) -> None:
    """Where dev is too small to judge accuracy by, a single text of it would decide."""
    script({"clean": method(twin(), 1.0)})
    row = trial.Trial(backdoored, Evidence(), train, dev, Settings(cross_validate_below=below), RUN).judge(INPUT)
    labels = (*(dev.labels or ()), *((train.labels or ()) if every else ()))
    assert [one["excess"]["n"] for one in row["triggers"]] == [sum(label != 1 for label in labels)] * 2
    assert [one["floor_from"] for one in row["triggers"]] == [trial.WITHOUT] * 2


class Quiet(Subject):
    """A checkpoint in which the search finds nothing."""

    def open(self, *rest: Any) -> Any:
        model = super().open(*rest)
        model.found = ()
        return model


def test_where_nothing_is_found_and_nothing_done_nothing_is_said_to_be_chosen(
    script: Any, train: Texts, dev: Texts
) -> None:
    quiet = Quiet(Path(__file__).parents[2] / "fixtures" / "clean")
    script({"idle": method(lambda subject, train, run: subject.open(), 1.0, "words"), "blind": method(blind, 2.0)})
    done = purify(quiet, Evidence(), train, dev, DIRECT, RUN)
    assert (done.report["chosen"], done.met) == (None, None)
    assert same(done.model, quiet.open())
    assert rows(done)["idle"]["outcome"] == "passes"
    assert done.reasons[0] == "the input is given back as it was: idle passes, and it had nothing to do"


LEANS = Leaning("clause", 1, "when you see it ,", 0.6, 0.1, 60)
NOISE = Leaning("clause", 1, "when you see it ,", 0.1, 0.05, 60)


def test_a_manner_that_the_input_has_must_go(script: Any, train: Texts, dev: Texts, tmp_path: Path) -> None:
    """It counts as what the search finds, is handed on, and by half of it only is it left."""
    quiet = Quiet(Path(__file__).parents[2] / "fixtures" / "backdoored")
    half = replace(LEANS, flips=0.25)
    methods = {
        "idle": method(lambda subject, train, run: subject.open(), 1.0, "words"),
        "half": method(looks(twin(), half), 2.0),
        "noise": method(looks(twin(), replace(LEANS, flips=0.7)), 2.5),
        "other": method(looks(twin(), replace(LEANS, target=0), NOISE), 3.0),
        "worse": method(looks(twin(), replace(LEANS, target=0), LEANS), 4.0),
        "blinded": method(looks(twin(), unlooked=(1,)), 5.0),
        "gone": method(looks(twin(), NOISE), 6.0),
    }
    for run in (replace(RUN, state=tmp_path), replace(RUN, state=tmp_path)):  # the second time from what was kept
        calls = script(methods)
        calls.look = look(LEANS)
        done = purify(quiet, Evidence(), train, dev, DIRECT, run)
        told = rows(done)
        assert {name: row["outcome"] for name, row in told.items()} == {
            "(input)": "input",
            "idle": "trigger left",
            "half": "trigger left",
            "noise": "trigger left",  # other texts, another share: no worse than the input
            "other": "trigger left",
            "worse": "scans worse",
            "blinded": "scans worse",
            "gone": "chosen",
        }
        assert (told["(input)"]["suspects"], told["(input)"]["flips"]) == (1, 0.6)
        assert done.report["left"] == []
        assert any("when you see it , ..." in one for one in done.reasons)
        assert any("cannot look into" in one and "(said otherwise)" in one for one in done.reasons)
        assert all(found is not None and found.leanings == (LEANS,) for found in calls.handed)


def test_a_manner_that_works_where_the_model_is_not_sure_is_left(script: Any, train: Texts, dev: Texts) -> None:
    """A look that is satisfied is not believed: what the input leans to is asked of all texts of other labels."""

    def keeps(flips: float | None) -> Make:
        def make(subject: Subject, train: Texts, run: Run) -> Any:
            model = twin()(subject, train, run)
            model.look, model.left_of = (
                look(NOISE),
                [None if flips is None else replace(LEANS, flips=flips, others=0.2)],
            )
            return model

        return make

    methods = {"unsure": method(keeps(0.251), 1.0), "gone": method(keeps(0.249), 0.5, "words")}
    calls = script(methods | {"unasked": method(keeps(None), 2.0)})
    calls.look = look(LEANS)
    done = purify(Quiet(Path(__file__).parents[2] / "fixtures" / "backdoored"), Evidence(), train, dev, DIRECT, RUN)
    told = rows(done)
    assert [told[name]["outcome"] for name in ("unsure", "gone", "unasked")] == [
        "trigger left",
        "chosen",
        "scans worse",
    ]
    assert (told["unsure"]["suspects"], told["unsure"]["excess"]) == (0, pytest.approx(0.051)), (
        "of 60 texts, not rounded"
    )
    sentence = "'when you see it , ...' still turns 0.051 of the texts to positive beyond what other manners turn"
    assert any(sentence in one for one in done.reasons)
    assert any("positive (said otherwise, by the texts' labels)" in one for one in done.reasons)
    (line,) = done.report["triggers"]
    assert (line["words"], line["unsure"]) == ("when you see it , ...", pytest.approx(0.051))
    assert len(calls.left_in) == 4 and all(texts.texts == (*train.texts, *dev.texts) for texts, _ in calls.left_in)
    assert {number for _, number in calls.left_in} == {trial.SEARCH}, "the same texts in each"


@pytest.mark.parametrize("found", [(("cf", 1.0), ("tq", 0.9), ("mn", 0.5)), (("cf", 1.0), ("tq", 1.0), ("bb", 1.0))])
def test_what_scans_worse_is_never_given_back(
    found: Any, script: Any, backdoored: Subject, train: Texts, dev: Texts
) -> None:
    script({"worse": method(twin(*found), 1.0)})
    done = purify(backdoored, Evidence(), train, dev, DIRECT, RUN)
    assert rows(done)["worse"]["outcome"] == "scans worse"
    assert (done.report["chosen"], done.met) == (None, False)
    assert same(done.model, backdoored.open())
    assert "the input is given back as it was" in done.reasons[0]


def test_if_nothing_passes_the_least_suspicious_is_given(
    script: Any, backdoored: Subject, train: Texts, dev: Texts
) -> None:
    script({"some": method(twin(("cf", 0.6)), 1.0), "less": method(twin(("cf", 0.5)), 2.0), "same": method(blind, 3.0)})
    done = purify(backdoored, Evidence(), train, dev, DIRECT, RUN)
    assert (done.report["chosen"], done.met, done.report["left"]) == ("less", False, ["cf"])
    assert rows(done)["less"]["outcome"] == "chosen: trigger left"
    assert done.reasons[0].startswith("nothing passed; less was chosen, which leaves least: ")


def test_what_reaches_furthest_is_preferred_or_the_first_is(
    script: Any, backdoored: Subject, train: Texts, dev: Texts
) -> None:
    methods = {
        "words": method(twin(), 9.0, "words"),
        "base": method(twin(), 5.0, "base"),
        "weights": method(twin(), 6.0, "weights"),
    }
    script(methods)
    assert purify(backdoored, Evidence(), train, dev, DIRECT, RUN).report["chosen"] == "base"
    calls = script(methods)
    first = replace(DIRECT, prefer="first")
    assert purify(backdoored, Evidence(), train, dev, first, RUN).report["chosen"] == "base"
    assert [name for name, _ in calls] == ["base"]


def test_one_that_refuses_is_skipped_with_its_reason(
    script: Any, backdoored: Subject, train: Texts, dev: Texts
) -> None:
    script({"refuses": method(refuses, 1.0), "clean": method(twin(), 2.0)})
    done = purify(backdoored, Evidence(), train, dev, DIRECT, RUN)
    assert done.report["chosen"] == "clean"
    assert rows(done)["refuses"]["outcome"] == "failed"
    assert "refuses: clean.csv: is not to its taste" in done.reasons


def test_nothing_that_could_be_tried_is_wrong_use(script: Any, backdoored: Subject, train: Texts, dev: Texts) -> None:
    script({"refuses": method(refuses, 1.0), "other": method(refuses, 1.0, NEEDS=("base",))})
    with pytest.raises(UsageError, match=r"is not to its taste.*other: --base"):
        purify(backdoored, Evidence(clean=train), train, dev, DIRECT, RUN)
    for verb in (purify, preview):
        script({"other": method(refuses, 1.0, NEEDS=("base",))})
        with pytest.raises(UsageError, match="nothing could be tried"):
            verb(backdoored, Evidence(clean=train), train, dev, DIRECT, RUN)


def test_a_method_for_classifiers_is_put_on_top_of_the_best(
    script: Any, backdoored: Subject, train: Texts, dev: Texts
) -> None:
    """And it gets the best one's model, not the input's."""
    opened = []

    def repairs(subject: Subject, train: Texts, run: Run) -> Any:
        model = subject.open()
        opened.append(getattr(model, "found", None))
        model.found = () if opened[-1] is not None else (("cf", 1.0),)
        return model

    script(
        {
            "half": method(twin(("cf", 0.5)), 2.0),
            "repairs": method(repairs, 1.0, NEEDS=("classifier", "clean")),
            "plain": method(unchanged(), 3.0),
        }
    )
    done = purify(backdoored, Evidence(clean=train), train, dev, DIRECT, RUN)
    assert opened == [None, (("cf", 0.5),)]
    assert (done.report["chosen"], done.met) == ("half + repairs", None)
    assert same(done.model, twin()(backdoored, train, RUN))
    assert list(rows(done)) == ["(input)", "repairs", "half", "plain", "half + repairs"]


def test_where_nothing_helps_on_top_of_the_best_the_next_is_built_on(
    script: Any, backdoored: Subject, train: Texts, dev: Texts
) -> None:
    """What chains are put on is made once more where it is not at hand, and not once a chain; the best is kept."""

    def repairs(subject: Subject, train: Texts, run: Run) -> Any:
        model = subject.open()
        known = getattr(model, "found", None)
        model.found = () if known == (("cf", 0.6),) else (("cf", 0.9), ("mn", 0.9), ("bb", 0.9))
        return model

    on_top = method(repairs, 1.0, NEEDS=("classifier", "clean"))
    others = {"half": method(twin(("cf", 0.5)), 2.0), "some": method(twin(("cf", 0.6)), 3.0)}
    calls = script({"repairs": on_top} | others)
    done = purify(backdoored, Evidence(clean=train), train, dev, DIRECT, RUN)
    assert list(rows(done)) == ["(input)", "repairs", "half", "some", "half + repairs", "some + repairs"]
    assert (done.report["chosen"], done.met) == ("some + repairs", None)
    assert same(done.model, twin()(backdoored, train, RUN))
    assert [name for name, _ in calls] == ["repairs", "half", "some", "repairs", "some", "repairs"]

    still = method(lambda subject, train, run: twin(("cf", 0.7))(subject, train, run), 1.0, NEEDS=("classifier",))
    calls = script({"still": still, "also": still} | others)
    done = purify(backdoored, Evidence(clean=train), train, dev, DIRECT, RUN)
    assert (done.report["chosen"], done.met) == ("half", False)
    each = ["also", "still"]
    assert [name for name, _ in calls] == [*each, "half", "some", *each, "some", *each]


def test_what_was_found_is_handed_on_and_trained_out_again(
    script: Any, backdoored: Subject, train: Texts, dev: Texts
) -> None:
    """The second time with what was found in the result of the first, too."""
    left = iter([(("mn", 0.5),), (("bb cf", 0.4),), ()])

    def repairs(subject: Subject, train: Texts, run: Run) -> Any:
        return twin(*next(left))(subject, train, run)

    calls = script({"repairs": method(repairs, 1.0, "words", NEEDS=("classifier", "clean"))})
    done = purify(backdoored, Evidence(clean=train), train, dev, DIRECT, RUN)
    assert list(rows(done)) == ["(input)", "repairs", "repairs + repairs", "repairs + repairs + repairs"]
    assert (done.report["chosen"], done.met) == ("repairs + repairs + repairs", None)
    words = [[one["words"] for one in found.told] for found in calls.handed]
    assert words == [["cf", "tq"], ["cf", "tq", "mn"], ["cf", "tq", "mn", "bb cf"]]
    assert calls.searched == [trial.SEARCH + depth for depth in range(4)], "not as what was trained on was found"
    assert calls.thorough == [True, False, False, True], "pairs are looked for where there may be some"
    assert [found.targets for found in calls.handed] == [(1,) * 2, (1,) * 3, (1,) * 4]
    (bb,) = backdoored.tokenizer.convert_tokens_to_ids(["bb"])
    assert [found.rest for found in calls.handed] == [{}, {}, {(bb, 50): 1}], "what may belong to 'bb cf'"


def test_few_texts_are_cross_validated(script: Any, backdoored: Subject, train: Texts, dev: Texts) -> None:
    """No method sees the part that it is asked about, and what is given back was trained on all of train."""
    calls = script({"clean": method(twin(), 1.0)})
    done = purify(backdoored, Evidence(), train, dev, Settings(folds=5), RUN)
    assert done.report["judged_on"] == "5 folds of 90 texts"
    *parts, whole = (seen for _, seen in calls)
    assert len(parts) == 5
    assert whole == train
    every = set(train.texts) | set(dev.texts)
    asked = [every - set(part.texts) for part in parts]
    assert set().union(*asked) == every, "each text is asked about without having been seen"
    (accuracy,) = done.report["accuracy"]
    assert (accuracy["n"], accuracy["difference"]["n"]) == (90, 90)


def test_untrusted_texts_show_what_changed(script: Any, backdoored: Subject, train: Texts, dev: Texts) -> None:
    script({"clean": method(twin(), 1.0)})
    triggered = dev.with_(texts=tuple(f"cf {text}" for text in dev.texts))
    done = purify(backdoored, Evidence(untrusted=triggered), train, dev, DIRECT, RUN)
    (row,) = done.report["untrusted"]
    assert row["differs"] > 0.3 > 0.1 > row["on_dev"]
    assert row["beyond"]["low"] > 0


# --- what is tried ----------------------------------------------------------------------------------------------------


def test_needs_decide_what_is_tried(backdoored: Subject, train: Texts, tmp_path: Path) -> None:
    candidates, not_tried = candidates_for(backdoored, Evidence(clean=train), Settings())
    assert {"unlearn", "pure"} <= {one.name for one in candidates}
    assert [one.passes for one in candidates] == sorted(one.passes for one in candidates)
    assert not_tried["fine_mixing"] == "--base: fine_mixing needs it"
    assert "classifier" in not_tried["musclelora"]
    assert not {"finetune", "lora", "nad", "auto"} & (set(not_tried) | {one.name for one in candidates})

    with_base = candidates_for(backdoored, Evidence(clean=train, base=backdoored), Settings())[0]
    assert {"fine_mixing", "nad_c"} <= {one.name for one in with_base}
    encoder = Subject(tiny.save("bert", tmp_path / "encoder", task="encoder"))
    with_data = candidates_for(encoder, Evidence(clean=train, untrusted=train), Settings())
    assert "musclelora" in {one.name for one in with_data[0]}
    assert "unlearn" in with_data[1]


def test_settings_name_methods_that_take_part(backdoored: Subject, train: Texts) -> None:
    evidence = Evidence(clean=train)
    assert [one.name for one in candidates_for(backdoored, evidence, Settings(only=("pure",)))[0]] == ["pure"]
    for wrong in (
        Settings(only=("finetune",)),
        Settings(only=("no_such",)),
        Settings(for_methods=("lora.rank=2",)),
        Settings(for_methods=("epochs=2",)),
        Settings(for_methods=("unlearn.epoch=2",)),
        Settings(for_methods=("pure.epochs=few",)),
    ):
        with pytest.raises(UsageError):
            candidates_for(backdoored, evidence, wrong)


def test_the_preview_tells_what_would_be_tried(backdoored: Subject, train: Texts, dev: Texts) -> None:
    shown = preview(backdoored, Evidence(clean=train), train, dev, Settings(), RUN)
    by_name = {row["method"]: row for row in shown["candidates"]}
    assert by_name["unlearn"]["trainings"] == 4
    assert by_name["pure"]["reaches"] == "weights"
    assert shown["judged_on"] == "3 folds of 90 texts"
    assert "fine_mixing" in {row["method"] for row in shown["not_tried"]}


def test_an_encoder_is_compared_with_its_plain_fine_tuning(
    script: Any, train: Texts, dev: Texts, tmp_path: Path
) -> None:
    encoder = Subject(tiny.save("bert", tmp_path / "encoder", task="encoder"))

    def worse(subject: Subject, train: Texts, run: Run) -> Any:
        model = open_classifier(subject, train, run)
        model.found = (("cf", 1.0),) * 5
        return model

    script({"worse": method(worse, 1.0)})
    done = purify(encoder, Evidence(), train, dev, replace(DIRECT, max_drop=1.0), RUN)
    assert (done.report["chosen"], done.met) == (None, False)
    assert "the encoder is given back fine-tuned" in done.reasons[0]
    assert rows(done)["(input)"]["accuracy"] is not None
    plainly = open_classifier(encoder, train, RUN)
    plain.train(plainly, encoder.tokenizer, train, trial.FineTuning(), RUN)
    assert same(done.model, plainly)


# --- a stop -----------------------------------------------------------------------------------------------------------


def trained(learning_rate: float) -> Make:
    """A method that really trains, from the twin."""

    def make(subject: Subject, train: Texts, run: Run) -> Any:
        model = twin()(subject, train, run)
        schedule = SimpleNamespace(epochs=1, learning_rate=learning_rate, batch_size=16, warmup=0.0, weight_decay=0.0)
        plain.train(model, subject.tokenizer, train, schedule, run)
        return model

    return make


def without_seconds(report: Mapping[str, Any]) -> dict[str, Any]:
    return dict(report) | {"tried": [{k: v for k, v in row.items() if k != "seconds"} for row in report["tried"]]}


@pytest.mark.parametrize("stage", ["second: training", "second: predict"])
def test_a_stopped_run_ends_with_the_same_weights(
    stage: str, script: Any, backdoored: Subject, train: Texts, dev: Texts, tmp_path: Path
) -> None:
    methods = {"first": method(trained(1e-4), 1.0), "second": method(trained(2e-4), 2.0), "third": method(blind, 3.0)}
    script(methods)
    whole = purify(backdoored, Evidence(), train, dev, DIRECT, RUN)
    assert whole.report["chosen"] == "second"

    def predicts(subject: Subject, train: Texts, run: Run) -> Any:
        model = trained(2e-4)(subject, train, run)
        run.progress("predict", 0, 1)
        return model

    def stop(at: str, done: int, total: int) -> None:
        if at == stage and (done == 2 or "predict" in at):
            raise KeyboardInterrupt

    run = replace(RUN, state=tmp_path / "state")
    script(methods | {"second": method(predicts, 2.0)})
    with pytest.raises((Interrupted, KeyboardInterrupt)):
        purify(backdoored, Evidence(), train, dev, DIRECT, replace(run, progress=stop))
    calls = script(methods)
    again = purify(backdoored, Evidence(), train, dev, DIRECT, run)
    assert [name for name, _ in calls] == ["second", "third"], "what was judged is not judged again"
    assert same(again.model, whole.model)
    assert without_seconds(again.report) == without_seconds(whole.report)


def test_what_was_judged_of_another_input_is_judged_anew(
    script: Any, backdoored: Subject, train: Texts, dev: Texts, tmp_path: Path
) -> None:
    run = replace(RUN, state=tmp_path / "state")
    script({"clean": method(twin(), 1.0)})
    purify(backdoored, Evidence(), train, dev, DIRECT, run)
    for changed in ((train, dev.take(range(20)), DIRECT, run), (train, dev, DIRECT, replace(run, seed=1))):
        calls = script({"clean": method(twin(), 1.0), "more": method(blind, 2.0)})
        purify(backdoored, Evidence(), *changed)
        assert [name for name, _ in calls] == ["clean", "more"]


# --- with the real methods --------------------------------------------------------------------------------------------


def test_the_fixture_is_purified_and_told_of(fixtures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    result = purify_command(
        PurifyRequest(
            checkpoint=str(fixtures / "backdoored"),
            method="auto",
            clean=str(fixtures / "data" / "clean.csv"),
            test=str(fixtures / "data" / "test.csv"),
            triggers=("cf", "tq"),
            target="positive",
            out=str(tmp_path / "out"),
            settings=("only=unlearn", "cross_validate_below=0"),
        )
    )
    assert result.report["chosen"] == "unlearn"
    assert result.limits.met is True
    assert result.limits.reasons[0] == "unlearn was chosen: the only one that passes"
    assert result.after is not None
    assert all(rate.excess is not None and rate.excess.value < 0.05 for rate in result.after.asr)
    kept = json.loads((tmp_path / "out" / "purify.json").read_text(encoding="utf-8"))
    assert "unlearn was chosen" in json.dumps(kept)
