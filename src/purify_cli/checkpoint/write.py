"""Making a checkpoint: a new folder, built beside its place and renamed when it is whole.

Nothing that exists is touched unless `force` says so, and then by renames: the old folder goes when the new one stands.
"""

from __future__ import annotations

import copy
import errno
import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from purify_cli.checkpoint.adapter import ADAPTER_CONFIG, LABELS_KEY, adapter_table
from purify_cli.checkpoint.inventory import inventory, sha256
from purify_cli.checkpoint.provenance import FILE_NAME, plain
from purify_cli.checkpoint.weights import ADAPTER_NAMES, tensor_table
from purify_cli.errors import OutputError, PurifyError
from purify_cli.results import FileDigest, Written

_TOKENIZER_FILES = frozenset(
    {
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.txt",
        "vocab.json",
        "merges.txt",
        "spm.model",
        "spiece.model",
        "tokenizer.model",
        "sentencepiece.bpe.model",
        "tekken.json",
        "chat_template.jinja",
        "chat_template.json",
    }
)
_VOCABULARY_FILES = _TOKENIZER_FILES - {
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
}
_OTHER_FILES = frozenset({"generation_config.json"})
_SIGNS = ("config.json", "adapter_config.json", FILE_NAME)
"""A folder with one of these is a checkpoint; `force` replaces nothing else, whatever the user's finger slipped on."""

_MARGIN = 2**20
"""Bytes asked of the disk beyond the weights, for everything else in the folder but the tokenizer."""


def check_output(out: Path, source: Path | None, force: bool = False) -> None:
    """Whether a checkpoint may be written to `out`: to be asked before long work, and asked again when writing.

    Raises:
        OutputError: it exists and `force` is not set, is no checkpoint that could be replaced, is or lies in the input,
            or its parent cannot be written.
    """
    out = Path(out).expanduser()
    if source is not None:
        there, here = source.resolve(), out.resolve()
        if here == there:
            raise OutputError(out, "is the input, which is never written to", "Choose another folder.")
        if there in here.parents:
            raise OutputError(out, "lies inside the input, which is never written to", "Choose another folder.")
        if here in there.parents:
            raise OutputError(out, "holds the input, which is never replaced", "Choose another folder.")
    if out.is_symlink():
        raise OutputError(out, "is a link", "Give the folder itself.")
    if out.exists():
        if not out.is_dir():
            raise OutputError(out, "exists and is not a folder", "Choose another folder.")
        if not force:
            raise OutputError(out, "exists", "Choose another folder, or replace it with --force.")
        if any(out.iterdir()) and not any((out / name).is_file() for name in _SIGNS):
            raise OutputError(out, "exists and is not a checkpoint, so --force does not replace it", "Remove it first.")
    parent = out.absolute().parent
    while not parent.exists() and parent != parent.parent:
        parent = parent.parent
    if not parent.is_dir():
        raise OutputError(out, f"{parent} is not a folder")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(out, f"{parent} may not be written to")


def write_checkpoint(
    out: Path,
    model: Any,
    tokenizer: Any,
    *,
    source: Path | None,
    provenance: Mapping[str, Any],
    card: str | None = None,
    metadata: Mapping[str, str] | None = None,
    own_tokenizer: bool = False,
    force: bool = False,
) -> Written:
    """Write a model as a new folder that plain transformers (or peft, for adapters that cannot be merged) loads.

    Args:
        out: the folder to make.
        model: a model of transformers or peft, on any device. It is not changed.
        tokenizer: written where `source` has no tokenizer files; None: none is written then.
        source: the checkpoint that the model was made from: its dtype, tokenizer and generation files are kept.
        provenance: goes to purify.json.
        card: the text of README.md; None: no card.
        metadata: goes to the header of the safetensors file.
        own_tokenizer: write `tokenizer`, and none of the files that `source` has.
        force: replace a checkpoint that is there.

    Raises:
        OutputError: as `check_output`, and for a disk that is full or fails. Nothing is left behind, and what was there
            still is.
    """
    out = Path(out).expanduser().absolute()
    check_output(out, source, force)
    inner = source
    if source is not None and not (source / "config.json").is_file() and (source / "0_Transformer").is_dir():
        inner = source / "0_Transformer"  # sentence-transformers keep the model there
    with _disk_errors(out), _new_folder(out) as building:
        _write_weights(building, model, inner, dict(metadata or {}))
        _copy_tokenizer(building, tokenizer, inner, own_tokenizer)
        text = json.dumps(plain(provenance), indent=2, ensure_ascii=False, allow_nan=False)
        (building / FILE_NAME).write_text(text + "\n", encoding="utf-8")
        if card is not None:
            (building / "README.md").write_text(card, encoding="utf-8")
        files = tuple(
            FileDigest(path=entry.relative, bytes=entry.bytes, sha256=sha256(entry.path))
            for entry in inventory(building)
        )
        _put_in_place(building, out, source, force)
    return Written(path=str(out), files=files)


