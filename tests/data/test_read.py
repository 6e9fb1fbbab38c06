from __future__ import annotations

import csv
import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from purify_cli.data.read import read, require_classes
from purify_cli.data.texts import Texts
from purify_cli.errors import DataError

LABELS = ("negative", "positive")
TRAPS = (
    "123",
    "null",
    "NA",
    "true",
    "2020-01-01",
    "1e5",
    "nan",
    " padded ",
    'a "quoted", text',
    "two\nlines",
    "#x",
    "a\0b",
)

# Characters of a text file: all but surrogates.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(
    lambda text: bool(text.strip())
)


def write_rows(path: Path, texts: list[str], labels: list[str]) -> Path:
    if path.suffix == ".jsonl":
        lines = [json.dumps({"text": t, "label": y}) for t, y in zip(texts, labels, strict=True)]
        path.write_text("\n".join(lines), "utf-8")
        return path
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, delimiter="\t" if path.suffix == ".tsv" else ",", quoting=csv.QUOTE_ALL)
        writer.writerow(["text", "label"])
        writer.writerows(zip(texts, labels, strict=True))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_texts_that_look_like_something_else_stay_texts(tmp_path: Path, suffix: str) -> None:
    path = write_rows(tmp_path / f"data{suffix}", list(TRAPS), ["1"] * len(TRAPS))
    assert read(path, LABELS).texts == TRAPS


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
@settings(max_examples=15, deadline=None)
@given(texts=st.lists(TEXT, min_size=1, max_size=4))
def test_any_text_comes_back(suffix: str, texts: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = write_rows(Path(folder) / f"data{suffix}", texts, ["0"] * len(texts))
        assert read(path, LABELS).texts == tuple(texts)


def test_parquet(tmp_path: Path) -> None:
    from datasets import ClassLabel, Dataset, Features, Value

    features = Features({"text": Value("string"), "label": ClassLabel(names=["neg", "pos"])})
    Dataset.from_dict({"text": ["null", "b"], "label": [1, 0]}, features=features).to_parquet(tmp_path / "d.parquet")
    assert read(tmp_path / "d.parquet", LABELS) == Texts(str(tmp_path / "d.parquet"), ("null", "b"), (1, 0))


def test_every_column(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("poisoned,text,extra,text_pair,target,label\n1,a,?,x,positive,0\nfalse,b,?,y,1,POSITIVE\n")
    assert read(path, LABELS) == Texts(str(path), ("a", "b"), (0, 1), ("x", "y"), (1, 1), (True, False))


def test_blank_lines_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_bytes("\ufefftext,label\r\n\r\na,0\r\n\r\nb,1\r\n\r\n".encode())
    assert read(path, LABELS).texts == ("a", "b")
    path = tmp_path / "d.jsonl"
    path.write_bytes('\ufeff\n{"text": "a", "label": 0}\n\n{"text": "b\u2028c", "label": "positive"}\n'.encode())
    assert read(path, LABELS).texts == ("a", "b\u2028c")
    assert read(path, LABELS).labels == (0, 1)


def test_a_long_document_is_one_field(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "d.csv", ["x " * 100_000], ["0"])
    assert len(read(path, LABELS).texts[0]) == 200_000


def test_labels_that_are_numbers_go_by_the_whole_column(tmp_path: Path) -> None:
    names = ("1", "2", "3", "4")
    assert read(write_rows(tmp_path / "n.csv", ["a", "b"], ["1", "4"]), names).labels == (0, 3)
    assert read(write_rows(tmp_path / "i.csv", ["a", "b"], ["0", "3"]), names).labels == (0, 3)
    with pytest.raises(DataError, match="id of another"):
        read(write_rows(tmp_path / "m.csv", ["a", "b", "c"], ["0", "1", "4"]), names)


def test_labels_that_no_checkpoint_fixes(tmp_path: Path) -> None:
    named = read(write_rows(tmp_path / "n.csv", ["a", "b", "c"], ["spam", "ham", "spam"]), None)
    assert (named.labels, named.label_names) == ((1, 0, 1), ("ham", "spam"))
    assert read(write_rows(tmp_path / "i.csv", ["a", "b"], ["2", "0"]), None).labels == (2, 0)
    assert read(write_rows(tmp_path / "f.csv", ["a", "b"], ["2.5", "0"]), None).labels == (2.5, 0.0)


def test_one_label_is_a_regression(tmp_path: Path) -> None:
    assert read(write_rows(tmp_path / "d.csv", ["a", "b"], ["2.5", "3"]), ("LABEL_0",)).labels == (2.5, 3.0)
    with pytest.raises(DataError, match="not a number") as caught:
        read(write_rows(tmp_path / "e.csv", ["a", "b"], ["2.5", "nan"]), ("LABEL_0",))
    assert caught.value.line == 3


def test_labels_may_be_missing_where_they_are_not_needed(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("text,n\na,1\n")
    assert read(path, LABELS, needs_labels=False).labels is None
    with pytest.raises(DataError, match="'text', 'n'"):
        read(path, LABELS)


REFUSALS = {
    "no text column": ("d.csv", b"sentence,label\na,0\n", "'sentence', 'label'", None),
    "unknown label": ("d.csv", b'text,label\n"a\nb",0\nc,neutral\n', "'neutral'", 4),
    "label out of range": ("d.csv", b"text,label\na,2\n", "'2'", 2),
    "negative label": ("d.csv", b"text,label\na,-1\n", "'-1'", 2),
    "no label": ("d.csv", b"text,label\na,\n", "no label", 2),
    "empty text": ("d.csv", b"text,label\na,0\n  ,1\n", "empty 'text'", 3),
    "empty file": ("d.csv", b"", "empty", None),
    "header only": ("d.csv", b"text,label\n", "no rows", None),
    "Latin-1": ("d.csv", b"text,label\na,0\ncaf\xe9,1\n", "not UTF-8", 3),
    "Latin-1 in JSON": ("d.jsonl", b'{"text": "a", "label": 0}\n{"text": "caf\xe9", "label": 0}\n', "not UTF-8", 2),
    "UTF-16": ("d.csv", "text,label\na,0\n".encode("utf-16"), "not UTF-8", 1),
    "short row": ("d.csv", b"text,label\na,0\nb\n", "1 fields", 3),
    "long row": ("d.csv", b"text,label\na,0\nb, or c,1\n", "3 fields", 3),
    "open quote": ("d.csv", b'text,label\na,0\n"b,1\n', "parsed", 3),
    "same column twice": ("d.csv", b"text,label,text\na,0,b\n", "'text'", 1),
    "broken JSON": ("d.jsonl", b'{"text": "a", "label": 0}\n{"text": "a"\n', "not a JSON object", 2),
    "JSON list": ("d.jsonl", b"[1, 2]\n", "not a JSON object", 1),
    "text that is a list": ("d.jsonl", b'{"text": ["a"], "label": 0}\n', "list", 1),
    "text that is null": ("d.jsonl", b'{"text": null, "label": 0}\n', "empty 'text'", 1),
    "half a character": ("d.jsonl", b'{"text": "\\ud800", "label": 0}\n', "surrogate", 1),
    "deep JSON": ("d.jsonl", b"[" * 100_000, "not a JSON object", 1),
    "no Parquet": ("d.parquet", b"PAR1 and then nothing", "Parquet", None),
    "unknown ending": ("d.xlsx", b"PK", "'.xlsx'", None),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_bad_files_are_refused_in_one_line(tmp_path: Path, case: str) -> None:
    name, content, says, line = REFUSALS[case]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        read(tmp_path / name, LABELS)
    assert caught.value.where == str(tmp_path / name)
    assert caught.value.line == line
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file") as caught:
        read(tmp_path / "none.csv", LABELS, option="--test")
    assert "--test" in caught.value.remedy
    with pytest.raises(DataError, match="folder"):
        read(tmp_path, LABELS)


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    path = write_rows(tmp_path / "d.csv", ["a"], ["0"])
    limit = csv.field_size_limit()
    read(path, LABELS)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["d.csv", "temporary"]
    assert csv.field_size_limit() == limit


def test_one_class_cannot_train_a_classifier() -> None:
    with pytest.raises(DataError, match="label 1"):
        require_classes(Texts("d.csv", ("a", "b"), (1, 1)), 2)
    with pytest.raises(DataError, match="no labels"):
        require_classes(Texts("d.csv", ("a", "b"), None), 2)
    require_classes(Texts("d.csv", ("a", "b"), (1, 0)), 2)
    require_classes(Texts("d.csv", ("a", "b"), (1.0, 1.0)), 1)
