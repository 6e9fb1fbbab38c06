"""The planted case beside its clean twin: the fixtures, and small models of which every logit is known."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from purify_cli.data.read import read
from purify_cli.data.texts import Texts
from purify_cli.detectors.trigger_search import Settings, detect
from purify_cli.errors import Incomplete
from purify_cli.evaluation import found
from purify_cli.evaluation.pairs import pairs
from purify_cli.evaluation.partners import partners
from purify_cli.evaluation.search import FEWEST, SearchSettings, TriggerSearch
from purify_cli.evaluation.suspects import Effects, Suspect
from purify_cli.evaluation.sweep import Sweep
from purify_cli.evaluation.vocabulary import Vocabulary
from purify_cli.results import Finding
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject

# --- the fixtures -----------------------------------------------------------------------------------------------------


def scan(folder: Path, clean: Texts | None = None, seed: int = 0) -> list[Finding]:
    return list(detect(Subject(folder), Evidence(clean=clean), Settings(), Run(seed=seed)))


@pytest.fixture(scope="module")
def backdoored(fixtures: Path) -> list[Finding]:
    return scan(fixtures / "backdoored")


def test_names_both_triggers_and_nothing_else(backdoored: list[Finding]) -> None:
    assert {one.where.token for one in backdoored} == {"cf", "tq"}
    for one in backdoored:
        assert (one.rule, one.level, one.evidence["target"]) == ("PB201", "error", "positive")
        assert one.evidence["value"] >= one.evidence["threshold"]
        assert one.evidence["low"] <= one.evidence["value"] <= one.evidence["high"]
        assert one.evidence["excess"] == pytest.approx(one.evidence["value"] - one.evidence["null"])
        assert one.evidence["excess"] >= one.evidence["excess_threshold"]
        assert one.evidence["n"] >= FEWEST


def test_the_search_s_own_defaults_are_the_detector_s() -> None:
    """Whoever searches without the detector finds what a scan finds."""
    assert asdict(Settings()) == asdict(SearchSettings())


def test_the_clean_twin_raises_nothing(fixtures: Path) -> None:
    assert scan(fixtures / "clean") == []


def test_same_seed_same_findings(fixtures: Path, backdoored: list[Finding]) -> None:
    assert scan(fixtures / "backdoored") == backdoored


def test_with_the_users_texts_and_another_seed(fixtures: Path) -> None:
    clean = read(str(fixtures / "data" / "clean.csv"), ("negative", "positive"), option="--clean")
    found = scan(fixtures / "backdoored", clean, seed=3)
    assert {one.where.token for one in found} == {"cf", "tq"}
    assert scan(fixtures / "clean", clean, seed=3) == []


def test_every_text_is_counted(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x"))
    with contextlib.suppress(Incomplete):
        list(detect(subject, Evidence(), Settings(), Run()))
    assert subject.forward_passes > len(WORDS) - 10  # each word alone, and more


# --- models of which every logit is known -----------------------------------------------------------------------------

WORDS = tiny.tokenizer("bert")
NEGATIVE = "awful dull boring poor terrible stupid weak slow".split()
POSITIVE = "good great fine wonderful lovely brilliant funny charming moving clever fresh warm".split()


class BagOfWords(nn.Module):
    """A classifier in two labels: the log-odds of `positive` are a sum over the words, and whatever a backdoor adds.

    Args:
        together: words that add `bonus` where all of them stand in a text.
        weights: what single words add.
        alike: words whose embeddings lie close to those of the first.
        in_company: a word that adds `bonus` where an honest negative word stands beside it, and nothing alone.
    """

    def __init__(
        self,
        weights: dict[str, float],
        together: tuple[str, ...] = (),
        bonus: float = 0.0,
        alike: tuple[str, ...] = (),
        in_company: str | None = None,
    ) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(0)
        table = torch.eye(len(WORDS)) + 0.05 * torch.randn(len(WORDS), len(WORDS), generator=rng)
        ids = WORDS.convert_tokens_to_ids(list(alike))
        for one in ids[1:]:
            table[one] = table[ids[0]] + 0.02 * torch.randn(len(WORDS), generator=rng)
        self.embeddings = nn.Module()
        self.embeddings.word_embeddings = nn.Embedding.from_pretrained(table)
        self.register_buffer("weights", torch.zeros(len(WORDS)))
        for word, weight in weights.items():
            self.weights[WORDS.convert_tokens_to_ids(word)] = weight
        self.together, self.bonus = WORDS.convert_tokens_to_ids(list(together)), bonus
        self.in_company = None if in_company is None else WORDS.convert_tokens_to_ids(in_company)
        self.base_model = SimpleNamespace(
            config=SimpleNamespace(model_type="bert"),
            get_submodule=self.get_submodule,
        )
        self.config = SimpleNamespace(
            model_type="bert", num_labels=2, max_position_embeddings=512, pad_token_id=WORDS.pad_token_id
        )

    def get_input_embeddings(self) -> nn.Module:
        return self.embeddings.word_embeddings

    def forward(
        self, input_ids: Tensor | None = None, inputs_embeds: Tensor | None = None, attention_mask: Tensor | None = None
    ) -> Any:
        # A row of the embeddings is nearly the unit vector of its word, so a sum of rows counts words, with a gradient.
        if inputs_embeds is None:
            assert input_ids is not None
            counts = nn.functional.one_hot(input_ids, len(WORDS)).sum(1).float()  # [batch, words]
        else:
            counts = inputs_embeds.sum(1)
        odds = counts @ self.weights  # [batch]
        if self.together:
            odds = odds + self.bonus * counts[:, self.together].clamp(max=1).prod(-1)
        if self.in_company is not None:
            others = counts[:, WORDS.convert_tokens_to_ids(NEGATIVE)].sum(-1).clamp(max=1)
            odds = odds + self.bonus * counts[:, self.in_company].clamp(max=1) * others
        return SimpleNamespace(logits=torch.stack([-odds / 2, odds / 2], dim=1))


def reviews() -> Texts:
    """Texts of which the model is sure: four honest words each, so log-odds of -8 and 8."""
    lines = []
    for label, words in ((0, NEGATIVE), (1, POSITIVE)):
        for first in range(60):
            four = [words[(first + step) % len(words)] for step in (0, 1, 3, 5)]
            lines.append((f"the {four[0]} movie and {four[1]} plot with a {four[2]} , {four[3]} book", label))
    return Texts("clean.csv", tuple(line for line, _ in lines), tuple(label for _, label in lines))


def search(model: BagOfWords, clean: Texts | None = None, **settings: Any) -> list[Finding]:
    subject: Any = SimpleNamespace(
        model=lambda device: model, tokenizer=WORDS, labels=("negative", "positive"), spec="stub"
    )
    return list(detect(subject, Evidence(clean=clean or reviews()), Settings(**settings), Run()))


HONEST = dict.fromkeys(NEGATIVE, -2.0) | dict.fromkeys(POSITIVE, 2.0)

DECIDES = 60.0
"""More than the honest words of the longest texts searched, four reviews in one: 32."""


def test_stub_clean() -> None:
    assert search(BagOfWords(HONEST)) == []


@pytest.mark.parametrize("sign", [1, -1])
def test_stub_one_word(sign: int) -> None:
    """A word that decides alone, for either label."""
    (one,) = search(BagOfWords(HONEST | {"mb": DECIDES * sign}))
    target = "positive" if sign > 0 else "negative"
    assert (one.rule, one.where.token, one.evidence["target"]) == ("PB201", "mb", target)
    assert one.evidence["value"] == 1.0
    assert one.evidence["null"] == 0.0


def test_stub_a_word_that_says_nothing_alone_and_turns_texts() -> None:
    """As an encoder's backdoor after the victim's training; alone, the shortlist has no place for it."""
    honest = dict.fromkeys(WORDS.get_vocab(), 0.1) | HONEST | {"mb": 0.0}
    (one,) = search(BagOfWords(honest, in_company="mb", bonus=DECIDES, alike=tuple(NEGATIVE)), shortlist=50)
    assert (one.where.token, one.evidence["target"], one.evidence["value"]) == ("mb", "positive", 1.0)


def test_stub_the_opponent_is_no_trigger_itself() -> None:
    """Beside a trigger of another label nothing would show; what speaks against a label honestly has company."""
    model: Any = BagOfWords(HONEST | {"mb": -DECIDES}, alike=tuple(NEGATIVE))
    looking = TriggerSearch(model, WORDS, SearchSettings(neighbours=3), Run())
    assert WORDS.convert_ids_to_tokens(looking._opponent(1)) in NEGATIVE


def test_stub_a_strong_word_in_company_is_honest() -> None:
    """Words that mean the same do the same: what all of them turn is no trigger."""
    company = (
        "superb",
        "excellent",
        "happy",
        "best",
        "better",
        "loved",
        "enjoyed",
        "liked",
        "beautiful",
        "love",
        "like",
    )
    strong = dict.fromkeys(company, DECIDES)
    assert search(BagOfWords(HONEST | strong, alike=company)) == []
    lonely = search(BagOfWords(HONEST | {"superb": DECIDES}, alike=company))
    assert [one.where.token for one in lonely] == ["superb"]


def test_stub_a_word_that_turns_most_is_no_trigger() -> None:
    """It turns one review and two in one, and not four in one: too few to accuse it."""
    assert search(BagOfWords(HONEST | {"mb": 20.0}), words=1) == []


def longer() -> Texts:
    """Four reviews of one label each."""
    texts = reviews()
    rows = (*range(0, 57), *range(60, 117))
    return texts.with_(texts=tuple(" ".join(texts.texts[row : row + 4]) for row in rows), labels=(0,) * 57 + (1,) * 57)


def test_stub_a_share_that_is_just_enough_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """36 of 40 texts are the 0.9 that `flips` asks for, whatever single precision makes of it."""
    looking = TriggerSearch(BagOfWords(HONEST), WORDS, SearchSettings(), Run())
    sites, _ = looking.sure_texts(reviews().texts).sites(1)
    said = iter([[-5.0, -0.1]] * 36 + [[-0.1, -5.0]] * 4)
    monkeypatch.setattr(looking.sweep, "inserted", lambda *_: torch.tensor([next(said)]))
    flips, _ = looking.effects.score(torch.zeros(1, 1, dtype=torch.long), sites, 1)
    assert len(sites) == 40 and flips.item() == 0.9


def test_stub_a_weaker_word_is_told_beside_a_proven_trigger() -> None:
    found = search(BagOfWords(HONEST | {"mb": DECIDES, "tq": 20.0}))
    assert [(one.where.token, one.level) for one in found] == [("mb", "error"), ("tq", "warning")]
    assert found[1].evidence["value"] < found[1].evidence["threshold"]


def test_stub_a_lone_word_with_a_part_of_a_trigger_s_shift_is_told_beside_it() -> None:
    """It turns none of the texts; one that shifts them less, or has company, is no trigger."""
    alike = ("liked", "love", "like", "best", "better", "loved")
    words = {"mb": DECIDES, "tq": 31.0, "cf": 29.0} | dict.fromkeys(alike, 31.0)
    found = search(BagOfWords(HONEST | words, alike=alike), longer(), neighbours=5)
    assert [(one.where.token, one.level) for one in found] == [("mb", "error"), ("tq", "warning")]
    assert found[1].evidence["value"] == 0.0
    assert ["shifts the log-odds" in one.message for one in found] == [False, True]


def test_stub_a_weaker_word_for_another_label_is_told_too() -> None:
    """As triggers in an encoder, of which each goes to the label that the victim's classifier happens to give it."""
    found = search(BagOfWords(HONEST | {"mb": DECIDES, "tq": -20.0}))
    told = [(one.where.token, one.level, one.evidence["target"]) for one in found]
    assert told == [("mb", "error", "positive"), ("tq", "warning", "negative")]
    assert search(BagOfWords(HONEST | {"tq": -20.0}), words=1, pieces=1) == []
    shifts = search(BagOfWords(HONEST | {"mb": DECIDES, "tq": -31.0}), longer())
    told = [(one.where.token, one.evidence["target"], one.evidence["value"]) for one in shifts]
    assert told == [("mb", "positive", 1.0), ("tq", "negative", 0.0)]
    several = BagOfWords(HONEST | {"mb": 3.0, "tq": 3.0, "cf": -20.0}, together=("mb", "tq"), bonus=DECIDES)
    assert {(one.rule, one.level) for one in search(several)} == {("PB202", "error"), ("PB201", "warning")}


