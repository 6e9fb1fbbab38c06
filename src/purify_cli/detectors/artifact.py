"""What a loader would run or follow: pickles, archives, remote code, templates, links, lying headers, broken weights.

Everything is told by content, never by name, and nothing of the checkpoint is executed: pickles are walked, Python is
parsed, templates are parsed, configs are read and not followed. Every file is looked at, and what is found before a
file breaks off stays found; a file that defeats its reader is evidence itself.

Levels. *error*: loading the file in the ordinary way runs, reads or writes what no weights need, or the file deceives
its readers. *warning*: code or an import that is there in the open and does nothing of the kind, or a file that is
broken. *note*: the rest worth knowing. What could not be looked at (pointers to files that were not downloaded, missing
shards, archives of a kind or depth that is not opened, code of other repositories) makes the check incomplete, so that
nobody takes it for a pass.

Costs one pass over the weights (for NaN and infinity) and no forward pass.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from purify_cli.checkpoint import archives, code, not_finite, pickles, remote, shards, templates
from purify_cli.checkpoint.header import looks_like_safetensors, read_header
from purify_cli.checkpoint.inventory import FileEntry, Listing, list_folder
from purify_cli.checkpoint.pickle_machine import Offence
from purify_cli.errors import CheckpointError, Incomplete
from purify_cli.results import Finding, Level, Where
from purify_cli.run import Run

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

SUMMARY = "pickles, remote code, templates, links and headers: what a loader would run or follow"
RULES = {
    "PA101": "a pickle runs or imports something known to be dangerous",
    "PA102": "a pickle imports something outside the lists of harmless globals",
    "PA103": "readers disagree about what an archive holds",
    "PA104": "a file breaks off, or defeats its reader",
    "PA105": "a config makes loaders run, fetch or trust code",
    "PA106": "Python or compiled code lies beside the weights",
    "PA107": "a chat template reaches outside its sandbox",
    "PA108": "a link, an archive's member or a shard index leads outside the folder",
    "PA109": "a safetensors header does not hold true for its file",
    "PA110": "weights are NaN or infinite",
    "PA111": "files are missing, empty or not downloaded",
    "PA112": "something was not looked into",
}
NEEDS = ("files",)
BUDGET = "fast"

_LFS = b"version https://git-lfs.github.com/spec/"
_WEIGHTS = re.compile(
    r"\.(safetensors|bin|pt|pth|ckpt|pkl|pickle|h5|msgpack|onnx|gguf|ggml|npz|npy|tflite|keras|nemo|joblib)$",
    re.IGNORECASE,
)
_SURELY_PICKLED = re.compile(r"(^|/)((pytorch|adapter)_model.*\.bin|.*\.(pt|pth|ckpt|pkl|pickle))$", re.IGNORECASE)
_NOT_WEIGHTS = re.compile(
    r"(^|/)(optimizer|scheduler|scaler|rng_state|random_states|training_args|trainer_state)", re.IGNORECASE
)
_COMPILED: Final[dict[bytes, str]] = {
    b"\x7fELF": "ELF",
    b"\xcf\xfa\xed\xfe": "Mach-O",
    b"\xce\xfa\xed\xfe": "Mach-O",
    b"\xca\xfe\xba\xbe": "Mach-O or Java",
}
_MAX_FINDINGS_PER_RULE_AND_FILE: Final = 50
_MAX_TORCH_BYTES_WITHOUT_MMAP: Final = 2 << 30


@dataclass(frozen=True)
class Settings:
    """What the scan may leave out."""

    numbers: bool = field(
        default=True,
        metadata={"help": "read all weights and look for NaN and infinity", "range": "true or false", "source": "ours"},
    )


@dataclass
class _Scan:
    """One run, and why it is not complete, if so."""

    settings: Settings
    only: Path | None
    incomplete: list[str] = field(default_factory=list)
    weights: int = 0
    sources: dict[str, code.Source | None] = field(default_factory=dict)
    run_modules: dict[str, str] = field(default_factory=dict)

    def miss(self, reason: str) -> None:
        if reason not in self.incomplete:
            self.incomplete.append(reason)


def detect(subject: Subject, evidence: Evidence, settings: Settings, run: Run) -> Iterator[Finding]:
    """Yield what loading the folder (or the one file that the user named) would run or follow.

    Raises:
        Incomplete: something could not be looked at; after all findings.
    """
    only = subject.weights_file
    listing = _listing(subject.path, only)
    scan = _Scan(settings, only)
    yield from _odd_entries(listing, scan)
    for number, entry in enumerate(listing.files):
        run.progress("files", number, len(listing.files))
        yield from _bounded(_guarded(entry, scan))
    run.progress("files", len(listing.files), len(listing.files))
    yield from _shipped_code(listing, scan)
    yield from _shard_indexes(listing, scan)
    if not scan.weights:
        scan.miss("no weights were found, so there is nothing to judge")
        yield _finding("PA111", "note", "the folder holds no weights" if listing.files else "the folder is empty", None)
    if scan.incomplete:
        more = f"; and {len(scan.incomplete) - 6} more" if len(scan.incomplete) > 6 else ""
        raise Incomplete("; ".join(scan.incomplete[:6]) + more)


def _listing(folder: Path, only: Path | None) -> Listing:
    if only is not None:
        return Listing((FileEntry(only, only.name, only.stat().st_size),), (), complete=True)
    return list_folder(folder)


def _finding(rule: str, level: Level, message: str, file: str | None, **evidence: Any) -> Finding:
    tensor = evidence.pop("tensor", None)
    return Finding(rule, level, "artifact", message, Where(file=file, tensor=tensor), evidence)


def _bounded(findings: Iterator[Finding]) -> Iterator[Finding]:
    """At most some findings a rule, with the number of those left out: a hostile file shall not drown the others."""
    counts: dict[tuple[str, Level], int] = {}
    file = None
    for finding in findings:
        file = finding.where.file
        key = (finding.rule, finding.level)
        counts[key] = counts.get(key, 0) + 1
        if counts[key] <= _MAX_FINDINGS_PER_RULE_AND_FILE:
            yield finding
    for (rule, level), count in counts.items():
        if count > _MAX_FINDINGS_PER_RULE_AND_FILE:
            left = count - _MAX_FINDINGS_PER_RULE_AND_FILE
            yield _finding(rule, level, f"and {left} more of these in this file", file, n=count)


# -- links and other odd things


def _odd_entries(listing: Listing, scan: _Scan) -> Iterator[Finding]:
    for odd in listing.odd:
        if odd.kind == "escapes":
            scan.miss(f"{odd.relative} leads outside the folder and was not followed")
            yield _finding("PA108", "error", "is a link that leads outside the folder", odd.relative, target=odd.target)
        elif odd.kind == "dangling":
            scan.miss(f"{odd.relative} is a link to nothing")
            yield _finding("PA111", "note", "is a link to nothing", odd.relative, target=odd.target)
        elif odd.kind == "special":
            yield _finding("PA104", "warning", "is no regular file and was not opened", odd.relative, target=odd.target)
        elif odd.kind == "unreadable":
            scan.miss(f"{odd.relative} cannot be read")
            yield _finding("PA112", "note", f"cannot be read: {odd.target}", odd.relative)
    if not listing.complete:
        scan.miss("the folder holds more files, or deeper folders, than are looked at")
        yield _finding(
            "PA112", "note", "holds more files, or deeper folders, than are looked at", None, n=len(listing.files)
        )


# -- one file


def _guarded(entry: FileEntry, scan: _Scan) -> Iterator[Finding]:
    """All findings of a file; a reader that it breaks is one of them."""
    try:
        yield from _file(entry, scan)
    except OSError as error:
        scan.miss(f"{entry.relative} cannot be read")
        yield _finding("PA112", "note", f"cannot be read: {error.strerror or error}", entry.relative)
    except (CheckpointError, MemoryError, RecursionError, ValueError, LookupError, TypeError, struct.error) as error:
        scan.miss(f"{entry.relative} defeats its reader")
        problem = error.problem if isinstance(error, CheckpointError) else f"{type(error).__name__}: {error}"
        yield _finding("PA104", "warning", f"defeats its reader ({problem[:300]})", entry.relative)


def _file(entry: FileEntry, scan: _Scan) -> Iterator[Finding]:
    relative = entry.relative
    name = PurePosixPath(relative).name
    with entry.path.open("rb") as file:
        head = file.read(64)
    if entry.bytes == 0:
        if _WEIGHTS.search(name):
            scan.miss(f"{relative} is empty")
            yield _finding("PA111", "note", "is empty", relative, bytes=0)
        return
    if head.startswith(_LFS) and entry.bytes < 4096:
        scan.miss(f"{relative} is a Git LFS pointer: the file itself was not downloaded")
        yield _finding(
            "PA111", "note", "is a Git LFS pointer: the file itself was not downloaded", relative, bytes=entry.bytes
        )
        return
    compiled = next((kind for magic, kind in _COMPILED.items() if head.startswith(magic)), None)
    if (
        compiled
        or (head.startswith(b"MZ") and name.lower().endswith((".dll", ".exe", ".pyd")))
        or name.endswith(".pyc")
    ):
        yield _finding(
            "PA106", "warning", f"is compiled code ({compiled or 'for Windows or Python'}), which is not read", relative
        )
    budget = archives.Budget()
    clean = True
    for finding in _contents(entry, budget, scan):
        clean = clean and finding.level == "note"
        yield finding
    is_safetensors = name.endswith(".safetensors") or looks_like_safetensors(head, entry.bytes)
    if is_safetensors:
        yield from _safetensors(entry, scan)
    elif head.startswith((b"GGUF",)):
        scan.weights += 1
        for key, text in templates.gguf_templates(entry.path).items():
            yield from _template(text, relative, key, scan)
    elif budget.formats or budget.pickles:
        scan.weights += 0 if _NOT_WEIGHTS.search(relative) or _is_data(name) else 1
        if clean and scan.settings.numbers and not _NOT_WEIGHTS.search(relative):
            yield from _torch_numbers(entry, budget)
    elif _WEIGHTS.search(name):
        if _SURELY_PICKLED.search(relative):
            scan.miss(f"{relative} is of no kind that is known")
            yield _finding("PA112", "note", "is neither a pickle nor an archive, though its name says so", relative)
        else:
            scan.weights += 1
    yield from _texts(entry, head, scan)


def _is_data(name: str) -> bool:
    return name.endswith((".json", ".txt", ".md", ".csv", ".parquet", ".jsonl", ".gz"))


def _contents(entry: FileEntry, budget: archives.Budget, scan: _Scan) -> Iterator[Finding]:
    relative = entry.relative
    seen: set[tuple[str, str, str]] = set()
    with entry.path.open("rb") as file:
        for item in archives.examine(file, budget):
            inside = {"member": item.member} if item.member else {}
            place = f"{item.member}: " if item.member else ""
            if item.offence is not None:
                key = (item.member, item.offence.dotted, item.problem)
                if key not in seen:
                    seen.add(key)
                    yield _import_finding(item, item.offence, relative, place, inside, "torchscript" in budget.formats)
            elif item.kind == "disagree":
                level: Level = "error" if item.strict else "warning"
                yield _finding("PA103", level, f"{place}{item.problem}", relative, **inside)
            elif item.kind == "escape":
                yield _finding("PA108", "error", f"{place}{item.problem}", relative, **inside)
            elif item.kind == "unread":
                scan.miss(f"{relative}: {place}{item.problem}")
                yield _finding("PA112", "warning", f"{place}{item.problem}", relative, **inside)
            else:
                scan.miss(f"{relative}: {place}{item.problem}")
                yield _finding("PA104", "warning", f"{place}{item.problem}", relative, **inside)


def _import_finding(
    item: archives.Observation,
    offence: Offence,
    relative: str,
    place: str,
    inside: Mapping[str, str],
    torchscript: bool,
) -> Finding:
    opinion = pickles.safety(offence.module, offence.name)
    dangerous = opinion == "dangerous"
    weak = offence.weak and (offence.module != "__torch__" or torchscript) and not dangerous
    message = f"{place}a pickle uses {offence.dotted}, which {item.problem}"
    if not dangerous and not weak:
        message += "; it is in none of the lists of harmless globals"
    return _finding(
        "PA101" if dangerous else "PA102",
        "warning" if weak else "error",
        message,
        relative,
        **{"global": offence.dotted, "offset": offence.offset, "use": item.problem, "picklescan": opinion, **inside},
    )


# -- numbers


def _safetensors(entry: FileEntry, scan: _Scan) -> Iterator[Finding]:
    scan.weights += 1
    try:
        header = read_header(entry.path)
    except CheckpointError as error:
        scan.miss(f"{entry.relative} could not be read as safetensors")
        yield _finding("PA109", "error", error.problem, entry.relative, bytes=entry.bytes)
        return
    if not header.tensors:
        scan.miss(f"{entry.relative} holds no tensors")
        yield _finding("PA111", "note", "holds no tensors", entry.relative)
    if scan.settings.numbers:
        for odd in not_finite.in_safetensors(entry.path, header):
            yield _odd_numbers(entry, odd)


def _torch_numbers(entry: FileEntry, budget: archives.Budget) -> Iterator[Finding]:
    """The same for what torch wrote; opened only after its pickles were found clean."""
    is_zip = "zip" in budget.formats and "pickle" in budget.formats and "torchscript" not in budget.formats
    if is_zip or ("torch legacy" in budget.formats and entry.bytes <= _MAX_TORCH_BYTES_WITHOUT_MMAP):
        for odd in not_finite.in_torch(entry.path, mmap=is_zip):
            yield _odd_numbers(entry, odd)


def _odd_numbers(entry: FileEntry, odd: not_finite.NotFinite) -> Finding:
    mask = odd.like_a_saved_mask
    return _finding(
        "PA110",
        "note" if mask else "error",
        f"{odd.total} of {odd.n} values are not finite" + (": it looks like a saved attention mask" if mask else ""),
        entry.relative,
        tensor=odd.tensor,
        nan=odd.nan,
        positive_infinity=odd.positive,
        negative_infinity=odd.negative,
        n=odd.n,
    )


# -- configs, templates, code


def _texts(entry: FileEntry, head: bytes, scan: _Scan) -> Iterator[Finding]:
    relative, name = entry.relative, PurePosixPath(entry.relative).name
    lower = name.lower()
    if lower.endswith(".jinja") or lower.endswith(".jinja2"):
        yield from _template(
            _read(entry.path, templates.MAX_TEMPLATE_BYTES + 1).decode("utf-8", "replace"), relative, None, scan
        )
    elif lower.endswith((".py", ".pyw")):
        yield from _python(entry, scan)
    elif lower.endswith(".json") and not lower.endswith((".index.json", "vocab.json")) and lower != "tokenizer.json":
        yield from _config(entry, scan)


def _read(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        return file.read(limit)


def _config(entry: FileEntry, scan: _Scan) -> Iterator[Finding]:
    relative = entry.relative
    raw = _read(entry.path, remote.MAX_JSON_BYTES + 1)
    try:
        parsed = remote.read_json(raw, relative)
    except CheckpointError as error:
        if len(raw) > remote.MAX_JSON_BYTES and not PurePosixPath(relative).name.endswith("config.json"):
            return  # data, no config
        scan.miss(f"{relative} {error.problem}")
        yield _finding("PA104", "warning", error.problem, relative)
        return
    for reference in remote.references(parsed, relative):
        yield from _reference(reference, relative, scan)
    for key, value in remote.entries(parsed):
        # A list of named templates goes by the key of the list; its items are objects with a "template".
        if isinstance(value, str) and key in ("chat_template", "template", "chat_templates"):
            yield from _template(value, relative, key, scan)
        elif isinstance(value, remote.Pairs) and key == "chat_template":
            for inner, text in remote.entries(value):
                if isinstance(text, str) and inner not in ("name", "template"):
                    yield from _template(text, relative, f"{key}.{inner}", scan)


def _reference(reference: remote.Reference, relative: str, scan: _Scan) -> Iterator[Finding]:
    evidence = {"key": reference.key, "value": reference.value[:300]}
    if reference.kind == "elsewhere":
        scan.miss(f"{relative} names code of another repository, which was not looked at")
        yield _finding("PA105", "warning", f"{reference.key} names code of another repository", relative, **evidence)
    elif reference.kind == "trust":
        yield _finding(
            "PA105", "warning", f"{reference.key} asks loaders to run code without asking", relative, **evidence
        )
    elif reference.kind == "import":
        level: Level = "error" if reference.dangerous else "warning"
        kind = "a module of Python itself" if reference.dangerous else "an installed module"
        yield _finding("PA105", level, f"{reference.key} makes a loader import {kind}", relative, **evidence)
    else:
        if reference.module is not None:
            folder = relative.rpartition("/")[0]
            scan.run_modules[_module_path(folder, reference.module)] = relative
            scan.run_modules.setdefault(_module_path("", reference.module), relative)
        yield _finding(
            "PA105", "warning", f"{reference.key} makes loaders run code of this folder", relative, **evidence
        )


def _module_path(folder: str, module: str) -> str:
    return f"{folder}/{module.replace('.', '/')}".lstrip("/")


def _template(text: str, relative: str, key: str | None, scan: _Scan) -> Iterator[Finding]:
    inside = {"key": key} if key else {}
    try:
        reaches = templates.reaches(text)
    except CheckpointError as error:
        for name in templates.suspicious_text(text):
            yield _finding(
                "PA107", "error", f"the template {error.problem}, and holds {name}", relative, name=name, **inside
            )
        scan.miss(f"{relative}: a chat template {error.problem}")
        yield _finding("PA104", "warning", f"the template {error.problem}", relative, **inside)
        return
    for reach in reaches:
        yield _finding(
            "PA107", "error", f"line {reach.line} of the template {reach.what}", relative, line=reach.line, **inside
        )


def _python(entry: FileEntry, scan: _Scan) -> Iterator[Finding]:
    relative = entry.relative
    try:
        source = code.read_source(_read(entry.path, code.MAX_SOURCE_BYTES + 1), relative)
    except CheckpointError as error:
        scan.sources[relative] = None
        scan.miss(f"{relative} {error.problem}")
        yield _finding("PA104", "warning", error.problem, relative)
        return
    scan.sources[relative] = source
    for reach in source.reaches:
        yield _finding(
            "PA106",
            "error",
            f"line {reach.line} reaches for {_PURPOSES[reach.purpose]}: {reach.name}",
            relative,
            line=reach.line,
            name=reach.name,
            purpose=reach.purpose,
        )


_PURPOSES: Final = {
    "process": "a process",
    "network": "the network",
    "file": "files",
    "eval": "an interpreter or a loader of code",
}


def _shipped_code(listing: Listing, scan: _Scan) -> Iterator[Finding]:
    """Plain code: a warning where a loader would run it, a note where it only lies there."""
    by_stem = {relative.rpartition(".")[0]: relative for relative in scan.sources}
    run: dict[str, str] = {}
    waiting = [(stem, why) for stem, why in scan.run_modules.items()]
    for relative in scan.sources:
        parts = PurePosixPath(relative).parts
        if "custom_generate" in parts[:-1]:
            waiting.append((relative.rpartition(".")[0], "custom_generate/"))
        elif relative == "handler.py":
            waiting.append(("handler", "handler.py is run by inference endpoints"))
    while waiting:
        stem, why = waiting.pop()
        found = by_stem.get(stem) or by_stem.get(f"{stem}/__init__")
        if found is None or found in run:
            continue
        run[found] = why
        source = scan.sources[found]
        folder = found.rpartition("/")[0]
        waiting.extend((_module_path(folder, sibling), why) for sibling in (source.siblings if source else ()))
    for relative, source in sorted(scan.sources.items()):
        if source is not None and not source.reaches:
            reached = relative in run
            message = (
                "is plain model code that a loader would run" if reached else "is plain code, which no config names"
            )
            named = {"named_by": run[relative]} if reached else {}
            yield _finding("PA106", "warning" if reached else "note", message, relative, **named)
    yield from _missing_code(scan, by_stem)


def _missing_code(scan: _Scan, by_stem: Mapping[str, str]) -> Iterator[Finding]:
    named: dict[str, set[str]] = {}
    for stem, config in scan.run_modules.items():
        named.setdefault(config, set()).add(PurePosixPath(stem).name)
    present = {PurePosixPath(stem).name for stem in by_stem} | {PurePosixPath(stem).parent.name for stem in by_stem}
    for config, modules in sorted(named.items()):
        for module in sorted(modules - present):
            yield _finding(
                "PA111", "note", f"names the module {module}, which the folder does not hold", config, module=module
            )


# -- shards


def _shard_indexes(listing: Listing, scan: _Scan) -> Iterator[Finding]:
    files = {entry.relative: entry for entry in listing.files}
    odd = {entry.relative for entry in listing.odd}
    for relative, entry in files.items():
        if relative.endswith(".index.json"):
            yield from _bounded(_shard_index(entry, files, odd, scan))
    for shard in shards.missing_by_number(files):
        if shard not in odd:
            scan.miss(f"the shard {shard} is missing")
            yield _finding("PA111", "note", f"the shard {shard} is missing", None, shard=shard)


def _shard_index(entry: FileEntry, files: Mapping[str, FileEntry], odd: set[str], scan: _Scan) -> Iterator[Finding]:
    relative = entry.relative
    try:
        names, texts_alone = shards.named(_read(entry.path, remote.MAX_JSON_BYTES + 1), relative)
    except (CheckpointError, OSError) as error:
        problem = error.problem if isinstance(error, CheckpointError) else "cannot be read"
        scan.miss(f"{relative} {problem}")
        yield _finding("PA104", "warning", problem, relative)
        return
    if not texts_alone:
        yield _finding("PA104", "warning", "names shards by something else than texts", relative)
    for name in names:
        if archives.leaves_folder(name):
            yield _finding(
                "PA108", "error", f"names the shard {name!r}, which lies outside the folder", relative, shard=name
            )
            continue
        path = str(PurePosixPath(relative.rpartition("/")[0]) / name)
        if path not in odd and path not in files:
            scan.miss(f"{relative} names the shard {name}, which is missing")
            yield _finding("PA111", "note", f"names the shard {name}, which is missing", relative, shard=name)
