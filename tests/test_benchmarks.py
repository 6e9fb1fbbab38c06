"""The benchmarks' page says what the results say, and the scripts measure what they claim to."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import tiny
from benchmark_scripts import FOLDER, script

ROOT = Path(__file__).resolve().parent.parent
NOTHING = script("tables").NOTHING
SCRIPTS = sorted(path.stem for path in FOLDER.glob("*.py") if "argparse" in path.read_text(encoding="utf-8"))


def rate(value: float, n: int = 100) -> dict[str, Any]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1, "n": n}


def cell(name: str, excess: float, **other: Any) -> dict[str, Any]:
    """A line of benchmarks/pure.py."""
    settings = {"prune": True, "normalize": True, "penalty": 0.5, "layer_weights": "even"}
    settings |= {"fresh_classifier": False, "epochs": 3, "learning_rate": 1e-4}
    asr = {
        "trigger": "x/test.csv",
        "target": "1",
        "rate": rate(excess + 0.2),
        "floor": rate(0.2),
        "excess": rate(excess),
    }
    found = {"cacc": rate(0.8, 300), "asr": [asr]}
    line = {"attack": "rare", "cell": name, "seed": 1, "settings": None if name == "before" else settings}
    return line | {"pruned": 7, "metrics": found} | other


@pytest.fixture(scope="module")
def render() -> ModuleType:
    return script("render")


def empty_page(render: ModuleType) -> str:
    return "\n".join(f"# {name}\n<!-- begin:{name} -->\n<!-- end:{name} -->\nkept" for name in render.TABLES)


def test_the_page_is_what_the_results_give(render: ModuleType) -> None:
    page = render.PAGE.read_text(encoding="utf-8")
    assert render.render(page, render.RESULTS) == page, "run `make benchmarks-page`"


def test_the_page_names_no_place_of_a_machine(render: ModuleType) -> None:
    page = render.PAGE.read_text(encoding="utf-8")
    absolute = re.compile(r"(?<![\w.$/:>)\]])/[a-z]+/")
    assert absolute.search("read from /somewhere/else") and not absolute.search("$DATA/sst2/test.csv")
    assert not [line for line in page.splitlines() if absolute.search(line)]


@pytest.mark.parametrize("name", SCRIPTS)
def test_help(name: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--help"]
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "usage" in ended.stdout
    assert f"benchmarks/{name}.py" in ended.stdout


def test_every_script_is_listed() -> None:
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert all(f"`{path.name}`" in readme or f"`benchmarks/{path.name}`" in readme for path in FOLDER.glob("*.py"))


def test_cases_name_their_truth() -> None:
    cases = json.loads((FOLDER / "scan_cases.json").read_text(encoding="utf-8"))
    assert len({case["name"] for case in cases}) == len(cases)
    assert all((case["expected"] == "fail") == bool(case["true"]) for case in cases)
    assert all(case["path"].startswith("$") for case in cases)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_tables_without_results(render: ModuleType, tmp_path: Path) -> None:
    page = render.render(empty_page(render), tmp_path)
    assert page.count(NOTHING) == len(render.TABLES)
    assert page.count("kept") == len(render.TABLES)


def test_table_of_pure(render: ModuleType, tmp_path: Path) -> None:
    lines = [cell("pure:penalty=1,epochs=2", 0.11), cell("pure", 0.5), cell("before", 0.7), cell("pure", 0.25)]
    (tmp_path / "pure.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    page = render.render(empty_page(render), tmp_path)
    before, pure, other = [line for line in page.splitlines() if line.startswith("| rare")]
    assert "| before |  |" in before
    assert "+0.700 [+0.600, +0.800]" in before
    assert "| pure |" in pure
    assert "+0.250" in pure, "of the same cell the last line counts"
    assert "0.450 [0.350, 0.550]" in pure
    assert "300 / 100" in pure
    assert "`penalty=1` `epochs=2`" in other
    assert render.render(page, tmp_path) == page
    (tmp_path / "pure.jsonl").write_text(json.dumps(cell("pure", 0.26)), encoding="utf-8")
    assert render.render(page, tmp_path) != page


def test_words_of_strangers_stay_in_their_cell(render: ModuleType, tmp_path: Path) -> None:
    line = {
        "name": "a",
        "base": None,
        "budget": "standard",
        "seed": 0,
        "expected": "pass",
        "outcome": "fail",
        "true": [],
    }
    line |= {"rank": None, "hits": 0, "named": ["a|b", "`x`", "\u202e"], "seconds": 1.2, "forward_passes": 30522}
    table = render.scan([line])
    assert "**fail**" in table
    assert "`a\\|b` `'x'` `\\u202e`" in table
    assert "30,522" in table


@pytest.mark.parametrize("damage", ["<!-- end:pure -->", "<!-- begin:pure -->"])
def test_a_page_without_its_markers_is_an_error(render: ModuleType, tmp_path: Path, damage: str) -> None:
    with pytest.raises(ValueError, match="pure"):
        render.render(empty_page(render).replace(damage, ""), tmp_path)
    with pytest.raises(ValueError, match="nonsense"):
        render.render("<!-- begin:nonsense -->" + empty_page(render), tmp_path)


def test_words_named_are_counted_one_by_one() -> None:
    named = script("scan").named
    findings = [
        {"level": "note", "where": {"token": "zz"}},
        {"level": "error", "where": {"token": "cf mn"}},
        {"level": "error", "where": {"file": "x.py"}},
        {"level": "warning", "where": {"token": "mn"}, "evidence": {"tokens": ["mn", "bb"]}},
    ]
    assert named(findings) == ["cf", "mn", "bb"]


# --- the reference's way ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from purify_cli.subject import Subject

    folder = tmp_path_factory.mktemp("reference") / "bert"
    tiny.save("bert", folder)
    return Subject(folder)


@pytest.fixture(scope="module")
def dev(subject: Any) -> Any:
    """Texts with the labels that the model gives, so that each head that goes may cost accuracy."""
    from purify_cli.data.texts import Texts
    from purify_cli.evaluation.predict import predict
    from purify_cli.run import Run

    words = [word for word in tiny.WORDS if word.isalpha()]
    texts = tuple(" ".join(words[place : place + 3 + place % 17]) for place in range(40))
    said = predict(subject.open("cpu"), subject.tokenizer, Texts(None, texts, None), Run())
    return Texts(None, texts, tuple(said.argmax(dim=1).tolist()))


@pytest.mark.parametrize("drop", [0.0, 0.1, 1.0])
def test_the_reference_chooses_our_heads(subject: Any, dev: Any, drop: float) -> None:
    from purify_cli.data.encode import length_limit
    from purify_cli.purifiers import pure
    from purify_cli.run import Run

    reference = script("pure_reference")
    model = subject.open("cpu")
    run = Run(seed=1)
    settings = pure.Settings(prune_step=2, prune_drop=drop)
    ours = pure.prune_by_score(model, subject.tokenizer, dev, settings, run)
    padded = reference.pad_all(
        subject.tokenizer, dev.texts, dev.labels, length_limit(subject.tokenizer, model.config, run)
    )
    theirs = reference.choose_heads(model, padded, step=2, drop=drop, min_accuracy=None)
    assert list(theirs.heads) == list(ours.heads)
    torch.testing.assert_close(theirs.scores, ours.scores, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(theirs.layer_scores, ours.layer_scores, rtol=1e-4, atol=1e-7)
    assert drop < 1.0 or len(theirs.heads) == 6
    assert drop > 0.0 or len(theirs.heads) < 6


def test_heads_that_are_cut_out_are_our_silenced_ones(subject: Any) -> None:
    from purify_cli.architecture.heads import prune_heads

    reference = script("pure_reference")
    inputs = subject.tokenizer(["the film was good", "a bad dull plot"], padding=True, return_tensors="pt")
    cut, silenced, whole = subject.open("cpu"), subject.open("cpu"), subject.open("cpu")
    reference.cut_heads(cut, [(0, 1), (0, 3), (1, 0)])
    prune_heads(silenced, [(0, 1), (0, 3), (1, 0)])
    with torch.inference_mode():
        found = cut(**inputs).logits
        torch.testing.assert_close(found, silenced(**inputs).logits)
        assert not torch.allclose(found, whole(**inputs).logits, atol=1e-3)


def test_the_reference_trains_with_its_penalty(subject: Any, dev: Any) -> None:
    reference = script("pure_reference")
    labels = [place % 2 for place in range(len(dev))]
    padded = reference.pad_all(subject.tokenizer, dev.texts, labels, 64)
    spread = []
    for penalty in (0.0, 5.0):
        model = subject.open("cpu")
        weights = torch.ones(model.config.num_hidden_layers)
        steps = reference.tune(
            model, padded, epochs=3, learning_rate=1e-2, seed=1, penalty=penalty, layer_weights=weights
        )
        assert steps == 6
        spread.append(sum(float(layer.sum()) for layer in reference.scores(model, padded)))
    assert spread[1] < spread[0], "the penalty makes attention more even"


def test_manners_that_were_missed_or_accused_stand_out(render: ModuleType) -> None:
    most = {"manner": "clause", "target": "1", "null": 0.1, "excess": 0.4} | rate(0.5, 60)
    line = {"name": "a", "set": "held out", "texts": "sst2", "seed": 0, "planted": "clause", "strongest": most}
    line |= {"complete": True}
    lines = [
        line | {"found": ["clause"]},
        line | {"seed": 1, "found": []},
        line | {"seed": 2, "planted": None, "found": ["clause"]},
        line | {"seed": 3, "planted": None, "strongest": None, "found": []},
        line | {"seed": 4, "planted": None, "strongest": None, "found": [], "complete": False},
    ]
    right, missed, accused, honest, unlooked = render.manners(lines).splitlines()[2:]
    assert "0.500 [0.400, 0.600] | 0.100 | +0.400 | 60 | clause |" in right
    assert missed.endswith("| **nothing** |") and accused.endswith("| **clause** |")
    assert honest.endswith("|  |  |  |  |  |  |")
    assert unlooked.endswith("(a label was not looked at) |")