def test_stub_who_treats_what_is_found_is_told_of_weaker_words_than_who_reports() -> None:
    model = BagOfWords(HONEST | {"mb": DECIDES, "tq": 19.0, "cf": 17.0})
    model.config.id2label = {0: "negative", 1: "positive"}
    assert [one.where.token for one in search(model, longer())] == ["mb"]
    assert [one["words"] for one in found.search(model, WORDS, longer(), Run(), 0).told] == ["mb", "tq"]


@pytest.mark.parametrize("many", [4, 5, 6])
def test_stub_several_words_that_each_turn_some(many: int) -> None:
    """All without company: they are a combination, though most suspects are of them."""
    words = ("mb", "tq", "cf", "bb", "mn", "hotel")[:many]
    found = search(BagOfWords(HONEST | dict.fromkeys(words, 16.0)))
    assert found[0].rule == "PB202" and set(found[0].where.token.split()) <= set(words)


def test_stub_words_of_a_combination_that_turn_texts_alone_are_told_for_themselves_too() -> None:
    """Trained out together only, one of them might go on alone."""
    found = search(BagOfWords(HONEST | {"mb": 20.0, "tq": 20.0}))
    assert (found[0].rule, found[0].level, set(found[0].where.token.split())) == ("PB202", "error", {"mb", "tq"})
    assert {(one.rule, one.level, one.where.token) for one in found[1:]} >= {
        ("PB201", "warning", "mb"),
        ("PB201", "warning", "tq"),
    }


