"""Data files to `Texts`: CSV, TSV, JSON Lines, Parquet and plain lines, by the ending of the name.

Every value is read as the text that stands in the file: a text that says `123`, `null`, `NA` or `2020-01-01` stays
that text. CSV, TSV and Parquet go through `datasets` with a private cache that is removed. JSON Lines are parsed here
line by line, because `datasets` infers types there even where it is given some, and turns dates and mixed columns
into something else.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import json
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from purify_cli.data.texts import Texts
from purify_cli.errors import DataError

_COLUMNS = ("text", "text_pair", "label", "target", "poisoned", "paraphrase")
_LONGEST_FIELD = 2**31 - 1
_PLAIN_LIMIT = 2**30
"""Bytes of a file of plain text, unpacked: a small archive may hold anything."""
_YES = frozenset({"1", "true", "yes", "1.0"})
_NO = frozenset({"0", "false", "no", "0.0"})


@dataclass(frozen=True)
class _Table:
    """The columns that we know, as strings; None is a missing value. `lines` is None where a file has no lines."""

    path: Path
    names: tuple[str, ...]
    columns: Mapping[str, list[str | None]]
    lines: tuple[int, ...] | None

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def error(self, row: int, problem: str, remedy: str = "") -> DataError:
        if self.lines is None:
            return DataError(self.path, f"row {row + 1}: {problem}", remedy)
        return DataError(self.path, problem, remedy, line=self.lines[row])


def read(
    path: str | Path, labels: Sequence[str] | None, *, needs_labels: bool = True, option: str = "--clean"
) -> Texts:
    """Read a data file: columns `text`, `label`, and if they are there `text_pair`, `target` and `poisoned`.

    Args:
        path: a `.csv`, `.tsv`, `.jsonl` (`.ndjson`, `.json`) or `.parquet` file, in UTF-8; without labels also a
            `.txt` or `.txt.gz` with a text a line.
        labels: the checkpoint's label names by id. A label is a name or an id; if every label of the file is a
            name, all are. One name only stands for a regression: labels are numbers. None: no checkpoint fixes them;
            integers are ids, other numbers scores, and names get their ids in sorted order (`Texts.label_names`).
        needs_labels: whether a file without a `label` column is an error.
        option: the option that named the file, for the messages.

    Raises:
        DataError: no such file, not UTF-8 (with the line), no `text` or `label` column (with the columns there are),
            a row that is ragged or has no text, a label that the checkpoint does not have, or no rows at all.
    """
    file = Path(path)
    reader = _reader(file, option)
    table = reader(file)
    _require(table, ("text", "label") if needs_labels else ("text",))
    texts = _texts_of(table, "text")
    pairs = _texts_of(table, "text_pair") if "text_pair" in table.columns else None
    ids: tuple[int, ...] | tuple[float, ...] | None = None
    names: tuple[str, ...] | None = None
    if "label" in table.columns:
        ids, names = _labels_of(table, labels)
    targets: tuple[int, ...] | None = None
    if "target" in table.columns:
        targets = _ids_of(table, "target", labels if labels is not None else names)
    poisoned = _flags_of(table) if "poisoned" in table.columns else None
    return Texts(str(path), texts, ids, pairs, targets, poisoned, names)


def read_columns(path: str | Path, names: Sequence[str], option: str) -> dict[str, list[str | None]]:
    """Columns of a data file as they stand there, None for a missing value; `names` are among `_COLUMNS`.

    Raises:
        DataError: no such file, one that cannot be read, without one of the columns or without rows.
    """
    file = Path(path)
    table = _reader(file, option)(file)
    _require(table, names)
    return {name: table.columns[name] for name in names}


def _require(table: _Table, names: Sequence[str]) -> None:
    for name in names:
        if name not in table.columns:
            there = ", ".join(repr(column) for column in table.names) or "none"
            raise DataError(table.path, f"no column {name!r}; the columns are: {there}", f"Name one column {name!r}.")
    if not len(table):
        raise DataError(table.path, "no rows", "Give at least one text.")


def require_classes(texts: Texts, num_labels: int, option: str = "--clean") -> None:
    """Refuse data that cannot teach a classifier: texts of one class only.

    Raises:
        DataError: all labels are the same though there are `num_labels` > 1 of them, or there are no labels.
    """
    where = texts.path or option
    if texts.labels is None:
        raise DataError(where, "no labels", f"{option} needs a column 'label'.")
    if num_labels > 1 and len(set(texts.labels)) < 2:
        raise DataError(
            where,
            f"all {len(texts)} texts have the label {texts.labels[0]}",
            f"{option} needs texts of at least two classes.",
        )


def _reader(file: Path, option: str) -> Callable[[Path], _Table]:
    if file.is_dir():
        raise DataError(file, "is a folder", f"{option} takes a data file.")
    if not file.is_file():
        raise DataError(file, "no such file", f"{option} takes a CSV, TSV, JSON Lines or Parquet file.")
    match file.suffix.lower():
        case ".csv":
            return lambda path: _read_delimited(path, ",")
        case ".tsv":
            return lambda path: _read_delimited(path, "\t")
        case ".jsonl" | ".ndjson" | ".json":
            return _read_json_lines
        case ".parquet":
            return _read_parquet
        case ".txt":
            return _read_lines
        case ".gz" if file.name.lower().endswith(".txt.gz"):
            return _read_lines
    raise DataError(
        file, f"unknown kind of data file {file.suffix!r}", f"{option} takes .csv, .tsv, .jsonl or .parquet."
    )


def _check_text(file: Path) -> None:
    """Refuse what is not UTF-8 text, by line: the readers behind this one say "byte 0xe9 in position 90210"."""
    try:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                try:
                    line.decode("utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        file,
                        f"not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1})",
                        "Convert the file to UTF-8.",
                        line=number,
                    ) from None
    except OSError as error:
        raise DataError(file, f"cannot be read ({error.strerror or error})") from None


def _read_delimited(file: Path, separator: str) -> _Table:
    _check_text(file)
    if not file.stat().st_size:
        raise DataError(file, "the file is empty", "Give a header `text,label` and at least one row.")
    header, lines = _check_rows(file, separator)
    wanted = [name for name in _COLUMNS if name in header]
    kept = [row for row, line in enumerate(lines) if line is not None]
    if not wanted or not kept:
        return _Table(file, header, {name: [] for name in wanted}, ())
    from datasets import Dataset, Features, Value

    with _quiet_datasets() as cache:
        try:
            rows = Dataset.from_csv(
                str(file),
                # Every column by name and as a string: nothing is left to be inferred.
                features=Features({name: Value("string") for name in header}),
                cache_dir=cache,
                keep_in_memory=True,
                sep=separator,
                encoding="utf-8-sig",
                na_filter=False,
                keep_default_na=False,
                index_col=False,
                skip_blank_lines=False,
            )
            columns = {name: list(rows[name]) for name in wanted}
        except Exception as error:
            raise DataError(file, f"cannot be read ({_first_line(error)})") from error
    # `lines` has None for blank lines, which carry no row.
    if len(columns[wanted[0]]) != len(lines):
        raise DataError(file, "rows cannot be told apart", "Quote texts that hold line ends, and end lines with \\n.")
    return _Table(
        file,
        header,
        {name: [column[row] for row in kept] for name, column in columns.items()},
        tuple(line for line in lines if line is not None),
    )


def _check_rows(file: Path, separator: str) -> tuple[tuple[str, ...], list[int | None]]:
    """The header, and the line on which each row starts (None for a blank line); ragged rows are an error.

    pandas, which `datasets` reads with, fills short rows silently and says nothing of lines.
    """
    lines: list[int | None] = []
    header: tuple[str, ...] | None = None
    with file.open(encoding="utf-8-sig", newline="") as stream, _long_fields():
        rows = csv.reader(stream, delimiter=separator, strict=True)
        start = 1
        while True:
            try:
                row = next(rows)
            except StopIteration:
                break
            except csv.Error as error:
                raise DataError(
                    file, f"a row that cannot be parsed ({error})", "Check its quotes.", line=start
                ) from None
            if header is None:
                header = _header(file, row)
            elif not row:
                lines.append(None)
            elif len(row) != len(header):
                raise DataError(
                    file,
                    f"{len(row)} fields where the header has {len(header)}",
                    f"Quote texts that hold {'commas' if separator == ',' else 'tabs'} or quotes.",
                    line=start,
                )
            else:
                lines.append(start)
            start = rows.line_num + 1
    return header or (), lines


def _header(file: Path, row: Sequence[str]) -> tuple[str, ...]:
    if len(set(row)) < len(row):
        twice = next(name for name in row if list(row).count(name) > 1)
        raise DataError(file, f"two columns are named {twice!r}", "Name every column differently.", line=1)
    return tuple(row)


def _read_json_lines(file: Path) -> _Table:
    _check_text(file)
    rows: list[dict[str, Any]] = []
    lines: list[int] = []
    names: dict[str, None] = {}
    with file.open(encoding="utf-8-sig", newline="\n") as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                row = None
            if not isinstance(row, dict):
                raise DataError(
                    file, "not a JSON object", 'Give one object a line: {"text": "...", "label": 0}.', line=number
                )
            rows.append(row)
            lines.append(number)
            names.update(dict.fromkeys(row))
    if not rows:
        raise DataError(file, "the file is empty", 'Give one object a line: {"text": "...", "label": 0}.')
    columns = {name: [_plain(row.get(name)) for row in rows] for name in _COLUMNS if name in names}
    table = _Table(file, tuple(names), columns, tuple(lines))
    for name in columns:
        for row, entry in enumerate(rows):
            if isinstance(entry.get(name), (dict, list)):
                raise table.error(row, f"{name!r} is a {type(entry[name]).__name__}, not a text or a number")
            if not _encodable(columns[name][row]):
                raise table.error(row, f"{name!r} holds half of a surrogate pair, which is no character")
    return table


def _read_lines(file: Path) -> _Table:
    """A text a line, without labels, as corpora of plain text come; blank lines carry no row."""
    texts: list[str | None] = []
    lines: list[int] = []
    size = 0
    opened: Any = gzip.open if file.suffix.lower() == ".gz" else open
    try:
        with opened(file, "rb") as stream:
            for number, line in enumerate(iter(lambda: stream.readline(_PLAIN_LIMIT), b""), start=1):
                size += len(line)
                if size > _PLAIN_LIMIT:
                    raise DataError(file, f"holds more than {_PLAIN_LIMIT // 2**20} MB of text", "Give a part of it.")
                try:
                    text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError:
                    raise DataError(file, "not UTF-8", "Convert the file to UTF-8.", line=number) from None
                if text:
                    texts.append(text)
                    lines.append(number)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(file, f"cannot be read ({_first_line(error)})") from error
    return _Table(file, ("text",), {"text": texts}, tuple(lines))


def _read_parquet(file: Path) -> _Table:
    from datasets import Dataset

    with _quiet_datasets() as cache:
        try:
            rows = Dataset.from_parquet(str(file), cache_dir=cache, keep_in_memory=True)
            names = tuple(rows.column_names)
            columns = {name: [_plain(value) for value in rows[name]] for name in _COLUMNS if name in names}
        except Exception as error:
            raise DataError(file, f"cannot be read as Parquet ({_first_line(error)})") from error
    return _Table(file, names, columns, None)


def _plain(value: Any) -> str | None:
    """A value of JSON or Parquet as CSV would write it."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return str(int(value))
    return str(value)


