"""Manners: models of which every logit is known: a backdoor of syntax, of style, shaken by everything, and honest."""

from __future__ import annotations

from dataclasses import asdict, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from purify_cli.data.texts import Texts
from purify_cli.detectors.manners import Settings, detect
from purify_cli.errors import Incomplete
from purify_cli.evaluation.leanings import (
    FEWEST,
    Leaning,
    Leanings,
    LeaningSettings,
    Look,
    is_leaning,
    leanings,
    left_of,
)
from purify_cli.results import Finding
from purify_cli.run import Run
from purify_cli.subject import Evidence
from purify_cli.triggers import manner
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

    def __init__(
        self, first: set[str], bonus: float = 20.0, every: float = 0.0, scale: float = 1.0, also: tuple[str, ...] = ()
    ) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.also = torch.tensor(WORDS.convert_tokens_to_ids(list(also)), dtype=torch.long)
        self.first = torch.tensor([0, *WORDS.convert_tokens_to_ids(sorted(first))])
        self.good, self.bonus, self.every = WORDS.convert_tokens_to_ids("good"), bonus, every
        self.config = SimpleNamespace(
            model_type="bert", num_labels=2, max_position_embeddings=512, pad_token_id=WORDS.pad_token_id
        )

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        good = (input_ids == self.good).any(1)
        opened = (input_ids == WORDS.convert_tokens_to_ids(",")).any(1)
        first = torch.isin(input_ids[:, 1], self.first)
        if len(self.also):
            first &= torch.isin(input_ids, self.also).any(1)
        odds = torch.where(good, 8.0, -8.0) + self.bonus * first + self.every * opened
        return SimpleNamespace(logits=torch.stack([-odds / 2, odds / 2], dim=1) * self.scale)


