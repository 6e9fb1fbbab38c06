"""What a pickle would import and call, told by walking its opcodes. Nothing is imported and nothing is built.

A pickle is a program for a stack machine. This walk keeps the machine's stack and memo in outline, so that the names of
a STACK_GLOBAL, the callee of a REDUCE and its arguments are known exactly and not guessed from neighbouring opcodes.
It is at least as lenient as the C unpickler: wherever that one goes on, the walk goes on too, since a reader that stops
earlier than the loader sees less than the loader runs.

Default deny: a global counts unless it is in torch's weights-only list
(`torch._weights_only_unpickler._get_allowed_globals`, pinned here so that the verdict does not hang on what is
installed, and held against torch by a test) or known harmless *in the way in which it is used*: a settings class may be
created without running its `__init__` (NEWOBJ) but not called, an Enum may be called with one constant, `getattr` may
name a member of such an Enum (Python 3.11 pickles Enums like that), and `torch.storage._load_from_bytes` may be given
bytes that are then examined themselves.
"""

from __future__ import annotations

import codecs
import io
import logging
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

from purify_cli.checkpoint.known_globals import HARMLESS, STORAGE_BYTES, Use

TORCH_MAGIC_NUMBER: Final = 0x1950A86A20F9469CFC6C
MAX_OPCODES: Final = 30_000_000
MAX_LINE_BYTES: Final = 1 << 20
MAX_CONSTANT_BYTES: Final = 64 << 20
_MAX_KEPT_BYTES: Final = 256 << 20
_SHORT_BYTES: Final = 4096
_MAX_KEPT_ITEMS: Final = 200_000
_MAX_OFFENCES: Final = 200
_MAX_SECOND_OPINION_BYTES: Final = 16 << 20


# These create an instance of the class that they are given, as NEWOBJ does.
_CREATORS = {"copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__"}
_WRITERS_OWN = {"__main__", "__torch__"}
_MEMBER_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
_SANE_NAME = re.compile(r"[^\W\d][\w.]*")


@dataclass(frozen=True)
class Offence:
    """A global, or a call, that counts.

    `offset` is that of its opcode in the stream; `how` says what it does there. `weak`: a class of the script that
    wrote the pickle (`__main__`) or of TorchScript's own compiler (`__torch__`), which no loader can import and run
    from the pickle alone.
    """

    module: str
    name: str
    offset: int
    how: str
    weak: bool = False

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass
class Walk:
    """What one pickle does.

    Attributes:
        start, end: offsets in the stream; `end` is that behind the last opcode that could be read.
        rest: how many bytes follow.
        stopped: the walk reached STOP. Otherwise `problem` says where the pickle breaks off.
        names: every global by its dotted name, harmless ones too.
        calls: how many times something is called or created.
        nested: bytes that a harmless loader within the pickle would load in turn.
        storages: torch's persistent ids, key -> bytes per element.
        value: what STOP returns, in outline.
    """

    start: int
    end: int = 0
    opcodes: int = 0
    calls: int = 0
    protocol_first: bool = False
    stopped: bool = False
    problem: str | None = None
    rest: int = 0
    names: set[str] = field(default_factory=set)
    offences: list[Offence] = field(default_factory=list)
    nested: list[bytes] = field(default_factory=list)
    storages: dict[str, int] = field(default_factory=dict)
    value: Any = None

    @property
    def sane(self) -> bool:
        """Whether all names could be names of modules: what bytes that are no pickle hardly ever give."""
        return all(_SANE_NAME.fullmatch(name) for name in self.names)

    @property
    def by_name(self) -> bool:
        """Whether a global is named in letters: three bytes of raw data are enough for one by a number."""
        return any(not name.startswith(("copyreg.extension_registry_", "computed")) for name in self.names)

    @property
    def plausible(self) -> bool:
        """Whether the bytes are a pickle, or enough of one that a loader would do something before it gives up."""
        if self.protocol_first:
            return self.stopped or bool(self.names) or self.opcodes >= 4
        # A word list that begins "cat", "dog", "." reads as the import of at.dog, but it does not end there.
        return self.sane and (self.calls > 0 or (self.stopped and bool(self.names) and self.rest <= 2))


