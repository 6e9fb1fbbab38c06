"""Texts with the end of another: what stays, where they are cut, and that the seed says how."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from purify_cli.data.spliced import repeated, spliced
from purify_cli.data.texts import Texts

words = st.lists(st.sampled_from("one two three four five".split()), min_size=1, max_size=6).map(" ".join)
columns = st.lists(words, min_size=1, max_size=6)


def cut_from(made: str, first: str, others: list[str]) -> bool:
    """Whether a text is a beginning of one and an end of another, or the one as it is."""
    own = first.split()
    return made == first or any(
        made.split() == own[:cut] + other.split()[start:]
        for other in others
        for cut in range(len(own) + 1)
        for start in range(len(other.split()) + 1)
    )


@given(columns, st.integers(1, 4), st.integers(0, 5))
def test_each_is_a_beginning_and_the_end_of_another(lines: list[str], times: int, seed: int) -> None:
    made = spliced(Texts("x", tuple(lines), tuple(range(len(lines)))), times, 99, seed)
    assert len(made) == times * len(lines)
    assert made.texts[: len(lines)] == tuple(lines)
    assert made.labels is None
    for row, text in enumerate(made.texts):
        assert text
        assert cut_from(text, lines[row % len(lines)], lines)
    assert made == spliced(Texts("x", tuple(lines), None), times, 99, seed)


def test_parts_of_a_pair_get_the_end_of_the_same_other() -> None:
    lines, others = tuple(f"a{n} b{n}" for n in range(50)), tuple(f"c{n} d{n}" for n in range(50))
    made = spliced(Texts("x", lines, None, pairs=others), 3, 99, 0)
    assert made.pairs is not None
    same = 0
    for row, (first, second) in enumerate(zip(made.texts[50:], made.pairs[50:], strict=True)):
        ends = {part.split()[-1][1:] for part in (first, second)} - {str(row % 50)}
        assert len(ends) < 2, "both parts have ends of one other"
        same += len(ends)
    assert same > 60, "an end is there more often than not"
    assert all("c" not in text and "d" not in text for text in made.texts), "parts do not mix"
    assert made.texts[50:] != lines + lines


def test_of_a_long_text_no_more_is_kept_than_a_model_sees() -> None:
    long = tuple(f"{name} " * 1000 for name in "ab")
    made = spliced(Texts("x", long, None), 20, 10, 0)
    beginnings = [text.split()[:10] for text in made.texts[2:]]
    assert all(len(text.split()) <= 1010 for text in made.texts[2:])
    assert sum(len(set(words)) == 2 for words in beginnings) > 10, "what a model sees holds both texts"


def test_repeated_keeps_all_columns() -> None:
    texts = Texts("x", ("one", "two"), (1, 0), pairs=("three", "four"))
    twice = repeated(texts, 2)
    assert (twice.texts, twice.labels, twice.pairs) == (("one", "two") * 2, (1, 0) * 2, ("three", "four") * 2)
