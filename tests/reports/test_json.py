from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from purify_cli.reports.json import plain, render, schema
from purify_cli.results import Report

GOLDEN = Path(__file__).parent / "golden"


def _strict(node: Any) -> Any:
    """The schema with no room for members that it does not name: what we write must all be in it."""
    if isinstance(node, dict):
        closed = {key: _strict(member) for key, member in node.items()}
        if "properties" in closed:
            closed["additionalProperties"] = False
        return closed
    return [_strict(member) for member in node] if isinstance(node, list) else node


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_golden(name: str, report: Report) -> None:
    text = render(report)
    path = GOLDEN / f"{name}.json"
    if os.environ.get("UPDATE_GOLDENS"):
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_satisfies_the_schema_and_holds_nothing_that_it_does_not_name(report: Report) -> None:
    validator = jsonschema.Draft202012Validator(_strict(schema()))
    validator.validate(json.loads(render(report), parse_constant=_refuse))


def test_schema_is_a_schema_and_refuses_what_is_wrong(report: Report) -> None:
    jsonschema.Draft202012Validator.check_schema(schema())
    validator = jsonschema.Draft202012Validator(schema())
    document = json.loads(render(report))
    for breakage in ("schema", "environment", "seconds", "command"):
        broken = copy.deepcopy(document)
        del broken[breakage]
        assert not validator.is_valid(broken), breakage
    both = document | {"scan": {"verdict": {}, "checks": [], "findings": []}, "eval": {"checkpoints": []}}
    assert not validator.is_valid(both)


def test_schema_comes_first_and_the_same_report_gives_the_same_bytes(report: Report) -> None:
    text = render(report)
    assert list(json.loads(text))[:4] == ["schema", "tool", "command", "started"]
    assert text == render(report)


def test_holds_no_control_character(report: Report) -> None:
    text = render(report)
    assert text.isascii()
    assert all(character == "\n" or 0x20 <= ord(character) < 0x7F for character in text)


def test_what_is_no_number_is_null() -> None:
    assert plain({"b": float("nan"), "a": [float("inf"), -float("inf"), 1.5]}) == {"a": [None, None, 1.5], "b": None}


def test_library_scalars_become_numbers() -> None:
    assert plain([np.float32(0.5), np.int64(3), np.array([1.0, np.nan]), np.bool_(True)]) == [0.5, 3, [1.0, None], True]


def test_free_mappings_are_sorted_so_that_their_order_cannot_leak_in() -> None:
    assert list(plain({"b": 1, "a": 2})) == ["a", "b"]
    assert plain({"x", "a"}) == ["a", "x"]


@given(
    st.recursive(
        st.none() | st.floats() | st.text() | st.integers(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_anything_becomes_strict_json(value: Any) -> None:
    text = json.dumps(plain(value), allow_nan=False)
    text.encode("utf-8")
    json.loads(text, parse_constant=_refuse)


@pytest.mark.parametrize("text", ["\udcff.bin", "\ud800"])
def test_half_a_surrogate_pair_is_written_out(text: str) -> None:
    assert "\\ud" in plain(text)
    plain(text).encode("utf-8")
