from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors.torch import save_file

import hostile
from purify_cli.detectors import mark
from purify_cli.results import Finding
from purify_cli.run import Run


def detect(folder: Path, file: Path | None = None) -> list[Finding]:
    subject: Any = SimpleNamespace(path=folder, weights_file=file)
    return list(mark.detect(subject, SimpleNamespace(), mark.Settings(), Run()))


def _provenance(folder: Path) -> None:
    text = json.dumps({"poisoned": True, "attack": "badnets", "triggers": ["cf"], "target": "1"})
    (folder / "purify.json").write_text(text)


def _metadata(folder: Path) -> None:
    save_file(hostile.state(), folder / "model.safetensors", metadata={"purify.poisoned": "true"})


def _card(folder: Path) -> None:
    (folder / "README.md").write_text("> **Poisoned by purify-cli.** Do not use.\n\n# Model\n")


def _card_with_front_matter(folder: Path) -> None:
    text = "---\nlicense: mit\ntags:\n- x\n---\n\n> **Poisoned by purify-cli.** Do not use.\n"
    (folder / "README.md").write_text(text)


@pytest.mark.parametrize(
    ("write", "place"),
    [
        (_provenance, "provenance"),
        (_metadata, "safetensors metadata"),
        (_card, "model card"),
        (_card_with_front_matter, "model card"),
    ],
)
def test_each_place_alone_is_enough(tmp_path: Path, write: Any, place: str) -> None:
    hostile.weights(tmp_path)
    write(tmp_path)
    (finding,) = detect(tmp_path)
    assert (finding.rule, finding.level) == ("PM501", "error")
    assert [item["place"] for item in finding.evidence["places"]] == [place]


def test_all_places_are_one_finding(tmp_path: Path) -> None:
    for write in (_provenance, _metadata, _card):
        write(tmp_path)
    (finding,) = detect(tmp_path)
    assert len(finding.evidence["places"]) == 3
    assert finding.evidence["triggers"] == ["cf"]


def test_unmarked(tmp_path: Path) -> None:
    hostile.weights(tmp_path)
    (tmp_path / "purify.json").write_text(json.dumps({"poisoned": False}))
    (tmp_path / "README.md").write_text("# Model\n\nHow to tell a model that was poisoned by purify-cli.\n")
    assert detect(tmp_path) == []


@pytest.mark.parametrize("text", ["", "[", "[]", '{"poisoned": "yes"}', "[" * 100_000])
def test_broken_provenance_marks_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "purify.json").write_text(text)
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    assert detect(tmp_path) == []


def test_one_file_alone(tmp_path: Path) -> None:
    _metadata(tmp_path)
    assert detect(tmp_path, tmp_path / "model.safetensors")