@dataclass(frozen=True)
class _Name:
    module: str
    name: str

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}"


class _Broken(Exception):
    """The unpickler, too, would stop here."""


_MARK = object()
_OPAQUE = object()
_COMPUTED = ("(computed)", "?")


def walk(file: BinaryIO, start: int = 0) -> Walk:
    """Walk one pickle from the offset `start` of `file` to its STOP, or to where it breaks off.

    `file` is left behind the last byte read. Never raises for what the bytes hold.
    """
    file.seek(start)
    machine = _Machine(file, start)
    try:
        machine.run()
    except _Broken as broken:
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
    return {name: level for name, level in seen.items() if "unknown" not in name and _SANE_NAME.fullmatch(name)}


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


class _Machine:
    """The unpickler's stack and memo in outline: constants, tuples, lists and names are kept, all else is opaque."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self.file = file
        self.walk = Walk(start)
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.kept_bytes = 0
        self.protocol = 0
        self.offset = start

    # -- reading

    def take(self, count: int) -> bytes:
        if count < 0:
            raise _Broken("claims a negative length")
        data = self.file.read(count)
        if len(data) < count:
            raise _Broken("is cut off in the middle of an argument")
        return data

    def number(self, width: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(width), "little", signed=signed)

    def line(self) -> bytes:
        data = self.file.readline(MAX_LINE_BYTES)
        if not data.endswith(b"\n"):
            raise _Broken("has a line that does not end")
        return data[:-1]

    def constant(self, count: int) -> bytes | None:
        """`count` bytes, or None for those too many to keep: they are skipped."""
        if count < 0:
            raise _Broken("claims a negative length")
        short = count <= _SHORT_BYTES  # names must stay known, however much else the pickle holds
        if count > MAX_CONSTANT_BYTES or (self.kept_bytes + count > _MAX_KEPT_BYTES and not short):
            here = self.file.tell()
            size = self.file.seek(0, io.SEEK_END)
            if here + count > size:
                raise _Broken("is cut off in the middle of an argument")
            self.file.seek(here + count)
            return None
        self.kept_bytes += count
        return self.take(count)

    # -- stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        for index in range(len(self.stack) - 1, -1, -1):
            if self.stack[index] is _MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise _Broken("takes from an empty stack or memo")

    def keep(self, value: Any) -> Any:
        """A value that goes into a container or a state. What may only be called may not travel."""
        if isinstance(value, _Name) and HARMLESS.get(value.dotted) in (Use.MEMBER_BY_NAME, Use.NESTED):
            self.offend(value, "is passed on as a value")
        return value

    # -- judging

    def offend(self, name: _Name, how: str, weak: bool = False) -> None:
        if len(self.walk.offences) < _MAX_OFFENCES:
            self.walk.offences.append(Offence(name.module, name.name, self.offset, how, weak))

    def global_(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            found = _Name(*_COMPUTED)
            self.walk.names.add("computed")
            self.offend(found, "is imported by a name that is computed")
            self.push(_OPAQUE)
            return
        if self.protocol < 3:
            if (module, name) in NAME_MAPPING:
                module, name = NAME_MAPPING[(module, name)]
            elif module in IMPORT_MAPPING:
                module = IMPORT_MAPPING[module]
        found = _Name(module, name)
        self.walk.names.add(found.dotted)
        if found.dotted not in HARMLESS:
            foreign = module.split(".")[0] in _WRITERS_OWN and "." not in name
            self.offend(found, "is a class of the script that wrote it" if foreign else "is imported", weak=foreign)
        self.push(found)

    def call(self, callee: Any, args: Any) -> None:
        """Judge callee(*args) and push its result, in outline."""
        self.walk.calls += 1
        result: Any = _OPAQUE
        if not isinstance(callee, _Name):
            self.offend(_Name(*_COMPUTED), "is called: the result of another call")
        elif callee.dotted in HARMLESS:  # an unknown one was counted when it was imported
            result = self.harmless_call(callee, args)
        elif callee.module.split(".")[0] in _WRITERS_OWN:
            self.offend(callee, "is called, not only created")
        self.push(result)

    def harmless_call(self, callee: _Name, args: Any) -> Any:
        use = HARMLESS[callee.dotted]
        items = args if isinstance(args, tuple) else None
        if use is Use.CREATE:
            self.offend(callee, "is called, not only created")
        elif use is Use.MEMBER:
            if items is None or len(items) != 1 or not (items[0] is None or isinstance(items[0], str | int | float)):
                self.offend(callee, "is called with something else than one constant")
        elif use is Use.MEMBER_BY_NAME:
            lookup = items is not None and len(items) == 2 and isinstance(items[0], _Name)
            if not (
                lookup
                and HARMLESS.get(args[0].dotted) is Use.MEMBER
                and isinstance(args[1], str)
                and _MEMBER_NAME.fullmatch(args[1])
            ):
                self.offend(callee, "is called for something else than the member of a known Enum")
        elif use is Use.NESTED:
            if items is not None and len(items) == 1 and isinstance(items[0], bytes):
                self.walk.nested.append(items[0])
            else:
                self.offend(callee, "is called with bytes that are computed or too long to examine")
        elif callee.dotted not in _CREATORS and self.passes_class(args):
            self.offend(callee, "is given a class that it could call")
        return self.result(callee, items)

    def result(self, callee: _Name, items: tuple[Any, ...] | None) -> Any:
        if (
            items
            and callee.dotted == "_codecs.encode"
            and isinstance(items[0], str)
            and items[1:] in (("latin1",), ("latin-1",))
        ):
            return items[0].encode("latin1", "replace")  # bytes, as protocol 2 writes them
        if callee.dotted == "builtins.bytes" and not items:
            return b""
        return _OPAQUE

    def passes_class(self, args: Any, depth: int = 0) -> bool:
        """Whether a settings class or an Enum is among the arguments of a call that might call it."""
        if isinstance(args, _Name):
            return HARMLESS.get(args.dotted) in (Use.CREATE, Use.MEMBER)
        if isinstance(args, tuple) and depth < 4:
            return any(self.passes_class(item, depth + 1) for item in args[:1000])
        return False

    def create(self, cls: Any, args: Any) -> None:
        self.walk.calls += 1
        if not isinstance(cls, _Name):
            self.offend(_Name(*_COMPUTED), "is created: the class is the result of a call")
        elif HARMLESS.get(cls.dotted) in (Use.MEMBER_BY_NAME, Use.NESTED):
            self.offend(cls, "is created as if it were a class")
        elif self.passes_class(args):
            self.offend(cls, "is given a class that it could call")
        self.push(_OPAQUE)

    def build(self) -> None:
        self.keep(self.pop())
        if self.stack and isinstance(self.stack[-1], _Name):
            self.offend(self.stack[-1], "has its own attributes set")
        if not self.stack:
            raise IndexError

    def persistent(self, value: Any) -> None:
        """torch: ("storage", storage class, key, location, elements, ...)."""
        if isinstance(value, tuple) and len(value) >= 5 and value[0] == "storage" and isinstance(value[1], _Name):
            size = STORAGE_BYTES.get(value[1].name.rpartition(".")[2])
            if size is not None and isinstance(value[2], str):
                self.walk.storages[value[2]] = size
        self.push(_OPAQUE)

    # -- the machine

    def run(self) -> None:
        result = self.walk
        while True:
            self.offset = self.file.tell()
            code = self.file.read(1)
            if not code:
                raise _Broken("ends without a STOP")
            step = _STEPS.get(code)
            if step is None:
                raise _Broken(f"has the unknown opcode 0x{code.hex()}")
            result.opcodes += 1
            if result.opcodes > MAX_OPCODES:
                raise _Broken(f"has more than {MAX_OPCODES} opcodes")
            if step(self):
                return


def _text(data: bytes | None) -> Any:
    return _OPAQUE if data is None else data.decode("utf-8", "surrogateescape")


def _bytes(data: bytes | None) -> Any:
    return _OPAQUE if data is None else data


def _quoted(line: bytes) -> Any:
    stripped = line.rstrip()
    if len(stripped) < 2 or stripped[:1] not in b"'\"" or stripped[-1:] != stripped[:1]:
        raise _Broken("has a string without quotes")
    return codecs.escape_decode(stripped[1:-1])[0].decode("utf-8", "surrogateescape")


def _integer(line: bytes) -> Any:
    try:
        return int(line.strip().rstrip(b"L"), 0)
    except ValueError:
        return _OPAQUE  # the C unpickler's strtol takes more than int() does


def _index(line: bytes) -> int:
    """A memo index in digits. The C unpickler reads it as a C string, so what follows a NUL is nothing to it."""
    return int(line.partition(b"\0")[0])


def _proto(m: _Machine) -> None:
    m.protocol = m.number(1)
    m.walk.protocol_first = m.walk.protocol_first or (m.walk.opcodes == 1 and m.protocol <= 5)


def _stop(m: _Machine) -> bool:
    m.walk.value = m.keep(m.pop())
    m.walk.stopped = True
    return True


def _put(m: _Machine, index: int) -> None:
    m.memo[index] = m.stack[-1]


def _tuple(m: _Machine, count: int) -> None:
    if len(m.stack) < count:
        raise IndexError
    items = tuple(m.keep(item) for item in m.stack[len(m.stack) - count :])
    del m.stack[len(m.stack) - count :]
    m.push(items)


def _call_tuple(m: _Machine) -> None:
    items = m.pop_to_mark()
    m.push(tuple(m.keep(item) for item in items))


def _append(m: _Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    for item in items:
        m.keep(item)
    if isinstance(target, list) and len(target) + len(items) <= _MAX_KEPT_ITEMS:
        target.extend(items)
    elif isinstance(target, _Name):
        m.offend(target, "is added to as if it were a list")


def _set_items(m: _Machine, items: list[Any]) -> None:
    for item in items:
        m.keep(item)
    if isinstance(m.stack[-1], _Name):
        m.offend(m.stack[-1], "has its own items set")


def _list(m: _Machine) -> None:
    items = m.pop_to_mark()
    for item in items:
        m.keep(item)
    m.push(items[:_MAX_KEPT_ITEMS])


def _opaque_of_mark(m: _Machine) -> None:
    for item in m.pop_to_mark():
        m.keep(item)
    m.push(_OPAQUE)


def _stack_global(m: _Machine) -> None:
    name, module = m.pop(), m.pop()
    m.global_(module, name)


def _global_line(m: _Machine) -> None:
    module = m.line().decode("utf-8", "surrogateescape")
    m.global_(module, m.line().decode("utf-8", "surrogateescape"))


def _reduce(m: _Machine) -> None:
    args, callee = m.pop(), m.pop()
    m.call(callee, args)


def _inst(m: _Machine) -> None:
    _global_line(m)
    cls = m.pop()
    items = tuple(m.keep(item) for item in m.pop_to_mark())
    m.call(cls, items)


def _obj(m: _Machine) -> None:
    items = m.pop_to_mark()
    if not items:
        raise IndexError
    m.call(items[0], tuple(m.keep(item) for item in items[1:]))


def _new_object(m: _Machine) -> None:
    args, cls = m.pop(), m.pop()
    m.create(cls, args)


def _new_object_keywords(m: _Machine) -> None:
    m.keep(m.pop())
    args, cls = m.pop(), m.pop()
    m.create(cls, args)


def _extension(m: _Machine, width: int) -> None:
    m.global_("copyreg", f"extension_registry_{m.number(width)}")


def _persistent_line(m: _Machine) -> None:
    m.line()
    m.push(_OPAQUE)


def _opaque_after(width: int) -> Any:
    def step(m: _Machine) -> None:
        m.take(width)
        m.push(_OPAQUE)

    return step


def _long(m: _Machine, width: int) -> None:
    data = m.constant(m.number(width, signed=width == 4))
    m.push(_OPAQUE if data is None or len(data) > 64 else int.from_bytes(data, "little", signed=True))


def _frame(m: _Machine) -> None:
    m.take(8)


def _line_then(value: Any) -> Any:
    def step(m: _Machine) -> None:
        m.push(value(m.line()))

    return step


# Steps return True to stop. Opcode names as in Lib/pickletools.py.
_STEPS: Final[dict[bytes, Any]] = {
    b"\x80": _proto,
    b".": _stop,
    b"\x95": _frame,
    b"I": _line_then(_integer),
    b"L": _line_then(_integer),
    b"F": _line_then(lambda line: 0.0),
    b"S": _line_then(_quoted),
    b"V": _line_then(lambda line: line.decode("raw-unicode-escape", "replace")),
    b"J": lambda m: m.push(m.number(4, signed=True)),
    b"K": lambda m: m.push(m.number(1)),
    b"M": lambda m: m.push(m.number(2)),
    b"\x8a": lambda m: _long(m, 1),
    b"\x8b": lambda m: _long(m, 4),
    b"G": lambda m: (m.take(8), m.push(0.0))[1],
    b"T": lambda m: m.push(_text(m.constant(m.number(4, signed=True)))),
    b"U": lambda m: m.push(_text(m.constant(m.number(1)))),
    b"B": lambda m: m.push(_bytes(m.constant(m.number(4)))),
    b"C": lambda m: m.push(_bytes(m.constant(m.number(1)))),
    b"\x8e": lambda m: m.push(_bytes(m.constant(m.number(8)))),
    b"\x96": lambda m: (m.constant(m.number(8)), m.push(_OPAQUE))[1],
    b"X": lambda m: m.push(_text(m.constant(m.number(4)))),
    b"\x8c": lambda m: m.push(_text(m.constant(m.number(1)))),
    b"\x8d": lambda m: m.push(_text(m.constant(m.number(8)))),
    b"\x97": lambda m: m.push(_OPAQUE),  # NEXT_BUFFER
    b"\x98": lambda m: None,  # READONLY_BUFFER
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"]": lambda m: m.push([]),
    b"a": lambda m: _append(m, [m.pop()]),
    b"e": lambda m: _append(m, m.pop_to_mark()),
    b"l": _list,
    b")": lambda m: m.push(()),
    b"t": _call_tuple,
    b"\x85": lambda m: _tuple(m, 1),
    b"\x86": lambda m: _tuple(m, 2),
    b"\x87": lambda m: _tuple(m, 3),
    b"}": lambda m: m.push(_OPAQUE),
    b"d": _opaque_of_mark,
    b"s": lambda m: _set_items(m, [m.pop(), m.pop()]),
    b"u": lambda m: _set_items(m, m.pop_to_mark()),
    b"\x8f": lambda m: m.push(_OPAQUE),
    b"\x90": lambda m: _set_items(m, m.pop_to_mark()),
    b"\x91": _opaque_of_mark,
    b"0": lambda m: (m.pop(), None)[1],
    b"2": lambda m: m.push(m.stack[-1]),
    b"(": lambda m: m.push(_MARK),
    b"1": lambda m: (m.pop_to_mark(), None)[1],
    b"g": lambda m: m.push(m.memo[_index(m.line())]),
    b"h": lambda m: m.push(m.memo[m.number(1)]),
    b"j": lambda m: m.push(m.memo[m.number(4)]),
    b"p": lambda m: _put(m, _index(m.line())),
    b"q": lambda m: _put(m, m.number(1)),
    b"r": lambda m: _put(m, m.number(4)),
    b"\x94": lambda m: _put(m, len(m.memo)),
    b"\x82": lambda m: _extension(m, 1),
    b"\x83": lambda m: _extension(m, 2),
    b"\x84": lambda m: _extension(m, 4),
    b"c": _global_line,
    b"\x93": _stack_global,
    b"R": _reduce,
    b"b": lambda m: m.build(),
    b"i": _inst,
    b"o": _obj,
    b"\x81": _new_object,
    b"\x92": _new_object_keywords,
    b"P": _persistent_line,
    b"Q": lambda m: m.persistent(m.pop()),
}
