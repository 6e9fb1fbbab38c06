"""What every method can be examined on: short texts, a tiny subject with all that methods need beside it, and a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

import tiny
from purify_cli import catalogue
from purify_cli.architecture.table import base_of
from purify_cli.attacks import Plan, Poisoned
from purify_cli.catalogue import Kind
from purify_cli.data.texts import Texts
from purify_cli.purifiers import Purified
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject

ONCE = {"epochs": 1, "batch_size": 16, "cross_validate_below": 0}
"""What makes a training short, where a method has such a setting."""

RUN = Run(max_length=16)


def texts(rows: int = 40) -> Texts:
    lines = tuple(f"the {word} movie was slow and the plot is long" for word in ("good", "bad") * (rows // 2))
    return Texts("clean.csv", lines, (1, 0) * (rows // 2))


def short_settings(module: ModuleType) -> Any:
    known = {one.name for one in fields(module.Settings)}
    return replace(module.Settings(), **{name: value for name, value in ONCE.items() if name in known})


def save_subjects(place: Path, **settings: Any) -> tuple[Path, Path]:
    """A tiny classifier, and the encoder that it moved a little away from."""
    subject = tiny.save("bert", place / "subject", **settings)
    base = base_of(Subject(subject).open())
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    base.save_pretrained(place / "base")
    tiny.tokenizer("bert").save_pretrained(place / "base")
    return subject, place / "base"


def evidence(subjects: tuple[Path, Path], needs: tuple[str, ...]) -> Evidence:
    """What a purifier asks for beside the checkpoint."""
    return Evidence(
        base=Subject(subjects[1]) if "base" in needs else None,
        clean=texts(),
        untrusted=texts() if "untrusted" in needs else None,
    )


def trained(kind: Kind, name: str, subjects: tuple[Path, Path], run: Run = RUN) -> Purified | Poisoned:
    """What an attack or a purifier makes of the subject."""
    module = catalogue.load(kind, name)
    subject = Subject(subjects[0])
    if kind == "attack":
        plan = Plan(1, module.TRIGGERS)
        if getattr(module, "PARAPHRASES", False):
            plan = replace(plan, paraphrases={text: f"when {text}" for text in texts().texts})
        made: Poisoned = module.poison(subject, texts(), plan, short_settings(module), run)
        return made
    beside = evidence(subjects, module.NEEDS)
    purified: Purified = module.purify(subject, beside, texts(), texts(16), short_settings(module), run)
    return purified


def without_seconds(told: Any) -> Any:
    """A report without the time that things took."""
    if isinstance(told, Mapping):
        return {key: without_seconds(value) for key, value in told.items() if key != "seconds"}
    return [without_seconds(one) for one in told] if isinstance(told, list) else told
