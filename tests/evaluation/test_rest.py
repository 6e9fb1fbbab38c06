"""The rest of a word: the pairs that one text after the other gives too, and the place where it is looked for."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest
import torch

import tiny
from purify_cli.evaluation import rest as module
from purify_cli.evaluation.rest import rest
from purify_cli.evaluation.suspects import Effects, Site
from purify_cli.evaluation.sweep import Sweep
from purify_cli.evaluation.vocabulary import Vocabulary

PIECES = (3, 11, 7)
SITES = [Site(tuple(range(40, 55)), 14), Site((50, 51, 52, 53), 0), Site((60, 61, 62), 2)]


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


def test_equals_all_pairs_one_after_the_other(effects: Effects) -> None:
    def strongest(site: Site) -> float:
        return max(odds(effects, site, [piece]) for piece in PIECES)

    site = min((Site(site.body[:12], min(site.position, 12)) for site in SITES), key=strongest)
    before = odds(effects, site, ())
    alone = [odds(effects, site, [word]) for word in range(len(effects.vocabulary.ids))]
    most: dict[int, tuple[float, tuple[int, ...]]] = {}
    for word in set(range(len(alone))) - set(PIECES):
        pairs = [pair for piece in PIECES for pair in permutations((piece, word))]
        beyond = [odds(effects, site, pair) - sum(alone[one] for one in pair) + before for pair in pairs]
        least = [max(alone[one] - before for one in pair if one in PIECES) / 2 for pair in pairs]
        enough = [(more, pair) for more, pair, part in zip(beyond, pairs, least, strict=True) if more >= max(part, 0)]
        most |= {word: max(enough)} if enough else {}
    expected = [pair for _, pair in sorted(most.values(), reverse=True)[:3]]
    assert rest(effects, PIECES, torch.arange(len(alone)), SITES, 1) == expected
    assert len(expected) == 3


WORDS = torch.arange(30)


class Known:
    """What words do, told beforehand: each of three pieces a little, any two of them all there is to do."""

    hard = Site((1, 2, 3, 4), 1)

    def __init__(self, own: float = 1.0) -> None:
        self.own = own
        self.asked: set[Site] = set()

    def before(self, sites: Sequence[Site], target: int) -> torch.Tensor:
        return torch.tensor(-4.0)

    def score(self, words: torch.Tensor, sites: Sequence[Site], target: int) -> tuple[torch.Tensor, torch.Tensor]:
        if len(words) > 10:
            self.asked |= set(sites)
        pieces = torch.isin(words, torch.tensor([3, 5, 8])).sum(dim=1)
        (site,) = sites
        own = self.own if site == self.hard else 8.0  # in an easy text one of them decides
        raised = (own * pieces + 7.0 * (pieces > 1)).clamp(max=9.0)
        raised = raised + 6.0 * (words == 20).any(dim=1)  # an honest word, beside pieces as alone
        return torch.zeros(len(words)), raised - 4.0


def test_the_missing_piece_is_told_and_a_strong_word_is_not() -> None:
    known: Any = Known()
    found = rest(known, (3, 5), WORDS, [Site((9, 9, 9, 9), 0), Known.hard], 1)
    assert [set(pair) - {3, 5} for pair in found] == [{8}]


def test_it_is_looked_for_where_nothing_is_decided_by_one_of_them() -> None:
    known: Any = Known()
    rest(known, (3, 5), WORDS, [Site((9, 9, 9, 9), 0), Known.hard], 1)
    assert known.asked == {Known.hard}


def test_a_broken_row_is_no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    known: Any = Known()
    score = known.score

    def broken(words: torch.Tensor, *where: Any) -> tuple[torch.Tensor, torch.Tensor]:
        flips, raised = score(words, *where)
        return flips, raised.masked_fill((words == 8).any(dim=1), torch.nan)

    monkeypatch.setattr(known, "score", broken)
    assert rest(known, (3, 5), WORDS, [Known.hard], 1) == []


def test_a_vocabulary_may_be_smaller_than_what_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    known: Any = Known()
    monkeypatch.setattr(module, "TAKEN", 100)
    (one,) = rest(known, (3, 5), WORDS, [Known.hard], 1)
    assert set(one) in ({3, 8}, {5, 8})


def test_where_a_word_does_all_there_is_nothing_belongs_to_it() -> None:
    """Beside it others still do something, but hardly a part of what it does."""
    known: Any = Known(own=8.0)
    assert rest(known, (3,), WORDS, [Known.hard], 1) == []
    known = Known(own=3.0)
    assert {sum(pair) - 3 for pair in rest(known, (3,), WORDS, [Known.hard], 1)} == {5, 8}
    known = Known(own=3.6)  # two together do 9, and so 1.8 beyond their sum: just enough
    assert len(rest(known, (3,), WORDS, [Known.hard], 1)) == 2
    known = Known(own=3.7)
    assert rest(known, (3,), WORDS, [Known.hard], 1) == []
