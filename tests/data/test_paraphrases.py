"""Files of paraphrases, and plain texts without labels."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from purify_cli.data.paraphrases import read_paraphrases, require_paraphrases
from purify_cli.data.read import read
from purify_cli.errors import DataError


def test_the_first_paraphrase_that_is_not_empty_counts(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text("text,paraphrase\na  b,\na b, one \na b,two\nc,\n", encoding="utf-8")
    assert read_paraphrases(file) == {"a b": "one", "c": ""}
    lines = tmp_path / "p.jsonl"
    lines.write_text('{"text": "a", "paraphrase": "b"}\n{"text": "c"}\n', encoding="utf-8")
    assert read_paraphrases(lines) == {"a": "b", "c": ""}


def test_a_file_without_the_column(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text("text,label\na,1\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"no column 'paraphrase'; the columns are: 'text', 'label'"):
        read_paraphrases(file)


def test_a_file_that_does_not_match_says_how_many() -> None:
    assert require_paraphrases({"a b": "x", "c": ""}, ("a  b", "c", "d"), "p.csv", "train.csv") == 1
    with pytest.raises(DataError, match=r"p\.csv: 0 of the 2 texts of train\.csv have a paraphrase"):
        require_paraphrases({"a b": "x", "c": ""}, ("c", "d"), "p.csv", "train.csv")


def test_plain_texts_a_line_each(tmp_path: Path) -> None:
    content = "\ufeffone text\n\n  two, with a comma  \n".encode()
    (tmp_path / "a.txt").write_bytes(content)
    with gzip.open(tmp_path / "a.txt.gz", "wb") as stream:
        stream.write(content)
    for name in ("a.txt", "a.txt.gz"):
        texts = read(tmp_path / name, None, needs_labels=False)
        assert texts.texts == ("one text", "two, with a comma")
        assert texts.labels is None
    with pytest.raises(DataError, match="no column 'label'"):
        read(tmp_path / "a.txt", None)


def test_plain_texts_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes(b"fine\ncaf\xe9\n")
    with pytest.raises(DataError, match=r"line 2: not UTF-8"):
        read(tmp_path / "latin.txt", None, needs_labels=False)
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"text\n" * 1000)[:-12])
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "cut.txt.gz", None, needs_labels=False)
    (tmp_path / "no.txt.gz").write_bytes(b"text\n")
    with pytest.raises(DataError, match="cannot be read"):
        read(tmp_path / "no.txt.gz", None, needs_labels=False)
    (tmp_path / "empty.txt").write_bytes(b"\n")
    with pytest.raises(DataError, match="no rows"):
        read(tmp_path / "empty.txt", None, needs_labels=False)
    (tmp_path / "x.csv.gz").write_bytes(b"")
    with pytest.raises(DataError, match="unknown kind"):
        read(tmp_path / "x.csv.gz", None, needs_labels=False)


def test_an_unpacked_giant_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("purify_cli.data.read._PLAIN_LIMIT", 1000)
    (tmp_path / "bomb.txt.gz").write_bytes(gzip.compress(b"a" * 100_000))
    with pytest.raises(DataError, match="holds more than"):
        read(tmp_path / "bomb.txt.gz", None, needs_labels=False)
