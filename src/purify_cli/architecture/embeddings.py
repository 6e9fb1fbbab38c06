"""The word embeddings: the module in a model, and the tensor's name in a file."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from purify_cli.architecture.table import Family, base_of, family_of, modules_at
from purify_cli.errors import CheckpointError


def word_embeddings(model: nn.Module) -> nn.Embedding:
    """The embedding module of a model of any family; its weight is [vocabulary, width].

    Raises:
        UnsupportedError: the family is not known.
    """
    base = base_of(model)
    module = modules_at(base, family_of(base.config).word_embeddings)[0]
    if not isinstance(module, nn.Embedding):
        raise TypeError(f"the word embeddings are a {type(module).__name__}, not an embedding")
    return module


def embedding_name(names: Iterable[str], family: Family, where: str = "the weights") -> str:
    """Which of a checkpoint's tensor names is the word embedding matrix, with the task model's prefix or without.

    Raises:
        CheckpointError: there is none, or there are two.
    """
    wanted = f"{family.word_embeddings}.weight"
    candidates = (f"{family.prefix}.{wanted}", wanted)
    known = set(names)
    found = [name for name in candidates if name in known]
    if len(found) != 1:
        problem = f"{'no' if not found else 'two'} word embeddings of a {family.title} model in it"
        raise CheckpointError(where, problem, f"Expected a tensor named {candidates[0]}.")
    return found[0]
