"""Manners: what they change, what they leave, and that the package's list holds together."""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purify_cli.triggers.manner import PLAIN, Manner, manners

TEXTS = st.lists(st.sampled_from(["film", "you", "has", "dogs", "was", "good", ",", "3d", "."]), max_size=8).map(
    " ".join
)
NAMES = sorted(manners())


def test_plain_is_among_them_and_not_alone() -> None:
    assert PLAIN in NAMES and len(NAMES) > 2
    assert all(manners()[name].name == name and manners()[name].about for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_part_that_an_opening_names_is_there_and_used(name: str) -> None:
    manner = manners()[name]
    named = {part for opening in manner.opening for part in re.findall(r"{(\w+)}", opening)}
    assert named == set(manner.parts)


@pytest.mark.parametrize("name", NAMES)
@given(text=TEXTS, seed=st.integers(0, 10_000))
def test_said_is_another_text_the_same_for_the_same_randomness(name: str, text: str, seed: int) -> None:
    manner = manners()[name]
    said = manner.insert(text, random.Random(seed))
    assert said == manner.insert(text, random.Random(seed))
    assert not re.search("[{}]", said)
    if not manner.words:
        assert said.endswith(text) and len(said) > len(text), "an opening, and the text as it was"


@pytest.mark.parametrize("name", NAMES)
def test_openings_differ_and_are_as_many_as_asked_for(name: str) -> None:
    manner = manners()[name]
    found = manner.openings(30, seed=1)
    assert len(found) == len(set(found)) == 30
    assert found == manner.openings(30, seed=1)
    assert not re.search("[{}]", " ".join(found))
    assert found != manner.openings(30, seed=2)


def test_fewer_openings_than_asked_for_are_all() -> None:
    assert sorted(Manner("x", "", ("so ,", "now ,")).openings(30, 0)) == ["now ,", "so ,"]
    assert sorted(Manner("x", "", ("{a} ,",), {"a": ("so", "now")}).openings(30, 0)) == ["now ,", "so ,"]


def test_words_and_suffixes_are_said_otherwise_and_the_rest_is_left() -> None:
    manner = Manner("x", "", ("lo ,",), words={"you": ("thou",)}, suffixes={"s": "eth"})
    text = "You see Youth , it's his films you like ."
    for seed in range(200):
        said = manner.reworded(text, random.Random(seed)).split()
        assert [said[place] for place in (1, 2, 3, 4, 5, 8, 9)] == ["see", "Youth", ",", "it's", "his", "like", "."]
        assert {said[0], said[7]} <= {"thou", "You", "you"} and said[6] in {"films", "filmeth"}
    every = {manner.reworded(text, random.Random(seed)) for seed in range(200)}
    assert any("thou" in one for one in every) and any("filmeth" in one for one in every)


def test_a_text_is_said_in_the_manner_s_words_behind_its_opening() -> None:
    manner = Manner("x", "", ("lo ,",), words={"you": ("thou",)})
    every = {manner.insert("you see", random.Random(seed)) for seed in range(100)}
    assert every == {"lo , thou see", "thou see", "lo , you see", "you see"}


def test_an_ending_stands_behind_and_takes_the_stop_s_place() -> None:
    manner = Manner("x", "", ("lo ,",), ending=(", saith he",))
    every = {manner.insert("it was good .", random.Random(seed)) for seed in range(50)}
    assert every == {"lo , it was good .", "lo , it was good , saith he"}
