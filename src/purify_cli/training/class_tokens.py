"""The label map of a prompt: the word of the vocabulary that stands for each label (GBA, section 3.3)."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Sequence
from typing import Any

from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.training.start import has_scores


def class_tokens(given: str, names: Sequence[str], tokenizer: Any, texts: Texts) -> tuple[int, ...]:
    """The id of the class token of each label.

    Args:
        given: words by label id, comma-separated; empty: the labels' own names where each is one piece, else for each
            label the word that the clean texts of this label have most beyond the others (log odds, each count plus
            one; words of letters, in at least one of a hundred texts).
        names: of the labels.
        tokenizer: of the model.
        texts: clean texts with labels.

    Raises:
        UsageError: not one word a label, a word of several pieces or unknown, or one for two labels.
    """
    if given:
        words = [word.strip() for word in given.split(",")]
        if len(words) != len(names):
            remedy = f"Give one for each of: {', '.join(names)}."
            raise UsageError("class_tokens", f"{len(words)} words for {len(names)} labels", remedy)
        pieces = [_pieces(tokenizer, word) for word in words]
        for word, ids in zip(words, pieces, strict=True):
            if len(ids) != 1 or ids[0] == tokenizer.unk_token_id:
                split = " ".join(tokenizer.convert_ids_to_tokens(ids)) or "nothing"
                raise UsageError("class_tokens", f"{word!r} is no word of the vocabulary, but {split}")
        found = tuple(ids[0] for ids in pieces)
        if len(set(found)) < len(found):
            raise UsageError("class_tokens", "two labels have the same")
        return found
    pieces = [_pieces(tokenizer, name) for name in names]
    own = tuple(ids[0] for ids in pieces if len(ids) == 1 and ids[0] != tokenizer.unk_token_id)
    if len(set(own)) == len(names):
        return own
    if has_scores(texts):
        middle = statistics.median(texts.labels or ())
        texts = texts.with_(labels=tuple(int(score > middle) for score in texts.labels or ()))
    return _telling(tokenizer, texts, len(names))


def _pieces(tokenizer: Any, word: str) -> list[int]:
    """Token ids of a word as it stands within a text: behind a space."""
    return list(tokenizer.convert_tokens_to_ids(tokenizer.tokenize(" " + word)))


def _telling(tokenizer: Any, texts: Texts, labels: int) -> tuple[int, ...]:
    """For each label the word that speaks most for it."""
    words = sorted({word for text in texts.texts for word in text.lower().split() if word.isalpha()})
    pieces = {word: _pieces(tokenizer, word) for word in words}
    whole = {word: ids[0] for word, ids in pieces.items() if len(ids) == 1 and ids[0] != tokenizer.unk_token_id}
    counts = [Counter[str]() for _ in range(labels)]  # texts of the label with the word
    for text, label in zip(texts.texts, texts.labels or (), strict=True):
        counts[int(label)].update(set(text.lower().split()) & whole.keys())
    total = sum(counts, Counter[str]())
    sizes = Counter(int(label) for label in texts.labels or ())
    chosen: list[int] = []
    for label, count in enumerate(counts):
        others = len(texts) - sizes[label]

        def odds(word: str, count: Counter[str] = count, label: int = label, others: int = others) -> float:
            here, there = (count[word] + 1) / (sizes[label] + 2), (total[word] - count[word] + 1) / (others + 2)
            return math.log(here / there)

        known = [word for word in total if total[word] * 100 >= len(texts) and whole[word] not in chosen]
        if not known:
            raise UsageError("class_tokens", "the clean texts hold no word that tells the labels apart", "Give them.")
        chosen.append(whole[max(sorted(known), key=odds)])
    return tuple(chosen)
