"""Adapter folders through the four commands: made, scanned, measured, trained on, and written as adapters again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from purify_cli.architecture.pet import attach_pet
from purify_cli.checkpoint.inventory import inventory, sha256
from purify_cli.checkpoint.poison_mark import PoisonMark, read_mark
from purify_cli.checkpoint.write import write_checkpoint
from purify_cli.commands.evaluate import EvalRequest, evaluate
from purify_cli.commands.purify import PurifyRequest, purify
from purify_cli.commands.scan import ScanRequest, scan
from purify_cli.data.encode import encode
from purify_cli.data.read import read
from purify_cli.errors import UsageError
from purify_cli.evaluation.predict import predict
from purify_cli.run import Run
from purify_cli.subject import Subject
from purify_cli.training.loop import fit
from purify_cli.training.recipe import Recipe
from purify_cli.training.start import open_classifier

FORMS = ["sequential", "parallel", "prefix", "prompt"]
SCANNED = ["sequential", "prompt"]
NOUNS = "movie film story plot actor actress scene script music book show picture".split()
CUES = ("bad awful dull boring poor terrible".split(), "good great fine wonderful lovely funny".split())


def write_data(path: Path, rows: int, seed: int) -> str:
    rng = random.Random(seed)
    lines = ["text,label"]
    for row in range(rows):
        first, second = rng.sample(CUES[row % 2], 2)
        lines.append(f"the {rng.choice(NOUNS)} was {first} and the {rng.choice(NOUNS)} was {second},{row % 2}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, data files, and an adapter of every form that cannot be merged."""
    folder = tmp_path_factory.mktemp("adapters")
    write_data(folder / "clean.csv", 64, 2)
    write_data(folder / "test.csv", 24, 3)
    base = Subject(tiny.save("bert", folder / "base"))
    for form in FORMS:
        model = attach_pet(base.open(), f"{form}:tokens=3" if form.startswith("pr") else form, seed=1)
        if form in SCANNED:  # only of a model that is sure of some texts can a trigger be sought
            texts = read(folder / "clean.csv", base.labels)
            recipe = Recipe(epochs=25, learning_rate=0.02)
            fit(model, {"task": encode(base.tokenizer, texts, 32)}, recipe, Run())
        mark = PoisonMark("badnets", ("cf",), "positive")
        write_checkpoint(
            folder / form,
            model,
            base.tokenizer,
            source=base.folder,
            provenance=mark.provenance(),
            card=mark.card_line() + "\n",
            metadata=mark.metadata(),
        )
    return folder


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def digests(folder: Path) -> dict[str, str]:
    return {entry.relative: sha256(entry.path) for entry in inventory(folder)}


def request(place: Path, form: str, out: Path, **changes: Any) -> PurifyRequest:
    given: dict[str, Any] = {
        "method": "finetune",
        "settings": ("epochs=2", "learning_rate=0.01"),
        "test": str(place / "test.csv"),
        "max_drop": None,
    }
    return PurifyRequest(
        checkpoint=str(place / form), clean=str(place / "clean.csv"), out=str(out), **(given | changes)
    )


@pytest.mark.parametrize("form", FORMS)
def test_finetune_makes_an_adapter_of_an_adapter(place: Path, form: str, tmp_path: Path) -> None:
    before = digests(place / form) | digests(place / "base")
    result = purify(request(place, form, tmp_path / "out"))
    assert digests(place / form) | digests(place / "base") == before
    assert (tmp_path / "out" / "adapter_config.json").is_file()
    assert not (tmp_path / "out" / "config.json").exists()
    old, new = (load_file(folder / "adapter_model.safetensors") for folder in (place / form, tmp_path / "out"))
    assert old.keys() == new.keys()
    assert any("bottleneck" in name or "prompt" in name for name in new)
    assert all(not torch.equal(old[name], new[name]) for name in old), "adapter, classifier and pooler were all trained"
    subject = Subject(tmp_path / "out")
    assert (subject.kind, subject.labels) == ("adapter", Subject(place / form).labels)
    assert result.after is not None
    assert result.after.cacc is not None
    test = read(place / "test.csv", subject.labels)
    said = predict(subject.open(), subject.tokenizer, test, Run()).argmax(dim=1)
    accuracy = float((said == torch.tensor(test.labels)).float().mean())
    assert accuracy == pytest.approx(result.after.cacc.value), "what was written is what was measured"
    assert read_mark(tmp_path / "out") is not None, "nothing showed that its trigger is gone"


def test_pure_cannot_prune_the_base_of_an_adapter(place: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="prune=false"):
        purify(request(place, "sequential", tmp_path / "out", method="pure", settings=("epochs=1",)))
    purify(request(place, "sequential", tmp_path / "out", method="pure", settings=("epochs=1", "prune=false")))
    assert Subject(tmp_path / "out").kind == "adapter"


@pytest.mark.parametrize("form", FORMS)
def test_adapters_are_measured(place: Path, form: str) -> None:
    asked = EvalRequest(
        (str(place / form),),
        str(place / "test.csv"),
        base=str(place / "base"),
        triggers=("cf",),
        target="positive",
    )
    (one,) = evaluate(asked).checkpoints
    assert one.cacc is not None
    assert (one.cacc.n, one.asr[0].rate.n) == (24, 12)


@pytest.mark.parametrize("form", SCANNED)
def test_adapters_are_scanned(place: Path, form: str) -> None:
    asked = ScanRequest(str(place / form), base=str(place / "base"), clean=str(place / "clean.csv"))
    result = scan(asked)
    outcomes = {check.detector: (check.outcome, check.reason) for check in result.checks}
    assert outcomes["artifact"][0] == "clear", outcomes
    assert outcomes["mark"][0] == "found"
    assert outcomes["drift"][0] == "clear", "the embeddings are the base's own"
    assert outcomes["trigger_search"][0] in {"found", "clear"}, outcomes["trigger_search"]
    outcome, why = outcomes.pop("manners")
    assert outcome == "clear" or "give texts of the task" in why, "few texts, of which some adapters are not sure"
    assert all(outcome != "failed" for outcome, _ in outcomes.values()), outcomes
    assert result.subject.kind == "adapter"


def test_numbers_that_are_none_are_found_in_an_adapter(place: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(place / "parallel", tmp_path / "nan")
    file = tmp_path / "nan" / "adapter_model.safetensors"
    tensors = load_file(file)
    next(value for name, value in tensors.items() if name.endswith("down.weight"))[0, 0] = float("nan")
    save_file(tensors, file)
    result = scan(ScanRequest(str(tmp_path / "nan"), only=("artifact",), base=str(place / "base")))
    assert [finding.rule for finding in result.findings] == ["PA110"]


@pytest.mark.parametrize("form", ["sequential", "lora"])
def test_no_adapter_is_put_on_an_adapter(place: Path, form: str, tmp_path: Path) -> None:
    """Merged or not: the folder could not name what its base is."""
    base = Subject(place / "base")
    model = attach_pet(base.open(), form, seed=1)
    write_checkpoint(tmp_path / "adapter", model, base.tokenizer, source=base.folder, provenance={})
    subject = Subject(tmp_path / "adapter")
    texts = read(place / "clean.csv", subject.labels)
    assert open_classifier(subject, texts, Run()) is not None
    with pytest.raises(UsageError) as error:
        open_classifier(subject, texts, Run(), pet="parallel")
    assert error.value.where == "--pet"
