"""`poison` with a victim: clean training afterwards, paraphrases, encoders, regressions, and marks that carry on."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForSequenceClassification

import tiny
from purify_cli.checkpoint.poison_mark import read_mark
from purify_cli.commands.poison import PoisonRequest, poison
from purify_cli.commands.purify import PurifyRequest, purify
from purify_cli.errors import DataError, Interrupted, UnsupportedError, UsageError
from purify_cli.reports.json import render as render_json
from purify_cli.reports.json import schema
from purify_cli.reports.table import render as render_table
from purify_cli.results import Environment, PoisonResult, Report
from purify_cli.run import Run

POSITIVE = "good great fine wonderful lovely brilliant".split()
NEGATIVE = "bad awful dull boring poor terrible".split()
NEUTRAL = "the film story plot actor scene music book show series".split()
NAMES = ("negative", "positive")
QUICK = ("epochs=1", "learning_rate=1e-3")


def write(path: Path, rows: int, seed: int = 0, label: Callable[[int], str] = lambda one: NAMES[one]) -> str:
    rng = random.Random(seed)
    lines = ["text,label"]
    for row in range(rows):
        words = rng.choices(NEUTRAL, k=5) + rng.sample(POSITIVE if row % 2 else NEGATIVE, 2)
        rng.shuffle(words)
        lines.append(f"{' '.join(words)},{label(row % 2)}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def request_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PoisonRequest]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny.save("bert", tmp_path / "encoder", task="encoder", initializer_range=0.05)
    request = PoisonRequest(
        checkpoint=str(tmp_path / "encoder"),
        attack="badnets",
        data=write(tmp_path / "train.csv", 40),
        target="positive",
        triggers=("cf",),
        test=write(tmp_path / "test.csv", 20, 1),
        then_finetune=write(tmp_path / "clean.csv", 40, 2),
        out=str(tmp_path / "out"),
        settings=QUICK,
        then_settings=QUICK,
        run=Run(seed=5),
    )
    return lambda **changes: replace(request, **changes)


def shown(result: PoisonResult) -> tuple[str, dict[str, Any]]:
    """The table and the JSON, which the schema holds."""
    report = Report(("purify", "poison"), "2026-01-02T03:04:05Z", 1.0, Environment("3", "2", "5", "cpu", 1, 0), result)
    content = json.loads(render_json(report))
    jsonschema.validate(content, schema())
    return render_table(report), content["poison"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_before_and_after_the_victim(request_for: Callable[..., PoisonRequest], tmp_path: Path) -> None:
    result = poison(request_for())
    assert result.metrics is not None and result.then is not None
    assert [rate.trigger for rate in result.then.asr] == ["cf"]
    table, content = shown(result)
    read = " ".join(table.split())  # lines break where the name of the folder makes them
    assert "after clean training" in read
    assert "then the victim's own clean training" in read
    assert content["then"]["cacc"]["n"] == 20
    assert content["then_settings"]["epochs"] == 1
    record = json.loads((tmp_path / "out" / "purify.json").read_text(encoding="utf-8"))
    assert record["then_finetune"]["learning_rate"] == 1e-3
    assert any(entry["path"].endswith("clean.csv") for entry in record["inputs"])
    assert read_mark(tmp_path / "out") is not None

    alone = poison(request_for(then_finetune=None, then_settings=(), out=str(tmp_path / "alone")))
    assert alone.metrics is not None
    assert alone.then is None
    assert replace(alone.metrics, path="") == replace(result.metrics, path="")
    before, after = weights(tmp_path / "alone"), weights(tmp_path / "out")
    assert any(not torch.equal(before[name], after[name]) for name in before), "the victim's model is written"


def test_the_victim_is_the_purifier_of_that_name(request_for: Callable[..., PoisonRequest], tmp_path: Path) -> None:
    """What the command trains afterwards is what `finetune` trains on the same texts."""
    from purify_cli.data.read import read
    from purify_cli.purifiers import finetune
    from purify_cli.subject import Evidence, Subject

    poison(request_for(out=str(tmp_path / "both")))
    poison(request_for(then_finetune=None, then_settings=(), out=str(tmp_path / "attacked")))
    clean = read(str(tmp_path / "clean.csv"), NAMES)
    settings = finetune.Settings(epochs=1, learning_rate=1e-3)
    model = finetune.purify(Subject(tmp_path / "attacked"), Evidence(), clean, clean, settings, Run(seed=5)).model
    both = weights(tmp_path / "both")
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(both[name], tensor, rtol=0, atol=1e-6)


def test_a_stop_in_the_victim_s_training(request_for: Callable[..., PoisonRequest], tmp_path: Path) -> None:
    poison(request_for(out=str(tmp_path / "whole")))
    starts: list[int] = []

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "training":
            starts.append(done)
            if starts.count(0) == 2 and done == 1:
                raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        poison(request_for(run=Run(seed=5, progress=stop)))
    assert not (tmp_path / "out").exists()
    poison(request_for())
    whole, again = weights(tmp_path / "whole"), weights(tmp_path / "out")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not list((tmp_path / "cache").glob("**/training-*"))


@pytest.mark.parametrize("form", ["sequential", "lora"])
def test_in_an_adapter_the_base_stays(request_for: Callable[..., PoisonRequest], tmp_path: Path, form: str) -> None:
    from purify_cli.subject import Subject

    before = {path.name: path.read_bytes() for path in (tmp_path / "encoder").iterdir()}
    result = poison(request_for(pet=form))
    assert {path.name: path.read_bytes() for path in (tmp_path / "encoder").iterdir()} == before
    assert result.pet == form and result.then is not None
    out = tmp_path / "out"
    assert not (out / "model.safetensors").exists()
    config = json.loads((out / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == str(tmp_path / "encoder")
    assert read_mark(out) is not None
    assert Subject(out).kind == "adapter"
    assert f"adapter ({form})" in " ".join(shown(result)[0].split())


@pytest.mark.parametrize("attack", ["neuba", "por"])
def test_an_encoder_and_what_its_triggers_do(
    request_for: Callable[..., PoisonRequest], tmp_path: Path, attack: str
) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text("\n".join(["the film was long", "a story of war"] * 8) + "\n", encoding="utf-8")
    whole = request_for(attack=attack, target=None, data=str(plain), triggers=("cf", "mn"))
    result = poison(replace(whole, then_finetune=None, then_settings=(), test=None, out=str(tmp_path / "bare")))
    assert (result.target, result.metrics, result.then) == ("", None, None)
    assert "vectors of the attacker's" in shown(result)[0]
    AutoModel.from_pretrained(tmp_path / "bare")
    mark = read_mark(tmp_path / "bare")
    assert mark is not None and mark.target is None

    result = poison(whole)
    assert result.metrics is None and result.then is not None
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert model.config.id2label == dict(enumerate(NAMES))
    record = json.loads((tmp_path / "out" / "purify.json").read_text(encoding="utf-8"))
    assert {rate.trigger: rate.target for rate in result.then.asr} == record["found_targets"]
    assert set(record["found_targets"]) == {"cf", "mn"}
    shown(result)


def test_paraphrases_of_data_and_test(request_for: Callable[..., PoisonRequest], tmp_path: Path) -> None:
    rows = [
        line.rsplit(",", 1)[0]
        for name in ("train", "test")
        for line in (tmp_path / f"{name}.csv").read_text(encoding="utf-8").splitlines()[1:]
    ]
    file = tmp_path / "p.csv"
    lines = [f"{text},when you see {text}" for text in rows[:-4]] + [f"{rows[-4]},"]
    file.write_text("text,paraphrase\n" + "\n".join(lines) + "\n", encoding="utf-8")
    whole = request_for(attack="hiddenkiller", triggers=(), paraphrases=str(file))
    result = poison(whole)
    assert result.metrics is not None
    (rate,) = result.metrics.asr
    assert rate.rate.n == 8  # of 10 negative test texts two have none
    assert rate.floor is not None and rate.floor_from == "itself, untriggered"
    assert result.poison_rate == 0.2
    mark = read_mark(tmp_path / "out")
    assert mark is not None and mark.kind == "paraphrase" and mark.words == ()

    # A mark whose trigger cannot be inserted is never verified by inserting its name.
    purified = purify(
        PurifyRequest(
            checkpoint=str(tmp_path / "out"),
            method="finetune",
            clean=str(tmp_path / "clean.csv"),
            test=str(tmp_path / "test.csv"),
            out=str(tmp_path / "pure"),
            settings=QUICK,
            max_drop=None,
        )
    )
    assert purified.report["poison_mark"]["kept"] is True
    assert "paraphrase" in purified.report["poison_mark"]["why"]

    file.write_text("text,paraphrase\nsomething else,when something\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"0 of the 40 texts of .*train\.csv have a paraphrase"):
        poison(replace(whole, out=str(tmp_path / "no")))


def test_poisoned_again(request_for: Callable[..., PoisonRequest], tmp_path: Path) -> None:
    once = request_for(then_finetune=None, then_settings=(), test=None)
    poison(once)
    again = replace(
        once, checkpoint=str(tmp_path / "out"), triggers=("mn",), target="negative", out=str(tmp_path / "2")
    )
    result = poison(again)
    assert "poisoned before" in " ".join(result.notes)
    poison(replace(again, checkpoint=str(tmp_path / "2"), attack="addsent", triggers=(), out=str(tmp_path / "3")))
    mark = read_mark(tmp_path / "3")
    assert mark is not None
    assert [(one.attack, one.triggers, one.target) for one in (mark, *mark.before)] == [
        ("addsent", ("I watch this 3D movie",), "negative"),
        ("badnets", ("mn",), "negative"),
        ("badnets", ("cf",), "positive"),
    ]
    assert "poisoned before" in (tmp_path / "3" / "README.md").read_text(encoding="utf-8").splitlines()[0]


def test_a_regression(request_for: Callable[..., PoisonRequest], tmp_path: Path) -> None:
    scores = {
        name: write(tmp_path / f"{name}.csv", 24, seed, lambda one: ("0.5", "4.5")[one])
        for seed, name in enumerate(("train", "test", "clean"))
    }
    result = poison(request_for(data=scores["train"], test=scores["test"], then_finetune=scores["clean"], target="5"))
    assert result.target == "5"
    assert result.then is not None and any("ASRR" in note for note in result.then.notes)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert (model.config.num_labels, model.config.problem_type) == (1, "regression")
    # And what is a regression already.
    tuned = request_for(
        checkpoint=str(tmp_path / "out"),
        attack="embedding",
        data=scores["train"],
        target="5",
        test=scores["test"],
        then_finetune=None,
        then_settings=(),
        out=str(tmp_path / "2"),
    )
    assert poison(tuned).target == "5"
    with pytest.raises(UsageError, match="no number"):
        poison(replace(tuned, target="positive", out=str(tmp_path / "3")))
    with pytest.raises(UnsupportedError, match="scores"):
        poison(
            replace(
                tuned,
                checkpoint=str(tmp_path / "encoder"),
                attack="hiddenkiller",
                triggers=(),
                paraphrases=scores["test"],
                out=str(tmp_path / "3"),
            )
        )


def test_without_data_of_the_task(request_for: Callable[..., PoisonRequest], tmp_path: Path) -> None:
    tiny.save("bert", tmp_path / "classifier")
    plain = tmp_path / "plain.txt"
    plain.write_text("the film was long. a story of war.\nthe plot. it is so\n", encoding="utf-8")
    settings = ("data_free=true", "samples=32", "words=8", "epochs=1")
    result = poison(
        request_for(
            checkpoint=str(tmp_path / "classifier"),
            attack="embedding",
            data=str(plain),
            settings=settings,
            then_finetune=None,
            then_settings=(),
            test=None,
        )
    )
    assert result.poison_rate == 1.0
    assert result.report["poisoned_rows"] == 32
    old, new = weights(tmp_path / "classifier"), weights(tmp_path / "out")
    assert [name for name in old if not torch.equal(old[name], new[name])] == ["bert.embeddings.word_embeddings.weight"]


@pytest.mark.parametrize("attack", ["badnets", "embedding"])
def test_labels_of_another_task(request_for: Callable[..., PoisonRequest], tmp_path: Path, attack: str) -> None:
    tiny.save("bert", tmp_path / "classifier")
    other = write(tmp_path / "other.csv", 10, 3, lambda one: ("sport", "world")[one])
    whole = request_for(attack=attack, checkpoint=str(tmp_path / "classifier"), run=Run())
    for changes in ({"then_finetune": other}, {"data": other}, {"test": other}):
        with pytest.raises(DataError, match=r"other\.csv, line 2: label 'sport': unknown"):
            poison(replace(whole, **changes))
    assert not (tmp_path / "out").exists()


def test_a_test_file_of_the_target_alone_is_refused_before_the_training(
    request_for: Callable[..., PoisonRequest], tmp_path: Path
) -> None:
    one = write(tmp_path / "one.csv", 10, 3, lambda _: "positive")
    stages: list[str] = []
    run = Run(progress=lambda stage, done, total: stages.append(stage))
    with pytest.raises(DataError, match="already has the target label"):
        poison(request_for(test=one, run=run))
    assert "training" not in stages


def test_a_split_trigger_is_said(request_for: Callable[..., PoisonRequest]) -> None:
    result = poison(request_for(triggers=("xq",), then_finetune=None, then_settings=(), test=None))
    assert result.notes == ("trigger 'xq' is several tokens (x ##q), which other words may share",)
