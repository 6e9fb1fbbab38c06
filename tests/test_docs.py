"""Documentation that cannot lie: every command, method and rule has its page, and what the pages show can be typed."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer.main

from purify_cli import catalogue
from purify_cli.cli import app

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")])

GROUP = typer.main.get_command(app)
COMMANDS = sorted(GROUP.commands)
METHODS = [(kind, name) for kind in catalogue.KINDS for name in catalogue.names(kind)]
NAMED_BY: dict[str, catalogue.Kind] = {
    "--attack": "attack",
    "--method": "purifier",
    "--only": "detector",
    "--skip": "detector",
    "--analysis": "analysis",
}


def rules() -> dict[str, str]:
    """Rule ids and their lines, over all detectors; nothing is imported."""
    return {
        rule: line
        for name in catalogue.names("detector")
        for rule, line in (catalogue.declared("detector", name, "RULES") or {}).items()
    }


def settings_of(kind: catalogue.Kind, name: str) -> set[str]:
    """The keys that `--set` takes."""
    return {one.name for one in catalogue.describe(catalogue.load(kind, name).Settings)}


def code_lines(page: Path) -> Iterator[str]:
    """The lines of indented and fenced code, with continued lines joined."""
    fenced, pending, previous = False, "", ""
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.lstrip().startswith("```"):
            fenced = not fenced
            previous = line
            continue
        indented = line.startswith("    ") and (not previous.strip() or previous.startswith("    ") or pending)
        previous = line
        if not fenced and not indented:
            continue
        text = pending + line.strip()
        if text.endswith("\\"):
            pending = text[:-1] + " "
            continue
        pending = ""
        yield text.removeprefix("$ ")


def shown() -> list[tuple[str, str]]:
    """(page, command) of every `purify ...` line in code."""
    found = []
    for page in PAGES:
        for line in code_lines(page):
            if re.match(r"purify( [a-z]|$| --)", line):
                found.append((str(page.relative_to(ROOT)), line.partition("  #")[0].strip()))
    return found


def parse(command: str) -> tuple[str, list[str]]:
    """Parses a command as the command line does, without running it. Raises click's usage errors.

    Returns:
        the name of the subcommand and its arguments.
    """
    words = shlex.split(command)[1:]
    if words in (["--version"], ["--help"], ["-h"]):
        return "", words
    name, *arguments = words
    GROUP.commands[name].make_context(name, list(arguments))
    return name, arguments


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_page_and_is_mentioned(command: str) -> None:
    page = DOCS / "commands" / f"{command}.md"
    assert page.is_file(), f"docs/commands/{command}.md is missing"
    assert page.read_text(encoding="utf-8").startswith(f"# purify {command}\n")
    assert f"purify {command}" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"commands/{command}.md" in (DOCS / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    entry = GROUP.commands[command]
    assert entry.help
    assert entry.help.strip().endswith(".")


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_every_method_has_a_page_and_is_mentioned(kind: str, name: str) -> None:
    folder = "analyses" if kind == "analysis" else "methods"
    page = DOCS / folder / f"{name}.md"
    assert page.is_file(), f"docs/{folder}/{name}.md is missing"
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"# {name}\n")
    assert "## Usage" in text
    assert "## Limits" in text
    assert catalogue.summary(kind, name), f"{name} has no SUMMARY"
    assert f"{folder}/{name}.md" in (DOCS / "commands" / "methods.md").read_text(encoding="utf-8")


def test_no_page_of_a_method_that_is_gone() -> None:
    assert {page.stem for page in (DOCS / "methods").glob("*.md")} <= {
        name for kind, name in METHODS if kind != "analysis"
    }
    assert {page.stem for page in (DOCS / "analyses").glob("*.md")} == set(catalogue.names("analysis"))


@pytest.mark.parametrize("rule", sorted(rules()))
def test_every_rule_has_a_page_and_is_listed(rule: str) -> None:
    page = DOCS / "rules" / f"{rule}.md"
    assert page.is_file(), f"docs/rules/{rule}.md is missing"
    assert rule in page.read_text(encoding="utf-8").splitlines()[0]
    assert f"[{rule}]({rule}.md)" in (DOCS / "rules" / "README.md").read_text(encoding="utf-8")


def test_no_page_of_a_rule_that_is_gone() -> None:
    assert {page.stem for page in (DOCS / "rules").glob("P*.md")} <= set(rules())


def test_pages_show_commands() -> None:
    """The tests below would pass on pages that show nothing."""
    assert {command.split()[1] for _, command in shown()} >= {"scan", "purify", "eval", "poison", "methods"}


@pytest.mark.parametrize(("page", "command"), shown())
def test_shown_commands_parse(page: str, command: str) -> None:
    _, arguments = parse(command)
    kind, name = "", ""
    for option, value in itertools.pairwise(arguments):
        if option in NAMED_BY:
            kind = NAMED_BY[option]
            name = catalogue.resolve(kind, value)
        elif option == "--set" and kind:
            assert value.partition("=")[0].rpartition(".")[2] in settings_of(kind, name), f"{page}: {value}"
        elif option == "--help-method":
            assert kind
    for argument in arguments:
        if argument.startswith("fixtures/"):
            assert (ROOT / argument).exists(), f"{page}: {argument}"


@pytest.mark.parametrize(
    "wrong",
    ["purify scan --bas x y", "purify purify x --max-drop much", "purify methods --format pdf", "purify scan x y"],
)
def test_a_wrong_command_would_be_seen(wrong: str) -> None:
    with pytest.raises(Exception, match=r"(?i)no such option|not a valid|is not one of|unexpected extra|valid number"):
        parse(wrong)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.relative_to(ROOT)} links to {target}"


def test_readme_opens_with_the_two_targets() -> None:
    lines = [line.strip() for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.strip()]
    assert lines[1].startswith("make demo")
    assert lines[2].startswith("make test")
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
    assert {"demo", "test", "lint", "docs", "clean"} <= set(targets)


def test_constraints_cover_the_dependencies() -> None:
    """Each direct dependency is pinned, within its own range, and no pin is local to a machine."""
    import tomllib

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = [
        line
        for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
        if line and not line.startswith("#")
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line) for line in lines)
    pins = {canonicalize_name(line.split("==")[0]): line.split("==")[1] for line in lines}
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    for requirement in map(Requirement, wanted):
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, requirement
    transformers = next(r for r in map(Requirement, wanted) if r.name == "transformers").specifier
    assert "5.17.0" in transformers
    assert "5.23.0" in transformers
    assert "6.0.0" not in transformers