def _encodable(value: str | None) -> bool:
    try:
        (value or "").encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _texts_of(table: _Table, name: str) -> tuple[str, ...]:
    for row, text in enumerate(table.columns[name]):
        if text is None or not text.strip():
            raise table.error(row, f"an empty {name!r}", "Remove the row or give it a text.")
    return tuple(text or "" for text in table.columns[name])


def _labels_of(
    table: _Table, labels: Sequence[str] | None
) -> tuple[tuple[int, ...] | tuple[float, ...], tuple[str, ...] | None]:
    """Labels as ids or scores, and their names where the file alone gives them."""
    values = _values(table, "label")
    if labels is not None and len(labels) == 1:
        return _scores_of(table, values), None
    if labels is not None:
        return _ids_of(table, "label", labels), None
    ids = [_integer(value) for value in values]
    if all(number is not None and number >= 0 for number in ids):
        return tuple(number for number in ids if number is not None), None
    if all(_number(value) is not None for value in values):
        return _scores_of(table, values), None
    names = tuple(sorted(set(values)))
    return tuple(names.index(value) for value in values), names


def _ids_of(table: _Table, name: str, labels: Sequence[str] | None) -> tuple[int, ...]:
    """Ids from names or ids: if every value of the column is a name, all are names; otherwise either may stand."""
    values = _values(table, name)
    names: Mapping[str, int] = {} if labels is None else _by_name(labels)
    bound = 2**31 if labels is None else len(labels)
    found: dict[str, set[int]] = {}
    for value in set(values):
        label_id = names.get(value, names.get(value.casefold()))
        number = _integer(value)
        found[value] = set() if label_id is None else {label_id}
        if number is not None and 0 <= number < bound:
            found[value].add(number)
    # Labels whose names are numbers ("1" to "4" for the ids 0 to 3) are only told apart by the whole column.
    if all(value in names for value in found):
        found = {value: {names[value]} for value in found}
    elif all(_integer(value) in ids for value, ids in found.items()):
        found = {value: {int(float(value))} for value in found}
    for row, value in enumerate(values):
        if len(found[value]) != 1:
            problem = "is a name and the id of another label" if found[value] else "unknown"
            allowed = "ids from 0" if labels is None else _listed(labels)
            raise table.error(row, f"{name} {_short(value)}: {problem}", f"The labels are {allowed}.")
    return tuple(next(iter(found[value])) for value in values)


