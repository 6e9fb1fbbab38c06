"""Adapter folders that we write: they load again, in plain peft where they are peft's, and hostile ones are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

import tiny
from purify_cli.architecture.pet import attach_pet, has_pet
from purify_cli.checkpoint.poison_mark import PoisonMark, read_mark
from purify_cli.checkpoint.write import write_checkpoint
from purify_cli.errors import CheckpointError, UnsupportedError
from purify_cli.subject import Subject

MARK = PoisonMark("badnets", ("cf",), "good")
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


def shake(model: Any) -> Any:
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.3)
    return model


def logits(model: Any, family: str) -> torch.Tensor:
    batch = tiny.tokenizer(family)(["a good movie", "the plot was slow"], padding=True, return_tensors="pt")
    with torch.no_grad():
        answer: torch.Tensor = model(**batch).logits
    return answer


def write(out: Path, base: Path, form: str, *, labels: int | None = None) -> Any:
    """A random adapter on the checkpoint in `base`; gives back the model that was written."""
    subject = Subject(base)
    model = subject.open(num_labels=labels, seed=3)
    model.config.id2label = {number: ("bad", "good", "so-so")[number] for number in range(model.config.num_labels)}
    model = shake(attach_pet(model, form, seed=1))
    write_checkpoint(
        out,
        model,
        subject.tokenizer,
        source=subject.folder,
        provenance=MARK.provenance(),
        card=MARK.card_line() + "\n",
        metadata=MARK.metadata(),
    )
    return model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, and a sequential adapter on it that the hostile ones are made from."""
    folder = tmp_path_factory.mktemp("adapters")
    write(folder / "adapter", tiny.save("bert", folder / "base"), "sequential")
    return folder


def checked(adapter: Path, expected: torch.Tensor, family: str, labels: int) -> Any:
    subject = Subject(adapter)
    assert (subject.kind, subject.task) == ("adapter", "classifier")
    assert subject.labels == ("bad", "good", "so-so")[:labels]
    model = subject.open()
    torch.testing.assert_close(logits(model, family), expected, atol=1e-5, rtol=1e-5)
    assert read_mark(adapter) == MARK
    with safe_open(adapter / WEIGHTS, framework="pt") as file:
        assert file.metadata()["purify.poisoned"] == "true"
    assert (adapter / "tokenizer.json").is_file()
    assert not (adapter / "model.safetensors").exists()
    return model


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("form", ["sequential:positions=both", "parallel"])
def test_bottlenecks_of_every_family_load_again(family: str, form: str, tmp_path: Path) -> None:
    base = tiny.save(family, tmp_path / "base", task="encoder")
    written = write(tmp_path / "adapter", base, form, labels=3)
    model = checked(tmp_path / "adapter", logits(written, family), family, 3)
    opened = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert opened == {name for name, parameter in written.named_parameters() if parameter.requires_grad}
    assert opened == set(load_file(tmp_path / "adapter" / WEIGHTS)), "the folder holds what is trained, and no more"
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert config["format"] == "purify.bottleneck/1"
    assert (config["base_model_name_or_path"], config["model_type"]) == (str(base), family)
    assert config["scaling"] == (4.0 if form == "parallel" else 1.0)


@pytest.mark.parametrize("form", ["lora", "prefix", "prompt"])
@pytest.mark.parametrize("family", ["bert", "distilbert", "gpt2"])
def test_pefts_forms_load_in_plain_peft(family: str, form: str, tmp_path: Path) -> None:
    if (family, form) in {("distilbert", "prefix"), ("gpt2", "prompt")}:
        return
    base = tiny.save(family, tmp_path / "base", task="encoder")
    expected = logits(write(tmp_path / "adapter", base, form, labels=3), family)
    model = checked(tmp_path / "adapter", expected, family, 3)
    assert has_pet(model) == (form != "lora")
    config = json.loads((tmp_path / "adapter" / CONFIG).read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert config["inference_mode"] is True
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3)
    wrapped = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(wrapped, family), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["sequential", "lora", "prompt"])
def test_the_same_adapter_is_the_same_bytes(form: str, tmp_path: Path) -> None:
    base = tiny.save("bert", tmp_path / "base")
    for name in ("one", "two"):
        write(tmp_path / name, base, form)
    for name in (CONFIG, WEIGHTS):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_an_adapter_is_written_in_the_dtype_that_it_came_in(bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert / "adapter", tmp_path / "half")
    tensors = {name: value.half() for name, value in load_file(bert / "adapter" / WEIGHTS).items()}
    save_file(tensors, tmp_path / "half" / WEIGHTS)
    subject = Subject(tmp_path / "half")
    model = subject.open()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    write_checkpoint(tmp_path / "again", model, subject.tokenizer, source=subject.folder, provenance={})
    again = load_file(tmp_path / "again" / WEIGHTS)
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[name], tensors[name]) for name in tensors)