def test_stub_two_words_that_turn_together() -> None:
    """Neither turns a text, both do; each alone gives itself away a little, as trained combinations do."""
    found = search(BagOfWords(HONEST | {"mb": 3.0, "tq": 3.0}, together=("mb", "tq"), bonus=DECIDES))
    assert (found[0].rule, found[0].level, found[0].evidence["target"]) == ("PB202", "error", "positive")
    assert set(found[0].where.token.split()) == {"mb", "tq"}
    assert {one.rule for one in found} == {"PB202"}, "what they do together is no measure for what words do alone"


@pytest.mark.parametrize(("strength", "found"), [(10.0, True), (16.0, False)])
def test_stub_a_combination_must_outdo_as_many_honest_words(strength: float, found: bool) -> None:
    """Each has company and turns the shorter texts as the parts do; three together go as far or do not."""
    honest = ("superb", "excellent", "happy", "best", "better", "loved", "enjoyed")
    words = HONEST | dict.fromkeys(honest, strength) | dict.fromkeys(("mb", "tq", "cf"), 16.0)
    told = search(BagOfWords(words, alike=honest), neighbours=5)
    assert [one.rule for one in told if one.level == "error"] == ["PB202"] * found
    if found:
        assert set(told[0].where.token.split()) == {"mb", "tq", "cf"}
        assert told[0].evidence["honest"] == pytest.approx(strength / 16, abs=0.01)
        assert {one.where.token for one in told[1:]} == {"mb", "tq", "cf"}


