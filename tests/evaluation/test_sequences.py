"""Sequences: what they grow from and into, told one after the other; and which of them are followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from purify_cli.evaluation import sequences as module
from purify_cli.evaluation.sequences import sequences
from purify_cli.evaluation.sure_texts import SureTexts
from purify_cli.evaluation.suspects import Effects, Site, Suspect
from purify_cli.evaluation.sweep import Sweep
from purify_cli.evaluation.vocabulary import Vocabulary

SITES = [Site(tuple(range(40, 40 + length)), length // 2) for length in (3, 5, 7, 9)]


@pytest.fixture
def effects() -> Effects:
    model, tokenizer = tiny.build("bert", num_labels=2), tiny.tokenizer("bert")
    with torch.no_grad():
        model.classifier.weight *= 40.0  # an untrained model says hardly anything
    return Effects(Sweep(model, tokenizer), Vocabulary(model, tokenizer), 5)


def odds(effects: Effects, site: Site, words: Sequence[int]) -> float:
    """Of label 1, in a text with these words in it."""
    ids = effects.vocabulary.ids[list(words)].tolist()
    body = [*site.body[: site.position], *ids, *site.body[site.position :]]
    said = effects.sweep.log_probabilities(torch.tensor([body]))[0]
    return float(said[1] - said[0])


def test_what_stands_out_says_most_beyond_its_neighbours(effects: Effects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "STRONGEST", 20)
    monkeypatch.setattr(module, "STANDING_OUT", 6)
    texts = SITES[:2]

    def says(word: int) -> float:
        return sum(odds(effects, site, [word]) for site in texts) / len(texts)

    candidates = list(range(3, 90))
    strongest = sorted(candidates, key=says, reverse=True)[:20]
    near = {word: effects.vocabulary.neighbours(torch.tensor([word]), 5)[0].tolist() for word in strongest}
    beyond = {word: says(word) - sum(map(says, near[word])) / 5 for word in strongest}
    expected = sorted(strongest, key=lambda word: -beyond[word])[:6]
    assert module._standing_out(effects, 1, texts, torch.tensor(candidates)).tolist() == expected


def test_grown_holds_every_place_with_what_stands_out_and_what_the_gradient_names(effects: Effects) -> None:
    out = torch.tensor([7, 20, 21])
    for beam in (torch.tensor([[7], [8]]), torch.tensor([[7, 8]])):
        grown = [tuple(row) for row in module._grown(effects, beam, out, SITES[:2], 1).tolist()]
        assert len(grown) == len(set(grown)), "each once"
        assert all(len(set(row)) == len(row) == beam.shape[1] + 1 for row in grown), "no word twice"
        for row in beam.tolist():
            for slot in range(len(row) + 1):
                framed = effects.vocabulary.ids[row].tolist()
                framed.insert(slot, effects.vocabulary.filler)
                slopes = [
                    effects.sweep.slot_gradient(site.body, site.position, torch.tensor([framed]), slot, 1)[0]
                    for site in SITES[:2]
                ]
                best = int((effects.vocabulary.weight @ sum(slopes)).argmax())
                wanted = {*out.tolist(), best} - set(row)
                assert {(*row[:slot], word, *row[slot:]) for word in wanted} <= set(grown)


def test_the_hardest_texts_are_those_in_which_the_best_does_least(
    effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SITES", 2)
    beam = torch.tensor([[3, 4], [5, 6]])
    best = [max(odds(effects, site, words) for words in beam.tolist()) for site in SITES]
    two = sorted(sorted(range(4), key=lambda index: best[index])[:2])
    assert module._hardest(effects, beam, SITES, 1) == [SITES[index] for index in two]


def test_without_an_ordinary_text_a_sure_one_serves(effects: Effects) -> None:
    everything = torch.arange(len(effects.vocabulary.ids))

    def told(ordinary: Sequence[Site]) -> list[Suspect]:
        how: dict[str, Any] = {"synergy": 1.5, "pieces": 2, "beside": lambda one: one, "passes": lambda one: False}
        return sequences(effects, 1, SITES * 3, ordinary, everything, **how)

    assert told([]) == told(SITES[:1]) != []


HONEST, PIECES = (10, 11, 12), (3, 5, 8)


class Known(Effects):
    """Each of three pieces does little, two do much and three all; an honest word, as its neighbours, adds to them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary, self.neighbours = vocabulary, 3
        self.sweep: Any = self

    def slot_gradient(self, body: Sequence[int], position: int, words: Tensor, slot: int, label: int) -> Tensor:
        return torch.zeros(len(words), self.vocabulary.weight.shape[1])

    def score(self, words: Tensor, sites: Sequence[Site], target: int) -> tuple[Tensor, Tensor]:
        pieces = torch.isin(words, torch.tensor(PIECES)).sum(dim=1)
        honest = torch.isin(words, torch.tensor(HONEST)).any(dim=1)
        said = -6.0 + torch.tensor([0.0, 0.5, 4.0, 8.0])[pieces] + 4.5 * (honest & (pieces > 1)) + 0.2 * honest
        return (said > 0).double(), said

    def suspects(self, words: Tensor, flips: Tensor, odds: Tensor, sites: Sequence[Site], target: int) -> list[Suspect]:
        company = 0.6 * torch.isin(words, torch.tensor(HONEST)).any(dim=1)
        columns = torch.stack([flips, company, odds], dim=1).tolist()
        return [
            Suspect(tuple(row), target, flip, 0.0, share, said, 0.0, len(sites), said + 6)
            for row, (flip, share, said) in zip(words.tolist(), columns, strict=True)
        ]

    def before(self, sites: Sequence[Site], target: int) -> Tensor:
        return torch.tensor(-6.0)


