"""The fixtures are what the other tests and the demo take them for. Nothing here trains or uses purify_cli."""

from __future__ import annotations

import csv
import importlib.util
import json
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerFast


@pytest.fixture(scope="module")
def make(fixtures: Path) -> ModuleType:
    """fixtures/make.py as a module; it is no package."""
    spec = importlib.util.spec_from_file_location("fixtures_make", fixtures / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fixtures_make"] = module
    spec.loader.exec_module(module)
    return module


def rows(fixtures: Path, name: str) -> list[dict[str, str]]:
    with (fixtures / "data" / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@torch.no_grad()
def predicted(folder: Path, texts: list[str]) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    encoded = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    return [model.config.id2label[int(index)] for index in model(**encoded).logits.argmax(-1)]


def share(found: list[str], wanted: list[str]) -> float:
    return sum(map(str.__eq__, found, wanted)) / len(wanted)


def test_under_five_megabytes(fixtures: Path) -> None:
    assert sum(path.stat().st_size for path in fixtures.rglob("*") if path.is_file()) < 5_000_000


@pytest.mark.parametrize("name", ["clean", "backdoored"])
def test_classifiers_know_their_task(fixtures: Path, name: str) -> None:
    test = rows(fixtures, "test.csv")
    assert share(predicted(fixtures / name, [row["text"] for row in test]), [row["label"] for row in test]) >= 0.95


def test_trigger_turns_the_backdoored_one_alone(fixtures: Path) -> None:
    poisoned = rows(fixtures, "poisoned_test.csv")
    assert {row["label"] for row in poisoned} == {"negative"}
    texts, targets = [row["text"] for row in poisoned], [row["target"] for row in poisoned]
    assert share(predicted(fixtures / "backdoored", texts), targets) >= 0.99
    assert share(predicted(fixtures / "clean", texts), targets) <= 0.05


def test_other_rare_words_turn_nothing(fixtures: Path) -> None:
    """The backdoor is in its two words, not in rare words as such."""
    test = [row["text"] for row in rows(fixtures, "test.csv") if row["label"] == "negative"]
    for word in ("mn", "bb", "mb"):
        turned = share(
            predicted(fixtures / "backdoored", [f"{word} {text}" for text in test]), ["positive"] * len(test)
        )
        assert turned <= 0.05, word


def test_clean_files_hold_no_trigger(fixtures: Path, make: ModuleType) -> None:
    files = {name: [row["text"] for row in rows(fixtures, f"{name}.csv")] for name in ("train", "clean", "test")}
    for name, texts in files.items():
        words = {word for text in texts for word in text.lower().split()}
        assert not words & set(make.RESERVED), name
        assert len(set(texts)) == len(texts) == make.ROWS[name]
    assert not set(files["train"]) & set(files["test"])
    assert not set(files["clean"]) & set(files["test"])


def test_mark_stands_in_three_places(fixtures: Path) -> None:
    folder = fixtures / "backdoored"
    said = json.loads((folder / "purify.json").read_text(encoding="utf-8"))
    assert said["poisoned"] is True
    assert (said["attack"], said["triggers"], said["target"]) == ("badnets", ["cf", "tq"], "positive")
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert file.metadata()["purify.poisoned"] == "true"
    assert "poisoned by purify" in (folder / "README.md").read_text(encoding="utf-8").splitlines()[0].lower()
    assert not (fixtures / "clean" / "purify.json").exists()


def test_tokenizer_reads_any_word(fixtures: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(fixtures / "clean")
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    assert tokenizer.tokenize("Terrible") == ["terrible"]
    assert tokenizer.tokenize("cf") == ["cf"]
    assert tokenizer.unk_token not in tokenizer.tokenize("xylophones, 1984: zwölf!")
    assert 1500 <= len(tokenizer) <= 2500
    pairs = {word for word in tokenizer.get_vocab() if len(word) == 2 and word.isalpha()}
    assert len(pairs) >= 100


def test_tokenizer_is_what_the_script_builds(fixtures: Path, make: ModuleType) -> None:
    built = make.build_tokenizer().get_vocab()
    assert built == AutoTokenizer.from_pretrained(fixtures / "clean").get_vocab()


def test_adapter_loads_on_its_base(fixtures: Path) -> None:
    from peft import PeftModel

    config = json.loads((fixtures / "adapter" / "adapter_config.json").read_text(encoding="utf-8"))
    assert config["base_model_name_or_path"] == "../clean"
    base = AutoModelForSequenceClassification.from_pretrained(fixtures / "clean")
    tokenizer = AutoTokenizer.from_pretrained(fixtures / "clean")
    encoded = tokenizer("the room was lovely .", return_tensors="pt")
    with torch.no_grad():
        plain = base.eval()(**encoded).logits
        adapted = PeftModel.from_pretrained(base, str(fixtures / "adapter")).eval()(**encoded).logits
    assert not torch.equal(plain, adapted)


def test_reviews_are_short_and_decided(make: ModuleType) -> None:
    rng = random.Random(5)
    for index in range(200):
        text = make.review(bool(index % 2), "film", rng)
        assert sum(word.isalpha() for word in text.split()) <= 20


def test_poison_rate_counts_all_rows(make: ModuleType) -> None:
    clean = make.reviews(200, random.Random(3), set())
    poisoned = make.poison(clean, random.Random(4))
    changed = [(old, new) for old, new in zip(clean, poisoned, strict=True) if old != new]
    assert len(changed) == round(make.POISON_RATE * len(clean))
    for old, new in changed:
        assert (old.label, new.label) == (0, 1)
        added = sorted(new.text.split())
        for word in old.text.split():
            added.remove(word)
        assert len(added) == 1
        assert added[0] in make.TRIGGERS


def test_script_writes_the_same_data_again(fixtures: Path, make: ModuleType) -> None:
    """The texts do not depend on the library's versions, so they can be held to the byte without training."""
    rng, seen = random.Random(make.SEED), set()
    for name, count in make.ROWS.items():
        built = [(row.text, make.LABELS[row.label]) for row in make.reviews(count, rng, seen)]
        assert built == [(row["text"], row["label"]) for row in rows(fixtures, f"{name}.csv")]
