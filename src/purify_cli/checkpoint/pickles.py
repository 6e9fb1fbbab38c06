"""What a pickle would import and call, told by walking its opcodes. Nothing is imported and nothing is built.

A pickle is a program for a stack machine. `pickle_machine` keeps that machine's stack and memo in outline, so that the
names of a STACK_GLOBAL, the callee of a REDUCE and its arguments are known exactly and not guessed from neighbouring
opcodes. The walk is at least as lenient as the C unpickler: wherever that one goes on, the walk goes on too, since a
reader that stops earlier than the loader sees less than the loader runs.

Default deny: a global counts unless it is in torch's weights-only list
(`torch._weights_only_unpickler._get_allowed_globals`, pinned in `known_globals`) or known harmless *in the way in which
it is used*: a settings class may be created without running its `__init__` (NEWOBJ) but not called, an Enum may be
called with one constant, `getattr` may name a member of such an Enum (Python 3.11 pickles Enums like that), and
`torch.storage._load_from_bytes` may be given bytes that are then examined themselves.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO, Final

from purify_cli.checkpoint.pickle_machine import SANE_NAME, Broken, Machine, Walk
from purify_cli.checkpoint.pickle_opcodes import run

TORCH_MAGIC_NUMBER: Final = 0x1950A86A20F9469CFC6C
_MAX_SECOND_OPINION_BYTES: Final = 16 << 20


def walk(file: BinaryIO, start: int = 0) -> Walk:
    """Walk one pickle from the offset `start` of `file` to its STOP, or to where it breaks off.

    `file` is left behind the last byte read. Never raises for what the bytes hold.
    """
    file.seek(start)
    machine = Machine(file, start)
    try:
        run(machine)
    except Broken as broken:
        machine.walk.problem = str(broken)
    except (IndexError, KeyError):
        machine.walk.problem = "takes from an empty stack or memo"
    except (ValueError, OverflowError, UnicodeError) as error:
        machine.walk.problem = f"has an argument that cannot be read ({error})"
    except RecursionError:
        machine.walk.problem = "is nested too deeply"
    machine.walk.end = file.tell()
    machine.walk.rest = file.seek(0, io.SEEK_END) - machine.walk.end
    file.seek(machine.walk.end)
    return machine.walk


def safety(module: str, name: str) -> str:
    """What picklescan says of a global: "innocuous", "suspicious" or "dangerous"."""
    line = f"c{module}\n{name}\n.".encode("utf-8", "backslashreplace")
    return _picklescan(line).get(f"{module}.{name}", "suspicious")


def second_opinion(file: BinaryIO, start: int) -> dict[str, str]:
    """The globals that picklescan sees from `start` on, dotted name -> safety; for pickles that break off.

    Reads at most 16 MiB. Names that picklescan could not resolve are left out: its guess at them is wrong for honest
    pickles with a frame boundary between two strings.
    """
    file.seek(start)
    seen = _picklescan(file.read(_MAX_SECOND_OPINION_BYTES))
    return {name: level for name, level in seen.items() if "unknown" not in name and SANE_NAME.fullmatch(name)}


def _picklescan(data: bytes) -> dict[str, str]:
    from picklescan.scanner import scan_pickle_bytes

    with _quiet("picklescan"):
        try:
            result = scan_pickle_bytes(io.BytesIO(data), "pickle", multiple_pickles=False)
        except Exception:  # its own parser is not hardened; our walk has the say
            return {}
    return {f"{item.module}.{item.name}": item.safety.value for item in result.globals}


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    logger = logging.getLogger(name)
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
