"""The unpickler's stack machine in outline, and its judgement of each global and each call.

Nothing is imported and nothing is built: what `pickle_opcodes` lets a pickle do here ends in a `Walk`.
"""

from __future__ import annotations

import io
import re
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Final

from purify_cli.checkpoint.known_globals import HARMLESS, STORAGE_BYTES, Use

MAX_LINE_BYTES: Final = 1 << 20
MAX_CONSTANT_BYTES: Final = 64 << 20
_MAX_KEPT_BYTES: Final = 256 << 20
_SHORT_BYTES: Final = 4096
_MAX_OFFENCES: Final = 200

# These create an instance of the class that they are given, as NEWOBJ does.
_CREATORS = {"copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__"}
_WRITERS_OWN = {"__main__", "__torch__"}
_MEMBER_NAME = re.compile(r"[A-Z][A-Z0-9_]*")
SANE_NAME = re.compile(r"[^\W\d][\w.]*")


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
        return all(SANE_NAME.fullmatch(name) for name in self.names)

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
class Name:
    module: str
    name: str

    @property
    def dotted(self) -> str:
        return f"{self.module}.{self.name}"


class Broken(Exception):
    """The unpickler, too, would stop here."""


MARK = object()
OPAQUE = object()
_COMPUTED = ("(computed)", "?")


class Machine:
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
            raise Broken("claims a negative length")
        data = self.file.read(count)
        if len(data) < count:
            raise Broken("is cut off in the middle of an argument")
        return data

    def number(self, width: int, signed: bool = False) -> int:
        return int.from_bytes(self.take(width), "little", signed=signed)

    def line(self) -> bytes:
        data = self.file.readline(MAX_LINE_BYTES)
        if not data.endswith(b"\n"):
            raise Broken("has a line that does not end")
        return data[:-1]

    def constant(self, count: int) -> bytes | None:
        """`count` bytes, or None for those too many to keep: they are skipped."""
        if count < 0:
            raise Broken("claims a negative length")
        short = count <= _SHORT_BYTES  # names must stay known, however much else the pickle holds
        if count > MAX_CONSTANT_BYTES or (self.kept_bytes + count > _MAX_KEPT_BYTES and not short):
            here = self.file.tell()
            size = self.file.seek(0, io.SEEK_END)
            if here + count > size:
                raise Broken("is cut off in the middle of an argument")
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
            if self.stack[index] is MARK:
                items = self.stack[index + 1 :]
                del self.stack[index:]
                return items
        raise Broken("takes from an empty stack or memo")

    def keep(self, value: Any) -> Any:
        """A value that goes into a container or a state. What may only be called may not travel."""
        if isinstance(value, Name) and HARMLESS.get(value.dotted) in (Use.MEMBER_BY_NAME, Use.NESTED):
            self.offend(value, "is passed on as a value")
        return value

    # -- judging

    def offend(self, name: Name, how: str, weak: bool = False) -> None:
        if len(self.walk.offences) < _MAX_OFFENCES:
            self.walk.offences.append(Offence(name.module, name.name, self.offset, how, weak))

    def global_(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            found = Name(*_COMPUTED)
            self.walk.names.add("computed")
            self.offend(found, "is imported by a name that is computed")
            self.push(OPAQUE)
            return
        if self.protocol < 3:
            if (module, name) in NAME_MAPPING:
                module, name = NAME_MAPPING[(module, name)]
            elif module in IMPORT_MAPPING:
                module = IMPORT_MAPPING[module]
        found = Name(module, name)
        self.walk.names.add(found.dotted)
        if found.dotted not in HARMLESS:
            foreign = module.split(".")[0] in _WRITERS_OWN and "." not in name
            self.offend(found, "is a class of the script that wrote it" if foreign else "is imported", weak=foreign)
        self.push(found)

    def call(self, callee: Any, args: Any) -> None:
        """Judge callee(*args) and push its result, in outline."""
        self.walk.calls += 1
        result: Any = OPAQUE
        if not isinstance(callee, Name):
            self.offend(Name(*_COMPUTED), "is called: the result of another call")
        elif callee.dotted in HARMLESS:  # an unknown one was counted when it was imported
            result = self.harmless_call(callee, args)
        elif callee.module.split(".")[0] in _WRITERS_OWN:
            self.offend(callee, "is called, not only created")
        self.push(result)

    def harmless_call(self, callee: Name, args: Any) -> Any:
        use = HARMLESS[callee.dotted]
        items = args if isinstance(args, tuple) else None
        if use is Use.CREATE:
            self.offend(callee, "is called, not only created")
        elif use is Use.MEMBER:
            if items is None or len(items) != 1 or not (items[0] is None or isinstance(items[0], str | int | float)):
                self.offend(callee, "is called with something else than one constant")
        elif use is Use.MEMBER_BY_NAME:
            lookup = items is not None and len(items) == 2 and isinstance(items[0], Name)
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

    def result(self, callee: Name, items: tuple[Any, ...] | None) -> Any:
        if (
            items
            and callee.dotted == "_codecs.encode"
            and isinstance(items[0], str)
            and items[1:] in (("latin1",), ("latin-1",))
        ):
            return items[0].encode("latin1", "replace")  # bytes, as protocol 2 writes them
        if callee.dotted == "builtins.bytes" and not items:
            return b""
        return OPAQUE

    def passes_class(self, args: Any, depth: int = 0) -> bool:
        """Whether a settings class or an Enum is among the arguments of a call that might call it."""
        if isinstance(args, Name):
            return HARMLESS.get(args.dotted) in (Use.CREATE, Use.MEMBER)
        if isinstance(args, tuple) and depth < 4:
            return any(self.passes_class(item, depth + 1) for item in args[:1000])
        return False

    def create(self, cls: Any, args: Any) -> None:
        self.walk.calls += 1
        if not isinstance(cls, Name):
            self.offend(Name(*_COMPUTED), "is created: the class is the result of a call")
        elif HARMLESS.get(cls.dotted) in (Use.MEMBER_BY_NAME, Use.NESTED):
            self.offend(cls, "is created as if it were a class")
        elif self.passes_class(args):
            self.offend(cls, "is given a class that it could call")
        self.push(OPAQUE)

    def build(self) -> None:
        self.keep(self.pop())
        if self.stack and isinstance(self.stack[-1], Name):
            self.offend(self.stack[-1], "has its own attributes set")
        if not self.stack:
            raise IndexError

    def persistent(self, value: Any) -> None:
        """torch: ("storage", storage class, key, location, elements, ...)."""
        if isinstance(value, tuple) and len(value) >= 5 and value[0] == "storage" and isinstance(value[1], Name):
            size = STORAGE_BYTES.get(value[1].name.rpartition(".")[2])
            if size is not None and isinstance(value[2], str):
                self.walk.storages[value[2]] = size
        self.push(OPAQUE)