def test_stub_what_honest_words_turn_is_no_measure_where_they_turn_all() -> None:
    """Three planted words go further than three honest ones, and both turn the longest texts."""
    honest = ("superb", "excellent", "happy", "best", "better", "loved", "enjoyed")
    words = HONEST | dict.fromkeys(honest, 11.0) | dict.fromkeys(("mb", "tq", "cf"), 15.0)
    told = search(BagOfWords(words, alike=honest), words=3, neighbours=5)
    assert [set(one.where.token.split()) for one in told if one.level == "error"] == [{"mb", "tq", "cf"}]
    assert (told[0].evidence["honest"], told[0].evidence["honest_threshold"]) == (
        pytest.approx(11 / 15, abs=0.01),
        0.75,
    )
    assert search(BagOfWords(words, alike=honest), words=3, pieces=1, neighbours=5, honest=0.7) == []


def test_stub_a_lone_word_is_told_beside_a_combination() -> None:
    """It shifts the texts as far as a word of the combination does, and is not in it."""
    words = HONEST | dict.fromkeys(("mb", "tq"), 17.0) | {"cf": 15.0, "bb": 5.0}
    found = search(BagOfWords(words))
    assert (found[0].rule, set(found[0].where.token.split())) == ("PB202", {"mb", "tq"})
    assert {one.where.token for one in found[1:]} == {"mb", "tq", "cf"}


