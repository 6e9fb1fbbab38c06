from __future__ import annotations

import json
from pathlib import Path

import pytest

from purify_cli.checkpoint.config import class_named, kind_of_class, label_names, read_object, transformer_folder
from purify_cli.errors import CheckpointError, UnsupportedError


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("BertForSequenceClassification", ("classifier", "classifier")),
        ("GPT2LMHeadModel", ("causal-lm", "causal-lm")),
        ("GPT2DoubleHeadsModel", ("other", "other")),
        ("RobertaForMaskedLM", ("encoder", "masked-lm")),
        ("RobertaModel", ("encoder", "encoder")),
        ("BertForQuestionAnswering", ("other", "other")),
    ],
)
def test_a_class_says_what_it_writes(name: str, expected: tuple[str, str]) -> None:
    assert kind_of_class(name) == expected


def test_the_class_of_a_config() -> None:
    where = Path("config.json")
    assert class_named({"architectures": ["BertModel", "Other"]}, where) == "BertModel"
    assert class_named({"architectures": []}, where) is None
    with pytest.raises(CheckpointError, match="not a list of names"):
        class_named({"architectures": "BertModel"}, where)


def test_labels_are_numbered_from_zero() -> None:
    where = Path("config.json")
    assert label_names({"id2label": {"1": "good", "0": "bad"}}, where) == ("bad", "good")
    assert label_names({}, where) == ()
    for broken in (["bad", "good"], {"x": "bad"}, {"1": "bad", "2": "good"}):
        with pytest.raises(CheckpointError, match="id2label"):
            label_names({"id2label": broken}, where)


@pytest.mark.parametrize("content", [b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError):
        read_object(tmp_path / "config.json")


def test_the_transformer_inside(tmp_path: Path) -> None:
    assert transformer_folder(tmp_path) == tmp_path

    def listed(kind: str, inside: str) -> Path:
        (tmp_path / "modules.json").write_text(json.dumps([{"type": kind, "path": inside}]))
        return transformer_folder(tmp_path)

    assert listed("sentence_transformers.models.Transformer", "0_Transformer") == tmp_path / "0_Transformer"
    with pytest.raises(UnsupportedError):
        listed("sentence_transformers.models.CLIPModel", "")
    with pytest.raises(CheckpointError):
        listed("sentence_transformers.models.Transformer", "../elsewhere")