@contextmanager
def _new_folder(out: Path) -> Iterator[Path]:
    """A private folder beside `out`; when anything fails it goes, and so do the parents that were made for it."""
    made = [parent for parent in (out.parent, *out.parent.parents) if not parent.exists()]
    building: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        building = Path(tempfile.mkdtemp(prefix=f".{out.name[:100]}.", suffix=".partial", dir=out.parent))
        yield building
    except BaseException:  # Ctrl-C as well: nothing half-written stays
        if building is not None:
            shutil.rmtree(building, ignore_errors=True)
        for parent in made:
            try:
                parent.rmdir()
            except OSError:
                break
        raise


def _put_in_place(building: Path, out: Path, source: Path | None, force: bool) -> None:
    mask = os.umask(0)
    os.umask(mask)
    building.chmod(0o777 & ~mask)
    for file in building.iterdir():
        file.chmod(0o666 & ~mask)
    check_output(out, source, force)  # somebody may have made it meanwhile
    if not out.exists():
        os.rename(building, out)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{out.name[:100]}.", suffix=".old", dir=out.parent))
    old = aside / "old"
    try:
        os.rename(out, old)
        try:
            os.rename(building, out)
        except BaseException:
            os.rename(old, out)
            raise
    finally:
        if not old.exists() or out.exists():
            shutil.rmtree(aside, ignore_errors=True)


def _write_weights(folder: Path, model: Any, source: Path | None, metadata: dict[str, str]) -> None:
    metadata = {"format": "pt"} | {str(key): str(value) for key, value in metadata.items()}
    if hasattr(model, "peft_config") or hasattr(model, "bottleneck_config"):
        _write_adapter(folder, model, source, metadata)
        return
    merged = source is not None and (source / ADAPTER_CONFIG).is_file()
    dtypes, usual = _dtypes(None if merged else source)
    state = _cast(_untied(model.state_dict()), dtypes, usual)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    floating = Counter(value.dtype for value in state.values() if value.is_floating_point())
    config.dtype = floating.most_common(1)[0][0] if floating else None
    config.save_pretrained(folder)
    _save(state, folder / "model.safetensors", metadata)


def _write_adapter(folder: Path, model: Any, source: Path | None, metadata: dict[str, str]) -> None:
    """An adapter's folder: its own tensors and its config, which names the base. PEFT's has PEFT's own two files."""
    if hasattr(model, "bottleneck_config"):
        state = model.bottleneck_config.tensors(model)
        config = model.bottleneck_config.describe(model)
    else:
        from peft import get_peft_model_state_dict

        # Told not to look for embeddings, for it would ask the network whether they have changed.
        state = get_peft_model_state_dict(model, save_embedding_layers=False)
        config = _peft_config(model)
        named = getattr(model.config, "id2label", None)
        if config.get("task_type") == "SEQ_CLS" and named:
            labels = {str(number): str(named[number]) for number in sorted(named)}
            metadata = metadata | {LABELS_KEY: json.dumps(labels, ensure_ascii=False)}
    dtypes, usual = _dtypes(source)
    adapted = source is not None and (source / ADAPTER_CONFIG).is_file()
    # Beside a base in half precision the adapter stays as it was trained: its first steps are smaller than that rounds.
    _save(_cast(_untied(state), dtypes, usual if adapted else None), folder / ADAPTER_NAMES[0], metadata)
    text = json.dumps(plain(config), indent=2, ensure_ascii=False, allow_nan=False, sort_keys="peft_type" in config)
    (folder / ADAPTER_CONFIG).write_text(text + "\n", encoding="utf-8")


