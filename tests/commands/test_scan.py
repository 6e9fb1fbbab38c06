from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

import tiny
from purify_cli import catalogue
from purify_cli.commands import scan as command
from purify_cli.commands.scan import BUDGETS, ScanRequest, scan, select
from purify_cli.errors import (
    CheckpointError,
    DataError,
    Incomplete,
    Interrupted,
    UnsupportedError,
    UsageError,
)
from purify_cli.results import Check, Finding, Verdict
from purify_cli.run import Run


@dataclass(frozen=True)
class _Settings:
    depth: int = field(default=1, metadata={"help": "how deep", "range": ">= 1", "source": "ours"})


@dataclass(frozen=True)
class _OtherSettings:
    depth: int = 1
    width: int = 2


def _finding(detector: str = "x") -> Finding:
    return Finding("PB299", "error", detector, "found something")


def _nothing(subject: Any, evidence: Any, settings: Any, run: Any) -> Iterator[Finding]:
    yield from ()


def _one(subject: Any, evidence: Any, settings: Any, run: Any) -> Iterator[Finding]:
    yield _finding()


def _then(error: BaseException) -> Callable[..., Iterator[Finding]]:
    def detect(subject: Any, evidence: Any, settings: Any, run: Any) -> Iterator[Finding]:
        yield _finding()
        raise error

    return detect


def _detector(
    detect: Callable[..., Iterator[Finding]] = _nothing,
    needs: tuple[str, ...] = ("files",),
    budget: str = "fast",
    settings: type[Any] = _Settings,
) -> Any:
    return SimpleNamespace(
        SUMMARY="s", RULES={"PB299": "r"}, NEEDS=needs, BUDGET=budget, Settings=settings, detect=detect
    )


