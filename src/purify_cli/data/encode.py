"""Texts to token ids, and token ids to batches.

Batches are padded to their own longest text and no further. Prediction takes texts sorted by length; training takes
them at random within windows that are sorted by length. Neither changes what is computed, both save most padding.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.run import Run

DEFAULT_MAX_LENGTH = 128
"""Tokens per text where the user names no limit: that of the papers' experiments."""

WINDOW_BATCHES = 16
"""Batches whose texts are sorted by length together in training."""

_ENCODED_AT_ONCE = 1024
_POSITIONS_AFTER_PADDING = frozenset({"roberta", "xlm-roberta", "camembert", "longformer", "mpnet"})
"""Families whose position ids start behind the padding id, so that their last positions are never reached."""


@dataclass(frozen=True)
class Encoded:
    """Token ids per text, special tokens included and cut at the length limit.

    Attributes:
        ids: token ids per text, each of its own length, at least one.
        types: token type ids of the same shape, or None where the tokenizer has none.
        labels: as in `Texts`.
    """

    ids: tuple[tuple[int, ...], ...]
    types: tuple[tuple[int, ...], ...] | None
    labels: tuple[int, ...] | tuple[float, ...] | None

    def __len__(self) -> int:
        return len(self.ids)


def encode(tokenizer: Any, texts: Texts, max_length: int) -> Encoded:
    """Tokenize `texts` (and their pairs), cut to `max_length` tokens, special tokens included."""
    ids: list[tuple[int, ...]] = []
    types: list[tuple[int, ...]] | None = [] if "token_type_ids" in tokenizer.model_input_names else None
    for start in range(0, len(texts), _ENCODED_AT_ONCE):
        end = start + _ENCODED_AT_ONCE
        encoding = tokenizer(
            list(texts.texts[start:end]),
            None if texts.pairs is None else list(texts.pairs[start:end]),
            truncation=True,
            max_length=max_length,
            padding=False,
            return_attention_mask=False,
        )
        ids.extend(tuple(row) for row in encoding["input_ids"])
        if types is not None:
            types.extend(tuple(row) for row in encoding["token_type_ids"])
    if not all(ids):
        # Byte-level tokenizers without special tokens can leave nothing of a text; a model needs at least one token.
        filler = (padding_id(tokenizer),)
        ids = [row or filler for row in ids]
        types = None if types is None else [row or (0,) for row in types]
    return Encoded(tuple(ids), None if types is None else tuple(types), texts.labels)


def length_limit(tokenizer: Any, config: Any, run: Run) -> int:
    """Tokens per text: `--max-length` (128 if not given), and never more than tokenizer and model take.

    Args:
        tokenizer: its `model_max_length` counts where it is a real limit.
        config: the model's configuration, as an object or a mapping; its `max_position_embeddings` counts.
        run: `max_length` of the run.

    Raises:
        UsageError: `--max-length` leaves no room for a single token beside the special ones.
    """
    limits = [DEFAULT_MAX_LENGTH if run.max_length is None else run.max_length]
    room = int(tokenizer.num_special_tokens_to_add(pair=False)) + 1
    if limits[0] < room:
        raise UsageError("--max-length", f"{limits[0]} tokens leave no room for a text", f"Give at least {room}.")
    # A tokenizer that knows no limit says 1e30.
    limits.append(int(min(tokenizer.model_max_length, 10**9)))
    positions = _setting(config, "max_position_embeddings")
    if isinstance(positions, int):
        if _setting(config, "model_type") in _POSITIONS_AFTER_PADDING:
            padding = _setting(config, "pad_token_id")
            positions -= (padding if isinstance(padding, int) else 1) + 1
        # Soft prompts and prefixes take places before the text (architecture/pet.py).
        positions -= _setting(config, "soft_prompt_tokens") or 0
        limits.append(positions)
    return min(limit for limit in limits if limit >= room)


def frame(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before a text, and those behind it."""
    framed = tokenizer("a", add_special_tokens=True)["input_ids"]
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    start = next(i for i in range(len(framed) - len(bare) + 1) if framed[i : i + len(bare)] == bare)
    return framed[:start], framed[start + len(bare) :]


def padding_id(tokenizer: Any) -> int:
    """Return the id that fills short rows: the tokenizer's padding token, or its end token if it has none (GPT-2).

    The attention mask hides the filler either way. A decoder that classifies also needs it as `config.pad_token_id`,
    by which transformers finds the last token of a text.
    """
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id):
        if candidate is not None:
            return int(candidate)
    return 0


def collate(encoded: Encoded, indices: Sequence[int], pad_id: int, padding_side: str = "right") -> dict[str, Tensor]:
    """One batch, padded to the longest of its texts.

    The right side is the default whatever the tokenizer says: with learned positions, filling on the left moves every
    token to another position, and the answer to a text would depend on its neighbours in the batch.

    Returns:
        `input_ids` and `attention_mask` [batch, tokens] of int64, `token_type_ids` of the same shape where the
        tokenizer has them, and `labels` [batch] (int64 ids or float32 scores) where the texts have them.
    """
    width = max(len(encoded.ids[index]) for index in indices)
    input_ids = torch.full((len(indices), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(indices), width), dtype=torch.long)
    token_types = None if encoded.types is None else torch.zeros((len(indices), width), dtype=torch.long)
    for row, index in enumerate(indices):
        tokens = encoded.ids[index]
        place = slice(width - len(tokens), width) if padding_side == "left" else slice(0, len(tokens))
        input_ids[row, place] = torch.tensor(tokens, dtype=torch.long)
        attention_mask[row, place] = 1
        if token_types is not None and encoded.types is not None:
            token_types[row, place] = torch.tensor(encoded.types[index], dtype=torch.long)
    batch = {"input_ids": input_ids, "attention_mask": attention_mask}
    if token_types is not None:
        batch["token_type_ids"] = token_types
    if encoded.labels is not None:
        chosen = [encoded.labels[index] for index in indices]
        scores = any(isinstance(label, float) for label in chosen)
        batch["labels"] = torch.tensor(chosen, dtype=torch.float32 if scores else torch.long)
    return batch


def by_length(encoded: Encoded, batch_size: int) -> list[list[int]]:
    """Batches of indices for prediction, longest texts first, so that a lack of memory shows at once."""
    order = sorted(range(len(encoded)), key=lambda index: (-len(encoded.ids[index]), index))
    return _cut(order, batch_size)


def shuffled(encoded: Encoded, batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Batches of indices for one epoch of training, the same for the same (seed, epoch).

    The texts are shuffled, sorted by length within windows of `WINDOW_BATCHES` batches, cut into batches, and the
    batches shuffled. Every text comes once; the last, shorter batch of a window stays.
    """
    generator = random.Random(f"shuffled/{seed}/{epoch}")
    order = list(range(len(encoded)))
    generator.shuffle(order)
    batches: list[list[int]] = []
    for window in _cut(order, batch_size * WINDOW_BATCHES):
        batches.extend(_cut(sorted(window, key=lambda index: len(encoded.ids[index])), batch_size))
    generator.shuffle(batches)
    return batches


def _cut(order: Sequence[int], size: int) -> list[list[int]]:
    return [list(order[start : start + size]) for start in range(0, len(order), size)]


def _setting(config: Any, name: str) -> Any:
    return config.get(name) if isinstance(config, Mapping) else getattr(config, name, None)
