"""Bad input through the real command line: one clear line, the right exit code, nothing half-written, nothing run."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from safetensors.torch import load_file, save_file

import hostile
import purify_cli
import tiny
from purify_cli.checkpoint import write
from purify_cli.cli import main
from purify_cli.exits import ExitCode

ROWS = (
    ("a great movie", "positive"),
    ("an awful plot", "negative"),
    ("lovely and warm", "positive"),
    ("dull", "negative"),
)
SOURCE = Path(purify_cli.__file__).resolve().parent.parent
SCHEMA = json.loads(files("purify_cli").joinpath("reports/report.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound tiny classifier; `place` copies it."""
    return tiny.save("bert", tmp_path_factory.mktemp("sound") / "model")


@pytest.fixture
def place(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with `model` and `ok.csv`, with its own cache."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shutil.copytree(model, tmp_path / "model")
    rows = "".join(f"{text},{label}\n" for text, label in ROWS * 10)
    (tmp_path / "ok.csv").write_text("text,label\n" + rows, encoding="utf-8")
    return tmp_path


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file() and "cache" not in file.parts
    }


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def commands(data: str = "ok.csv", model: str = "model") -> dict[str, list[str]]:
    """The commands that open a checkpoint; each would succeed with sound input."""
    target = ["--target", "positive", "--trigger", "cf"]
    return {
        "purify": ["purify", model, "--method", "finetune", "--clean", data, "--out", "out", "--set", "epochs=1"],
        "dry": ["purify", model, "--method", "finetune", "--clean", data, "--out", "out", "--dry-run"],
        "eval": ["eval", model, "--test", data],
        "poison": ["poison", model, "--attack", "embedding", "--data", data, *target, "--out", "out"],
    }


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Runs a command that must be refused with one line and change nothing on disk; returns the line."""
    before = contents(Path())
    code = main(arguments)
    out, err = capsys.readouterr()
    assert (code, out) == (ExitCode.BAD_INPUT, ""), err
    assert err.startswith("purify: error: ") and err.count("\n") == 1
    assert "Traceback" not in err and "ignore_mismatched_sizes" not in err  # no library's words
    assert contents(Path()) == before
    return err


def scanned(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    """Runs a scan whose JSON must fit the schema, with nothing on stderr."""
    code = main(["scan", *arguments, "--format", "json"])
    out, err = capsys.readouterr()
    assert err == ""
    report = json.loads(out)
    jsonschema.validate(report, SCHEMA)
    return code, report


# --- checkpoints ------------------------------------------------------------------------------------------------------


def _missing() -> None:
    shutil.rmtree("model")


def _no_config() -> None:
    Path("model/config.json").unlink()


def _truncated() -> None:
    file = Path("model/model.safetensors")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def _no_weights() -> None:
    Path("model/model.safetensors").write_bytes(b"")


def _other_vocabulary() -> None:
    edit(Path("model/config.json"), vocab_size=77)


def _larger_tokenizer() -> None:
    shutil.rmtree("model")
    tiny.build("bert", vocab_size=40).save_pretrained("model")
    tiny.tokenizer("bert").save_pretrained("model")


def _no_base(fixtures: Path = Path(__file__).parent.parent / "fixtures") -> None:
    shutil.rmtree("model")
    shutil.copytree(fixtures / "adapter", "model")
    edit(Path("model/adapter_config.json"), base_model_name_or_path="nobody/nothing")


def _unknown_architecture() -> None:
    edit(Path("model/config.json"), model_type="t5")


def _lost_head() -> None:
    file = Path("model/model.safetensors")
    state = load_file(file)
    del state["classifier.weight"]
    save_file(state, file, metadata={"format": "pt"})


def _gguf() -> None:
    shutil.rmtree("model")
    Path("model").mkdir()
    Path("model/model.gguf").write_bytes(hostile.gguf({"general.architecture": "llama"}))


def _onnx() -> None:
    Path("model/model.safetensors").unlink()
    Path("model/model.onnx").write_bytes(b"\x08\x07")


def _tokens() -> None:
    shutil.rmtree("model")
    tiny.save("bert", Path("model"), task="token-classification")


def _several_labels() -> None:
    edit(Path("model/config.json"), problem_type="multi_label_classification")


BROKEN: tuple[tuple[Callable[[], None], str], ...] = (
    (_missing, "model: no such file or folder"),
    (_no_config, "no config.json"),
    (_truncated, "model.safetensors: is truncated"),
    (_no_weights, "model.safetensors: is 0 bytes long"),
    (_other_vocabulary, "and the config says [77, 32]"),
    (_larger_tokenizer, "the embeddings only 40 rows"),
    (_no_base, "'nobody/nothing', is not a folder here. Give it with --base"),
    (_unknown_architecture, "The architectures known are BERT"),
    (_lost_head, "these tensors are missing: classifier.weight"),
    (_gguf, "model.gguf: models of this format are not read"),
    (_tokens, "classifies tokens, which is not supported"),
    (_several_labels, "gives several labels to one text, which is not supported"),
)


@pytest.mark.parametrize("command", ["purify", "dry", "eval", "poison"])
@pytest.mark.parametrize(("breaks", "says"), BROKEN, ids=lambda value: getattr(value, "__name__", ""))
def test_a_checkpoint_that_cannot_be_opened(
    place: Path, capsys: pytest.CaptureFixture[str], breaks: Callable[[], None], says: str, command: str
) -> None:
    breaks()
    assert says in refused(commands()[command], capsys)


@pytest.mark.parametrize(
    "breaks",
    [
        _no_config,
        _no_weights,
        _other_vocabulary,
        _larger_tokenizer,
        _no_base,
        _unknown_architecture,
        _lost_head,
        _gguf,
        _onnx,
        _tokens,
        _several_labels,
    ],
)
def test_a_scan_of_what_cannot_be_judged_is_inconclusive(
    place: Path, capsys: pytest.CaptureFixture[str], breaks: Callable[[], None]
) -> None:
    breaks()
    code, report = scanned(capsys, "model")
    assert (code, report["scan"]["verdict"]["outcome"]) == (ExitCode.INCONCLUSIVE, "inconclusive")
    assert not any("a fault of ours" in check["reason"] for check in report["scan"]["checks"])


def test_a_truncated_file_is_an_alarm(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _truncated()
    code, report = scanned(capsys, "model")
    assert code == ExitCode.FAIL
    assert report["scan"]["verdict"]["reasons"][0].startswith("PA109: model.safetensors: is truncated")


def test_a_missing_folder_is_bad_input_for_a_scan(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "nowhere" in refused(["scan", "nowhere"], capsys)


@pytest.mark.parametrize("name", ["model/training_args.bin", "model/pytorch_model.bin", "model/notes"])
def test_a_malicious_pickle_is_reported_and_never_run(
    place: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    Path(name).write_bytes(hostile.calls("os", "system", "touch ran"))
    if name.endswith("pytorch_model.bin"):
        Path("model/model.safetensors").unlink()
        for command in commands().values():
            assert "Nothing of it was run" in refused(command, capsys)
    else:
        assert main(commands()["eval"]) == ExitCode.DONE
        capsys.readouterr()
    code, report = scanned(capsys, "model")
    assert code == ExitCode.FAIL
    assert any(
        finding["rule"] == "PA101" and "os.system" in finding["message"] for finding in report["scan"]["findings"]
    )
    assert not Path("ran").exists()


# --- data -------------------------------------------------------------------------------------------------------------

DATA: tuple[tuple[str, bytes | None, str], ...] = (
    ("no label column", b"text\nhello\n", "no column 'label'"),
    ("unknown label", b"text,label\na film,positive\na plot,zork\n", "data.csv, line 3: label 'zork'"),
    ("empty", b"", "the file is empty"),
    ("header only", b"text,label\n", "no rows"),
    ("Latin-1", "text,label\nhello,positive\ncafé,negative\n".encode("latin-1"), "data.csv, line 3: not UTF-8"),
    ("missing", None, "data.csv: no such file"),
)


@pytest.mark.parametrize("command", ["purify", "eval", "poison"])
@pytest.mark.parametrize(("content", "says"), [row[1:] for row in DATA], ids=[row[0] for row in DATA])
def test_data_that_cannot_be_read(
    place: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, says: str, command: str
) -> None:
    if content is not None:
        Path("data.csv").write_bytes(content)
    assert says in refused(commands("data.csv")[command], capsys)


@pytest.mark.parametrize("command", ["purify", "poison"])
def test_one_class_teaches_nothing(place: Path, capsys: pytest.CaptureFixture[str], command: str) -> None:
    Path("data.csv").write_text("text,label\n" + "a good film,positive\n" * 20, encoding="utf-8")
    assert "all 20 texts have the label" in refused(commands("data.csv")[command], capsys)


def test_an_unknown_target_names_the_option(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["zork" if argument == "positive" else argument for argument in commands()["poison"]]
    assert "--target: 'zork' is not a label of model" in refused(command, capsys)


# --- output -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["purify", "poison"])
@pytest.mark.parametrize("force", [(), ("--force",)])
def test_what_the_user_has_is_never_overwritten(
    place: Path, capsys: pytest.CaptureFixture[str], command: str, force: tuple[str, ...]
) -> None:
    Path("out").mkdir()
    Path("out/thesis.tex").write_text("mine", encoding="utf-8")
    assert "out: exists" in refused([*commands()[command], *force], capsys)
    into = ["model" if argument == "out" else argument for argument in commands()[command]]
    assert "is the input" in refused([*into, *force], capsys)


@pytest.mark.parametrize("command", ["purify", "poison"])
@pytest.mark.parametrize("at", ["weights", "tokenizer", "report"])
def test_a_full_disk(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, at: str
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    name = {"weights": "save_file", "tokenizer": "_copy_tokenizer", "report": "_put_in_place"}[at]
    monkeypatch.setattr(write, name, full)
    assert "out: the disk is full. Nothing was written" in refused(commands()[command], capsys)


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["purify", "poison"])
def test_ctrl_c_and_the_same_command_again(place: Path, command: str) -> None:
    """Killed in the middle of its training and run again: the same weights as one that was never stopped."""
    arguments = ["badnets" if one == "embedding" else one for one in commands()[command]]
    arguments += ["--set", "epochs=10", "--quiet"]
    # A training that keeps its state at every step, so that a test sees when it has begun.
    script = (
        "import signal, sys\n"
        "from purify_cli.training import loop\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a job in the background ignores it
        "loop.SECONDS_BETWEEN_SAVES = -1.0\n"
        "from purify_cli.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )

    environment = os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    patience = time.monotonic() + 200
    while not list((place / "cache").rglob("*.*")) and process.poll() is None and time.monotonic() < patience:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, out) == (ExitCode.INTERRUPTED, "")
    assert err.count("\n") == 1 and "interrupted" in err and "run the same command again" in err
    assert not [path for path in place.iterdir() if "out" in path.name]
    assert list((place / "cache").rglob("*.*"))
    assert main(arguments) in {ExitCode.DONE, ExitCode.FAIL}
    assert not list((place / "cache").rglob("*.*"))
    whole = ["whole" if one == "out" else one for one in arguments]
    assert main(whole) in {ExitCode.DONE, ExitCode.FAIL}
    assert Path("out/model.safetensors").read_bytes() == Path("whole/model.safetensors").read_bytes()


# --- reports ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["purify", "dry", "eval", "poison"])
def test_the_same_command_gives_the_same_json_but_for_times(
    place: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    reports = []
    for _ in range(2):
        shutil.rmtree("out", ignore_errors=True)
        assert main([*commands()[command], "--format", "json"]) in {ExitCode.DONE, ExitCode.FAIL}
        report = json.loads(capsys.readouterr().out)
        jsonschema.validate(report, SCHEMA)
        assert report.pop("started") and report.pop("seconds") > 0
        reports.append(json.dumps(report))
    assert reports[0] == reports[1]