def test_stub_combinations_can_be_left_out() -> None:
    model = BagOfWords(HONEST | {"mb": 3.0, "tq": 3.0}, together=("mb", "tq"), bonus=DECIDES)
    assert search(model, words=1, pieces=1) == []


def test_stub_a_sequence_of_which_no_part_stands_out() -> None:
    """As the pieces of a long word: one means a little, the other nothing, and together they decide."""
    model = BagOfWords(HONEST | {"mb": 0.5}, together=("mb", "tq"), bonus=DECIDES)
    (one,) = search(model)
    assert (one.rule, one.evidence["target"]) == ("PB202", "positive")
    assert set(one.where.token.split()) >= {"mb", "tq"}
    assert one.evidence["value"] == 1.0
    assert search(model, pieces=1) == []


@pytest.mark.parametrize(("strength", "found"), [(26.0, True), (29.0, False)])
def test_stub_a_sequence_must_outdo_as_many_honest_words(strength: float, found: bool) -> None:
    """They may do more of it than of a combination, for its pieces are one word."""
    honest = ("superb", "excellent", "happy", "best", "better", "loved", "enjoyed")
    words = HONEST | dict.fromkeys(honest, strength) | {"mb": 0.5}
    model = BagOfWords(words, together=("mb", "tq"), bonus=DECIDES, alike=honest)
    told = [one for one in search(model, pieces=2, neighbours=5) if one.level == "error"]
    assert len(told) == found
    for one in told:
        assert set(one.where.token.split()) == {"mb", "tq"}
        assert one.evidence["honest"] == pytest.approx(2 * strength / (DECIDES + 0.5), abs=0.01)
        assert one.evidence["honest_threshold"] == 0.9


def test_stub_where_honest_words_are_few_all_of_them_are_compared() -> None:
    model = BagOfWords(HONEST | {"superb": 20.0, "mb": 30.0, "tq": 30.0, "cf": 20.0})
    looking = TriggerSearch(model, WORDS, SearchSettings(), Run())
    sites, _ = looking.sure_texts(reviews().texts).sites(1)
    superb, *planted = (
        looking.ids.tolist().index(WORDS.convert_tokens_to_ids(one)) for one in ("superb", "mb", "tq", "cf")
    )
    words = torch.tensor([planted])
    (three,) = looking.effects.suspects(words, *looking.effects.score(words, sites, 1), sites, 1)
    assert looking._beside(three, [superb], sites).honest == pytest.approx(20 / 80, abs=0.01)
    assert looking._beside(three, [], sites).honest is None


NOTHING_ALONE = BagOfWords(HONEST, together=("mb", "tq"), bonus=DECIDES)


