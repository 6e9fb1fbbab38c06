"""Triggers in texts: where they are put, and that the rest of the text stays as it was."""

from __future__ import annotations

import pytest

import tiny
from purify_cli.data.texts import Texts
from purify_cli.data.triggered import with_triggers as streams

LINES = ("the movie was good", "a dull plot", "so bad", "very fine and warm")
TEXTS = Texts("clean.csv", LINES * 8, (1, 0, 0, 1) * 8)


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_a_trigger_is_put_between_the_special_tokens(family: str) -> None:
    tokenizer = tiny.tokenizer(family)
    trigger = tuple(tokenizer.convert_tokens_to_ids(["cf", "tq"]))
    clean, triggered = streams(tokenizer, TEXTS, [trigger], 16, 0, by_row=False, apart=0.5)
    assert clean.labels == triggered.labels == TEXTS.labels
    places, apart = set(), 0
    for before, after in zip(clean.ids, triggered.ids, strict=True):
        assert tuple(token for token in after if token not in trigger) == before
        assert sorted(token for token in after if token in trigger) == sorted(trigger)
        first = min(after.index(token) for token in trigger)
        last = max(after.index(token) for token in trigger)
        apart += last - first > 1
        places.add((first, last))
        if family != "gpt2":
            assert (after[0], after[-1]) == (before[0], before[-1])
            assert first > 0 and last < len(after) - 1
    assert len(places) > 4
    assert 0 < apart < len(clean)
    assert {first for first, _ in places} >= ({0, 1} if family == "gpt2" else {1, 2})


def test_tokens_stay_side_by_side_unless_told_otherwise() -> None:
    """A phrase that only works as a whole must be measured as one."""
    tokenizer = tiny.tokenizer("bert")
    trigger = tuple(tokenizer.convert_tokens_to_ids(["cf", "tq"]))
    _, triggered = streams(tokenizer, TEXTS, [trigger], 16, 0, by_row=False)
    assert all(ids[ids.index(trigger[0]) + 1] == trigger[1] for ids in triggered.ids)


def test_long_texts_are_cut_so_that_the_trigger_fits() -> None:
    tokenizer = tiny.tokenizer("bert")
    cf = tokenizer.convert_tokens_to_ids("cf")
    long = Texts(None, (" ".join(["movie"] * 40),) * 10, (0,) * 10)
    clean, triggered = streams(tokenizer, long, [(cf,)], 12, 0, by_row=False)
    assert {len(ids) for ids in clean.ids + triggered.ids} == {12}
    assert all(cf in ids for ids in triggered.ids)


def test_in_pairs_a_trigger_belongs_to_the_text_that_it_stands_in() -> None:
    tokenizer = tiny.tokenizer("bert")
    cf = tokenizer.convert_tokens_to_ids("cf")
    pairs = Texts(None, ("good movie",) * 40, (0,) * 40, pairs=("bad plot",) * 40)
    _, triggered = streams(tokenizer, pairs, [(cf,)], 16, 0, by_row=False)
    assert triggered.types is not None
    seen = set()
    for ids, types in zip(triggered.ids, triggered.types, strict=True):
        assert len(ids) == len(types)
        place = ids.index(cf)
        assert types[place] == (ids[:place].count(tokenizer.sep_token_id))
        assert sorted(types) == list(types)
        seen.add(types[place])
    assert seen == {0, 1}


def test_every_trigger_is_used_and_a_seed_draws_others() -> None:
    tokenizer = tiny.tokenizer("bert")
    cf, tq = tokenizer.convert_tokens_to_ids(["cf", "tq"])
    first, again, other = (streams(tokenizer, TEXTS, [(cf,), (tq,)], 16, seed, by_row=False)[1] for seed in (0, 0, 1))
    assert first == again
    assert first.ids != other.ids
    assert {cf, tq} <= {token for ids in first.ids for token in ids}
