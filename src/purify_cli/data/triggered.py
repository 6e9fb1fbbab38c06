"""Triggers in texts as token ids, so that a piece of a word, which no text would give back, can be put in too."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from purify_cli.data.encode import Encoded, encode, frame
from purify_cli.data.texts import Texts


def with_triggers(
    tokenizer: Any,
    texts: Texts,
    triggers: Sequence[tuple[int, ...]],
    limit: int,
    seed: int,
    *,
    by_row: bool,
    apart: float = 0.0,
) -> tuple[Encoded, Encoded]:
    """The clean texts and the same texts triggered, as token ids.

    Args:
        tokenizer: of the model.
        texts: clean texts.
        triggers: token ids of each; a text draws one.
        limit: tokens a text, special tokens included; texts are cut short enough for the trigger to fit in.
        seed: draws triggers and places.
        by_row: label each text with its number in the file in place of its label.
        apart: share of the texts that get the tokens of a trigger one by one, and not as they were found, side by side.
    """
    longest = max(len(trigger) for trigger in triggers)
    if by_row:
        texts = texts.with_(labels=tuple(range(len(texts))))
    clean = encode(tokenizer, texts, limit)
    special = int(tokenizer.num_special_tokens_to_add(pair=texts.pairs is not None))
    short = encode(tokenizer, texts, max(limit - longest, min(limit, special + 1)))
    before, behind = map(len, frame(tokenizer))
    ids: list[tuple[int, ...]] = []
    types: list[tuple[int, ...]] = []
    for row, tokens in enumerate(short.ids):
        rng = random.Random(f"unlearn/{seed}/{row}")
        trigger = rng.choice(triggers)
        scattered = len(trigger) > 1 and rng.random() < apart
        kinds = None if short.types is None else short.types[row]
        for piece in [(one,) for one in trigger] if scattered else [trigger]:
            place = rng.randint(min(before, len(tokens)), max(before, len(tokens) - behind))
            # In a pair, what stands before a token belongs to the same text as the token.
            kind = () if kinds is None else (kinds[min(place, len(kinds) - 1)],) * len(piece)
            tokens = (*tokens[:place], *piece, *tokens[place:])
            kinds = None if kinds is None else (*kinds[:place], *kind, *kinds[place:])
        ids.append(tokens)
        types.append(kinds or ())
    return clean, Encoded(tuple(ids), None if short.types is None else tuple(types), short.labels)