@pytest.fixture
def detectors(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The catalogue's detectors, to be filled in by a test."""
    known: dict[str, Any] = {}
    monkeypatch.setattr(catalogue, "names", lambda kind: tuple(sorted(known)))
    monkeypatch.setattr(catalogue, "load", lambda kind, name: known[catalogue.resolve(kind, name)])
    return known


@pytest.fixture(autouse=True)
def judged(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the verdict was asked to judge."""
    asked: list[tuple[Any, ...]] = []

    def judge(checks: Sequence[Check], findings: Sequence[Finding], selected: Sequence[str]) -> Verdict:
        asked.append((tuple(checks), tuple(findings), tuple(selected)))
        return Verdict("pass", 0.0, "stub", ())

    stub = ModuleType("purify_cli.verdict")
    stub.judge = judge
    monkeypatch.setitem(sys.modules, "purify_cli.verdict", stub)
    return asked


@pytest.fixture
def classifier(tmp_path: Path) -> Path:
    return tiny.save("bert", tmp_path / "classifier")


def _only(checks: Sequence[Check]) -> Check:
    assert len(checks) == 1
    return checks[0]


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (Incomplete("half of it was unreadable"), "failed", "half of it was unreadable"),
        (CheckpointError("a.bin", "is cut off"), "failed", "a.bin: is cut off"),
        (ValueError("no"), "failed", "a fault of ours: ValueError: no"),
        (RecursionError(), "failed", "a fault of ours: RecursionError: "),
        (MemoryError(), "failed", "there is not enough memory for this check"),
    ],
)
def test_a_check_that_breaks_keeps_what_it_found_and_stops_nobody(
    detectors: dict[str, Any], classifier: Path, error: Exception, outcome: str, reason: str
) -> None:
    detectors["a_breaks"] = _detector(_then(error))
    detectors["b_goes_on"] = _detector(_one)
    result = scan(ScanRequest(str(classifier)))
    assert [(check.detector, check.outcome) for check in result.checks] == [
        ("a_breaks", outcome),
        ("b_goes_on", "found"),
    ]
    assert result.checks[0].reason == reason
    assert len(result.findings) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted("kept")])
def test_an_interrupt_ends_the_scan(detectors: dict[str, Any], classifier: Path, error: BaseException) -> None:
    detectors["a"] = _detector(_then(error))
    with pytest.raises(type(error)):
        scan(ScanRequest(str(classifier)))


def test_found_and_clear(detectors: dict[str, Any], classifier: Path, judged: list[tuple[Any, ...]]) -> None:
    detectors["a"] = _detector(_one)
    detectors["b"] = _detector()
    result = scan(ScanRequest(str(classifier)))
    assert [check.outcome for check in result.checks] == ["found", "clear"]
    checks, findings, selected = judged[0]
    assert (checks, findings, selected) == (result.checks, result.findings, ("a", "b"))
    assert result.subject.kind == "classifier"


def test_the_gravest_findings_come_first(detectors: dict[str, Any], classifier: Path) -> None:
    """Whichever detector ran first: what a trigger is called must not stand behind what is only suspicious."""

    def warned(subject: Any, evidence: Any, settings: Any, run: Any) -> Iterator[Finding]:
        for level in ("note", "warning"):
            yield replace(_finding("a"), level=level)

    detectors["a"], detectors["b"] = _detector(warned), _detector(_one)
    assert [one.level for one in scan(ScanRequest(str(classifier))).findings] == ["error", "warning", "note"]


def test_every_finding_tells_the_command_that_shows_it_again(
    detectors: dict[str, Any], classifier: Path, tmp_path: Path
) -> None:
    """With what the check was given, and nothing that it was not; a detector may know a better one."""

    def knows_better(subject: Any, evidence: Any, settings: Any, run: Any) -> Iterator[Finding]:
        yield replace(_finding(), reproduce="grep it")

    detectors["a"] = _detector(_one)
    detectors["b"] = _detector(knows_better)
    detectors["c"] = _detector(_one, settings=_ByBudget)
    plain = scan(ScanRequest(str(classifier)))
    assert [one.reproduce for one in plain.findings] == [
        f"purify scan {classifier} --only a",
        "grep it",
        f"purify scan {classifier} --only c",
    ]
    spaced = classifier.rename(tmp_path / "a model")
    base = tiny.save("bert", tmp_path / "base", task="encoder")
    request = ScanRequest(
        str(spaced), base=str(base), budget="deep", settings=("a.depth=3",), run=Run(seed=7, max_length=9)
    )
    assert [one.reproduce for one in scan(request).findings] == [
        f"purify scan '{spaced}' --only a --base {base} --set a.depth=3 --seed 7 --max-length 9",
        "grep it",
        f"purify scan '{spaced}' --only c --base {base} --set c.pairs=true --seed 7 --max-length 9",
    ]


def test_cheap_ones_first_and_the_artifact_scan_before_all(detectors: dict[str, Any]) -> None:
    detectors["a_deep"] = _detector(budget="deep")
    detectors["a_standard"] = _detector(budget="standard")
    detectors["a_fast"] = _detector()
    detectors["artifact"] = _detector()
    assert list(select(ScanRequest("x", budget="deep"))) == ["artifact", "a_fast", "a_standard", "a_deep"]
    assert list(select(ScanRequest("x"))) == ["artifact", "a_fast", "a_standard"]
    assert list(select(ScanRequest("x", budget="fast"))) == ["artifact", "a_fast"]
    assert list(select(ScanRequest("x", only=("a-deep",)))) == ["a_deep"]
    assert list(select(ScanRequest("x", skip=("a-standard", "artifact")))) == ["a_fast"]


def test_ignore_mark_leaves_the_mark_out(detectors: dict[str, Any]) -> None:
    detectors["mark"] = _detector()
    detectors["artifact"] = _detector()
    assert list(select(ScanRequest("x", ignore_mark=True))) == ["artifact"]


@pytest.mark.parametrize(
    ("request_", "option"),
    [
        (ScanRequest("x", budget="huge"), "--budget"),
        (ScanRequest("x", only=("nobody",)), "--only"),
        (ScanRequest("x", skip=("nobody",)), "--skip"),
        (ScanRequest("x", skip=("a", "b")), "--skip"),
        (ScanRequest("x", settings=("height=1",)), "--set height=1"),
        (ScanRequest("x", settings=("depth=1",)), "--set depth=1"),
        (ScanRequest("x", settings=("a.depth=0",)), "--set depth=0"),
        (ScanRequest("x", settings=("c.depth=1",)), "--set c.depth=1"),
        (ScanRequest("x", only=("a",), settings=("b.depth=1",)), "--set b.depth=1"),
    ],
)
def test_wrong_use_is_said_before_anything_is_read(
    detectors: dict[str, Any], request_: ScanRequest, option: str
) -> None:
    detectors["a"] = _detector()
    detectors["b"] = _detector(settings=_OtherSettings)
    with pytest.raises(UsageError) as caught:
        scan(request_)
    assert caught.value.where == option


def test_settings_reach_the_detector_they_are_meant_for(detectors: dict[str, Any], classifier: Path) -> None:
    seen: dict[str, Any] = {}

    def detect(name: str) -> Callable[..., Iterator[Finding]]:
        def look(subject: Any, evidence: Any, settings: Any, run: Any) -> Iterator[Finding]:
            seen[name] = settings
            yield from ()

        return look

    detectors["a"] = _detector(detect("a"))
    detectors["b"] = _detector(detect("b"), settings=_OtherSettings)
    scan(ScanRequest(str(classifier), settings=("a.depth=4", "width=7")))
    assert seen == {"a": _Settings(depth=4), "b": _OtherSettings(depth=1, width=7)}


@dataclass(frozen=True)
class _ByBudget:
    pairs: bool = field(default=False, metadata={"deep": "true"})


def test_a_setting_may_have_a_default_of_its_own_for_a_budget(detectors: dict[str, Any], classifier: Path) -> None:
    seen: list[bool] = []

    def look(subject: Any, evidence: Any, settings: Any, run: Any) -> Iterator[Finding]:
        seen.append(settings.pairs)
        yield from ()

    detectors["a"] = _detector(look, settings=_ByBudget)
    for budget, assignments in (("standard", ()), ("deep", ()), ("deep", ("pairs=false",))):
        scan(ScanRequest(str(classifier), budget=budget, settings=assignments))
    assert seen == [False, True, False]


def test_pairs_are_looked_for_with_the_deep_budget_only() -> None:
    module = catalogue.load("detector", "trigger_search")
    found = [command._settings({"trigger_search": module}, (), budget)["trigger_search"].pairs for budget in BUDGETS]
    assert found == [False, False, True]


@pytest.mark.parametrize("need", ["base", "twin", "clean", "untrusted"])
def test_what_was_not_given_skips_the_check_and_names_the_option(
    detectors: dict[str, Any], classifier: Path, need: str
) -> None:
    detectors["a"] = _detector(_one, needs=("files", need))
    result = scan(ScanRequest(str(classifier)))
    check = _only(result.checks)
    assert (check.outcome, check.needs) == ("skipped", ("files", need))
    assert f"--{need}" in check.reason
    assert result.findings == ()


def test_what_was_given_is_handed_over(detectors: dict[str, Any], classifier: Path, tmp_path: Path) -> None:
    seen: list[Any] = []

    def look(subject: Any, evidence: Any, settings: Any, run: Any) -> Iterator[Finding]:
        seen.append((evidence.base.path, evidence.twin.path, evidence.clean.texts))
        yield from ()

    data = tmp_path / "clean.csv"
    data.write_text("text,label\ngood,1\nbad,0\n", encoding="utf-8")
    detectors["a"] = _detector(look, needs=("weights", "classifier", "base", "twin", "clean"))
    place = str(classifier)
    result = scan(ScanRequest(place, base=place, twin=place, clean=str(data)))
    assert _only(result.checks).outcome == "clear"
    assert seen == [(classifier, classifier, ("good", "bad"))]


def test_an_encoder_is_no_classifier(detectors: dict[str, Any], tmp_path: Path) -> None:
    detectors["a"] = _detector(_one, needs=("classifier",))
    result = scan(ScanRequest(str(tiny.save("bert", tmp_path / "encoder", task="encoder"))))
    check = _only(result.checks)
    assert check.outcome == "skipped"
    assert "encoder" in check.reason


def test_forward_passes_are_counted_for_each_check(detectors: dict[str, Any], classifier: Path) -> None:
    def look(subject: Any, evidence: Any, settings: Any, run: Any) -> Iterator[Finding]:
        import torch

        subject.model("cpu")(input_ids=torch.ones(5, 3, dtype=torch.long))
        yield from ()

    detectors["a"] = _detector(look)
    detectors["b"] = _detector()
    result = scan(ScanRequest(str(classifier)))
    assert [check.forward_passes for check in result.checks] == [5, 0]
    assert all(check.seconds >= 0 for check in result.checks)


def test_a_missing_folder_is_bad_input(detectors: dict[str, Any], tmp_path: Path) -> None:
    detectors["a"] = _detector()
    for request in (ScanRequest(str(tmp_path / "no")), ScanRequest(str(tmp_path), base=str(tmp_path / "no"))):
        with pytest.raises(CheckpointError):
            scan(request)
    with pytest.raises(DataError):
        scan(ScanRequest(str(tmp_path), clean=str(tmp_path / "no.csv")))


@pytest.mark.parametrize("breakage", ["no config", "config is no JSON", "cut off", "unknown kind"])
def test_a_broken_folder_still_gets_its_artifact_scan(
    detectors: dict[str, Any], classifier: Path, breakage: str
) -> None:
    config, weights = classifier / "config.json", classifier / "model.safetensors"
    if breakage == "no config":
        config.unlink()
    elif breakage == "config is no JSON":
        config.write_text("{", encoding="utf-8")
    elif breakage == "cut off":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        config.write_text('{"model_type": "martian", "architectures": ["MartianForever"]}', encoding="utf-8")
    detectors["artifact"] = _detector(_one)
    detectors["weights"] = _detector(_one, needs=("weights",))
    detectors["behaviour"] = _detector(_one, needs=("classifier", "weights"))
    result = scan(ScanRequest(str(classifier)))
    outcomes = {check.detector: check.outcome for check in result.checks}
    assert outcomes["artifact"] == "found"
    assert {outcomes["weights"], outcomes["behaviour"]} <= {"skipped", "failed"}
    assert all(check.reason for check in result.checks if check.outcome != "found")
    assert not any("fault of ours" in check.reason for check in result.checks)
    assert "model.safetensors" in {digest.path for digest in result.subject.files}


def test_a_kind_that_is_not_supported_is_skipped(
    detectors: dict[str, Any], classifier: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: object) -> None:
        raise UnsupportedError("model.gguf", "GGUF is not read")

    monkeypatch.setattr(command.Subject, "embeddings", refuse)
    detectors["a"] = _detector(_one, needs=("weights",))
    check = _only(scan(ScanRequest(str(classifier))).checks)
    assert (check.outcome, check.reason) == ("skipped", "model.gguf: GGUF is not read")


def test_the_same_scan_gives_the_same_result(detectors: dict[str, Any], classifier: Path) -> None:
    detectors["a"] = _detector(_one)
    detectors["b"] = _detector(_then(Incomplete("x")))
    first, second = scan(ScanRequest(str(classifier))), scan(ScanRequest(str(classifier)))
    timeless = [replace(check, seconds=0.0) for check in first.checks]
    assert timeless == [replace(check, seconds=0.0) for check in second.checks]
    assert (first.findings, first.subject) == (second.findings, second.subject)
