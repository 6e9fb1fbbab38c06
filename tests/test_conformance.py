"""One exam for all methods of the catalogue: whoever adds a file is examined here without a line being written."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest
import torch

import tiny
from exams import RUN, evidence, save_subjects, short_settings, texts, trained, without_seconds
from purify_cli import catalogue
from purify_cli.architecture.pet import has_pet
from purify_cli.architecture.table import base_of
from purify_cli.catalogue import Kind
from purify_cli.commands.preparation import TRAINABLE_TASKS
from purify_cli.commands.scan import BUDGETS, ScanRequest, scan
from purify_cli.errors import Incomplete, UsageError
from purify_cli.results import Finding
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject
from purify_cli.trials.candidates import REACHES

DETECTORS = catalogue.names("detector")
PURIFIERS = catalogue.names("purifier")
ATTACKS = catalogue.names("attack")
METHODS = [(kind, name) for kind in catalogue.KINDS for name in catalogue.names(kind)]
NEEDS = {"files", "weights", "classifier", "base", "twin", "clean", "untrusted", "trigger", "before"}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def subjects(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return save_subjects(tmp_path_factory.mktemp("subjects"))


# --- the contract -----------------------------------------------------------------------------------------------------


def test_the_exam_has_candidates() -> None:
    assert {"artifact", "drift", "embedding_outliers", "mark", "trigger_search"} <= set(DETECTORS)
    assert {"finetune", "pure"} <= set(PURIFIERS)
    assert {"badnets", "embedding"} <= set(ATTACKS)


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_the_contract_is_complete(kind: Kind, name: str) -> None:
    module = catalogue.load(kind, name)
    assert isinstance(module.SUMMARY, str) and module.SUMMARY and "\n" not in module.SUMMARY
    assert catalogue.summary(kind, name) == module.SUMMARY, "it must be readable without an import"
    assert set(module.NEEDS) <= NEEDS
    assert module.__doc__ and len(module.__doc__.splitlines()) > 1, "the method, its source and its limits are told"
    verb = {"detector": "detect", "purifier": "purify", "attack": "poison", "analysis": "analyse"}.get(kind)
    if verb is not None:
        assert callable(getattr(module, verb))


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_every_setting_says_what_it_does(kind: Kind, name: str) -> None:
    module = catalogue.load(kind, name)
    assert is_dataclass(module.Settings)
    with pytest.raises(AttributeError):
        module.Settings().anything = 1  # frozen
    assert module.Settings() == catalogue.fill(module.Settings, [])
    for one in fields(module.Settings):
        assert {"help", "range", "source"} <= set(one.metadata) <= {"help", "range", "source", *BUDGETS}, one.name
        assert one.metadata["help"] and one.metadata["source"], one.name
    for shown in catalogue.describe(module.Settings):
        if shown.default not in ("", "none", "None"):
            again = catalogue.fill(module.Settings, [f"{shown.name}={shown.default}"])
            assert again == module.Settings(), f"{shown.name}: its default is out of its range, or reads otherwise"


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_every_setting_stands_on_the_method_s_page(kind: Kind, name: str, root: Path) -> None:
    folder = "analyses" if kind == "analysis" else "methods"
    page = (root / "docs" / folder / f"{name}.md").read_text(encoding="utf-8")
    if kind == "analysis" or name in {"pure", "drift", "embedding_outliers", "trigger_search", "manners", "rephrase"}:
        table = page.partition("## Settings")[2].partition("\n## ")[0]
        shown = dict(re.findall(r"^\| `(\w+)` \| `([^|`]+)` \|", table, flags=re.MULTILINE))
        wanted = {one.name: one.default for one in catalogue.describe(catalogue.load(kind, name).Settings)}
        assert shown == wanted


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_declare_rules_and_budget(name: str, root: Path) -> None:
    module = catalogue.load("detector", name)
    assert module.BUDGET in BUDGETS
    assert module.RULES
    for rule, line in module.RULES.items():
        assert re.fullmatch(r"P[AEBWM]\d{3}", rule)
        assert line and "\n" not in line
        page = root / "docs" / "rules" / f"{rule}.md"
        assert page.read_text(encoding="utf-8").splitlines()[0] == f"# {rule}: {line}"


def test_no_two_detectors_share_a_rule() -> None:
    owned = [rule for name in DETECTORS for rule in catalogue.load("detector", name).RULES]
    assert len(owned) == len(set(owned))


HEADINGS = ["What it means", "How it is found", "What else it can be", "What to do"]


@pytest.mark.parametrize(
    "rule", sorted(r for name in DETECTORS for r in catalogue.load("detector", name).RULES if r[:2] in {"PE", "PB"})
)
def test_pages_of_rules_about_weights_have_their_four_headings(rule: str, root: Path) -> None:
    """Statistics accuse: the page of each says what else it can be."""
    page = (root / "docs" / "rules" / f"{rule}.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.+)$", page, flags=re.MULTILINE) == HEADINGS


# --- detectors --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DETECTORS)
def test_an_unmet_need_is_skipped(name: str, tmp_path: Path) -> None:
    """An encoder of an architecture that nobody knows, with nothing beside it, has files and no more."""
    folder = tiny.save("bert", tmp_path / "other", task="encoder")
    (folder / "config.json").write_text('{"model_type": "unheard", "architectures": ["UnheardModel"]}')
    (check,) = scan(ScanRequest(str(folder), only=(name,), run=RUN)).checks
    needs = catalogue.load("detector", name).NEEDS
    if set(needs) - {"files"}:
        assert check.outcome == "skipped"
        assert check.reason
        assert check.forward_passes == 0
    else:
        assert check.outcome != "skipped"
    assert check.needs == tuple(needs)


@pytest.mark.parametrize("name", [name for name in DETECTORS if "base" in catalogue.load("detector", name).NEEDS])
def test_a_base_that_is_not_given(name: str, subjects: tuple[Path, Path]) -> None:
    (check,) = scan(ScanRequest(str(subjects[0]), only=(name,), run=RUN)).checks
    assert check.outcome == "skipped"
    assert "--base" in check.reason


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_find_the_same_again_and_touch_nothing(name: str, fixtures: Path) -> None:
    module = catalogue.load("detector", name)
    before = {one: digests(fixtures / one) for one in ("clean", "backdoored")}

    def look() -> list[Finding | str]:
        subject = Subject(fixtures / "backdoored")
        evidence = Evidence(base=Subject(fixtures / "clean"))
        found: list[Finding | str] = []
        try:
            for one in module.detect(subject, evidence, module.Settings(), Run(seed=5)):
                found.append(one)
        except Incomplete as error:
            found.append(error.reason)
        return found

    first = look()
    assert look() == first
    assert {one: digests(fixtures / one) for one in before} == before
    for one in first:
        if isinstance(one, Finding):
            assert one.rule in module.RULES
            assert one.detector == name
            assert one.level in ("error", "warning", "note")


@pytest.mark.parametrize("name", DETECTORS)
def test_detectors_are_generators(name: str, subjects: tuple[Path, Path]) -> None:
    """What was found before a break must stay, so nothing may be looked at before the first is asked for."""
    module = catalogue.load("detector", name)
    given = module.detect(Subject(subjects[0]), Evidence(), module.Settings(), RUN)
    assert isinstance(given, Iterator)


# --- purifiers and attacks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PURIFIERS)
def test_what_auto_may_try_says_so_in_full(name: str) -> None:
    cost, reach, tasks = (catalogue.declared("purifier", name, one) for one in ("AUTO", "AUTO_REACH", "AUTO_ON"))
    if cost is None:
        assert reach is None and tasks is None
        return
    assert isinstance(cost, float) and cost > 0
    assert reach in REACHES
    assert tasks is None or set(tasks) <= set(TRAINABLE_TASKS)
    assert name != "auto"


@pytest.mark.parametrize(("kind", "name"), [m for m in METHODS if m[0] in ("attack", "purifier")])
def test_trainings_are_the_same_bytes_again_and_touch_nothing(
    kind: Kind, name: str, subjects: tuple[Path, Path]
) -> None:
    before = digests(subjects[0])
    first, second = trained(kind, name, subjects), trained(kind, name, subjects)
    ours, again = first.model.state_dict(), second.model.state_dict()
    assert list(ours) == list(again)
    for tensor in ours:
        assert torch.equal(ours[tensor], again[tensor]), tensor
    assert not first.model.training
    assert without_seconds(first.report) == without_seconds(second.report)
    suspect = Subject(subjects[0]).open().state_dict()
    if not getattr(catalogue.load(kind, name), "TARGET", True):  # it gives back the encoder alone
        suspect = base_of(Subject(subjects[0]).open()).state_dict()
    if not has_pet(first.model) and getattr(first, "tokenizer", None) is None:  # else there are tensors or rows beside
        assert {key: value.shape for key, value in ours.items()} == {key: value.shape for key, value in suspect.items()}
    worked = first.report.get("method_report") or first.report  # of what auto has chosen
    if worked.get("rounds") != 0 and first.report.get("chosen", name):  # else it says that it did nothing
        assert any(key not in suspect or not torch.equal(ours[key], suspect[key]) for key in ours), "it did nothing"
    assert digests(subjects[0]) == before


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_have_default_triggers(name: str) -> None:
    triggers = catalogue.load("attack", name).TRIGGERS
    assert triggers and all(isinstance(one, str) and one for one in triggers)


@pytest.mark.parametrize("name", PURIFIERS)
def test_previews_are_json(name: str, subjects: tuple[Path, Path]) -> None:
    import json

    module = catalogue.load("purifier", name)
    if hasattr(module, "preview"):
        beside = evidence(subjects, module.NEEDS)
        shown = module.preview(Subject(subjects[0]), beside, texts(), texts(16), short_settings(module), RUN)
        assert json.loads(json.dumps(shown, allow_nan=False)) == shown


def test_an_unknown_setting_is_wrong_use() -> None:
    for kind, name in METHODS:
        with pytest.raises(UsageError):
            catalogue.fill(catalogue.load(kind, name).Settings, ["no_such_setting=1"])
