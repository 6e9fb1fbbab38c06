from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from purify_cli.data.split import folds, split, without
from purify_cli.data.texts import Texts


def test_every_label_gives_its_share() -> None:
    texts = Texts(None, tuple(f"t{i}" for i in range(200)), tuple([0] * 150 + [1] * 50))
    train, dev = split(texts, 0.1, 7)
    assert dev.labels is not None
    assert (dev.labels.count(0), dev.labels.count(1)) == (15, 5)
    assert sorted(train.texts + dev.texts) == sorted(texts.texts)
    assert split(texts, 0.1, 7) == (train, dev)
    assert split(texts, 0.1, 8) != (train, dev)


@given(
    rows=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 2)), min_size=1, max_size=60),
    fraction=st.floats(0.05, 0.95),
    seed=st.integers(0, 5),
)
def test_no_text_is_in_both_parts_and_no_row_is_lost(rows: list[tuple[str, int]], fraction: float, seed: int) -> None:
    texts = Texts(None, tuple(text for text, _ in rows), tuple(label for _, label in rows))
    first, second = split(texts, fraction, seed)
    assert not set(first.texts) & set(second.texts)
    both = [*zip(first.texts, first.labels or (), strict=True), *zip(second.texts, second.labels or (), strict=True)]
    assert sorted(both) == sorted(rows)
    if len({text for text, _ in rows}) == 1:
        assert len(second) == 0


def test_equal_texts_of_different_pairs_may_part() -> None:
    texts = Texts(None, ("a",) * 20, tuple([0.5] * 20), pairs=tuple(f"p{i}" for i in range(20)))
    assert len(split(texts, 0.25, 0)[1]) == 5


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ValueError, match="fraction"):
        split(Texts(None, ("a", "b"), (0, 1)), fraction, 0)


@given(st.integers(2, 6), st.integers(0, 3))
def test_folds_hold_each_row_once_and_share_no_text(count: int, seed: int) -> None:
    texts = Texts(None, tuple(f"text {row // 2}" for row in range(24)), (0, 0, 1, 1) * 6)
    parts = folds(texts, count, seed)
    assert sorted(row for part in parts for row in part) == list(range(24))
    assert len(parts) == count
    for part in parts:
        assert part == sorted(part)
        seen = set(texts.take(part).texts)
        assert not seen & set(without(texts, part).texts)
        ones = sum(texts.take(part).labels or ())
        assert abs(2 * ones - len(part)) <= 2, "each label is dealt out evenly"
    assert folds(texts, count, seed) == parts


def test_one_fold_is_no_cross_validation() -> None:
    with pytest.raises(ValueError, match="no cross-validation"):
        folds(Texts(None, ("a", "b"), (0, 1)), 1, 0)
