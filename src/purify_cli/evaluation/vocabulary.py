"""A model's vocabulary as a search walks it: the tokens that a text may hold, their embeddings and neighbours."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from purify_cli.architecture.embeddings import word_embeddings


class Vocabulary:
    """All tokens but the special ones and the placeholders that no text contains; a word is its index in `ids`.

    Attributes:
        ids: token ids, [words].
        weight: their rows of the word embeddings in float32, [words, width].
        unit: the same at norm 1, on the model's device.
        filler: id of a token that says nothing.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        weight = word_embeddings(model).weight.detach().float()
        self.ids = _searchable(tokenizer, weight.shape[0])
        self.weight = weight.cpu()[self.ids]
        self.unit = torch.nn.functional.normalize(self.weight, dim=1).to(weight.device)
        self.filler = _filler(tokenizer)

    @cached_property
    def begin(self) -> Tensor:
        """The words whose token begins a word of a text."""
        return _beginning(self.tokenizer, self.ids)

    def neighbours(self, words: Tensor, most: int) -> Tensor:
        """[rows] words -> [rows, neighbours] of the words nearest by cosine, not themselves."""
        count = min(most, len(self.ids) - 1)
        found = []
        for part in torch.split(words.to(self.unit.device), 512):
            similarity = (self.unit[part] @ self.unit.T).nan_to_num(-2.0)  # [rows, words]
            similarity.scatter_(1, part[:, None], -2.0)
            found.append(similarity.topk(count, dim=1).indices.cpu())
        return torch.cat(found)

    def spelled_alike(self, words: Sequence[int]) -> list[int]:
        """The other words with the letters of one of these: inside a word where that begins one, or the reverse."""
        wanted = {self._letters[word] for word in words} - {""}
        return [word for word, letters in enumerate(self._letters) if letters in wanted and word not in words]

    @cached_property
    def _letters(self) -> list[str]:
        """Of each word, without the mark that says whether it begins one."""
        tokens = self.tokenizer.convert_ids_to_tokens(self.ids.tolist())
        return [token.removeprefix("##").lstrip("\u0120\u2581") for token in tokens]

    def beside(self, pairs: Tensor, most: int) -> Tensor:
        """[rows, 2] words -> [more rows, 2]: each with one of its words replaced by each of the word's neighbours."""
        near = self.neighbours(pairs.flatten(), most).reshape(len(pairs), 2, -1)  # [rows, 2, neighbours]
        first = torch.stack([near[:, 0], pairs[:, 1:].expand_as(near[:, 0])], dim=2)  # [rows, neighbours, 2]
        second = torch.stack([pairs[:, :1].expand_as(near[:, 1]), near[:, 1]], dim=2)
        every = torch.cat([first, second]).flatten(0, 1)
        return every[every[:, 0] != every[:, 1]]

    def text(self, words: Sequence[int]) -> str:
        """Words as a user would type them."""
        return str(self.tokenizer.decode(self.ids[list(words)].tolist())).strip()


def _searchable(tokenizer: Any, rows: int) -> Tensor:
    """Ids of all tokens but the special ones and the placeholders that no text contains."""
    special = set(tokenizer.all_special_ids)
    names = tokenizer.convert_ids_to_tokens(list(range(min(rows, len(tokenizer)))))
    keep = [
        index
        for index, name in enumerate(names)
        if index not in special
        and name is not None
        and not re.fullmatch(r"[\[<].*(unused|extra_id|reserved).*[\]>]", name)
    ]
    return torch.tensor(keep, dtype=torch.long)


def _beginning(tokenizer: Any, ids: Tensor) -> Tensor:
    """Which of the ids begin a word: decoded behind another token they stand apart. All, where none does."""
    first = int(ids[0])
    told = tokenizer.batch_decode([[first, one] for one in ids.tolist()])
    alone = tokenizer.batch_decode([[one] for one in ids.tolist()])
    apart = [
        index
        for index, (both, own) in enumerate(zip(told, alone, strict=True))
        if own.strip() and both.endswith(f" {own.strip()}")
    ]
    return torch.tensor(apart if apart else range(len(ids)), dtype=torch.long)


def _filler(tokenizer: Any) -> int:
    """A token that says nothing: the mask, else what stands for the unknown, else a comma."""
    if tokenizer.mask_token_id is not None:
        return int(tokenizer.mask_token_id)
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id != tokenizer.eos_token_id:
        return int(tokenizer.unk_token_id)
    return int(tokenizer(" ,", add_special_tokens=False)["input_ids"][-1])
