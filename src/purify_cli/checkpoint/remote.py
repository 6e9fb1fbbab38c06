"""What the JSON files of a checkpoint make a loader run, fetch or trust. Nothing is followed.

Keys are looked at wherever they stand, and every one of a key that is given twice, since readers differ in which they
take. Sources: transformers `dynamic_module_utils` (auto_map, custom_pipelines, custom_generate, "repo--module.Class"),
`integrations/hub_kernels.py` (an attention implementation that is a repository), peft `auto.py` and
`tuners/lora/tp_layer.py` (modules imported by name), sentence-transformers `modules.json` and activation functions
(classes imported by name).
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final, Literal

from purify_cli.errors import CheckpointError

MAX_JSON_BYTES: Final = 32 << 20
_MAX_NODES: Final = 2_000_000

Kind = Literal["code", "elsewhere", "trust", "import"]

_REFERENCE = re.compile(r"(?:(?P<repository>[\w.\-]+(?:/[\w.\-]+)?)--)?(?P<module>[\w.\-]+)\.(?P<name>\w+)")
_ELSEWHERE = re.compile(r"[\w.\-]+/[\w.\-]+--[\w.\-]+")
# transformers.integrations.hub_kernels.is_kernel: org/name, with an optional revision and function
_KERNEL = re.compile(r"(?:\w+\|)?[^/:\s|]+/[^/:\s|]+(?:@[^/:\s]+)?(?::[^/:\s]+)?")
_ATTENTION_KEYS = {
    "attn_implementation",
    "_attn_implementation",
    "_attn_implementation_internal",
    "experts_implementation",
}
_ACTIVATION_KEYS = {"activation_fn", "sbert_ce_default_activation_function", "activation_function", "loss_fn"}
_OWN_KERNELS = ("kernels-community/", "kernels-staging/", "ggml-org/")


@dataclass(frozen=True)
class Reference:
    """One thing that a config asks of a loader.

    kind: code (a module of this folder, `module`, is run), elsewhere (code of another repository), trust (a switch that
    lets code run without asking), import (an installed module is imported by name; `dangerous` if it is one of Python's
    own).
    """

    kind: Kind
    key: str
    value: str
    module: str | None = None
    dangerous: bool = False


class Pairs(list[tuple[str, Any]]):
    """A JSON object as its pairs, in order, with no key dropped."""


def read_json(raw: bytes, name: str) -> Any:
    """Parse JSON with objects as `Pairs`.

    Raises:
        CheckpointError: too long, not UTF-8, or not JSON.
    """
    if len(raw) > MAX_JSON_BYTES:
        raise CheckpointError(name, f"is longer than {MAX_JSON_BYTES} bytes")
    try:
        return json.loads(raw.decode("utf-8-sig"), object_pairs_hook=Pairs)
    except UnicodeDecodeError as error:
        raise CheckpointError(name, f"is not UTF-8 at byte {error.start}") from error
    except json.JSONDecodeError as error:
        raise CheckpointError(name, f"is no JSON: {error.msg}", line=error.lineno) from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(name, f"is no JSON that can be read ({type(error).__name__})") from error


def entries(value: Any) -> Iterator[tuple[str, Any]]:
    """All keys with their values, at any depth; items of a list go by the key of the list."""
    waiting: list[tuple[str, Any]] = [("", value)]
    count = 0
    while waiting and count < _MAX_NODES:
        key, here = waiting.pop()
        count += 1
        if isinstance(here, Pairs):
            yield key, here
            waiting.extend(reversed(here))
        elif isinstance(here, list):
            waiting.extend((key, item) for item in reversed(here))
        else:
            yield key, here


def references(parsed: Any, relative: str) -> list[Reference]:
    """What the parsed JSON file at `relative` asks a loader to run, fetch or trust."""
    found: list[Reference] = []
    file_name = PurePosixPath(relative).name
    for key, value in entries(parsed):
        if isinstance(value, Pairs):
            if key in ("auto_map", "custom_pipelines"):
                found.extend(_mapped(key, value))
            continue
        found.extend(_scalar(key, value, file_name))
    if file_name == "modules.json" and isinstance(parsed, list):
        for item in parsed:
            if isinstance(item, Pairs):
                found.extend(_sentence_module(value) for key, value in item if key == "type" and isinstance(value, str))
    return list(dict.fromkeys(reference for reference in found if reference.value))


def _mapped(key: str, value: Pairs) -> Iterator[Reference]:
    for inner, item in entries(value):
        # custom_pipelines: {"name": {"impl": "module.Class", "pt": ["AutoModel..."], ...}}
        if isinstance(item, str) and (key == "auto_map" or inner == "impl"):
            yield _code(f"{key}.{inner}" if inner else key, item)


def _code(key: str, value: str) -> Reference:
    match = _REFERENCE.fullmatch(value)
    if match is None:
        return Reference("elsewhere" if "--" in value else "code", key, value)
    if match["repository"]:
        return Reference("elsewhere", key, value)
    return Reference("code", key, value, match["module"])


def _scalar(key: str, value: Any, file_name: str) -> Iterator[Reference]:
    if key == "trust_remote_code" and value not in (False, None, 0, "", "false", "False"):
        yield Reference("trust", key, str(value)[:200])
    elif key == "allow_all_kernels" and value is True:
        yield Reference("trust", key, "true")
    if not isinstance(value, str):
        return
    if key in ("auto_map", "custom_generate", "custom_pipeline"):
        yield _code(key, value)
    elif key in _ATTENTION_KEYS and _KERNEL.fullmatch(value) and not value.split("|")[-1].startswith(_OWN_KERNELS):
        yield Reference("elsewhere", key, value)
    elif (key in _ACTIVATION_KEYS and "." in value and not value.startswith("torch.nn.")) or (
        key == "parent_library" and value.split(".")[0] != "transformers"
    ):
        yield _imported(key, value)
    elif key == "parent_library" and not value.startswith("transformers."):
        if value != "transformers":
            yield _imported(key, value)
    elif key == "megatron_core" and value.split(".")[0] != "megatron":
        yield _imported(key, value)
    elif file_name.endswith("config.json") and _ELSEWHERE.fullmatch(value):
        yield Reference("elsewhere", key, value)


def _sentence_module(value: str) -> Reference:
    if value.startswith("sentence_transformers."):
        return Reference("import", "type", "")
    match = _REFERENCE.fullmatch(value)
    if match and match["repository"]:
        return Reference("elsewhere", "type", value)
    module = value.rpartition(".")[0]
    if _is_pythons_own(module):
        return Reference("import", "type", value, module, dangerous=True)
    return Reference("code", "type", value, module)


def _imported(key: str, value: str) -> Reference:
    module = value.rpartition(".")[0] or value
    return Reference("import", key, value, module, dangerous=_is_pythons_own(module))


def _is_pythons_own(module: str) -> bool:
    return module.split(".")[0] in sys.stdlib_module_names