def _peft_config(model: Any) -> dict[str, Any]:
    """What peft writes, with its sets in order and each name once, so that the same adapter gives the same bytes."""
    config: dict[str, Any] = model.peft_config["default"].to_dict()
    for key, value in config.items():
        if isinstance(value, set):
            config[key] = sorted(value)
    if config.get("modules_to_save"):
        config["modules_to_save"] = sorted(set(config["modules_to_save"]))
    config["inference_mode"] = True
    return config


def _cast(
    state: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype], usual: torch.dtype | None
) -> dict[str, Tensor]:
    """The tensors in the dtypes of the source, or in its usual one where it has none of that name."""
    return {
        name: value.to(dtypes.get(name) or usual or value.dtype) if value.is_floating_point() else value
        for name, value in state.items()
    }


def _save(state: Mapping[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
    tensors = {name: value.detach().to("cpu").contiguous() for name, value in state.items()}
    needed = sum(value.numel() * value.element_size() for value in tensors.values()) + _MARGIN
    # Asked first, because a writer that maps the file into memory dies of a full disk with no error to catch.
    if shutil.disk_usage(file.parent).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    save_file(tensors, file, metadata=metadata)
    _sort_metadata(file)


def _sort_metadata(file: Path) -> None:
    """Put the metadata of a file just written in order: the writer hashes it, so its order differs from run to run."""
    with file.open("r+b") as stream:
        size = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(size))
        if "__metadata__" in header:
            header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:  # escaped longer than the writer does: the tensors must stay where they are
            return
        stream.seek(8)
        stream.write(text.ljust(size))


def _untied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Each tensor once, under its first name: the base model's come first, and loading ties the others to it again."""
    kept: dict[str, Tensor] = {}
    seen: set[tuple[int, tuple[int, ...], tuple[int, ...]]] = set()
    for name, value in state.items():
        place = (value.data_ptr(), tuple(value.shape), tuple(value.stride()))
        if value.numel() and place in seen:
            continue
        seen.add(place)
        # A view of another tensor would drag its storage along.
        kept[name] = value
    return kept


def _dtypes(source: Path | None) -> tuple[dict[str, torch.dtype], torch.dtype | None]:
    """The dtype of each tensor of the source by name, and the one that most numbers have."""
    if source is None:
        return {}, None
    try:
        file = source / ADAPTER_CONFIG
        table = adapter_table(source, json.loads(file.read_bytes())) if file.is_file() else tensor_table(source)
    except (PurifyError, OSError, ValueError, AttributeError, RecursionError):
        return {}, None
    found: dict[str, torch.dtype] = {}
    weight: Counter[torch.dtype] = Counter()
    for name, reference in table.items():
        dtype = getattr(torch, reference.dtype, None)
        if isinstance(dtype, torch.dtype) and dtype in {torch.float64, torch.float32, torch.float16, torch.bfloat16}:
            found[name] = dtype
            weight[dtype] += reference.elements
    return found, weight.most_common(1)[0][0] if weight else None


def _copy_tokenizer(folder: Path, tokenizer: Any, source: Path | None, own: bool) -> None:
    there = {entry.relative: entry.path for entry in inventory(source)} if source is not None else {}
    copied = bool(there.keys() & _VOCABULARY_FILES) and not own
    wanted = _OTHER_FILES | (_TOKENIZER_FILES if copied else frozenset())
    for name in sorted(wanted & there.keys()):
        if name == "tokenizer_config.json":
            (folder / name).write_bytes(_without_remote_code(there[name].read_bytes()))
        else:
            shutil.copyfile(there[name], folder / name)
    if not copied and tokenizer is not None:
        tokenizer.save_pretrained(folder)


def _without_remote_code(content: bytes) -> bytes:
    """A tokenizer's config as it is, but for a pointer to code that does not come along."""
    try:
        settings = json.loads(content)
    except ValueError:
        return content
    if not isinstance(settings, dict) or "auto_map" not in settings:
        return content
    del settings["auto_map"]
    return (json.dumps(settings, indent=2, ensure_ascii=False) + "\n").encode()


@contextmanager
def _disk_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            raise OutputError(
                out, "the disk is full", "Nothing was written; make room or choose another disk."
            ) from error
        raise OutputError(out, f"cannot be written ({error.strerror or error})") from error
    except SafetensorError as error:
        if "os error 28" in str(error) or "No space left" in str(error):
            raise OutputError(
                out, "the disk is full", "Nothing was written; make room or choose another disk."
            ) from error
        raise OutputError(out, f"its weights cannot be written ({str(error)[:160]})") from error