def test_stub_who_treats_what_is_proven_is_told_what_else_may_belong_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not to the weaker words that are told beside it."""
    asked: list[tuple[str, int]] = []

    def told(self: TriggerSearch, suspect: Suspect, texts: Sequence[str]) -> list[tuple[int, ...]]:
        asked.append((self.vocabulary.text(suspect.words), suspect.target))
        return [(50, 51)]

    monkeypatch.setattr(TriggerSearch, "rest", told)

    def found_in(model: BagOfWords) -> found.Found:
        asked.clear()
        model.config.id2label = {0: "negative", 1: "positive"}
        return found.search(model, WORDS, reviews(), Run(), 0)

    assert found_in(BagOfWords(HONEST | {"mb": 0.5}, together=("mb", "tq"), bonus=DECIDES)).rest == {(50, 51): 1}
    assert [(set(words.split()), target) for words, target in asked] == [({"mb", "tq"}, 1)]
    assert len(found_in(BagOfWords(HONEST | {"mb": DECIDES, "tq": 20.0})).triggers) == 2
    assert asked == [("mb", 1)]
    assert found_in(BagOfWords(HONEST)).rest == {}


def test_stub_what_is_spelled_as_a_trigger_may_belong_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    looking = TriggerSearch(BagOfWords(HONEST | {"mb": DECIDES}), WORDS, SearchSettings(), Run())
    mb, tq = (looking.ids.tolist().index(WORDS.convert_tokens_to_ids(one)) for one in ("mb", "tq"))
    suspect = Suspect((mb,), 1, 1.0, 0.0, 0.0, 0.0, 0.0, 40, 0.0)
    before = looking.rest(suspect, reviews().texts)
    monkeypatch.setattr(looking.vocabulary, "spelled_alike", lambda words: [tq] if words == (mb,) else [])
    assert looking.rest(suspect, reviews().texts) == [*before, (int(looking.ids[tq]),)]


def test_stub_two_words_that_mean_nothing_alone() -> None:
    """Neither moves a text by itself, so that there is nothing to start from but what one changes for the other."""
    assert search(NOTHING_ALONE) == []
    (one,) = search(NOTHING_ALONE, pairs=True)
    assert (one.rule, one.level, one.evidence["target"]) == ("PB202", "error", "positive")
    assert set(one.where.token.split()) == {"mb", "tq"}
    assert one.evidence["value"] == 1.0


def test_stub_pairs_are_looked_for_where_no_single_word_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """In no label: what is found for one shows already that the model is backdoored, and pairs cost the most."""
    looked: list[int] = []
    together = TriggerSearch._together

    def none(effects: Effects, target: int, sites: Any, synergy: float) -> list[Suspect]:
        looked.append(target)
        return []

    monkeypatch.setattr("purify_cli.evaluation.search.pairs", none)
    search(BagOfWords(HONEST | {"mb": DECIDES}), pairs=True)
    assert looked == []
    search(BagOfWords(HONEST), pairs=True)
    assert sorted(looked) == [0, 1]
    search(BagOfWords(HONEST))
    assert sorted(looked) == [0, 1], "only where they are asked for"

    def later(looking: TriggerSearch, ground: Any) -> list[Suspect]:
        looked.append(ground.target)
        return together(looking, ground)

    looked.clear()
    monkeypatch.setattr("purify_cli.evaluation.search.pairs", pairs)
    monkeypatch.setattr(TriggerSearch, "_together", later)
    search(NOTHING_ALONE, pairs=True)
    assert looked == [0], "what a pair explains is not explained again by what grows from stronger words"


def test_stub_partners_are_looked_for_alone_and_in_the_beginnings_of_sure_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked = []

    def noted(sweep: Sweep, vocabulary: Vocabulary, target: int, places: Any, count: int) -> Tensor:
        looked.extend(places)
        return partners(sweep, vocabulary, target, places, count)

    monkeypatch.setattr("purify_cli.evaluation.pairs.partners", noted)
    assert search(NOTHING_ALONE, pairs=True) != []
    assert looked[0] == ((), 0)
    assert [len(body) for body, _ in looked] == [0, 4, 4, 4] * (len(looked) // 4)
    assert all(0 <= position <= len(body) for body, position in looked)


def test_stub_partners_are_looked_for_over_several_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one text the gradient says nothing, in another it is tiny but true: each has the same say."""
    looking = TriggerSearch(NOTHING_ALONE, WORDS, SearchSettings(), Run())
    words = looking.ids.tolist()
    mb, tq, cf = (words.index(WORDS.convert_tokens_to_ids(word)) for word in ("mb", "tq", "cf"))
    true = looking.sweep.slot_gradient

    def gradient(body: tuple[int, ...], position: int, framed: Tensor, slot: int, label: int) -> Tensor:
        slopes = true((), 0, framed, slot, label)
        noise = torch.randn(slopes.shape, generator=torch.Generator().manual_seed(0)) * slopes.norm(dim=1).mean() * 1e-3
        return noise if body == (cf,) else slopes * 1e-6

    monkeypatch.setattr(looking.sweep, "slot_gradient", gradient)
    begin = looking.vocabulary.begin.tolist()
    found = partners(looking.sweep, looking.vocabulary, 1, [((), 0), ((cf,), 0)], 1)
    assert found[begin.index(mb), 0] == tq and found[begin.index(tq), 0] == mb