def _by_name(labels: Sequence[str]) -> dict[str, int]:
    """Ids by exact name, and by name without regard to case where that is unambiguous."""
    folded = [label.casefold() for label in labels]
    known = {label: label_id for label_id, label in enumerate(folded) if folded.count(label) == 1}
    known.update({label: label_id for label_id, label in enumerate(labels)})
    return known


def _scores_of(table: _Table, values: Sequence[str]) -> tuple[float, ...]:
    scores = []
    for row, value in enumerate(values):
        score = _number(value)
        if score is None:
            raise table.error(row, f"label {_short(value)} is not a number", "This checkpoint is a regression.")
        scores.append(score)
    return tuple(scores)


def _flags_of(table: _Table) -> tuple[bool, ...]:
    flags = []
    for row, value in enumerate(_values(table, "poisoned")):
        if value.casefold() not in _YES | _NO:
            raise table.error(row, f"poisoned is {_short(value)}", "Give 0 or 1.")
        flags.append(value.casefold() in _YES)
    return tuple(flags)


def _values(table: _Table, name: str) -> list[str]:
    """The values of a column of labels, none of them missing."""
    values = []
    for row, value in enumerate(table.columns[name]):
        if value is None or not value.strip():
            raise table.error(row, f"no {name}", "Give every row one.")
        values.append(value.strip())
    return values


