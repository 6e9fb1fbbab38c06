"""Chat templates that reach outside the sandbox they are rendered in, told from their syntax tree. Nothing is rendered.

Transformers renders in jinja2's `ImmutableSandboxedEnvironment`, other runtimes in none. So what counts is what a
template *asks for*, whether or not the sandbox would refuse it: no honest template needs it. Attributes that begin with
an underscore, jinja's own unsafe attributes, the `attr` filter, names of dunders put together from pieces, and other
templates.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Literal

from jinja2 import Environment, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.visitor import NodeTransformer

from purify_cli.errors import CheckpointError

MAX_TEMPLATE_BYTES: Final = 1 << 20
MAX_GGUF_KEYS: Final = 100_000
MAX_GGUF_STRING_BYTES: Final = 16 << 20
_MAX_GGUF_ITEMS: Final = 10_000_000
_MAX_FOLDED: Final = 4096
_MAX_PASSES: Final = 4

# Names that lead from a value to the interpreter without beginning with an underscore (jinja2.sandbox.UNSAFE_*, and
# Python's frames), and those that format with an attacker's format string.
_UNSAFE_ATTRIBUTES = frozenset(
    {"mro", "gi_frame", "gi_code", "cr_frame", "cr_code", "ag_frame", "ag_code", "tb_frame", "tb_next", "f_globals"}
    | {"f_locals", "f_builtins", "f_back", "func_globals", "func_code", "im_func", "im_self", "format_map"}
)
_LOADING = (nodes.Import, nodes.FromImport, nodes.Include, nodes.Extends)
_ATTRIBUTE_FILTERS = {"map", "selectattr", "rejectattr", "groupby", "sort", "sum", "min", "max", "unique", "join"}
_DUNDER = re.compile(r"__[A-Za-z]\w*__")
# What templates print may look like a dunder ("__image__"); as constants on their own only these of Python's count.
_PYTHON_NAMES = frozenset(
    f"__{name}__"
    for name in (
        "class bases base mro subclasses globals builtins import init new dict call code closure func self module "
        "loader spec getattribute getattr getitem setattr reduce reduce_ex wrapped annotations kwdefaults defaults "
        "traceback enter exit"
    ).split()
)
_FIELD_OF_DUNDER = re.compile(r"\{[^{}]*[.\[]_[^{}]*\}")


@dataclass(frozen=True)
class Reach:
    """One place where a template reaches outside. `line` counts from 1; `what` is a clause with the offending name."""

    line: int
    what: str


class _Generation(Extension):
    """The `generation` block that transformers adds: read, and what it holds looked at like everything else."""

    tags = {"generation"}  # noqa: RUF012  jinja2 wants a plain set here

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


_ENVIRONMENT = Environment(
    extensions=[_Generation, "jinja2.ext.loopcontrols", "jinja2.ext.do"], trim_blocks=True, lstrip_blocks=True
)


def reaches(source: str) -> list[Reach]:
    """Where `source` reaches outside the sandbox; empty for an honest template.

    Raises:
        CheckpointError: the template is too long or is not jinja. What can be seen without a tree is then in
            `suspicious_text`.
    """
    if len(source) > MAX_TEMPLATE_BYTES:
        raise CheckpointError("template", f"is {len(source)} characters long, more than {MAX_TEMPLATE_BYTES}")
    try:
        tree = _ENVIRONMENT.parse(source)
        for _ in range(_MAX_PASSES):
            names = _constant_names(tree)
            if not names:
                break
            tree = _Inline(names).visit(tree)
        found = sorted(set(_walk(tree)), key=lambda reach: (reach.line, reach.what))
    except TemplateError as error:
        raise CheckpointError("template", f"is not jinja: {error.message}") from error
    except (RecursionError, MemoryError, ValueError) as error:
        raise CheckpointError("template", f"is too deeply nested to be read ({type(error).__name__})") from error
    return found


class _Inline(NodeTransformer):
    """Puts constants in the place of the names that stand for them, so that pieces of a name meet."""

    def __init__(self, names: dict[str, str]) -> None:
        self.names = names

    def visit_Name(self, node: nodes.Name) -> nodes.Node:
        if node.ctx == "load" and node.name in self.names:
            return nodes.Const(self.names[node.name], lineno=node.lineno)
        return node


def _constant_names(tree: nodes.Node) -> dict[str, str]:
    """Names that are set once, to a constant text, and read somewhere."""
    values: dict[str, list[str | None]] = {}
    for assignment in tree.find_all(nodes.Assign):
        if isinstance(assignment.target, nodes.Name):
            values.setdefault(assignment.target.name, []).append(_fold(assignment.node))
    read = {name.name for name in tree.find_all(nodes.Name) if name.ctx == "load"}
    return {
        name: texts[0] for name, texts in values.items() if name in read and len(texts) == 1 and texts[0] is not None
    }


def suspicious_text(source: str) -> list[str]:
    """Dunder names anywhere in a template that could not be parsed."""
    return sorted(set(re.findall(r"__[a-z]+__", source[:MAX_TEMPLATE_BYTES])))


def _walk(tree: nodes.Node) -> Iterator[Reach]:
    waiting: list[nodes.Node] = [tree]
    while waiting:
        node = waiting.pop()
        waiting.extend(node.iter_child_nodes())
        yield from (Reach(getattr(node, "lineno", 1) or 1, what) for what in _judge(node))


def _judge(node: nodes.Node) -> Iterator[str]:
    if isinstance(node, _LOADING):
        yield f"loads another template ({type(node).__name__.lower()})"
    elif isinstance(node, nodes.Getattr):
        if node.attr.startswith("_") or node.attr in _UNSAFE_ATTRIBUTES:
            yield f"asks for the attribute {node.attr!r}"
        if node.attr in ("format", "format_map") and (text := _fold(node.node)) and _FIELD_OF_DUNDER.search(text):
            yield f"formats with {text[:80]!r}, which asks for an attribute"
    elif isinstance(node, nodes.Getitem):
        key = _fold(node.arg)
        if key is not None and (key.startswith("__") or key in _UNSAFE_ATTRIBUTES):
            yield f"asks for the item {key!r}"
        elif key is None and any("__" in text for text in _texts_in(node.arg)):
            yield "asks for an item whose name is put together around '__'"
    elif isinstance(node, nodes.Filter):
        yield from _judge_filter(node)
    elif isinstance(node, nodes.Name):
        if _DUNDER.fullmatch(node.name):
            yield f"uses the name {node.name!r}"
    elif isinstance(node, nodes.Const):
        # A dunder name kept in a variable comes back as a subscript that cannot be followed.
        if isinstance(node.value, str) and node.value in _PYTHON_NAMES:
            yield f"holds the name {node.value!r}"
    elif isinstance(node, nodes.Concat | nodes.Add | nodes.Mul | nodes.Mod | nodes.Call):
        text = _fold(node)
        if text is not None and text in _PYTHON_NAMES:
            yield f"holds the name {text!r}, put together from pieces"


def _texts_in(node: nodes.Node) -> list[str]:
    return [item.value for item in node.find_all(nodes.Const) if isinstance(item.value, str)]


def _judge_filter(node: nodes.Filter) -> Iterator[str]:
    if node.name == "attr":
        yield "uses the filter 'attr', which reads any attribute"
    elif node.name in _ATTRIBUTE_FILTERS:
        for argument in [*node.args, *(pair.value for pair in node.kwargs)]:
            text = _fold(argument)
            if text is not None and any(part.startswith("_") or part in _UNSAFE_ATTRIBUTES for part in text.split(".")):
                yield f"asks for the attribute {text!r} through the filter {node.name!r}"
            if node.name == "map" and text == "attr":
                yield "uses the filter 'attr', which reads any attribute"
    if node.node is not None:
        text = _fold(node)
        if text is not None and text in _PYTHON_NAMES:
            yield f"holds the name {text!r}, put together from pieces"


def _fold(node: nodes.Node | None, depth: int = 0) -> str | None:
    """The text that a constant expression gives, without running any of jinja; None for what is not constant."""
    if node is None or depth > 40:
        return None
    if isinstance(node, nodes.Const):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, nodes.TemplateData):
        return node.data
    if isinstance(node, nodes.Concat):
        return _joined([_piece(item, depth) for item in node.nodes], "")
    if isinstance(node, nodes.Add):
        return _joined([_fold(node.left, depth + 1), _fold(node.right, depth + 1)], "")
    if isinstance(node, nodes.Mul):
        return _repeated(node, depth)
    if isinstance(node, nodes.Mod):
        values = node.right.items if isinstance(node.right, nodes.Tuple) else [node.right]
        return _percent(_fold(node.left, depth + 1), values, depth)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _sliced(_fold(node.node, depth + 1), node.arg)
    if isinstance(node, nodes.Filter):
        return _filtered(node, depth)
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Getattr):
        return _method(node.node, node.args, depth)
    return None


def _piece(node: nodes.Node, depth: int) -> str | None:
    if isinstance(node, nodes.Const) and isinstance(node.value, int | float):
        return str(node.value)
    return _fold(node, depth + 1)


def _joined(pieces: list[str | None], separator: str) -> str | None:
    texts = [piece for piece in pieces if piece is not None]
    if len(texts) < len(pieces) or sum(map(len, texts)) > _MAX_FOLDED:
        return None
    return separator.join(texts)


def _repeated(node: nodes.Mul, depth: int) -> str | None:
    for text_node, count_node in ((node.left, node.right), (node.right, node.left)):
        text = _fold(text_node, depth + 1)
        if text is not None and isinstance(count_node, nodes.Const) and isinstance(count_node.value, int):
            return text * count_node.value if len(text) * max(0, count_node.value) <= _MAX_FOLDED else None
    return None


def _constants(items: list[Any], depth: int) -> list[Any] | None:
    values = [item.value if isinstance(item, nodes.Const) else _fold(item, depth + 1) for item in items]
    return None if any(value is None for value in values) else values


def _percent(text: str | None, items: list[Any], depth: int) -> str | None:
    values = _constants(items, depth)
    # Widths would make a short format a long text; only the plain conversions are folded.
    if text is None or values is None or re.search(r"%[^%sdcr]", text):
        return None
    try:
        return (text % tuple(values))[:_MAX_FOLDED]
    except (TypeError, ValueError, OverflowError):
        return None


def _sliced(text: str | None, part: nodes.Slice) -> str | None:
    bounds: list[int | None] = []
    for bound in (part.start, part.stop, part.step):
        if isinstance(bound, nodes.Neg) and isinstance(bound.node, nodes.Const) and isinstance(bound.node.value, int):
            bounds.append(-bound.node.value)
        elif bound is None or (isinstance(bound, nodes.Const) and isinstance(bound.value, int)):
            bounds.append(None if bound is None else bound.value)
        else:
            return None
    return None if text is None or bounds[2] == 0 else text[slice(*bounds)]


def _filtered(node: nodes.Filter, depth: int) -> str | None:
    if node.name == "join" and isinstance(node.node, nodes.List | nodes.Tuple):
        separator = _fold(node.args[0], depth + 1) if node.args else ""
        return None if separator is None else _joined([_piece(item, depth) for item in node.node.items], separator)
    text = _fold(node.node, depth + 1)
    if text is None:
        return None
    if node.name == "replace":
        return _replaced(text, node.args, depth)
    if node.name == "format":
        return _percent(text, node.args, depth)
    plain = {
        "reverse": text[::-1],
        "lower": text.lower(),
        "upper": text.upper(),
        "trim": text.strip(),
        "title": text.title(),
    }
    return plain.get(node.name, text if node.name in ("string", "safe", "escape", "e") else None)


def _replaced(text: str, items: list[Any], depth: int) -> str | None:
    values = _constants(items, depth)
    if not values or len(values) < 2 or not all(isinstance(value, str) for value in values[:2]):
        return None
    result = text.replace(values[0], values[1]) if len(text) * (len(values[1]) + 1) <= 1 << 20 else None
    return result if result is None or len(result) <= _MAX_FOLDED else None


def _method(callee: nodes.Getattr, items: list[Any], depth: int) -> str | None:
    if callee.attr == "join" and len(items) == 1 and isinstance(items[0], nodes.List | nodes.Tuple):
        separator = _fold(callee.node, depth + 1)
        return None if separator is None else _joined([_piece(item, depth) for item in items[0].items], separator)
    text = _fold(callee.node, depth + 1)
    if text is None:
        return None
    if callee.attr in ("lower", "upper", "strip", "title") and not items:
        return str(getattr(text, callee.attr)())
    if callee.attr == "replace":
        return _replaced(text, items, depth)
    if callee.attr == "format":
        values = _constants(items, depth)
        plain = all(name in (None, "") or name.isdigit() for _, name, spec, _ in _fields(text) if not spec)
        if values is None or not plain or any(spec for _, _, spec, _ in _fields(text)):
            return None
        try:
            return text.format(*map(str, values))[:_MAX_FOLDED]
        except (IndexError, ValueError, KeyError):
            return None
    return None


def _fields(text: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(string.Formatter().parse(text))
    except ValueError:
        return [("", "?", "?", None)]


# -- GGUF


_GGUF_SIZES: Final = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_GGUF_STRING, _GGUF_ARRAY = 8, 9


def gguf_templates(path: Path) -> dict[str, str]:
    """The chat templates in a GGUF file's metadata: key (`tokenizer.chat_template`, `tokenizer.chat_template.NAME`) ->
    text.

    Reads only the metadata (GGUF versions 1 to 3, either byte order); every count is bounded before it is used.

    Raises:
        CheckpointError: the metadata is cut off, or counts more than the file could hold.
    """
    found: dict[str, str] = {}
    with path.open("rb") as file:
        reader = _Gguf(path, file)
        for _ in range(reader.keys):
            key = reader.text(65_535).decode("utf-8", "replace")
            kind = reader.integer(4)
            if kind == _GGUF_STRING and key.startswith("tokenizer.chat_template"):
                text = reader.text(MAX_GGUF_STRING_BYTES).decode("utf-8", "replace")
                # A key given twice: which of them is used is the loader's choice, so both are looked at.
                found[key if key not in found else f"{key} (again, {len(found)})"] = text
            else:
                reader.skip_value(kind)
    return found


class _Gguf:
    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.file = path, file
        self.order: Literal["little", "big"] = "little"
        self.size = path.stat().st_size
        self.items = 0
        if file.read(4) != b"GGUF":
            raise CheckpointError(path, "does not begin with GGUF")
        version = file.read(4)
        if version[:2] == b"\0\0":
            self.order = "big"
        self.version = int.from_bytes(version, self.order)
        if not 1 <= self.version <= 3:
            raise CheckpointError(path, f"is GGUF of the unknown version {self.version}")
        self.width = 4 if self.version == 1 else 8
        self.integer(self.width)  # tensors
        self.keys = self.integer(self.width)
        if self.keys > MAX_GGUF_KEYS:
            raise CheckpointError(path, f"claims {self.keys} metadata keys, more than {MAX_GGUF_KEYS}")

    def integer(self, width: int) -> int:
        data = self.file.read(width)
        if len(data) < width:
            raise CheckpointError(self.path, "ends inside its metadata")
        return int.from_bytes(data, self.order)

    def text(self, limit: int) -> bytes:
        length = self.integer(self.width)
        if length > limit or length > self.size - self.file.tell():
            raise CheckpointError(self.path, f"claims a text of {length} bytes in its metadata")
        return self.file.read(length)

    def skip(self, count: int) -> None:
        if count > self.size - self.file.tell():
            raise CheckpointError(self.path, "ends inside its metadata")
        self.file.seek(count, 1)

    def skip_value(self, kind: int, depth: int = 0) -> None:
        if kind in _GGUF_SIZES:
            self.skip(_GGUF_SIZES[kind])
        elif kind == _GGUF_STRING:
            self.skip(self.integer(self.width))
        elif kind == _GGUF_ARRAY and depth < 4:
            inner, count = self.integer(4), self.integer(self.width)
            if inner in _GGUF_SIZES:
                self.skip(_GGUF_SIZES[inner] * count)
                return
            self.items += count
            if self.items > _MAX_GGUF_ITEMS:
                raise CheckpointError(self.path, f"claims more than {_MAX_GGUF_ITEMS} items in its metadata")
            for _ in range(count):
                self.skip_value(inner, depth + 1)
        else:
            raise CheckpointError(self.path, f"has metadata of the unknown type {kind}")
