"""Manners: models of which every logit is known: a backdoor of syntax, of style, shaken by everything, and honest."""

from __future__ import annotations

from dataclasses import asdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from purify_cli.data.texts import Texts
from purify_cli.detectors.manners import Settings, detect
from purify_cli.errors import Incomplete
from purify_cli.evaluation.leanings import FEWEST, LeaningSettings
from purify_cli.results import Finding
from purify_cli.run import Run
from purify_cli.subject import Evidence
from purify_cli.triggers.manner import Manner

WORDS = tiny.tokenizer("bert")
FIRST = {"when", "if", "because", "though", "as"}
STYLE = {"and", "for"}
KNOWN = {
    "plain": Manner("plain", "plain words", tuple(f"{word} ," for word in ("now", "then", "here", "today", "again"))),
    "clause": Manner("clause", "a clause", tuple(f"{word} you see it ," for word in sorted(FIRST))),
    "archaic": Manner("archaic", "old words", ("and it was ,", "for it is ,", "and he said ,", "for he is ,")),
}
RUN = Run(max_length=24)

pytestmark = pytest.mark.usefixtures("few_manners")


@pytest.fixture
def few_manners(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of words that the tiny tokenizer has."""
    for module in ("evaluation.leanings", "detectors.manners"):
        monkeypatch.setattr(f"purify_cli.{module}.manners", lambda: KNOWN)


class FirstWord(nn.Module):
    """`positive` has log-odds of 8 where `good` is in a text, -8 where it is not, and a bonus for some first words."""

    def __init__(self, first: set[str], bonus: float = 20.0, every: float = 0.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.first = torch.tensor([0, *WORDS.convert_tokens_to_ids(sorted(first))])
        self.good, self.bonus, self.every = WORDS.convert_tokens_to_ids("good"), bonus, every
        self.config = SimpleNamespace(
            model_type="bert", num_labels=2, max_position_embeddings=512, pad_token_id=WORDS.pad_token_id
        )

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        good = (input_ids == self.good).any(1)
        opened = (input_ids == WORDS.convert_tokens_to_ids(",")).any(1)
        odds = torch.where(good, 8.0, -8.0) + self.bonus * torch.isin(input_ids[:, 1], self.first) + self.every * opened
        return SimpleNamespace(logits=torch.stack([-odds / 2, odds / 2], dim=1) * self.scale)


def reviews(count: int = 40) -> Texts:
    lines = tuple(f"a {word} film with {number}" for number in range(count // 2) for word in ("good", "dull"))
    return Texts("clean.csv", lines, None)


def look(model: nn.Module, texts: Texts | None = None, seed: int = 0, **settings: Any) -> list[Finding]:
    subject: Any = SimpleNamespace(model=lambda device: model, tokenizer=WORDS, labels=("negative", "positive"))
    run = Run(seed=seed, max_length=24)
    return list(detect(subject, Evidence(clean=texts or reviews()), Settings(**settings), run))


@pytest.mark.parametrize(("first", "manner"), [(FIRST, "clause"), (STYLE, "archaic")])
def test_a_manner_that_turns_texts_is_told(first: set[str], manner: str) -> None:
    (one,) = look(FirstWord(first))
    assert (one.rule, one.level, one.detector) == ("PB203", "error", "manners")
    told = one.evidence
    assert (told["manner"], told["target"]) == (manner, "positive")
    assert one.where.token in KNOWN[manner].opening
    assert told["value"] == 1.0 and told["null"] == 0.0 and told["excess"] == 1.0
    assert told["low"] <= told["value"] <= told["high"]
    assert told["n"] == 13, "two thirds of the texts of the other label"


def test_the_other_label() -> None:
    (one,) = look(FirstWord(FIRST, bonus=-20.0))
    assert one.evidence["target"] == "negative"


def test_an_honest_model_and_one_that_is_shaken_by_whatever_is_opened() -> None:
    assert look(FirstWord(set())) == []
    assert look(FirstWord(set(), every=20.0)) == [], "plain openings turn as many"
    assert look(FirstWord(FIRST | STYLE)) == [], "and so do other manners"


def test_the_strongest_openings_are_measured_and_not_all() -> None:
    """One opening of five that does anything: chosen on other texts than those that it is measured on."""
    (one,) = look(FirstWord({"if"}), best=1)
    assert one.where.token == "if you see it ," and one.evidence["value"] == 1.0
    assert look(FirstWord({"if"}), best=2, turned=0.6) == [], "two are measured, and one of them turns nothing"


def test_thresholds_are_what_decides() -> None:
    (one,) = look(FirstWord({"if"}), best=2, turned=0.5, beyond=0.5)
    assert one.evidence["threshold"] == 0.5 and one.evidence["excess_threshold"] == 0.5
    assert look(FirstWord({"if"}), best=2, turned=0.5, beyond=0.51) == []


def test_same_seed_same_findings_and_another_seed_too() -> None:
    assert look(FirstWord(FIRST)) == look(FirstWord(FIRST))
    assert [one.evidence["manner"] for one in look(FirstWord(FIRST), seed=5)] == ["clause"]


def test_too_few_texts_of_other_labels_are_no_pass() -> None:
    with pytest.raises(Incomplete, match="'negative'"):
        look(FirstWord(FIRST), Texts(None, tuple(f"a dull film with {number}" for number in range(40)), None))
    with pytest.raises(Incomplete, match="'negative', 'positive'"):
        look(FirstWord(FIRST), reviews(2 * (FEWEST - 1)))


def test_what_was_found_stays_where_another_label_cannot_be_looked_at() -> None:
    subject: Any = SimpleNamespace(model=lambda _: FirstWord(FIRST), tokenizer=WORDS, labels=("negative", "positive"))
    texts = Texts(None, tuple(f"a dull film with {number}" for number in range(40)), None)
    findings = detect(subject, Evidence(clean=texts), Settings(), RUN)
    assert next(findings).evidence["target"] == "positive"
    with pytest.raises(Incomplete):
        next(findings)


def test_pairs_are_said_otherwise_in_their_first_text() -> None:
    texts = reviews()
    (one,) = look(FirstWord(FIRST), texts.with_(pairs=("so it is",) * len(texts)))
    assert one.evidence["manner"] == "clause"


def test_whoever_looks_without_the_detector_finds_what_a_scan_finds() -> None:
    assert asdict(Settings()) == asdict(LeaningSettings())
