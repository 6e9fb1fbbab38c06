from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import tiny
from purify_cli.checkpoint import write
from purify_cli.checkpoint.write import check_output, write_checkpoint
from purify_cli.errors import OutputError
from purify_cli.subject import Subject


def write_out(out: Path, source: Path, **options: Any) -> Any:
    subject = Subject(source)
    return write_checkpoint(
        out,
        subject.open(),
        subject.tokenizer,
        source=source,
        provenance={"method": "none", "rate": float("nan")},
        **options,
    )


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_plain_transformers_loads_what_is_written(family: str, tmp_path: Path) -> None:
    source = tiny.save(family, tmp_path / "in", num_labels=3)
    before = contents(source)
    written = write_out(tmp_path / "out", source, card="# Card\n", metadata={"purify.poisoned": "true"})
    assert contents(source) == before

    original = AutoModelForSequenceClassification.from_pretrained(source)
    model, report = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.config.id2label == original.config.id2label
    for name, value in original.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("a good movie").input_ids == AutoTokenizer.from_pretrained(source)("a good movie").input_ids
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as opened:
        assert opened.metadata() == {"format": "pt", "purify.poisoned": "true"}
    assert json.loads((tmp_path / "out" / "purify.json").read_text()) == {"method": "none", "rate": None}
    assert (tmp_path / "out" / "README.md").read_text() == "# Card\n"
    assert {file.path for file in written.files} == set(contents(tmp_path / "out"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_the_dtype_of_the_input_is_kept(tmp_path: Path) -> None:
    model = tiny.build("bert").to(torch.float16)
    model.save_pretrained(tmp_path / "in")
    tiny.tokenizer("bert").save_pretrained(tmp_path / "in")
    write_out(tmp_path / "out", tmp_path / "in")
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.float16}
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float16"


def test_the_encoder_of_a_sentence_transformers_folder_keeps_its_dtype_and_tokenizer(tmp_path: Path) -> None:
    inner = tmp_path / "in" / "0_Transformer"
    tiny.build("bert", task="encoder").to(torch.bfloat16).save_pretrained(inner)
    tiny.tokenizer("bert").save_pretrained(inner)
    modules = [{"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "in" / "modules.json").write_text(json.dumps(modules))
    subject = Subject(tmp_path / "in")
    model = subject.open(num_labels=2)
    write_checkpoint(tmp_path / "out", model, subject.tokenizer, source=subject.path, provenance={})
    state = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in state.values()} == {torch.bfloat16}
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (inner / "tokenizer.json").read_bytes()


def test_tied_weights_are_written_once_and_tied_again(tmp_path: Path) -> None:
    source = tiny.save("gpt2", tmp_path / "in", task="causal-lm")
    write_out(tmp_path / "out", source)
    assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(model.lm_head.weight, AutoModelForCausalLM.from_pretrained(source).lm_head.weight)


def test_a_tokenizer_is_saved_where_the_source_has_none(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "in"))
    write_checkpoint(tmp_path / "a" / "b" / "out", subject.open(), subject.tokenizer, source=None, provenance={})
    assert (
        AutoTokenizer.from_pretrained(tmp_path / "a" / "b" / "out")("good").input_ids
        == subject.tokenizer("good").input_ids
    )


def test_remote_code_of_a_tokenizer_does_not_come_along(tmp_path: Path) -> None:
    source = tiny.save("bert", tmp_path / "in")
    settings = json.loads((source / "tokenizer_config.json").read_text())
    subject = Subject(source)
    model, tokenizer = subject.open(), subject.tokenizer
    (source / "tokenizer_config.json").write_text(
        json.dumps(settings | {"auto_map": {"AutoTokenizer": ["evil.T", None]}})
    )
    write_checkpoint(tmp_path / "out", model, tokenizer, source=source, provenance={})
    assert json.loads((tmp_path / "out" / "tokenizer_config.json").read_text()) == settings


def test_what_exists_is_kept_without_force_and_replaced_with_it(tmp_path: Path) -> None:
    source, other = tiny.save("bert", tmp_path / "in"), tiny.save("bert", tmp_path / "out", seed=1)
    before = contents(other)
    with pytest.raises(OutputError) as error:
        write_out(other, source)
    assert "--force" in error.value.remedy
    assert contents(other) == before
    write_out(other, source, force=True)
    assert torch.equal(
        load_file(other / "model.safetensors")["classifier.weight"],
        load_file(source / "model.safetensors")["classifier.weight"],
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_force_replaces_nothing_but_checkpoints(tmp_path: Path) -> None:
    source = tiny.save("bert", tmp_path / "in")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError):
        check_output(tmp_path / "home", source, force=True)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError):
        check_output(tmp_path / "file", source, force=True)
    (tmp_path / "link").symlink_to(tmp_path / "home")
    with pytest.raises(OutputError):
        check_output(tmp_path / "link", source, force=True)


