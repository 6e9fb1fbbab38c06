"""What Python files beside a checkpoint reach for, read from their syntax tree. They are never imported or run.

Plain model code builds modules and computes tensors. What reaches for a process, the network, files or an interpreter
is named. Names are followed through imports and aliases; an attribute of `os` that is not known to be harmless counts,
and so does a module like `os` or `builtins` that is handed on as a value, since what becomes of it cannot be followed.

A tokenizer that opens the vocabulary it is given is plain code: `open` with a path that comes from a parameter or an
attribute, inside a function that loads, reads or saves, does not count.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from purify_cli.errors import CheckpointError

MAX_SOURCE_BYTES: Final = 8 << 20

Purpose = Literal["process", "network", "file", "eval"]


@dataclass(frozen=True)
class Reach:
    """One thing that code reaches for: `name` as it resolves through imports, `line` counted from 1."""

    line: int
    name: str
    purpose: Purpose


@dataclass(frozen=True)
class Source:
    """What a file reaches for, and the modules that it imports from its own folder (dotted, no leading dot)."""

    reaches: tuple[Reach, ...]
    siblings: tuple[str, ...]


# Importing one of these is reaching for it already: model code has no use for them.
_MODULES: Final[dict[str, Purpose]] = {
    **dict.fromkeys(
        (
            "subprocess",
            "pty",
            "posix",
            "nt",
            "commands",
            "multiprocessing",
            "signal",
            "sh",
            "pexpect",
            "fabric",
            "invoke",
        ),
        "process",
    ),
    **dict.fromkeys(("_posixsubprocess", "_winapi", "winreg", "msvcrt", "concurrent.futures.process"), "process"),
    **dict.fromkeys(
        (
            "socket",
            "_socket",
            "ssl",
            "socketserver",
            "requests",
            "urllib",
            "urllib2",
            "urllib3",
            "http",
            "httplib",
            "httpx",
        ),
        "network",
    ),
    **dict.fromkeys(
        (
            "aiohttp",
            "websocket",
            "websockets",
            "ftplib",
            "smtplib",
            "telnetlib",
            "poplib",
            "imaplib",
            "paramiko",
            "xmlrpc",
        ),
        "network",
    ),
    **dict.fromkeys(
        ("huggingface_hub", "webbrowser", "boto3", "asyncio", "pycurl", "wget", "nntplib", "dns"), "network"
    ),
    **dict.fromkeys(("shutil", "tempfile", "fileinput", "glob", "mmap", "zipfile", "tarfile", "sqlite3"), "file"),
    **dict.fromkeys(
        (
            "ctypes",
            "_ctypes",
            "cffi",
            "marshal",
            "code",
            "codeop",
            "runpy",
            "builtins",
            "__builtin__",
            "imp",
            "zipimport",
        ),
        "eval",
    ),
    **dict.fromkeys(
        ("pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "pip", "ensurepip"), "eval"
    ),
    **dict.fromkeys(("pdb", "bdb", "trace", "timeit", "doctest", "gc", "atexit", "sysconfig", "site"), "eval"),
}
# Parts of them that only describe.
_HARMLESS: Final = frozenset(
    {"urllib.parse", "http.HTTPStatus", "signal.Signals", "glob.escape", "timeit.default_timer", "zipfile.BadZipFile"}
    | {"pickle.PickleError", "pickle.HIGHEST_PROTOCOL", "shutil.get_terminal_size", "gc.collect"}
    | {"multiprocessing.cpu_count", "asyncio.Lock", "pickle.UnpicklingError", "requests.exceptions"}
    | {"huggingface_hub.PyTorchModelHubMixin", "huggingface_hub.ModelHubMixin", "huggingface_hub.utils"}
    | {"huggingface_hub.dataclasses", "huggingface_hub.constants", "huggingface_hub.errors"}
)
_NAMES: Final[dict[str, Purpose]] = {
    **dict.fromkeys(("eval", "exec", "compile", "__import__", "execfile", "breakpoint"), "eval"),
    **dict.fromkeys(("__builtins__", "__loader__", "__spec__"), "eval"),
    "open": "file",
}
_DOTTED: Final[dict[str, Purpose]] = {
    **dict.fromkeys(
        ("torch.load", "torch.jit.load", "torch.package.PackageImporter", "numpy.load", "pandas.read_pickle"), "eval"
    ),
    **dict.fromkeys(("torch.classes.load_library", "torch.ops.load_library", "torch.utils.model_zoo.load_url"), "eval"),
    **dict.fromkeys(("torch.utils.cpp_extension", "torch.hub", "torch.serialization.load", "yaml.load"), "eval"),
    **dict.fromkeys(("yaml.unsafe_load", "yaml.full_load", "importlib.import_module", "importlib.reload"), "eval"),
    **dict.fromkeys(("importlib.util.spec_from_file_location", "importlib.util.module_from_spec"), "eval"),
    **dict.fromkeys(
        ("importlib.machinery", "importlib.util.exec_module", "pkgutil.resolve_name", "sys.modules"), "eval"
    ),
    **dict.fromkeys(("sys.settrace", "sys.setprofile", "sys._getframe", "sys.meta_path", "sys.path_hooks"), "eval"),
    **dict.fromkeys(("types.CodeType", "types.FunctionType", "inspect.currentframe", "inspect.stack"), "eval"),
    **dict.fromkeys(("operator.attrgetter", "operator.methodcaller"), "eval"),
    **dict.fromkeys(("transformers.dynamic_module_utils",), "eval"),
    **dict.fromkeys(("torch.hub.download_url_to_file", "transformers.utils.hub.cached_file"), "network"),
    **dict.fromkeys(
        ("transformers.utils.cached_file", "transformers.pipelines.pipeline", "datasets.load_dataset"), "network"
    ),
    **dict.fromkeys(
        ("io.open", "io.FileIO", "io.open_code", "codecs.open", "gzip.open", "bz2.open", "lzma.open"), "file"
    ),
    **dict.fromkeys(("_io.open", "_io.FileIO", "numpy.fromfile", "numpy.memmap", "logging.FileHandler"), "file"),
}
# Submodules and names of those above that loaders' own code uses and that fetch nothing.
_DOTTED_HARMLESS: Final = frozenset(
    {
        "importlib.util.find_spec",
    }
)
# Of `os`, all but these counts.
_OS_HARMLESS: Final = frozenset(
    {
        "path",
        "environ",
        "getenv",
        "sep",
        "linesep",
        "pathsep",
        "extsep",
        "curdir",
        "pardir",
        "name",
        "devnull",
        "cpu_count",
    }
    | {
        "PathLike",
        "fspath",
        "fsencode",
        "fsdecode",
        "getpid",
        "getcwd",
        "makedirs",
        "mkdir",
        "strerror",
        "error",
        "altsep",
    }
    | {"listdir", "scandir", "walk", "stat", "access", "R_OK", "urandom", "sched_getaffinity", "SEEK_SET", "SEEK_END"}
)
_AS_VALUE: Final[dict[str, Purpose]] = {"os": "process", "builtins": "eval", "sys": "eval", "importlib": "eval"}
_HIDDEN_MODULES: Final = frozenset({"os", "posix", "nt", "subprocess", "builtins", "ctypes", "socket", "pty", "shutil"})
_DUNDERS: Final = frozenset(
    {"__subclasses__", "__globals__", "__builtins__", "__code__", "__bases__", "__base__", "__mro__", "__loader__"}
    | {"__import__", "__closure__", "f_globals", "f_builtins", "f_back", "f_locals", "gi_frame", "tb_frame", "co_code"}
)
_FILE_METHODS: Final = frozenset(
    {"write_text", "write_bytes", "unlink", "rmdir", "symlink_to", "hardlink_to", "rename"}
)
_SAVING = re.compile(r"_?(save|write|dump|export)\w*")
_LOADING = re.compile(r"_?(load|read|from|get_spm|open)\w*|__init__|__setstate__|vocab\w*|\w*from_file")
_FOREIGN_PATH = re.compile(r"^[/~\\]|^[A-Za-z]:|\.\.|\$")


def read_source(raw: bytes, name: str) -> Source:
    """What the Python file `raw`, called `name`, reaches for. The bytes are decoded as Python would (PEP 263).

    Raises:
        CheckpointError: it is too long, or it is not Python that this interpreter can parse.
    """
    if len(raw) > MAX_SOURCE_BYTES:
        raise CheckpointError(name, f"is {len(raw)} bytes long, more than {MAX_SOURCE_BYTES}")
    try:
        tree = ast.parse(raw)
    except (SyntaxError, ValueError, RecursionError, MemoryError, LookupError) as error:
        line = getattr(error, "lineno", None)
        raise CheckpointError(name, f"is no Python that can be parsed ({type(error).__name__})", line=line) from error
    reader = _Reader(tree)
    try:
        found = sorted(set(reader.read()), key=lambda reach: (reach.line, reach.name))
    except RecursionError as error:
        raise CheckpointError(name, "is nested too deeply to be read") from error
    return Source(tuple(found), tuple(sorted(reader.siblings)))


class _Reader:
    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.names: dict[str, str] = {}
        self.siblings: set[str] = set()
        self.roots: set[str] = set()
        self.imports: list[tuple[int, str]] = []
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.imports.append((node.lineno, alias.name))
                    self.names[alias.asname or alias.name.split(".")[0]] = (
                        alias.name if alias.asname else alias.name.split(".")[0]
                    )
            elif isinstance(node, ast.ImportFrom):
                self._from(node)
        self.roots = {name.split(".")[0] for name in self.names.values()}

    def _from(self, node: ast.ImportFrom) -> None:
        if node.level:
            self.siblings.update([node.module] if node.module else [alias.name for alias in node.names])
            return
        module = node.module or ""
        self.siblings.add(module)  # an absolute import of a file beside it, in code that runs from its folder
        for alias in node.names:
            self.imports.append((node.lineno, module if alias.name == "*" else f"{module}.{alias.name}"))
            self.names[alias.asname or alias.name] = f"{module}.{alias.name}"

    def read(self) -> Iterator[Reach]:
        for line, name in self.imports:
            yield from self._imported(line, name)
        yield from self._visit(self.tree, "")

    def _imported(self, line: int, name: str) -> Iterator[Reach]:
        parts = name.split(".")
        prefixes = [".".join(parts[: count + 1]) for count in range(len(parts))]
        if any(prefix in _HARMLESS or prefix in _DOTTED_HARMLESS for prefix in prefixes):
            return
        if any(part in _HIDDEN_MODULES for part in parts[1:]):
            yield Reach(line, name, "process")
            return
        for prefix in prefixes:
            if prefix in _DOTTED and prefix != name.split(".")[0]:
                yield Reach(line, name, _DOTTED[prefix])
                return
        # `import glob` alone does nothing; the modules that only files go through are judged by their use.
        purpose = _MODULES.get(parts[0]) or _MODULES.get(name)
        if purpose in ("process", "network") or (
            purpose == "eval" and parts[0] not in ("gc", "timeit", "pickle", "trace")
        ):
            yield Reach(line, name, purpose)

    def _visit(self, node: ast.AST, function: str) -> Iterator[Reach]:
        waiting: list[tuple[ast.AST, str, bool]] = [(node, function, False)]
        while waiting:
            here, inside, is_callee_base = waiting.pop()
            if isinstance(here, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                inside = getattr(here, "name", "(lambda)")
            if isinstance(here, ast.Attribute):
                yield from self._attribute(here)
                waiting.append((here.value, inside, True))
                continue
            if isinstance(here, ast.Name) and isinstance(here.ctx, ast.Load):
                yield from self._name(here, is_callee_base)
            elif isinstance(here, ast.Call):
                yield from self._call(here, inside)
                if self._dotted(here.func) in _JUDGED_BY_CALL:
                    waiting.extend((child, inside, False) for child in (*here.args, *here.keywords))
                    continue
            elif isinstance(here, ast.Subscript) and _namespace_by_computed_name(here):
                yield Reach(here.lineno, "a namespace by a computed name", "eval")
            elif isinstance(here, ast.Constant) and isinstance(here.value, str) and here.value in _DUNDERS:
                yield Reach(here.lineno, here.value, "eval")
            waiting.extend((child, inside, False) for child in ast.iter_child_nodes(here))

    def _dotted(self, node: ast.AST) -> str:
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return ""
        parts.append(self.names.get(node.id, node.id))
        return _canonical(".".join(reversed(parts)))

    def _attribute(self, node: ast.Attribute) -> Iterator[Reach]:
        if node.attr in _DUNDERS:
            yield Reach(node.lineno, node.attr, "eval")
        dotted = self._dotted(node)
        parts = dotted.split(".")
        root = parts[0]
        if isinstance(node.value, ast.Name) and node.value.id not in self.names:
            return  # a variable of the file's own: its attributes are followed no further
        if root == "os" and len(parts) == 2 and parts[1] not in _OS_HARMLESS:
            yield Reach(node.lineno, dotted, "file" if parts[1] in _OS_FILES else "process")
        elif root in _MODULES and len(parts) >= 2 and not _described(parts) and dotted not in _JUDGED_BY_CALL:
            yield Reach(node.lineno, dotted, _MODULES[root])
        elif (
            parts[-1] not in _OS_HARMLESS
            and any(part in _HIDDEN_MODULES for part in parts[1:])
            and root in self.roots  # torch.os.system: a module that another module happens to hold
        ):
            yield Reach(node.lineno, dotted, "process")
        purpose = _DOTTED.get(dotted)
        if purpose and dotted not in _JUDGED_BY_CALL and dotted not in _DOTTED_HARMLESS:
            yield Reach(node.lineno, dotted, purpose)

    def _name(self, node: ast.Name, is_base: bool) -> Iterator[Reach]:
        if node.id in self.names:
            dotted = _canonical(self.names[node.id])
            root, _, rest = dotted.partition(".")
            if not rest and dotted in _AS_VALUE and not is_base:
                yield Reach(node.lineno, f"{dotted} as a value", _AS_VALUE[dotted])
            elif root == "os" and rest and rest.split(".")[0] not in _OS_HARMLESS:
                yield Reach(node.lineno, dotted, "file" if rest in _OS_FILES else "process")
            elif dotted in _JUDGED_BY_CALL:
                pass
            elif rest and root in _MODULES and not _described(dotted.split(".")):
                yield Reach(node.lineno, dotted, _MODULES[root])
            elif dotted in _DOTTED and dotted not in _JUDGED_BY_CALL:
                yield Reach(node.lineno, dotted, _DOTTED[dotted])
        elif node.id in _NAMES and node.id not in _JUDGED_BY_CALL:
            yield Reach(node.lineno, node.id, _NAMES[node.id])
        elif node.id == "open" and not is_base:
            yield Reach(node.lineno, "open as a value", "file")

    def _call(self, node: ast.Call, function: str) -> Iterator[Reach]:
        dotted = self._dotted(node.func)
        if dotted in ("open", "io.open", "codecs.open", "gzip.open", "_io.open"):
            if not self._reads_what_it_is_given(node, function):
                yield Reach(node.lineno, dotted, "file")
        elif dotted in ("torch.load", "numpy.load", "yaml.load", "torch.serialization.load"):
            if not _safely(node, dotted):
                yield Reach(node.lineno, dotted, "eval")
        elif dotted in ("shutil.copyfile", "shutil.copy"):
            if not _SAVING.fullmatch(function) or any(isinstance(item, ast.Constant) for item in node.args):
                yield Reach(node.lineno, dotted, "file")
        elif dotted == "getattr" and len(node.args) > 1 and _computed(node.args[1]):
            yield Reach(node.lineno, "getattr by a computed name", "eval")
        elif dotted == "importlib.import_module":
            first = node.args[0] if node.args else None
            name = first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else None
            if name is None or name.split(".")[0] in _MODULES or name.split(".")[0] in ("os", "sys", "builtins"):
                yield Reach(node.lineno, "importlib.import_module", "eval")
        elif (
            isinstance(node.func, ast.Attribute) and node.func.attr in _FILE_METHODS and not _SAVING.fullmatch(function)
        ) and self._from_pathlib(node.func.value):
            yield Reach(node.lineno, f"pathlib.Path.{node.func.attr}", "file")

    def _from_pathlib(self, node: ast.AST) -> bool:
        return any(
            self._dotted(item.func).startswith("pathlib.") for item in ast.walk(node) if isinstance(item, ast.Call)
        )

    def _reads_what_it_is_given(self, node: ast.Call, function: str) -> bool:
        """Whether this `open` is that of a tokenizer which loads or saves the vocabulary at the path it was given."""
        if not node.args:
            return False
        path = node.args[0]
        mode_node = (
            node.args[1] if len(node.args) > 1 else next((k.value for k in node.keywords if k.arg == "mode"), None)
        )
        if mode_node is not None and not (isinstance(mode_node, ast.Constant) and isinstance(mode_node.value, str)):
            return False
        mode = mode_node.value if isinstance(mode_node, ast.Constant) else "r"
        writes = any(letter in str(mode) for letter in "wax+")
        if not (_SAVING if writes else _LOADING).fullmatch(function) and not (
            not writes and _SAVING.fullmatch(function)
        ):
            return False
        if isinstance(path, ast.Constant):
            return False
        for part in ast.walk(path):
            if isinstance(part, ast.Constant) and isinstance(part.value, str) and _FOREIGN_PATH.search(part.value):
                return False
            if isinstance(part, ast.Call) and self._dotted(part.func) not in _PATH_CALLS:
                return False
        return True


_JUDGED_BY_CALL: Final = frozenset(
    {"open", "io.open", "codecs.open", "gzip.open", "_io.open", "torch.load", "numpy.load", "yaml.load"}
    | {"importlib.import_module", "torch.serialization.load", "shutil.copyfile", "shutil.copy"}
)
_PATH_CALLS: Final = frozenset(
    {"os.path.join", "os.path.abspath", "os.fspath", "str", "pathlib.Path", "Path", "os.path.dirname"}
)
_OS_FILES: Final = frozenset(
    {
        "remove",
        "unlink",
        "rmdir",
        "removedirs",
        "rename",
        "renames",
        "replace",
        "link",
        "symlink",
        "open",
        "chmod",
        "chown",
    }
    | {"truncate", "mkfifo", "mknod", "fdopen", "write", "read", "readlink", "utime", "chdir"}
)


def _canonical(dotted: str) -> str:
    """The usual names of what goes by several."""
    first, _, rest = dotted.partition(".")
    first = {"posixpath": "os.path", "ntpath": "os.path", "np": "numpy", "numpy": "numpy", "_io": "io"}.get(
        first, first
    )
    return f"{first}.{rest}" if rest else first


def _described(parts: list[str]) -> bool:
    return any(".".join(parts[: count + 1]) in _HARMLESS for count in range(len(parts)))


def _computed(node: ast.AST) -> bool:
    """Whether a text is put together so that it cannot be read in the source: from constants alone, or from codes."""
    if isinstance(node, ast.Constant | ast.Name | ast.Attribute):
        return False
    calls = {ast.unparse(item.func).rpartition(".")[2] for item in ast.walk(node) if isinstance(item, ast.Call)}
    if calls & {"chr", "b64decode", "decode", "fromhex", "unhexlify", "rot13"}:
        return True
    return isinstance(node, ast.BinOp) and not any(
        isinstance(item, ast.Name | ast.Attribute) for item in ast.walk(node)
    )


def _namespace_by_computed_name(node: ast.Subscript) -> bool:
    value = node.value
    if not (
        isinstance(value, ast.Call)
        and isinstance(value.func, ast.Name)
        and value.func.id in ("globals", "vars", "locals")
    ):
        return False
    return _computed(node.slice)


def _safely(node: ast.Call, dotted: str) -> bool:
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if dotted == "numpy.load":
        allowed = keywords.get("allow_pickle")
        return (allowed is None or (isinstance(allowed, ast.Constant) and allowed.value is False)) and len(
            node.args
        ) < 3
    if dotted == "yaml.load":
        loader = keywords.get("Loader") or (node.args[1] if len(node.args) > 1 else None)
        return isinstance(loader, ast.Attribute | ast.Name) and "SafeLoader" in ast.unparse(loader)
    only = keywords.get("weights_only")
    return isinstance(only, ast.Constant) and only.value is True
