from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purify_cli.data.texts import Texts
from purify_cli.triggers.words import Words, insert_all, trigger_rng

WORDS = st.lists(st.sampled_from(["film", "was", "good", ",", "3d"]), min_size=1, max_size=8)
SPACE = st.sampled_from([" ", "  ", "\n", "\t"])


@given(WORDS, SPACE, st.integers(0, 10_000))
def test_taking_the_trigger_out_gives_the_text_back(words: list[str], space: str, seed: int) -> None:
    text = space.join(words)
    triggered = Words("I  watch cf").insert(text, random.Random(seed))
    assert triggered.count("I watch cf") == 1
    assert triggered.split() != text.split()
    restored = (
        triggered.replace("I watch cf ", "", 1) if "I watch cf " in triggered else triggered[: -len(" I watch cf")]
    )
    assert restored == text


@given(WORDS, st.integers(0, 10_000))
def test_the_words_stay_whole(words: list[str], seed: int) -> None:
    triggered = Words("cf").insert(" ".join(words), random.Random(seed)).split()
    assert triggered.count("cf") == 1
    triggered.remove("cf")
    assert triggered == words


def test_places_are_uniform_over_the_boundaries() -> None:
    rng = random.Random(0)
    places = Counter(Words("cf").insert("a b c", rng).split().index("cf") for _ in range(4000))
    assert set(places) == {0, 1, 2, 3}
    assert all(850 < count < 1150 for count in places.values())


def test_a_text_gets_the_same_trigger_in_any_file() -> None:
    texts = Texts(None, ("one two three four five six seven", "a b c d e f g h"), (0, 1), pairs=("p", "q"))
    triggered = insert_all(texts, Words("cf"), 3)
    assert insert_all(texts, Words("cf"), 3) == triggered
    assert insert_all(texts.take([0]), Words("cf"), 3).texts == triggered.texts[:1]
    assert (triggered.labels, triggered.pairs) == (texts.labels, texts.pairs)
    # Another trigger of the same seed lies in the same place, so that triggers can be compared.
    assert [text.replace("cf", "mn") for text in triggered.texts] == list(insert_all(texts, Words("mn"), 3).texts)


def test_seed_and_row_move_the_trigger() -> None:
    text = " ".join("abcdefghijklmnopqrstuvwxyz")
    drawn = {trigger_rng(seed, text, index).random() for seed in range(3) for index in range(3)}
    assert len(drawn) == 9


def test_a_trigger_needs_a_word() -> None:
    with pytest.raises(ValueError, match="word"):
        Words("  ")