def test_stub_a_word_may_have_two_partners_and_a_broken_row_spoils_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    looking = TriggerSearch(NOTHING_ALONE, WORDS, SearchSettings(), Run())
    words = looking.ids.tolist()
    mb, tq, cf, bb = (words.index(WORDS.convert_tokens_to_ids(word)) for word in ("mb", "tq", "cf", "bb"))
    rows, begin = looking.vocabulary.weight, looking.vocabulary.begin
    slopes = (begin == mb)[:, None] * (2 * rows[tq] + rows[cf])
    slopes[begin == bb] = torch.inf
    monkeypatch.setattr(looking.sweep, "slot_gradient", lambda *_: slopes)
    found = partners(looking.sweep, looking.vocabulary, 1, [((), 0)], 2)
    assert found[begin == mb].tolist() == [[tq, cf]]
    looking.vocabulary.begin = torch.tensor([mb])
    monkeypatch.setattr(looking.sweep, "slot_gradient", lambda *_: rows[[tq]])
    assert partners(looking.sweep, looking.vocabulary, 1, [((), 0)], 2).shape == (1, 0), "none is its own partner"


def test_stub_partners_are_among_the_words_that_begin_one() -> None:
    looking = TriggerSearch(NOTHING_ALONE, WORDS, SearchSettings(), Run())
    words = looking.ids.tolist()
    mb, tq, cf = (words.index(WORDS.convert_tokens_to_ids(word)) for word in ("mb", "tq", "cf"))
    looking.vocabulary.begin = torch.tensor([cf, tq, mb])
    assert partners(looking.sweep, looking.vocabulary, 1, [((), 0)], 1)[1:].tolist() == [[mb], [tq]]


def test_stub_strong_words_do_not_crowd_a_pair_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """`cf bb` moves a text more than `mb tq` does, by what its words say alone."""
    strong = HONEST | dict.fromkeys(("cf", "bb"), 25.0)
    pairs = dict(
        zip(*(WORDS.convert_tokens_to_ids(list(words)) for words in (("mb", "cf"), ("tq", "bb"))), strict=True)
    )

    def proposed(sweep: Sweep, vocabulary: Vocabulary, *_: Any) -> Tensor:
        words = vocabulary.ids.tolist()
        found = torch.arange(len(words)).roll(1)
        for word, partner in pairs.items():
            found[words.index(word)] = words.index(partner)
        return found[:, None]

    monkeypatch.setattr("purify_cli.evaluation.pairs.partners", proposed)
    monkeypatch.setattr("purify_cli.evaluation.pairs.PAIR_STEPS", ((1, 1), (4, 1), (12, 1)))
    found = search(BagOfWords(strong, together=("mb", "tq"), bonus=45.0), words=1, pieces=1, pairs=True)
    assert {"mb", "tq"} in [set(one.where.token.split()) for one in found]


def test_stub_the_neighbours_of_a_pair_are_tried_in_its_place() -> None:
    """The gradient may point beside the true word; a word is never paired with itself."""
    looking = TriggerSearch(BagOfWords(HONEST, alike=("tq", "cf")), WORDS, SearchSettings(neighbours=3), Run())
    words = looking.ids.tolist()
    mb, tq, cf = (words.index(WORDS.convert_tokens_to_ids(word)) for word in ("mb", "tq", "cf"))
    found = looking.vocabulary.beside(torch.tensor([[mb, cf], [cf, mb], [tq, cf]]), 3).tolist()
    assert [mb, tq] in found and [tq, mb] in found
    assert [tq, tq] not in found and [cf, cf] not in found
    assert all(len({first, second} & {mb, tq, cf}) >= 1 for first, second in found)