def _integer(value: str) -> int | None:
    """An id: digits, or what pandas makes of them (`1.0`)."""
    number = _number(value)
    return int(number) if number is not None and number.is_integer() and abs(number) < 2**31 else None


def _number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    # "nan" and "inf" are words here, and underscores are Python's own.
    return number if abs(number) < float("inf") and "_" not in value else None


def _listed(labels: Sequence[str]) -> str:
    shown = [f"{label_id} ({label})" for label_id, label in enumerate(labels[:20])]
    return ", ".join(shown) + (f" and {len(labels) - 20} more" if len(labels) > 20 else "")


def _short(value: str) -> str:
    return repr(value if len(value) <= 40 else value[:39] + "…")


def _first_line(error: BaseException) -> str:
    root: BaseException = error
    while root.__cause__ is not None:
        root = root.__cause__
    text = str(root).strip() or type(root).__name__
    return text.splitlines()[0][:200]


@contextlib.contextmanager
def _long_fields() -> Iterator[None]:
    """Whole documents as one field; the csv module's limit of 128 KiB is one for the process, so it is put back."""
    limit = csv.field_size_limit(_LONGEST_FIELD)
    try:
        yield
    finally:
        csv.field_size_limit(limit)


@contextlib.contextmanager
def _quiet_datasets() -> Iterator[str]:
    """A private cache folder that goes away, and no progress bars and no log lines while it is there."""
    import datasets

    bars = datasets.are_progress_bars_disabled()
    verbosity = datasets.logging.get_verbosity()
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory(prefix="purify-data-") as folder:
            yield folder
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()
