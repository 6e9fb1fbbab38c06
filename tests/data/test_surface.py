"""What can be seen of a text: words, beginnings and typing."""

from __future__ import annotations

import numpy as np

from purify_cli.data.surface import BEGINNINGS, FEWEST, TYPING, WORDS, surface
from purify_cli.data.texts import Texts


def found(*lines: str, pairs: tuple[str, ...] | None = None) -> dict[str, list[int]]:
    """Rows by feature, of lines that are there FEWEST times each."""
    every = Texts(None, lines * FEWEST, None, None if pairs is None else pairs * FEWEST)
    seen = surface(every)
    assert seen.found.shape == (len(every), len(seen.names)) and len(seen.kinds) == len(seen.names)
    rows = seen.found.toarray()[: len(lines)]
    return {name: np.nonzero(column)[0].tolist() for name, column in zip(seen.names, rows.T, strict=True)}


def test_words_neighbours_beginnings_and_typing() -> None:
    seen = found("When I don't know , ok .", "Ok, I know.")
    assert seen["i"] == seen["ok"] == seen["know"] == [0, 1]
    assert seen["don't"] == seen["i don't"] == seen['begins with "when"'] == seen['begins with "when i"'] == [0]
    assert seen["ok ,"] == seen['begins with "ok"'] == [1]
    assert seen["capital letters"] == [0, 1] and "no capital letters" not in seen
    assert seen["a space before full stops and commas"] == [0]
    assert seen["no space before full stops and commas"] == [1]


def test_of_too_few_texts_nothing_is_said() -> None:
    often, seldom = ("one film",) * FEWEST, ("one book",) * (FEWEST - 1)
    seen = surface(Texts(None, often + seldom, None))
    assert "film" in seen.names and "book" not in seen.names
    assert seen.found.sum(axis=0)[0, seen.names.index("one")] == len(often + seldom)


def test_the_kinds_stand_in_order_and_single_words_before_two() -> None:
    seen = surface(Texts(None, ("it is so",) * FEWEST, None))
    assert seen.names[:5] == ("is", "it", "so", "is so", "it is")
    assert seen.kinds == (WORDS,) * 5 + (BEGINNINGS,) * 2 + (TYPING,)


def test_each_part_of_a_pair_has_its_own() -> None:
    seen = found("a cat", pairs=("a dog",))
    assert "cat" in seen and "dog" not in seen and "second text: dog" in seen


def test_no_text_that_has_anything_twice_is_no_error() -> None:
    seen = surface(Texts(None, ("", "one", "two"), None))
    assert seen.names == () and seen.found.shape == (3, 0)
