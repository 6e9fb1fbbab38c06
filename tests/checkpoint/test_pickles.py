from __future__ import annotations

import io
import pickle
import pickletools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import hostile
from purify_cli.checkpoint import pickle_opcodes, pickles
from purify_cli.checkpoint.known_globals import HARMLESS, WEIGHTS_ONLY
from purify_cli.checkpoint.pickles import walk


def test_weights_only_list_is_torchs() -> None:
    from torch._weights_only_unpickler import _get_allowed_globals

    assert set(_get_allowed_globals()) == WEIGHTS_ONLY


def test_every_opcode_is_known() -> None:
    assert {opcode.code.encode("latin-1") for opcode in pickletools.opcodes} == set(pickle_opcodes.STEPS)


def test_nothing_that_executes_is_harmless() -> None:
    for name in HARMLESS:
        module, _, attribute = name.rpartition(".")
        if name not in ("builtins.getattr",):
            assert pickles.safety(module, attribute) != "dangerous", name


_plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children) | st.tuples(children, children),
    max_leaves=20,
)


@settings(max_examples=150, deadline=None)
@given(value=_plain, protocol=st.integers(0, 5))
def test_plain_data_is_walked_to_its_end(value: Any, protocol: int) -> None:
    data = pickle.dumps(value, protocol)
    result = walk(io.BytesIO(data + b"more"))
    assert result.stopped and result.end == len(data)
    assert not result.offences


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=200), protocol=st.booleans())
def test_no_bytes_break_the_walk(data: bytes, protocol: bool) -> None:
    walk(io.BytesIO((b"\x80\x04" if protocol else b"") + data))


@settings(max_examples=100, deadline=None)
@given(value=_plain, protocol=st.integers(0, 5))
def test_payload_in_any_data_is_found(value: Any, protocol: int) -> None:
    data = pickle.dumps([value, hostile.RunsSystem(), value], protocol)
    assert [offence.name for offence in walk(io.BytesIO(data)).offences] == ["system"]


@pytest.mark.parametrize("protocol", range(6))
def test_names_are_exact(protocol: int) -> None:
    data = pickle.dumps(hostile.RunsSystem(), protocol)
    (offence,) = walk(io.BytesIO(data)).offences
    assert offence.dotted in ("posix.system", "nt.system")
    assert pickles.safety(offence.module, offence.name) == "dangerous"


def test_python_2_names_are_translated() -> None:
    (offence,) = walk(io.BytesIO(b"c__builtin__\neval\n(S'1'\ntR.")).offences
    assert offence.dotted == "builtins.eval"


def test_name_from_the_memo() -> None:
    # "system" is put by before "os" is: a reader that takes the nearest strings sees another pair
    data = b"\x80\x04" + hostile.short("system") + b"\x94" + hostile.short("os") + b"\x94h\x00" + hostile.short("x")
    data += b"0\x93."
    (offence,) = walk(io.BytesIO(data)).offences
    assert offence.dotted == "os.system"


def test_instance_opcodes() -> None:
    for data in (b"(S'x'\nios\nsystem\n.", b"(cos\nsystem\nS'x'\no."):
        assert [offence.dotted for offence in walk(io.BytesIO(data)).offences] == ["os.system"]


def test_extension_registry_counts() -> None:
    assert walk(io.BytesIO(b"\x80\x04\x82\x01.")).offences


def test_claimed_lengths_are_not_allocated() -> None:
    for data in (b"\x80\x04\x8e" + b"\xff" * 8, b"\x80\x04B\xff\xff\xff\xff", b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7f"):
        result = walk(io.BytesIO(data))
        assert not result.stopped and result.problem


def test_exponential_tuples_cost_nothing() -> None:
    data = b"\x80\x04N" + b"2\x86" * 5000 + b"."
    assert walk(io.BytesIO(data)).stopped


def test_class_of_the_writers_script_is_weak_until_it_is_called() -> None:
    created = walk(io.BytesIO(b"\x80\x02c__main__\nArguments\n)\x81}b.")).offences
    assert [offence.weak for offence in created] == [True]
    called = walk(io.BytesIO(b"\x80\x02c__main__\nArguments\n)R.")).offences
    assert not all(offence.weak for offence in called)
