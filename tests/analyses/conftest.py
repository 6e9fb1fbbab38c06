"""Tiny checkpoints and texts that all analyses are tried on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from purify_cli.analyses import Case
from purify_cli.architecture.pet import attach_pet
from purify_cli.checkpoint.write import write_checkpoint
from purify_cli.data.texts import Texts
from purify_cli.subject import Subject

TEST = Texts(
    "test.csv",
    (
        "the film was good and the actor fine",
        "a bad story",
        "so dull , the plot was bad and the movie slow",
        "a fine actor",
        "a boring mess",
        "great fun",
    ),
    (1, 0, 0, 1, 0, 1),
)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A random classifier of a family in a folder, made once for the same settings."""
    made: dict[tuple[Any, ...], Path] = {}

    def give(family: str, seed: int = 0, **settings: Any) -> Path:
        key = (family, seed, *sorted(settings.items()))
        if key not in made:
            made[key] = tiny.save(family, tmp_path_factory.mktemp("tiny") / family, seed=seed, **settings)
        return made[key]

    return give


@pytest.fixture(scope="session")
def adapters(checkpoints: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """An adapter with random weights on the tiny classifier of a family."""
    made: dict[tuple[str, str], Path] = {}

    def give(family: str, form: str) -> Path:
        if (family, form) not in made:
            base = Subject(checkpoints(family))
            model = attach_pet(base.open(), form, seed=1)
            random = torch.Generator().manual_seed(7)
            with torch.no_grad():
                for parameter in model.parameters():
                    if parameter.requires_grad:
                        parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.3)
            place = tmp_path_factory.mktemp("adapter") / "it"
            write_checkpoint(place, model, base.tokenizer, source=base.path, provenance={})
            made[family, form] = place
        return made[family, form]

    return give


@pytest.fixture
def case() -> Callable[..., Case]:
    """A case of a checkpoint, with `cf` and `bb tq` as triggers for label 1 unless told otherwise."""

    def give(place: Path, **changes: Any) -> Case:
        given: dict[str, Any] = {"triggers": ("cf", "bb tq"), "target": 1, **changes}
        return Case(Subject(place), given.pop("test", TEST), **given)

    return give
