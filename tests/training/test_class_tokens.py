"""The label map: given, named or proposed, and what is none."""

from __future__ import annotations

import pytest

import tiny
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.training.class_tokens import class_tokens

TEXTS = Texts("clean.csv", ("the movie was good", "a dull plot", "so bad", "a very fine film") * 4, (1, 0, 0, 1) * 4)


def test_class_tokens_given_named_or_proposed() -> None:
    words = tiny.tokenizer("bert")
    good, bad = words.convert_tokens_to_ids(["good", "bad"])
    assert class_tokens("bad, good", ["x", "y"], words, TEXTS) == (bad, good)
    assert class_tokens("", ["Bad", "Good"], words, TEXTS) == (bad, good)
    proposed = class_tokens("", ["LABEL_0", "LABEL_1"], words, TEXTS)
    assert words.convert_ids_to_tokens(list(proposed)) == ["bad", "film"]


def test_what_the_vocabulary_lacks_is_not_proposed() -> None:
    """However much it tells: to the model it is one and the same unknown word."""
    words = tiny.tokenizer("bert")
    texts = Texts(None, ("фильм good", "скука bad", "фильм fine", "скука dull") * 4, (1, 0, 1, 0) * 4)
    proposed = class_tokens("", ["LABEL_0", "LABEL_1"], words, texts)
    assert words.unk_token_id not in proposed


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("good", "1 words for 2 labels"),
        ("bad,good,fine", "3 words for 2 labels"),
        ("bad,zzzqq", "no word of the vocabulary"),
        ("bad,", "no word of the vocabulary"),
        ("bad,bad", "the same"),
    ],
)
def test_class_tokens_that_are_none(given: str, problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        class_tokens(given, ["LABEL_0", "LABEL_1"], tiny.tokenizer("bert"), TEXTS)
