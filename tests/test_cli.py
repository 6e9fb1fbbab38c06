from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import purify_cli
import tiny
from purify_cli import environment, terminal
from purify_cli.cli import main
from purify_cli.errors import CheckpointError, Interrupted, OutputError
from purify_cli.exits import ExitCode
from purify_cli.results import (
    Check,
    CheckpointMetrics,
    EvalResult,
    Finding,
    Limits,
    PurifyResult,
    Rate,
    ScanResult,
    SubjectSummary,
    Verdict,
    Written,
)

SUBJECT = SubjectSummary("m", None, "classifier", None, None, None, (), ())


def _scan(outcome: str) -> ScanResult:
    verdict = Verdict(outcome, 0.5, "stub", ("because",))
    return ScanResult(SUBJECT, verdict, (Check("artifact", "clear", "", ("files",), 0.1, 0),), ())


@pytest.fixture(autouse=True)
def _private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No test leaves the environment changed, or writes into the user's log folder."""
    monkeypatch.setattr(os, "environ", os.environ.copy() | {"XDG_STATE_HOME": str(tmp_path / "state")})
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(environment, "prepare", lambda device, threads: environment.resolve_device(device))


@pytest.fixture
def scanning(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[Any]]:
    """Makes the scan command give a fixed result, or raise, and keeps the requests that it got."""

    def give(result: Any) -> list[Any]:
        requests: list[Any] = []

        def scan(request: Any) -> Any:
            requests.append(request)
            if isinstance(result, BaseException):
                raise result
            return result

        from purify_cli.commands import scan as module

        monkeypatch.setattr(module, "scan", scan)
        return requests

    return give


def _one_line(captured: str) -> str:
    assert captured.count("\n") == 1
    assert captured.startswith("purify: ")
    return captured


# --- exit codes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "fail_on", "code"),
    [
        ("pass", "fail", 0),
        ("fail", "fail", 1),
        ("inconclusive", "fail", 3),
        ("pass", "inconclusive", 0),
        ("fail", "inconclusive", 1),
        ("inconclusive", "inconclusive", 1),
        ("pass", "never", 0),
        ("fail", "never", 0),
        ("inconclusive", "never", 0),
    ],
)
def test_the_exit_code_of_a_scan(
    scanning: Callable[[Any], Any], capsys: pytest.CaptureFixture[str], outcome: str, fail_on: str, code: int
) -> None:
    scanning(_scan(outcome))
    assert main(["scan", "m", "--fail-on", fail_on]) == code
    captured = capsys.readouterr()
    assert captured.out.startswith(outcome.upper())
    if fail_on == "never" and outcome != "pass":
        assert outcome in _one_line(captured.err)
    else:
        assert captured.err == ""


