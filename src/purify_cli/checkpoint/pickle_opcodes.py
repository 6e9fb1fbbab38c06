"""What each opcode of a pickle does to the machine: Lib/pickletools.py in steps, as lenient as the C unpickler."""

from __future__ import annotations

import codecs
from typing import Any, Final

from purify_cli.checkpoint.pickle_machine import MARK, OPAQUE, Broken, Machine, Name

MAX_OPCODES: Final = 30_000_000
_MAX_KEPT_ITEMS: Final = 200_000


def run(machine: Machine) -> None:
    """Let the machine do what its file says from here to the STOP.

    Raises:
        Broken: the unpickler, too, would stop here; so it would at the errors of Python that come from the steps
            (an empty stack, an unknown memo, a number that is none).
    """
    while True:
        machine.offset = machine.file.tell()
        code = machine.file.read(1)
        if not code:
            raise Broken("ends without a STOP")
        step = STEPS.get(code)
        if step is None:
            raise Broken(f"has the unknown opcode 0x{code.hex()}")
        machine.walk.opcodes += 1
        if machine.walk.opcodes > MAX_OPCODES:
            raise Broken(f"has more than {MAX_OPCODES} opcodes")
        if step(machine):
            return


def _text(data: bytes | None) -> Any:
    return OPAQUE if data is None else data.decode("utf-8", "surrogateescape")


def _bytes(data: bytes | None) -> Any:
    return OPAQUE if data is None else data


def _quoted(line: bytes) -> Any:
    stripped = line.rstrip()
    if len(stripped) < 2 or stripped[:1] not in b"'\"" or stripped[-1:] != stripped[:1]:
        raise Broken("has a string without quotes")
    return codecs.escape_decode(stripped[1:-1])[0].decode("utf-8", "surrogateescape")


def _integer(line: bytes) -> Any:
    try:
        return int(line.strip().rstrip(b"L"), 0)
    except ValueError:
        return OPAQUE  # the C unpickler's strtol takes more than int() does


def _index(line: bytes) -> int:
    """A memo index in digits. The C unpickler reads it as a C string, so what follows a NUL is nothing to it."""
    return int(line.partition(b"\0")[0])


def _proto(m: Machine) -> None:
    m.protocol = m.number(1)
    m.walk.protocol_first = m.walk.protocol_first or (m.walk.opcodes == 1 and m.protocol <= 5)


def _stop(m: Machine) -> bool:
    m.walk.value = m.keep(m.pop())
    m.walk.stopped = True
    return True


def _put(m: Machine, index: int) -> None:
    m.memo[index] = m.stack[-1]


def _tuple(m: Machine, count: int) -> None:
    if len(m.stack) < count:
        raise IndexError
    items = tuple(m.keep(item) for item in m.stack[len(m.stack) - count :])
    del m.stack[len(m.stack) - count :]
    m.push(items)


def _tuple_of_mark(m: Machine) -> None:
    items = m.pop_to_mark()
    m.push(tuple(m.keep(item) for item in items))


def _append(m: Machine, items: list[Any]) -> None:
    target = m.stack[-1]
    for item in items:
        m.keep(item)
    if isinstance(target, list) and len(target) + len(items) <= _MAX_KEPT_ITEMS:
        target.extend(items)
    elif isinstance(target, Name):
        m.offend(target, "is added to as if it were a list")


def _set_items(m: Machine, items: list[Any]) -> None:
    for item in items:
        m.keep(item)
    if isinstance(m.stack[-1], Name):
        m.offend(m.stack[-1], "has its own items set")


def _list(m: Machine) -> None:
    items = m.pop_to_mark()
    for item in items:
        m.keep(item)
    m.push(items[:_MAX_KEPT_ITEMS])


def _opaque_of_mark(m: Machine) -> None:
    for item in m.pop_to_mark():
        m.keep(item)
    m.push(OPAQUE)


def _stack_global(m: Machine) -> None:
    name, module = m.pop(), m.pop()
    m.global_(module, name)


def _global_line(m: Machine) -> None:
    module = m.line().decode("utf-8", "surrogateescape")
    m.global_(module, m.line().decode("utf-8", "surrogateescape"))


def _reduce(m: Machine) -> None:
    args, callee = m.pop(), m.pop()
    m.call(callee, args)


def _inst(m: Machine) -> None:
    _global_line(m)
    cls = m.pop()
    items = tuple(m.keep(item) for item in m.pop_to_mark())
    m.call(cls, items)


def _obj(m: Machine) -> None:
    items = m.pop_to_mark()
    if not items:
        raise IndexError
    m.call(items[0], tuple(m.keep(item) for item in items[1:]))


def _new_object(m: Machine) -> None:
    args, cls = m.pop(), m.pop()
    m.create(cls, args)


def _new_object_keywords(m: Machine) -> None:
    m.keep(m.pop())
    args, cls = m.pop(), m.pop()
    m.create(cls, args)


def _extension(m: Machine, width: int) -> None:
    m.global_("copyreg", f"extension_registry_{m.number(width)}")


def _persistent_line(m: Machine) -> None:
    m.line()
    m.push(OPAQUE)


def _opaque_after(width: int) -> Any:
    def step(m: Machine) -> None:
        m.take(width)
        m.push(OPAQUE)

    return step


def _long(m: Machine, width: int) -> None:
    data = m.constant(m.number(width, signed=width == 4))
    m.push(OPAQUE if data is None or len(data) > 64 else int.from_bytes(data, "little", signed=True))


def _frame(m: Machine) -> None:
    m.take(8)


def _line_then(value: Any) -> Any:
    def step(m: Machine) -> None:
        m.push(value(m.line()))

    return step


# Steps return True to stop. Opcode names as in Lib/pickletools.py.
STEPS: Final[dict[bytes, Any]] = {
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
    b"\x96": lambda m: (m.constant(m.number(8)), m.push(OPAQUE))[1],
    b"X": lambda m: m.push(_text(m.constant(m.number(4)))),
    b"\x8c": lambda m: m.push(_text(m.constant(m.number(1)))),
    b"\x8d": lambda m: m.push(_text(m.constant(m.number(8)))),
    b"\x97": lambda m: m.push(OPAQUE),  # NEXT_BUFFER
    b"\x98": lambda m: None,  # READONLY_BUFFER
    b"N": lambda m: m.push(None),
    b"\x88": lambda m: m.push(True),
    b"\x89": lambda m: m.push(False),
    b"]": lambda m: m.push([]),
    b"a": lambda m: _append(m, [m.pop()]),
    b"e": lambda m: _append(m, m.pop_to_mark()),
    b"l": _list,
    b")": lambda m: m.push(()),
    b"t": _tuple_of_mark,
    b"\x85": lambda m: _tuple(m, 1),
    b"\x86": lambda m: _tuple(m, 2),
    b"\x87": lambda m: _tuple(m, 3),
    b"}": lambda m: m.push(OPAQUE),
    b"d": _opaque_of_mark,
    b"s": lambda m: _set_items(m, [m.pop(), m.pop()]),
    b"u": lambda m: _set_items(m, m.pop_to_mark()),
    b"\x8f": lambda m: m.push(OPAQUE),
    b"\x90": lambda m: _set_items(m, m.pop_to_mark()),
    b"\x91": _opaque_of_mark,
    b"0": lambda m: (m.pop(), None)[1],
    b"2": lambda m: m.push(m.stack[-1]),
    b"(": lambda m: m.push(MARK),
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