@pytest.mark.parametrize("out", ["in", "in/out", ".", "link/out"])
def test_the_input_is_never_written_to(tmp_path: Path, out: str) -> None:
    source = tiny.save("bert", tmp_path / "in")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "link").symlink_to(source)
    with pytest.raises(OutputError):
        check_output(tmp_path / out, source, force=True)


@pytest.mark.parametrize(
    ("failure", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OutputError),
        (PermissionError(errno.EACCES, "Permission denied"), OutputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
@pytest.mark.parametrize("step", ["save_file", "_copy_tokenizer", "_put_in_place"])
@pytest.mark.parametrize("force", [False, True])
def test_a_failure_leaves_nothing_and_loses_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    failure: BaseException,
    expected: type[BaseException],
    step: str,
    force: bool,
) -> None:
    source = tiny.save("bert", tmp_path / "in")
    out = tmp_path / "new" / "out"
    if force:
        tiny.save("bert", out, seed=1)
    before = contents(tmp_path)

    def fail(*arguments: Any, **options: Any) -> None:
        raise failure

    monkeypatch.setattr(write, step, fail)
    with pytest.raises(expected) as error:
        write_out(out, source, force=force)
    assert contents(tmp_path) == before
    assert (tmp_path / "new").exists() == force
    if isinstance(failure, OSError) and failure.errno == errno.ENOSPC:
        assert isinstance(error.value, OutputError)
        assert error.value.problem == "the disk is full"


def test_the_old_folder_comes_back_when_the_last_rename_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, out = tiny.save("bert", tmp_path / "in"), tiny.save("bert", tmp_path / "out", seed=1)
    before, rename = contents(out), os.rename

    def fail_on_the_new(old: Path, new: Path) -> None:
        if str(old).endswith(".partial"):
            raise OSError(errno.EIO, "Input/output error")
        rename(old, new)

    monkeypatch.setattr(os, "rename", fail_on_the_new)
    with pytest.raises(OutputError):
        write_out(out, source, force=True)
    assert contents(out) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_disk_without_room_is_found_before_the_weights_are_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tiny.save("bert", tmp_path / "in")

    class Usage:
        free = 1000

    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: Usage)
    with pytest.raises(OutputError) as error:
        write_out(tmp_path / "out", source)
    assert error.value.problem == "the disk is full"
    assert not (tmp_path / "out").exists()


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    metadata = {f"purify.{letter}": letter for letter in "abcdefgh"} | {"purify.ä": 'a "quoted"\n\x01 tab\t'}
    source = tiny.save("bert", tmp_path / "in")
    for name in ("one", "two"):
        write_out(tmp_path / name, source, metadata=metadata)
        with safe_open(tmp_path / name / "model.safetensors", "pt") as opened:
            assert opened.metadata() == {"format": "pt"} | metadata
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    raw = (tmp_path / "one" / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    assert list(header["__metadata__"]) == sorted(header["__metadata__"])