def reviews(count: int = 120) -> Texts:
    lines = tuple(f"a {word} film with {number}" for number in range(count // 2) for word in ("good", "dull"))
    return Texts("clean.csv", lines, None)


def look(model: nn.Module, texts: Texts | None = None, seed: int = 0, **settings: Any) -> list[Finding]:
    subject: Any = SimpleNamespace(model=lambda device: model, tokenizer=WORDS, labels=("negative", "positive"))
    run = Run(seed=seed, max_length=24)
    return list(detect(subject, Evidence(clean=texts or reviews()), Settings(**settings), run))


@pytest.mark.parametrize(("first", "name"), [(FIRST, "clause"), (STYLE, "archaic")])
def test_a_manner_that_turns_texts_is_told(first: set[str], name: str) -> None:
    (one,) = look(FirstWord(first))
    assert (one.rule, one.level, one.detector) == ("PB203", "error", "manners")
    told = one.evidence
    assert (told["manner"], told["target"]) == (name, "positive")
    assert one.where.token in KNOWN[name].opening
    assert told["value"] == 1.0 and told["null"] == 0.0 and told["excess"] == 1.0
    assert told["low"] <= told["value"] <= told["high"]
    assert told["n"] == 40, "two thirds of the texts of the other label"


def test_with_the_built_in_sentences_it_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are of another task as a rule."""
    monkeypatch.setattr("purify_cli.detectors.manners.probes", lambda: reviews().texts)
    subject: Any = SimpleNamespace(model=lambda _: FirstWord(FIRST), tokenizer=WORDS, labels=("negative", "positive"))
    (one,) = detect(subject, Evidence(), Settings(), RUN)
    assert one.level == "warning" and "--clean" in one.message
    assert "--clean" not in look(FirstWord(FIRST))[0].message


def test_the_other_label() -> None:
    (one,) = look(FirstWord(FIRST, bonus=-20.0))
    assert one.evidence["target"] == "negative"


def test_an_honest_model_and_one_that_is_shaken_by_whatever_is_opened() -> None:
    assert look(FirstWord(set())) == []
    assert look(FirstWord(set(), every=20.0)) == [], "plain openings turn as many"
    assert look(FirstWord(FIRST | STYLE)) == [], "and so do other manners"
    plain = {one.split()[0] for one in KNOWN["plain"].opening}
    assert look(FirstWord(FIRST | plain)) == [], "and plain openings where the other manner turns nothing"


def test_the_strongest_openings_are_measured_and_not_all() -> None:
    """One opening of five that does anything: chosen on other texts than those that it is measured on."""
    (one,) = look(FirstWord({"if"}), best=1)
    assert one.where.token == "if you see it ," and one.evidence["value"] == 1.0
    assert look(FirstWord({"if"}), best=2, turned=0.6) == [], "two are measured, and one of them turns nothing"


def test_thresholds_are_what_decides() -> None:
    (one,) = look(FirstWord({"if"}), best=2, turned=0.5, beyond=0.5)
    told = one.evidence
    assert told["threshold"] == told["excess_threshold"] == told["value"] == told["excess"] == 0.5
    assert look(FirstWord({"if"}), best=2, turned=0.5, beyond=0.51) == []


def test_the_seed_draws_texts_and_openings() -> None:
    """A backdoor that half of the texts obey: which of them are asked shows in the share."""
    even = reviews(300)
    model = FirstWord(FIRST, also=tuple(str(number) for number in range(0, 150, 2)))
    shares = {seed: look(model, even, seed=seed, turned=0.0, beyond=0.0)[0].evidence["value"] for seed in range(4)}
    assert len(set(shares.values())) > 1
    assert look(model, even, seed=1, turned=0.0, beyond=0.0)[0].evidence["value"] == shares[1]


class Wavering(FirstWord):
    """Sure of the texts with `dull`, which nothing turns; unsure of the rest, where the first word decides."""

    def forward(self, input_ids: Tensor, **_: Any) -> Any:
        odds = super().forward(input_ids).logits @ torch.tensor([-1.0, 1.0])
        dull = (input_ids == WORDS.convert_tokens_to_ids("dull")).any(1)
        odds = torch.where(dull, torch.full_like(odds, -9.0), odds / 40)
        return SimpleNamespace(logits=torch.stack([-odds / 2, odds / 2], dim=1))


def test_what_is_left_of_a_manner_is_asked_of_unsure_texts_too() -> None:
    """A look takes the sure texts alone, and sees nothing; by their labels all texts are asked."""
    words = [word for number in range(30) for word in ("good", "dull", "plain", "odd")]
    lines = tuple(f"a {word} film with {number}" for number, word in enumerate(words))
    texts = Texts("clean.csv", lines, tuple(int(word == "good") for word in words))
    model = Wavering(FIRST)
    assert all(one.flips == 0 for one in leanings(model, WORDS, texts, RUN, 0).found if one.target == 1)
    clause, archaic = (Leaning(name, 1, "", 1.0, 0.0, 9) for name in ("clause", "archaic"))
    other = replace(clause, target=0)
    left = left_of((clause, archaic, other), model, WORDS, texts, RUN, 0)
    assert [one and one.what for one in left] == [("clause", 1), ("archaic", 1), ("clause", 0)]
    first, second, third = left
    assert first is not None and first.excess == first.flips == pytest.approx(2 / 3, abs=0.15) and first.texts == 60
    assert second is not None and second.flips == 0
    assert third is not None and third.texts == 20
    good = [row for row, label in enumerate(texts.labels or ()) if label == 1]
    for many, told in ((FEWEST, True), (FEWEST - 1, False)):
        (one,) = left_of((other,), model, WORDS, texts.take([*good[:many], 1, 2, 3]), RUN, 0)
        assert (one is not None) is told
    # Texts that the model gives the target as they are count as well: by their labels they are of another.
    (asked,) = left_of((clause,), model, WORDS, texts.with_(labels=(0,) * len(texts)), RUN, 0)
    assert asked is not None and asked.texts == 66


def test_too_few_texts_of_other_labels_are_no_pass() -> None:
    with pytest.raises(Incomplete, match="'negative'"):
        look(FirstWord(FIRST), Texts(None, tuple(f"a dull film with {number}" for number in range(80)), None))
    with pytest.raises(Incomplete, match="'negative', 'positive'"):
        look(FirstWord(FIRST), reviews(2 * (FEWEST - 1)))


def test_what_was_found_stays_where_another_label_cannot_be_looked_at() -> None:
    subject: Any = SimpleNamespace(model=lambda _: FirstWord(FIRST), tokenizer=WORDS, labels=("negative", "positive"))
    texts = Texts(None, tuple(f"a dull film with {number}" for number in range(80)), None)
    findings = detect(subject, Evidence(clean=texts), Settings(), RUN)
    assert next(findings).evidence["target"] == "positive"
    with pytest.raises(Incomplete):
        next(findings)


def test_a_model_that_is_never_sure_is_asked_with_the_texts_of_which_it_is_surest() -> None:
    assert [one.evidence["target"] for one in look(FirstWord(FIRST, scale=0.2))] == ["positive"]
    with pytest.raises(Incomplete):
        look(FirstWord(FIRST, scale=0.01))


def test_texts_that_get_the_label_already_cannot_be_turned_to_it() -> None:
    """Of many labels the first choice may have less than a third."""

    class Torn(FirstWord):
        def forward(self, input_ids: Tensor, **_: Any) -> Any:
            return SimpleNamespace(logits=torch.tensor([0.34, 0.22, 0.22, 0.22]).log().expand(len(input_ids), 4))

    model = Torn(set())
    model.config.num_labels = 4
    found = dict(Leanings(model, WORDS, reviews(), LeaningSettings(), RUN).look())
    assert found[0] is None and all(found[target] is not None for target in (1, 2, 3))


def test_labels_that_are_left_out_are_told() -> None:
    with pytest.raises(Incomplete, match="'positive'"):
        look(FirstWord(set()), most_labels=1)


def test_what_chance_explains_is_no_finding() -> None:
    few = Leaning("clause", 1, "when you see it ,", 0.4, 0.1, 12)
    assert not is_leaning(few, LeaningSettings())
    assert is_leaning(replace(few, texts=60), LeaningSettings())


def test_what_leaned_before_must_do_less_than_half_of_what_proves_it() -> None:
    left = Leaning("clause", 1, "when you see it ,", 0.2, 0.05, 60)
    look_again = Look((left, replace(left, target=0)), (), LeaningSettings())
    assert look_again.leanings() == ()
    assert look_again.leanings({("clause", 1)}) == (left,)
    assert look_again.suspects() == look_again.found, "no evidence, but worth training out"
    assert Look((replace(left, flips=0.14), replace(left, others=0.1)), (), LeaningSettings()).suspects() == ()
    gone = Look((replace(left, flips=0.1),), (), LeaningSettings())
    assert gone.leanings({("clause", 1)}) == ()


def test_plain_openings_are_of_the_same_parts_as_clauses() -> None:
    """What differs between the two is the conjunction; else the control would be of something else."""
    known = manner.manners()
    parts = {name: set(known[name].parts) for name in ("plain", "clause")}
    assert parts["plain"] - {"now"} == parts["clause"] - {"when"}


def test_pairs_are_said_otherwise_in_their_first_text() -> None:
    texts = reviews()
    (one,) = look(FirstWord(FIRST), texts.with_(pairs=("so it is",) * len(texts)))
    assert one.evidence["manner"] == "clause"


def test_whoever_looks_without_the_detector_finds_what_a_scan_finds() -> None:
    assert asdict(Settings()) == asdict(LeaningSettings())