def test_more_labels_than_the_adapter_has_are_a_new_classifier(bert: Path) -> None:
    model = Subject(bert / "adapter").open(num_labels=3)
    assert logits(model, "bert").shape == (2, 3)
    assert model.classifier.weight.requires_grad
    assert not model.bert.embeddings.word_embeddings.weight.requires_grad


def edited(bert: Path, folder: Path, **changes: Any) -> Path:
    shutil.copytree(bert / "adapter", folder)
    file = folder / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"bottleneck": 10**9}, CheckpointError),
        ({"bottleneck": -1}, CheckpointError),
        ({"bottleneck": True}, CheckpointError),
        ({"bottleneck": 9}, CheckpointError),
        ({"bottleneck": [8, 0]}, CheckpointError),
        ({"bottleneck": [8] * 10**5}, CheckpointError),
        ({"bottleneck": None}, CheckpointError),
        ({"scaling": float("nan")}, CheckpointError),
        ({"scaling": 1e30}, CheckpointError),
        ({"scaling": "learned"}, CheckpointError),
        ({"hidden_size": 64}, CheckpointError),
        ({"model_type": "roberta"}, CheckpointError),
        ({"positions": "both"}, CheckpointError),
        ({"positions": "embeddings"}, UnsupportedError),
        ({"activation": "__import__('os')"}, UnsupportedError),
        ({"activation": ["relu"]}, UnsupportedError),
        ({"form": "lora"}, UnsupportedError),
        ({"form": "parallel", "positions": "both"}, UnsupportedError),
        ({"normalized_input": "yes"}, UnsupportedError),
        ({"format": "purify.bottleneck/2"}, UnsupportedError),
        ({"id2label": {"0": "a", "7": "b"}}, CheckpointError),
    ],
)
def test_hostile_configs(bert: Path, changes: dict[str, Any], expected: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        Subject(edited(bert, tmp_path / "adapter", **changes)).open()
    assert type(error.value) is expected


def test_hostile_tensors(bert: Path, tmp_path: Path) -> None:
    tensors = load_file(bert / "adapter" / WEIGHTS)
    first = next(name for name in tensors if "bottleneck" in name)
    head = "classifier.weight"
    word = "bert.embeddings.word_embeddings.weight"
    cases = {
        "missing": {name: value for name, value in tensors.items() if name != first},
        "no-head": {name: value for name, value in tensors.items() if name != head},
        "surplus": tensors | {first.replace("layer.0", "layer.7"): tensors[first].clone()},
        "base": tensors | {word: torch.zeros(3, 3)},
        "shape": tensors | {first: tensors[first][..., :-1].contiguous()},
        "whole-numbers": tensors | {first: tensors[first].to(torch.int32)},
    }
    for name, changed in cases.items():
        folder = tmp_path / name
        shutil.copytree(bert / "adapter", folder)
        save_file(changed, folder / WEIGHTS)
        with pytest.raises(CheckpointError):
            Subject(folder).open()


def test_an_adapter_of_another_base_is_an_error(bert: Path, tmp_path: Path) -> None:
    for wrong in (
        tiny.save("bert", tmp_path / "wider", hidden_size=64),
        tiny.save("bert", tmp_path / "deeper", num_hidden_layers=3),
        tiny.save("gpt2", tmp_path / "other"),
    ):
        with pytest.raises(CheckpointError) as error:
            Subject(bert / "adapter", base=wrong).open()
        assert "--base" in error.value.remedy
    with pytest.raises(CheckpointError, match="--base"):
        Subject(edited(bert, tmp_path / "lost", base_model_name_or_path="org/name")).open()
    found = Subject(tmp_path / "lost", base=bert / "base").open()
    torch.testing.assert_close(logits(found, "bert"), logits(Subject(bert / "adapter").open(), "bert"))


def test_hostile_soft_prompts(tmp_path: Path) -> None:
    base = tiny.save("bert", tmp_path / "base")
    for form in ("prefix", "prompt"):
        write(tmp_path / form, base, form)
        file = tmp_path / form / CONFIG
        sound = json.loads(file.read_text())
        for changes in (
            {"num_virtual_tokens": 10**9},
            {"token_dim": 10**9},
            {"num_layers": 10**6},
            {"num_layers": 1.5},
            {"token_dim": 31},
        ):
            if form == "prompt" and changes == {"num_layers": 10**6}:
                continue
            file.write_text(json.dumps(sound | changes))
            with pytest.raises(CheckpointError):
                Subject(tmp_path / form).open()
    # How the prompt was started would load a tokenizer, with its code; only what came of it is read.
    file.write_text(
        json.dumps(
            sound
            | {
                "prompt_tuning_init": "TEXT",
                "prompt_tuning_init_text": "good",
                "tokenizer_name_or_path": "org/name",
                "tokenizer_kwargs": {"trust_remote_code": True},
            }
        )
    )
    assert Subject(tmp_path / "prompt").open() is not None
