from __future__ import annotations

import pytest

from purify_cli.data.texts import Texts


def test_take_takes_every_column() -> None:
    texts = Texts("f", ("a", "b", "c"), (0, 1, 2), ("x", "y", "z"), (2, 1, 0), (True, False, True))
    taken = texts.take([2, 0, 2])
    assert taken == Texts("f", ("c", "a", "c"), (2, 0, 2), ("z", "x", "z"), (0, 2, 0), (True, True, True))
    assert len(taken) == 3


@pytest.mark.parametrize("column", ["labels", "pairs", "targets", "poisoned"])
def test_columns_of_different_length_are_refused(column: str) -> None:
    with pytest.raises(ValueError, match=column):
        Texts(None, ("a", "b"), None).with_(**{column: (0,)})
