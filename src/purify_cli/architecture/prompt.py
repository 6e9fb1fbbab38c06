"""A prompt around every text: [MASK] where the summary token stood, a soft template beside it.

The tokenizer puts it there and the embeddings hold its rows, so that a model that was adapted with a prompt is used
like any other classifier: nobody has to know.
"""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from purify_cli.architecture.embeddings import word_embeddings
from purify_cli.architecture.table import base_of, family_of
from purify_cli.errors import UnsupportedError


def add_prompt(model: Any, tokenizer: Any, width: int, seed: int) -> Any:
    """Give a model of any family that sums up in its first token a soft template, in place.

    `[CLS] x [SEP]` becomes `[MASK] [a1] ... [a width] x [SEP]`, and pairs likewise. The mask stands first, for the
    families' classification heads read the first token. A soft token starts as a copy of a row drawn from `seed`.

    Args:
        model: a classifier or an encoder; its embeddings grow by `width` rows.
        tokenizer: of the model; it is not changed.
        width: soft tokens; 0: the mask alone.

    Returns:
        the tokenizer that puts the prompt around texts.

    Raises:
        UnsupportedError: there is no [MASK], the summary token is not the first, embeddings and hidden states differ in
            width, or the tokenizer's way of framing texts cannot be changed.
    """
    config = base_of(model).config
    family = family_of(config)
    embeddings = word_embeddings(model)
    if family.summary != "first" or tokenizer.mask_token_id is None:
        raise UnsupportedError(family.title, "has no [MASK] to read an answer from")
    if embeddings.embedding_dim != getattr(config, family.width_key):
        raise UnsupportedError(family.title, "its embeddings and its hidden states differ in width")
    if not getattr(tokenizer, "is_fast", False):
        raise UnsupportedError(family.title, "its tokenizer is not one whose frame around a text can be changed")
    soft = [f"[soft{number}]" for number in range(1, width + 1)]
    prompted = _reframed(tokenizer, soft)
    rows = embeddings.num_embeddings
    drawn = torch.randint(rows, (width,), generator=torch.Generator().manual_seed(seed))
    model.resize_token_embeddings(max(rows, len(prompted)), mean_resizing=False)
    weight = word_embeddings(model).weight
    with torch.no_grad():
        weight[prompted.convert_tokens_to_ids(soft)] = weight[drawn.to(weight.device)]
    return prompted


def _reframed(tokenizer: Any, soft: list[str]) -> Any:
    """A copy of a tokenizer with the soft tokens, and the prompt in the place of the first special tokens."""
    # The general class: a family's own would put its own frame back when it is loaded.
    names = ("unk_token", "sep_token", "pad_token", "cls_token", "mask_token", "bos_token", "eos_token")
    named = {name: getattr(tokenizer, name) for name in names if getattr(tokenizer, name) is not None}
    prompted = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(tokenizer.backend_tokenizer.to_str()),
        model_max_length=tokenizer.model_max_length,
        model_input_names=list(tokenizer.model_input_names),
        padding_side=tokenizer.padding_side,
        truncation_side=tokenizer.truncation_side,
        **named,
    )
    prompted.add_special_tokens({"additional_special_tokens": soft})
    front = [tokenizer.mask_token, *soft]
    templates = [[*((token, 0) for token in front), *_behind(tokenizer, *texts)] for texts in (("a",), ("a", "a"))]
    single, pair = (" ".join(f"{token}:{kind}" for token, kind in template) for template in templates)
    special = {token for template in templates for token, _ in template} - {"$A", "$B"}
    prompted.backend_tokenizer.post_processor = TemplateProcessing(
        single=single,
        pair=pair,
        special_tokens=[(token, prompted.convert_tokens_to_ids(token)) for token in sorted(special)],
    )
    return prompted


def _behind(tokenizer: Any, *texts: str) -> list[tuple[str, int]]:
    """How a tokenizer frames a text or a pair, from the first text on: `$A`, `$B` or a special token, and its type."""
    framed = tokenizer(*texts)
    types = framed.get("token_type_ids", [0] * len(framed["input_ids"]))
    found: list[tuple[str, int]] = []
    for token, kind, text in zip(framed["input_ids"], types, framed.sequence_ids(), strict=True):
        name = tokenizer.convert_ids_to_tokens(token) if text is None else ("$A", "$B")[text]
        if text is None or (name, kind) not in found:  # a text of several pieces is one
            found.append((name, kind))
    first = next(place for place, (token, _) in enumerate(found) if token == "$A")
    return found[first:]