def test_fail_on_fail_is_the_default(scanning: Callable[[Any], Any]) -> None:
    scanning(_scan("inconclusive"))
    assert main(["scan", "m"]) == ExitCode.INCONCLUSIVE


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CheckpointError("m", "is cut off", "Download it again"), 2, "m: is cut off. Download it again"),
        (OutputError("m-purified", "exists already"), 2, "m-purified: exists already"),
        (CheckpointError("a\x1b[31m\nb\u202e", "is bad"), 2, "a\\x1b[31m b\\u202e: is bad"),
        (PermissionError(13, "Permission denied", "m/config.json"), 2, "m/config.json: Permission denied"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (Interrupted("kept in x; run the same command again to go on"), 130, "kept in x; run the same command again"),
        (ValueError("a bug"), 70, "ValueError: a bug"),
        (AssertionError(), 70, "AssertionError"),
        (RecursionError("deep"), 70, "RecursionError"),
        (SystemExit(0), 0, ""),
    ],
)
def test_what_is_raised_becomes_one_line_and_a_code(
    scanning: Callable[[Any], Any], capsys: pytest.CaptureFixture[str], error: BaseException, code: int, said: str
) -> None:
    scanning(error)
    assert main(["scan", "m"]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    if said:
        assert said in _one_line(captured.err)


def test_a_fault_of_ours_says_where_its_traceback_lies(
    scanning: Callable[[Any], Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    scanning(ZeroDivisionError("a bug"))
    assert main(["scan", "m"]) == 70
    [file] = (tmp_path / "state").rglob("traceback-*.txt")
    assert str(file) in _one_line(capsys.readouterr().err)
    assert "ZeroDivisionError: a bug" in file.read_text(encoding="utf-8")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_verbose_shows_the_traceback(scanning: Callable[[Any], Any], capsys: pytest.CaptureFixture[str]) -> None:
    scanning(ZeroDivisionError("a \x1b bug"))
    assert main(["scan", "m", "--verbose"]) == 70
    error = capsys.readouterr().err
    assert "Traceback (most recent call last)" in error
    assert "\x1b" not in error


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Missing command"),
        (["frobnicate"], "frobnicate"),
        (["scan"], "CHECKPOINT: is missing"),
        (["scan", "a", "b"], "b"),
        (["scan", "m", "--frobnicate"], "--frobnicate"),
        (["scan", "m", "--base"], "--base"),
        (["scan", "m", "--budget", "huge"], "'fast', 'standard', 'deep'"),
        (["scan", "m", "--seed", "x"], "--seed"),
        (["scan", "m", "--seed", "-1"], "--seed"),
        (["scan", "m", "--batch-size", "0"], "--batch-size"),
        (["scan", "m", "--threads", "0"], "--threads"),
        (["scan", "m", "--format", "xml"], "'table', 'json'"),
        (["scan", "m", "--device", "tpu"], "auto, cpu, cuda or cuda:N"),
        (["scan", "m", "--device", "cuda:99"], "--device: 'cuda:99' needs a GPU"),
        (["scan", "m", "--quiet", "--verbose"], "--quiet"),
        (["scan", "m", "--only", "nobody"], "no detector named 'nobody'"),
        (["scan", "m", "--output", "/"], "--output /"),
        (["scan", "m", "--output", "no/such/folder/x"], "its folder does not exist"),
        (["scan", "no-such-folder"], "no-such-folder"),
        (["purify", "m", "--clean", "c.csv"], "--method: is missing"),
        (["purify", "m", "--clean", "c.csv", "--method", "magic"], "finetune"),
        (["purify", "m", "--method", "finetune"], "--clean: is missing"),
        (["purify", "m", "--clean", "c.csv", "--method", "finetune", "--max-drop", "2"], "--max-drop"),
        (["purify", "--method", "magic", "--help-method"], "no purifier named 'magic'"),
        (["eval", "--test", "t.csv"], "CHECKPOINT: is missing"),
        (["eval", "m"], "--test: is missing"),
        (["eval", "m", "--test", "t.csv", "--filter", "magic"], "--filter: there is no filter named 'magic'"),
        (["eval", "m", "--test", "t.csv", "--analysis", "magic"], "--analysis"),
        (["poison", "m", "--attack", "magic", "--data", "d", "--target", "1", "--out", "o"], "badnets"),
        (["poison", "m", "--attack", "badnets", "--data", "d", "--target", "1"], "--out: is missing"),
        (
            ["poison", "m", "--attack", "embedding", "--data", "d", "--target", "1", "--out", "o", "--pet", "lora"],
            "--pet",
        ),
        (["poison", "m", "--attack", "badnets", "--data", "d", "--out", "o"], "--target"),
        (["poison", "m", "--attack", "neuba", "--data", "d", "--out", "o", "--target", "1"], "--target"),
        (
            [
                "poison",
                "m",
                "--attack",
                "badnets",
                "--data",
                "d",
                "--target",
                "1",
                "--out",
                "o",
                "--then-set",
                "epochs=1",
            ],
            "--then-set",
        ),
        (["poison", "m", "--attack", "badnets", "--rate", "1.5"], "--rate"),
    ],
)
def test_wrong_use_is_one_line_that_names_the_option(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == ExitCode.BAD_INPUT
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in _one_line(captured.err)


@pytest.mark.parametrize(("met", "code"), [(True, 0), (None, 0), (False, 1)])
def test_purify_fails_when_the_limits_are_not_met(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], met: bool | None, code: int
) -> None:
    requests = []

    def purify(request: Any) -> PurifyResult:
        requests.append(request)
        return PurifyResult(SUBJECT, "finetune", {}, None, None, {}, Written("o", ()), Limits(met, 0.02, 0.1))

    monkeypatch.setattr("purify_cli.commands.purify.purify", purify)
    assert main(["purify", "m/", "--method", "finetune", "--clean", "c.csv", "--set", "epochs=1"]) == code
    assert requests[0].out == "m-purified"
    assert requests[0].max_drop == 0.02
    assert requests[0].settings == ("epochs=1",)
    assert "o" in capsys.readouterr().out


def test_options_reach_the_request(scanning: Callable[[Any], list[Any]]) -> None:
    requests = scanning(_scan("pass"))
    options = "--base b --twin t --clean c.csv --budget deep --only artifact,mark --skip drift --ignore-mark --set a=1"
    common = "--seed 7 --device cpu --batch-size 3 --max-length 99"
    assert main(["scan", "m", *options.split(), *common.split()]) == 0
    request = requests[0]
    assert (request.checkpoint, request.base, request.twin, request.clean) == ("m", "b", "t", "c.csv")
    assert (request.budget, request.only, request.skip) == ("deep", ("artifact", "mark"), ("drift",))
    assert (request.ignore_mark, request.settings) == (True, ("a=1",))
    run = request.run
    assert (run.seed, run.device, run.batch_size, run.max_length) == (7, "cpu", 3, 99)


def test_triggers_may_be_repeated_and_checkpoints_too(monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []

    def evaluate(request: Any) -> EvalResult:
        requests.append(request)
        return EvalResult((CheckpointMetrics("a", Rate(0.9, 0.8, 0.95, 100)),))

    monkeypatch.setattr("purify_cli.commands.evaluate.evaluate", evaluate)
    arguments = ["eval", "a", "b", "--test", "t.csv", "--trigger", "cf", "--trigger", "mn bb", "--target", "1"]
    assert main(arguments) == 0
    assert requests[0].checkpoints == ("a", "b")
    assert requests[0].triggers == ("cf", "mn bb")


# --- output -----------------------------------------------------------------------------------------------------------


def test_json_is_one_object_on_stdout(scanning: Callable[[Any], Any], capsys: pytest.CaptureFixture[str]) -> None:
    scanning(_scan("pass"))
    assert main(["scan", "m", "--format", "json", "--seed", "3"]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert document["schema"] == "purify.report/1"
    assert document["command"] == ["purify", "scan", "m", "--format", "json", "--seed", "3"]
    assert document["environment"]["seed"] == 3
    assert captured.err == ""


def test_what_libraries_print_is_no_result(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def scan(request: Any) -> ScanResult:
        print("Some weights were not initialized")
        return _scan("pass")

    monkeypatch.setattr("purify_cli.commands.scan.scan", scan)
    assert main(["scan", "m", "--format", "json"]) == 0
    json.loads(capsys.readouterr().out)


def test_output_is_written_whole_and_not_over_what_exists(
    scanning: Callable[[Any], Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    requests = scanning(_scan("fail"))
    file = tmp_path / "report.json"
    arguments = ["scan", "m", "--format", "json", "--output", str(file)]
    assert main(arguments) == 1
    assert capsys.readouterr().out == ""
    first = file.read_text(encoding="utf-8")
    assert json.loads(first)["scan"]["verdict"]["outcome"] == "fail"

    assert main(arguments) == 2
    assert "--force" in _one_line(capsys.readouterr().err)
    assert file.read_text(encoding="utf-8") == first
    assert len(requests) == 1, "an output that cannot be written is said before the work"

    assert main([*arguments, "--force"]) == 1
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["report.json"]


def test_output_never_lies_inside_the_input(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    assert main(["scan", str(folder), "--output", str(folder / "report.json"), "--force"]) == 2
    assert "inside the input" in _one_line(capsys.readouterr().err)
    assert list(folder.iterdir()) == []


def test_a_full_disk_is_said_and_leaves_nothing(
    scanning: Callable[[Any], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    scanning(_scan("pass"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(terminal.os, "replace", full)
    assert main(["scan", "m", "--output", str(tmp_path / "report.txt")]) == 2
    assert "No space left" in _one_line(capsys.readouterr().err)
    assert [path for path in tmp_path.iterdir() if path.is_file()] == []


def test_color_only_where_somebody_sees_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert terminal.has_color(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert not terminal.has_color(Terminal())
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert not terminal.has_color(Terminal())


def test_methods_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert list(document) == ["schema", "tool", "methods"]
    assert {"kind": "purifier", "name": "finetune"}.items() <= next(
        method for method in document["methods"] if method["name"] == "finetune"
    ).items()
    assert main(["methods"]) == 0
    table = capsys.readouterr().out
    assert all(method["name"] in table for method in document["methods"])
    assert max(map(len, table.splitlines())) <= 80


@pytest.mark.parametrize(
    "arguments",
    [["purify", "--method", "finetune"], ["poison", "--attack", "badnets"], ["scan", "--only", "mark"], ["scan"]],
)
def test_help_method_shows_the_settings_and_does_nothing(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert main([*arguments, "--help-method"]) == 0
    table = capsys.readouterr().out
    assert main([*arguments, "--help-method", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    for method in document["methods"]:
        for setting in method["settings"]:
            assert f"--set {setting['name']}={setting['default']}" in table.replace("\n", " ")


@pytest.mark.parametrize("command", ["scan", "purify", "eval", "poison", "methods"])
def test_every_command_has_help(capsys: pytest.CaptureFixture[str], command: str) -> None:
    assert main([command, "--help"]) == 0
    page = capsys.readouterr().out
    assert page.startswith(f"Usage: purify {command}")
    if command != "methods":
        for option in (
            "--format",
            "--output",
            "--seed",
            "--device",
            "--quiet",
            "--verbose",
            "--max-length",
            "--batch-size",
            "--threads",
            "--force",
        ):
            assert option in page
    assert main(["--help"]) == 0
    assert command in capsys.readouterr().out


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"purify {purify_cli.__version__}\n"


# --- the library --------------------------------------------------------------------------------------------------


def test_the_four_verbs_return_results_and_print_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    requests: list[Any] = []

    def keep(result: Any) -> Callable[[Any], Any]:
        def run(request: Any) -> Any:
            requests.append(request)
            return result

        return run

    monkeypatch.setattr("purify_cli.commands.scan.scan", keep(_scan("fail")))
    monkeypatch.setattr("purify_cli.commands.purify.purify", keep("purified"))
    monkeypatch.setattr("purify_cli.commands.evaluate.evaluate", keep("measured"))
    monkeypatch.setattr("purify_cli.commands.poison.poison", keep("poisoned"))
    result = purify_cli.scan(Path("m"), only=["artifact"], device="cpu", seed=5)
    assert result.verdict.outcome == "fail"
    assert purify_cli.purify("m", method="finetune", clean="c", device="cpu") == "purified"
    assert purify_cli.evaluate("a", "b", test="t", device="cpu") == "measured"
    assert purify_cli.poison("m", attack="badnets", data="d", target="1", out="o", device="cpu") == "poisoned"
    assert [requests[0].checkpoint, requests[0].only, requests[0].run.seed] == ["m", ("artifact",), 5]
    assert requests[1].out == "m-purified"
    assert requests[2].checkpoints == ("a", "b")
    assert tuple(capsys.readouterr()) == ("", "")


@pytest.mark.parametrize(
    ("checkpoint", "out"),
    [
        ("models/x", "models/x-purified"),
        ("models/x/", "models/x-purified"),
        ("hf://org/name@main", "name-purified"),
        ("hf://org/name", "name-purified"),
    ],
)
def test_where_a_purified_checkpoint_goes(checkpoint: str, out: str) -> None:
    assert purify_cli.default_out(checkpoint) == out


def test_the_working_folder_is_purified_beside_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert purify_cli.default_out(".") == f"{tmp_path}-purified"


# --- the real program -----------------------------------------------------------------------------------------------


def _program(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "purify_cli", *arguments], capture_output=True, text=True, **options)


def test_help_loads_no_torch() -> None:
    script = (
        "import sys\n"
        "from purify_cli.cli import main\n"
        "assert main(['--help']) == 0 and main(['scan', '--help']) == 0\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)


def test_help_takes_at_most_a_quarter_of_importing_torch() -> None:
    def cost(*arguments: str) -> float:
        # Processor time of the children: wall time would measure what else the machine does.
        before = os.times()
        subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    cost("-m", "purify_cli", "--help")  # compiles
    cost("-c", "import torch")
    torch_cost = min(cost("-c", "import torch") for _ in range(2))
    assert min(cost("-m", "purify_cli", "--help") for _ in range(3)) <= torch_cost / 4


def test_a_scan_from_the_shell(tmp_path: Path) -> None:
    folder = tiny.save("bert", tmp_path / "m")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = _program("scan", str(folder), "--only", "mark", "--format", "json", "--device", "cpu")
    assert done.returncode in {0, 3}, done.stderr
    document = json.loads(done.stdout)
    assert document["subject"]["kind"] == "classifier"
    assert [check["outcome"] for check in document["scan"]["checks"]] == ["clear"]
    assert done.stderr == ""
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_wrong_use_from_the_shell() -> None:
    done = _program("scan", "no/such/folder", "--device", "cpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert "no/such/folder" in _one_line(done.stderr)


def test_a_closed_pipe_is_no_fault() -> None:
    script = f"{sys.executable} -m purify_cli methods | head -c 1 >/dev/null; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_stdout_is_said() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "purify_cli", "methods"], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 2
    assert "stdout" in _one_line(done.stderr)


def test_an_encoding_without_our_characters_does_not_end_the_run() -> None:
    done = _program("scan", "größe-\u202e-x", env=os.environ | {"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 2
    assert done.stderr.isascii()
    _one_line(done.stderr)


@pytest.mark.parametrize("kill", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_one_line_and_130(tmp_path: Path, kill: signal.Signals) -> None:
    script = (
        "import sys, time\n"
        "from purify_cli import cli\n"
        "from purify_cli.commands import methods\n"
        "def wait():\n"
        "    print('ready', file=sys.stderr, flush=True)\n"
        "    time.sleep(30)\n"
        "methods.methods = wait\n"
        "sys.exit(cli.main(['methods']))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None and process.stderr.readline() == "ready\n"
    time.sleep(0.1)
    process.send_signal(kill)
    out, err = process.communicate(timeout=20)
    assert (process.returncode, out) == (130, "")
    assert "interrupted" in _one_line(err)


def test_a_finding_is_not_lost_on_the_way_to_the_page(
    scanning: Callable[[Any], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    finding = Finding("PA101", "error", "artifact", "evil.bin runs a command", evidence={"n": 1})
    verdict = Verdict("fail", 1.0, "r", ("x",))
    scanning(ScanResult(SUBJECT, verdict, (Check("artifact", "found", "", (), 0.0, 0),), (finding,)))
    assert main(["scan", "m"]) == 1
    assert "evil.bin runs a command" in capsys.readouterr().out


def test_progress_is_shown_where_somebody_can_see_it() -> None:
    pty = pytest.importorskip("pty", reason="Windows has no pseudo-terminals")
    script = (
        "import sys\n"
        "from purify_cli import terminal\n"
        "with terminal.progress('--quiet' in sys.argv) as show:\n"
        "    show('training', 3, 10)\n"
        "    show('[red]hostile\\x1b]0;x\\x07', 1, 2)\n"
    )
    seen = {}
    for option in ("--loud", "--quiet"):
        ours, theirs = pty.openpty()
        environ = os.environ | {"TERM": "xterm"}
        done = subprocess.run(
            [sys.executable, "-c", script, option], stderr=theirs, stdout=subprocess.PIPE, env=environ
        )
        os.write(theirs, b"end")
        seen[option] = os.read(ours, 1 << 20)
        os.close(ours)
        os.close(theirs)
        assert (done.returncode, done.stdout) == (0, b"")
    assert b"training" in seen["--loud"] and b"3/10" in seen["--loud"]
    assert b"[red]hostile" in seen["--loud"] and b"\x1b]0;" not in seen["--loud"]
    assert seen["--quiet"] == b"end"