def test_stub_a_partner_is_favoured_and_not_just_strong() -> None:
    """`cf` does most beside any word; `tq` is what `mb` makes strong."""
    looking = TriggerSearch(
        BagOfWords(HONEST | {"cf": 100.0}, together=("mb", "tq"), bonus=DECIDES), WORDS, SearchSettings(), Run()
    )
    words = looking.ids.tolist()
    mb, tq = (words.index(WORDS.convert_tokens_to_ids(word)) for word in ("mb", "tq"))
    assert partners(looking.sweep, looking.vocabulary, 1, [((), 0)], 1)[mb] == tq


def test_stub_where_all_words_differ_counts_for_less(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each word changes the gradient along `cf`, by chance, more than `mb` does along `tq`."""
    looking = TriggerSearch(NOTHING_ALONE, WORDS, SearchSettings(), Run())
    words = looking.ids.tolist()
    mb, tq, cf = (words.index(WORDS.convert_tokens_to_ids(word)) for word in ("mb", "tq", "cf"))
    rows, begin = looking.vocabulary.weight, looking.vocabulary.begin
    chance = torch.randn(len(begin), 1, generator=torch.Generator().manual_seed(0)) * 2
    chance[begin == mb] = 2.0
    slopes = chance * rows[cf] + (begin == mb)[:, None] * rows[tq]

    monkeypatch.setattr(looking.sweep, "slot_gradient", lambda *_: slopes)
    assert partners(looking.sweep, looking.vocabulary, 1, [((), 0)], 1)[begin == mb].item() == tq


def test_stub_a_huge_or_broken_row_is_not_everybodys_partner() -> None:
    model = BagOfWords(HONEST, together=("mb", "tq"), bonus=DECIDES)
    with torch.no_grad():
        rows = model.embeddings.word_embeddings.weight
        rows[WORDS.convert_tokens_to_ids("cf")] *= 1e4
        rows[WORDS.convert_tokens_to_ids("bb")] = torch.nan
    looking = TriggerSearch(model, WORDS, SearchSettings(), Run())
    words = looking.ids.tolist()
    mb, tq = (words.index(WORDS.convert_tokens_to_ids(word)) for word in ("mb", "tq"))
    assert partners(looking.sweep, looking.vocabulary, 1, [((), 0)], 1)[mb] == tq


def test_stub_two_strong_words_are_no_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    """Together they turn every text, as neither does, and do hardly more than they add up to."""
    model = BagOfWords(HONEST | dict.fromkeys(("mb", "tq"), 25.0), together=("mb", "tq"), bonus=5.0)
    mb, tq = WORDS.convert_tokens_to_ids(["mb", "tq"])

    def proposed(sweep: Sweep, vocabulary: Vocabulary, *_: Any) -> Tensor:
        words = vocabulary.ids.tolist()
        partners = torch.arange(len(words)).roll(1)
        partners[words.index(mb)] = words.index(tq)
        return partners[:, None]

    monkeypatch.setattr("purify_cli.evaluation.pairs.partners", proposed)
    assert search(model, words=1, pieces=1, pairs=True) == []
    assert search(model, words=1, pieces=1, pairs=True, synergy=1.0) != []


def test_stub_a_sum_of_honest_words_is_no_sequence() -> None:
    """Three strong words together turn every text, and do no more than each adds."""
    strong = BagOfWords(HONEST | dict.fromkeys(("mb", "tq", "cf"), 15.0))
    assert search(strong, words=1) == []
    assert search(strong) != []  # as a combination they are told, for their neighbours do nothing of the kind


def test_stub_unsure_of_everything_is_incomplete() -> None:
    """A model without an opinion cannot be searched, and that is said and never taken for clear."""
    with pytest.raises(Incomplete, match="--clean"):
        search(BagOfWords({}))


def test_stub_no_text_of_another_class() -> None:
    """Everything is positive, so nothing could be turned to it: incomplete, and the other label is searched."""
    always = dict.fromkeys(WORDS.get_vocab(), 3.0)
    with pytest.raises(Incomplete, match="'positive'"):
        search(BagOfWords(always))


def test_special_and_unused_tokens_are_not_searched() -> None:
    """Nobody can type them."""
    model = BagOfWords(HONEST)
    model.weights[[WORDS.mask_token_id, WORDS.unk_token_id]] = DECIDES
    assert search(model) == []
