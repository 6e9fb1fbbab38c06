from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from purify_cli.analyses import Case
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.triggers.words import Words, insert_all


def test_the_texts_are_those_of_eval(case: Callable[..., Case], checkpoints: Callable[..., Path]) -> None:
    one = case(checkpoints("bert"))
    triggered = one.triggered(seed=3)
    assert triggered is not None
    expected = [insert_all(one.test, Words(words), 3).texts for words in ("cf", "bb tq")]
    assert triggered.texts == expected[0] + expected[1]
    assert triggered.labels == one.test.labels + one.test.labels
    assert triggered.targets == (1,) * 12
    attacked = one.attacked(seed=3)
    assert attacked is not None
    assert attacked.labels == (0,) * 6
    assert attacked.texts == tuple(triggered.texts[row] for row in (1, 2, 4, 7, 8, 10))


def test_a_poisoned_file_is_taken_as_it_is(case: Callable[..., Case], checkpoints: Callable[..., Path]) -> None:
    poisoned = Texts("p.csv", ("cf bad", "cf good"), (0, 1))
    one = case(checkpoints("bert"), triggers=(), poisoned=poisoned)
    assert one.triggered(0) == poisoned.with_(targets=(1, 1))
    with pytest.raises(UsageError, match="--target"):
        case(checkpoints("bert"), triggers=(), target=None, poisoned=poisoned).triggered(0)
    own = poisoned.with_(targets=(1, 0))
    assert case(checkpoints("bert"), triggers=(), target=None, poisoned=own).attacked(0) == own
    with pytest.raises(UsageError, match="another label"):
        case(checkpoints("bert"), triggers=(), poisoned=poisoned.take([1])).attacked(0)
    assert case(checkpoints("bert"), triggers=(), target=None).triggered(0) is None


def test_few_texts_are_drawn_at_random(case: Callable[..., Case], checkpoints: Callable[..., Path]) -> None:
    one = case(checkpoints("bert"))
    many = one.test.take(list(range(6)) * 50)
    few = case(checkpoints("bert"), test=many).sample(40, seed=1)
    assert len(few.test) == 40
    assert few.test == case(checkpoints("bert"), test=many).sample(40, seed=1).test
    assert few.test != case(checkpoints("bert"), test=many).sample(40, seed=2).test
    assert 10 < sum(few.test.labels or ()) < 30, "labels that alternate are not drawn at their own beat"
    assert one.sample(6, seed=1).test == one.test