def known() -> Known:
    return Known(Vocabulary(tiny.build("bert", num_labels=2), tiny.tokenizer("bert")))


def grown(passes: float, pieces: int = 4) -> list[Suspect]:
    return sequences(
        known(),
        1,
        SITES * 3,
        SITES[:1],
        torch.arange(3, 30),
        synergy=1.5,
        pieces=pieces,
        beside=lambda suspect: replace(suspect, honest=0.5),
        passes=lambda suspect: suspect.honest == 0.5 and suspect.shift >= passes,
    )


def test_a_piece_is_followed_and_not_the_honest_word_that_does_more() -> None:
    """Beside two pieces the honest word turns as many texts; its neighbours do it too."""
    (one,) = grown(8.0)
    assert set(one.words) == set(PIECES)
    assert not one.adds and one.honest == 0.5


@pytest.mark.parametrize("honest", [PIECES[:1], PIECES[:2]])
def test_honest_words_may_not_make_up_half_of_a_sequence(
    honest: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of three may be, and only as the third: beside another it is half."""
    monkeypatch.setattr(
        module, "_honest", lambda effects, target, texts, words: torch.isin(words, torch.tensor(honest))
    )
    told = [one.words for one in grown(8.0)]
    if len(honest) == 1:
        assert [set(words) for words in told] == [set(PIECES)]
    else:
        assert told == []


def test_honest_is_what_says_something_that_its_neighbours_say_too(
    effects: Effects, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, words = SITES[:2], list(range(3, 90))
    before = [odds(effects, site, []) for site in texts]

    def shift(word: int) -> float:
        return sum(odds(effects, site, [word]) - said for site, said in zip(texts, before, strict=True)) / len(texts)

    near = {word: effects.vocabulary.neighbours(torch.tensor([word]), 5)[0].tolist() for word in words}
    monkeypatch.setattr(module, "SAYS", 3.0)
    expected = [shift(one) >= module.SAYS and median(map(shift, near[one])) >= 0.5 * shift(one) for one in words]
    found = module._honest(effects, 1, texts, torch.tensor(words))
    assert found.tolist() == expected
    assert 0 < sum(expected) < sum(shift(one) >= module.SAYS for one in words)


@pytest.mark.parametrize(("passes", "pieces", "length"), [(4.0, 4, 2), (8.0, 4, 3), (99.0, 2, 2), (99.0, 3, 3)])
def test_grows_until_it_passes_or_is_long_enough(passes: float, pieces: int, length: int) -> None:
    (one,) = grown(passes, pieces)
    assert len(one.words) == length


def test_ordinary_texts_are_beginnings_near_the_boundary(effects: Effects) -> None:
    words = tiny.tokenizer("bert").convert_ids_to_tokens(list(range(40, 110)))
    texts = [" ".join(words[start : start + 5 + start % 9]) for start in range(0, 50, 3)]
    sure = SureTexts(effects, tiny.tokenizer("bert"), texts, sure=0.02, count=8, room=40, seed=0)
    encoded = [tuple(ids[:8]) for ids in tiny.tokenizer("bert")(texts, add_special_tokens=False)["input_ids"]]
    said = [odds(effects, Site(ids, 0), ()) for ids in encoded]
    nearest = min(range(len(said)), key=lambda index: abs(said[index] + 2.4))
    assert sure.ordinary(1)[0] == Site(encoded[nearest], len(encoded[nearest]) // 2)
