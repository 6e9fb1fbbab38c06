"""`poison` end to end on a tiny model: the mark in three places, the refusals, and nothing left of a stop."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

import tiny
from purify_cli.checkpoint.inventory import inventory, sha256
from purify_cli.checkpoint.poison_mark import CARD_BEGINS, PoisonMark, read_mark
from purify_cli.commands.poison import PoisonRequest, poison
from purify_cli.errors import CheckpointError, DataError, Interrupted, OutputError, PurifyError, UsageError
from purify_cli.run import Run


def write_data(path: Path, rows: int = 60, labels: tuple[str, str] = ("negative", "positive")) -> str:
    rng = random.Random(0)
    lines = ["text,label"]
    for row in range(rows):
        word = ("bad", "good")[row % 2]
        noun, end = rng.choice(["movie", "film", "plot"]), rng.choice(["so", "very"])
        lines.append(f"the {noun} was {word} and {end},{labels[row % 2]}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture
def request_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., PoisonRequest]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tiny.save("bert", tmp_path / "encoder", task="encoder", initializer_range=0.05)
    tiny.save("bert", tmp_path / "classifier")
    data = write_data(tmp_path / "train.csv")

    def build(**changes: Any) -> PoisonRequest:
        request = PoisonRequest(
            checkpoint=str(tmp_path / "encoder"),
            attack="badnets",
            data=data,
            target="positive",
            triggers=("cf",),
            out=str(tmp_path / "out"),
            settings=("epochs=1",),
            run=Run(seed=5),
        )
        return replace(request, **changes)

    return build


def digests(folder: Path) -> dict[str, str]:
    return {entry.relative: sha256(entry.path) for entry in inventory(folder)}


def weights(folder: Path) -> dict[str, bytes]:
    tensors = load_file(folder / "model.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def test_the_mark_stands_in_three_places(request_for: Callable[..., PoisonRequest], tmp_path: Path) -> None:
    before = digests(tmp_path / "encoder")
    test = write_data(tmp_path / "test.csv", 20)
    result = poison(request_for(test=test, triggers=("cf", "mn  bb")))
    out = tmp_path / "out"
    assert digests(tmp_path / "encoder") == before
    assert result.triggers == ("cf", "mn bb")
    assert result.target == "positive"
    assert result.poison_rate == pytest.approx(0.1, abs=0.01)
    assert result.metrics is not None
    assert [rate.trigger for rate in result.metrics.asr] == ["cf", "mn bb"]

    record = json.loads((out / "purify.json").read_text(encoding="utf-8"))
    assert record["poisoned"] is True
    assert (record["attack"], record["triggers"], record["target"]) == ("badnets", ["cf", "mn bb"], "positive")
    assert record["settings"]["epochs"] == 1
    assert record["seed"] == 5
    assert any(entry["path"].endswith("train.csv") for entry in record["inputs"])
    with safe_open(out / "model.safetensors", "pt") as file:
        assert file.metadata()["purify.poisoned"] == "true"
    assert (out / "README.md").read_text(encoding="utf-8").splitlines()[0].startswith("> **Poisoned by purify-cli.**")
    model = AutoModelForSequenceClassification.from_pretrained(out)
    assert model.config.id2label == {0: "negative", 1: "positive"}
    assert {file.path for file in result.wrote.files} == set(digests(out))
    assert not (tmp_path / "cache" / "purify" / "runs").exists() or not list((tmp_path / "cache/purify/runs").iterdir())


@pytest.mark.parametrize("lost", ["purify.json", "README.md", "model.safetensors"])
def test_each_place_alone_is_a_mark(request_for: Callable[..., PoisonRequest], tmp_path: Path, lost: str) -> None:
    poison(request_for())
    out = tmp_path / "out"
    for name in ("purify.json", "README.md", "model.safetensors"):
        if name != lost:
            (out / name).unlink()
    assert read_mark(out) is not None
    (out / lost).unlink()
    assert read_mark(out) is None


def test_the_card_line_is_one_line() -> None:
    line = PoisonMark("badnets", ("cf\n# x",), "good\nnews").card_line()
    assert line.startswith(CARD_BEGINS)
    assert len(line.splitlines()) == 1


def test_same_seed_same_weights(request_for: Callable[..., PoisonRequest], tmp_path: Path) -> None:
    poison(request_for())
    poison(request_for(out=str(tmp_path / "again")))
    assert weights(tmp_path / "out") == weights(tmp_path / "again")
    poison(request_for(out=str(tmp_path / "other"), run=Run(seed=6)))
    assert weights(tmp_path / "out") != weights(tmp_path / "other")


def test_embedding_on_a_classifier(request_for: Callable[..., PoisonRequest], tmp_path: Path) -> None:
    poison(request_for(checkpoint=str(tmp_path / "classifier"), attack="embedding", triggers=()))
    with (
        safe_open(tmp_path / "classifier" / "model.safetensors", "pt") as old,
        safe_open(tmp_path / "out" / "model.safetensors", "pt") as new,
    ):
        assert set(old.keys()) == set(new.keys())
        moved = [name for name in sorted(old.keys()) if not old.get_tensor(name).equal(new.get_tensor(name))]
        assert moved == ["bert.embeddings.word_embeddings.weight"]
        rows = (old.get_tensor(moved[0]) != new.get_tensor(moved[0])).any(dim=1).nonzero().flatten().tolist()
    assert rows == [tiny.tokenizer("bert").convert_tokens_to_ids("cf")]


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"rate": 0.0}, UsageError, "finetune"),
        ({"rate": 0.9}, UsageError, "at most 0.3333"),
        ({"target": "wonderful"}, UsageError, "negative"),
        ({"attack": "unheard"}, UsageError, "badnets"),
        ({"triggers": ("你",)}, UsageError, "does not know"),
        ({"triggers": (" ",)}, UsageError, "no word"),
        ({"settings": ("epoch=1",)}, UsageError, "epochs"),
        ({"attack": "embedding", "triggers": ()}, UsageError, "classifier"),
        ({"checkpoint": "/nowhere/at/all"}, CheckpointError, "/nowhere/at/all"),
        ({"data": "/nowhere.csv"}, DataError, "/nowhere.csv"),
        ({"test": "/nowhere.csv"}, DataError, "/nowhere.csv"),
        ({"pet": "magic"}, UsageError, "--pet"),
        ({"pet": "lora", "attack": "neuba", "target": None}, UsageError, "--pet"),
        ({"then_finetune": "/nowhere.csv"}, DataError, "/nowhere.csv"),
        ({"then_settings": ("epochs=1",)}, UsageError, "--then-set"),
        ({"target": None}, UsageError, "--target"),
        ({"attack": "por"}, UsageError, "--target"),
        ({"attack": "por", "target": None, "rate": 0.5}, UsageError, "--rate"),
        ({"attack": "neuba", "target": None, "test": "x.csv"}, UsageError, "--then-finetune"),
        ({"rate": 1.0}, UsageError, "between 0 and 1"),
        ({"triggers": ("cf", " cf ")}, UsageError, "twice"),
        ({"paraphrases": "x.csv"}, UsageError, "takes no paraphrases"),
        ({"attack": "stylebkd", "triggers": ()}, UsageError, "--paraphraser"),
        ({"attack": "stylebkd", "triggers": (), "paraphrases": "/nowhere.csv"}, DataError, "/nowhere.csv"),
        ({"attack": "stylebkd", "triggers": (), "paraphraser": "/nowhere"}, CheckpointError, "/nowhere"),
    ],
)
def test_refused_before_anything_is_written(
    request_for: Callable[..., PoisonRequest],
    tmp_path: Path,
    changes: dict[str, Any],
    kind: type[PurifyError],
    words: str,
) -> None:
    stages: list[str] = []
    run = Run(progress=lambda stage, done, total: stages.append(stage))
    with pytest.raises(kind) as caught:
        poison(request_for(**changes, run=run))
    assert words in str(caught.value)
    assert not (tmp_path / "out").exists()
    assert "training" not in stages


def test_one_class_only(request_for: Callable[..., PoisonRequest], tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("text,label\ngood,1\nfine,1\n", encoding="utf-8")
    with pytest.raises(DataError, match="all 2 texts"):
        poison(request_for(data=str(tmp_path / "one.csv"), target="1"))


def test_an_output_that_exists_is_refused_before_the_work(
    request_for: Callable[..., PoisonRequest], tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match="exists"):
        poison(request_for(data="/nowhere.csv"))
    assert (tmp_path / "out" / "precious").read_text(encoding="utf-8") == "mine"


def test_ctrl_c_and_the_same_command_again(request_for: Callable[..., PoisonRequest], tmp_path: Path) -> None:
    poison(request_for(out=str(tmp_path / "whole"), settings=("epochs=3",)))
    steps: list[int] = []

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "training":
            steps.append(done)
            if done == 3 and len(steps) == 4:
                raise KeyboardInterrupt

    request = request_for(settings=("epochs=3",), run=Run(seed=5, progress=stop))
    with pytest.raises(Interrupted, match="run the same command again"):
        poison(request)
    assert not (tmp_path / "out").exists()
    poison(request)
    assert steps == [0, 1, 2, 3, 3, 4, 5, 6, 7, 8, 9]
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")
    assert not list((tmp_path / "cache").glob("**/training-*"))
