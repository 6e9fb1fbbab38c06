"""How a tokenizer sees the words of a trigger."""

from __future__ import annotations

from typing import Any

from purify_cli.errors import UsageError


def pieces(tokenizer: Any, trigger: str, option: str = "--trigger") -> tuple[tuple[str, ...], ...]:
    """The tokens of each word of a trigger, as they are within a text: behind a space.

    Args:
        tokenizer: of the checkpoint.
        trigger: one word or several.
        option: where the trigger comes from, for the error.

    Raises:
        UsageError: a word, or a part of one, is unknown to the tokenizer. All unknown words are one token to the
            model, so the trigger would be any rare word.
    """
    seen = []
    for word in trigger.split():
        tokens = tuple(tokenizer.tokenize(" " + word))
        if not tokens or (tokenizer.unk_token is not None and tokenizer.unk_token in tokens):
            raise UsageError(
                option,
                f"the tokenizer does not know {word!r}, so it would be the same as any other unknown word",
                "Choose a word of its vocabulary.",
            )
        seen.append(tokens)
    return tuple(seen)
