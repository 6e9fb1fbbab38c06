from __future__ import annotations

import dataclasses
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from purify_cli import catalogue
from purify_cli.catalogue import KINDS, Kind
from purify_cli.errors import UsageError

METHODS = [(kind, name) for kind in KINDS for name in catalogue.names(kind)]
CONTRACTS: dict[str, tuple[str, ...]] = {
    "attack": ("SUMMARY", "NEEDS", "TRIGGERS", "Settings", "poison"),
    "detector": ("SUMMARY", "NEEDS", "RULES", "BUDGET", "Settings", "detect"),
    "purifier": ("SUMMARY", "NEEDS", "Settings", "purify"),
    "filter": ("SUMMARY", "NEEDS", "Settings", "score"),
    "analysis": ("SUMMARY", "NEEDS", "Settings", "analyse", "draw"),
}


@dataclass(frozen=True)
class Sample:
    count: int = field(default=3, metadata={"help": "how many", "range": ">= 1", "source": "section 2"})
    share: float = field(default=0.5, metadata={"range": "0..1"})
    rate: float = field(default=0.1, metadata={"range": "> 0, < 1"})
    big: float = field(default=1.0, metadata={"range": "1.."})
    mode: str = field(default="dirty", metadata={"range": "dirty|clean|mix"})
    form: Literal["sgd", "adamw"] = "sgd"
    keep: bool = field(default=False, metadata={"range": "true or false"})
    heads: int | None = field(default=None, metadata={"range": ">= 1"})
    layers: tuple[int, ...] = field(default=(1, 2), metadata={"range": "0..11"})
    betas: tuple[float, float] = (0.9, 0.999)
    words: tuple[str, ...] = ()
    either: float | Literal["auto"] = "auto"
    note: str | None = "x"


@pytest.mark.parametrize(
    ("assignment", "value"),
    [
        ("count=5", 5),
        (" count = 5 ", 5),
        ("share=1", 1.0),
        ("share=1e-3", 0.001),
        ("rate=0.999", 0.999),
        ("big=7", 7.0),
        ("mode=clean", "clean"),
        ("form=adamw", "adamw"),
        ("keep=true", True),
        ("keep=No", False),
        ("heads=4", 4),
        ("heads=none", None),
        ("layers=3", (3,)),
        ("layers=0, 11", (0, 11)),
        ("layers=", ()),
        ("betas=0.5,0.6", (0.5, 0.6)),
        ("words=cf,mn", ("cf", "mn")),
        ("either=0.25", 0.25),
        ("either=auto", "auto"),
        ("note=none", None),
        ("note=a=b", "a=b"),
    ],
)
def test_fill_reads_a_value_by_its_type(assignment: str, value: Any) -> None:
    filled = catalogue.fill(Sample, [assignment])
    assert getattr(filled, assignment.partition("=")[0].strip()) == value
    assert type(getattr(filled, assignment.partition("=")[0].strip())) is type(value)


@pytest.mark.parametrize(
    "assignment",
    [
        "count=0",
        "count=2.5",
        "count=x",
        "count=",
        "share=1.01",
        "share=-0.1",
        "share=nan",
        "rate=0",
        "rate=1",
        "big=0.5",
        "mode=other",
        "form=rmsprop",
        "keep=maybe",
        "heads=0",
        "layers=1,12",
        "layers=1,x",
        "betas=0.5",
        "betas=1,2,3",
        "either=other",
    ],
)
def test_fill_refuses_what_is_out_of_type_or_range(assignment: str) -> None:
    with pytest.raises(UsageError) as caught:
        catalogue.fill(Sample, [assignment])
    assert caught.value.where == f"--set {assignment}"
    assert caught.value.remedy


def test_fill_names_the_settings_when_one_is_unknown() -> None:
    with pytest.raises(UsageError, match="count, share, rate"):
        catalogue.fill(Sample, ["counts=5"])
    with pytest.raises(UsageError, match="key=value"):
        catalogue.fill(Sample, ["count"])


def test_fill_takes_the_last_of_a_key_and_leaves_the_rest_alone() -> None:
    assert catalogue.fill(Sample, ["count=5", "count=6"]) == dataclasses.replace(Sample(), count=6)
    assert catalogue.fill(Sample, []) == Sample()


def test_describe_tells_what_set_would_take() -> None:
    described = {setting.name: setting for setting in catalogue.describe(Sample)}
    count = described["count"]
    assert (count.type, count.default, count.range, count.source, count.help) == (
        "int",
        "3",
        ">= 1",
        "section 2",
        "how many",
    )
    assert described["layers"].default == "1,2"
    assert described["heads"].default == "none"
    for setting in described.values():
        assert catalogue.fill(Sample, [f"{setting.name}={setting.default}"]) == Sample()


def test_an_unknown_name_is_answered_with_those_known() -> None:
    with pytest.raises(UsageError) as caught:
        catalogue.load("purifier", "nothing")
    assert caught.value.where == "--method"
    assert all(name in caught.value.remedy for name in catalogue.names("purifier"))
    with pytest.raises(UsageError):
        catalogue.load("purifier", "../purifiers/finetune")


def test_a_kind_with_no_methods_says_so() -> None:
    if not catalogue.names("filter"):
        with pytest.raises(UsageError, match="no filter methods"):
            catalogue.load("filter", "onion")


def test_hyphen_and_underscore_are_equal() -> None:
    for kind, name in METHODS:
        assert catalogue.resolve(kind, name.replace("_", "-")) == name


@pytest.mark.parametrize(("kind", "name"), METHODS)
def test_every_method_keeps_its_contract(kind: Kind, name: str) -> None:
    module = catalogue.load(kind, name)
    for member in CONTRACTS[kind]:
        assert hasattr(module, member), member
    assert catalogue.summary(kind, name) == module.SUMMARY
    assert "\n" not in module.SUMMARY and module.SUMMARY
    assert tuple(catalogue.declared(kind, name, "NEEDS")) == tuple(module.NEEDS)
    for setting in catalogue.describe(module.Settings):
        assert setting.help, f"{setting.name} has no help"
        assert setting.source, f"{setting.name} has no source"
        assert catalogue.range_is_enforced(setting.range), f"{setting.name}: {setting.range!r} is prose"
        catalogue.fill(module.Settings, [f"{setting.name}={setting.default}"])


def test_rule_ids_have_one_owner() -> None:
    owners: dict[str, str] = {}
    for name in catalogue.names("detector"):
        for rule in catalogue.declared("detector", name, "RULES"):
            assert rule not in owners, f"{rule} belongs to {owners[rule]} and to {name}"
            owners[rule] = name


def test_listing_imports_no_method() -> None:
    script = (
        "import sys\n"
        "from purify_cli.commands.methods import methods\n"
        "assert methods()\n"
        "heavy = {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
