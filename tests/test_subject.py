from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
from transformers.utils import logging as transformers_logging

import tiny
from purify_cli.errors import CheckpointError, UnsupportedError, UsageError
from purify_cli.subject import Subject


def edit(folder: Path, name: str = "config.json", **changes: Any) -> Path:
    """Change keys of a JSON file; None takes a key out."""
    content = json.loads((folder / name).read_text()) | changes
    (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return folder


def edit_tensors(folder: Path, change: Any) -> Path:
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def batch_for(family: str) -> dict[str, torch.Tensor]:
    return dict(tiny.tokenizer(family)(["a good movie", "the plot was slow"], padding=True, return_tensors="pt"))


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_classifier_opens_as_plain_transformers_opens_it(family: str, tmp_path: Path) -> None:
    folder, batch = tiny.save(family, tmp_path / "c", num_labels=3), batch_for(family)
    subject = Subject(folder)
    assert (subject.kind, subject.task) == ("classifier", "classifier")
    assert subject.labels == ("negative", "positive", "neutral")
    assert subject.family.model_type == family
    model = subject.open()
    assert not model.training
    assert model is not subject.open()
    expected = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, expected(**batch).logits, atol=1e-5, rtol=1e-5)
    assert torch.equal(subject.embeddings(), expected.get_input_embeddings().weight)
    assert subject.vocabulary == len(expected.get_input_embeddings().weight) == len(subject.tokenizer)
    assert subject.parameters == sum(value.numel() for value in expected.parameters())
    assert subject.token_limit() == 64


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_encoders_get_a_classifier_and_classifiers_keep_theirs(family: str, tmp_path: Path) -> None:
    encoder = Subject(tiny.save(family, tmp_path / "e", task="encoder"))
    assert (encoder.kind, encoder.task, encoder.labels) == ("encoder", "encoder", ())
    first, again, other = encoder.open(num_labels=4), encoder.open(num_labels=4), encoder.open(num_labels=4, seed=1)
    state, repeated, different = first.state_dict(), again.state_dict(), other.state_dict()
    assert all(torch.equal(value, repeated[name]) for name, value in state.items())
    assert any(not torch.equal(value, different[name]) for name, value in state.items())
    assert first(**batch_for(family)).logits.shape == (2, 4)

    classifier = Subject(tiny.save(family, tmp_path / "c"))
    kept, replaced = classifier.open(num_labels=2, seed=7), classifier.open(num_labels=3)
    assert all(torch.equal(value, kept.state_dict()[name]) for name, value in classifier.open().state_dict().items())
    assert replaced(**batch_for(family)).logits.shape == (2, 3)
    assert classifier.labels == ("negative", "positive")


@pytest.mark.parametrize("family", sorted(tiny.DECODERS))
def test_language_models(family: str, tmp_path: Path) -> None:
    subject = Subject(tiny.save(family, tmp_path / "m", task="causal-lm", pad_token_id=None))
    assert (subject.kind, subject.task) == ("causal-lm", "causal-lm")
    assert subject.open()(**batch_for(family)).logits.shape[-1] == subject.vocabulary
    # Without a padding id a decoder could not tell where a text ends.
    assert subject.open(num_labels=2)(**batch_for(family)).logits.shape == (2, 2)


@pytest.mark.parametrize("family", sorted(tiny.DECODERS))
def test_a_decoder_s_padding_is_its_tokenizer_s(family: str, tmp_path: Path) -> None:
    """Whatever its config says: the summary token is looked for by the id that texts are padded with."""
    subject = Subject(tiny.save(family, tmp_path / "m", pad_token_id=7))
    model, words = subject.open(), subject.tokenizer
    assert words.pad_token_id != 7
    alone = model(**words(["a good movie"], return_tensors="pt")).logits
    padded = model(**words(["a good movie", "the plot was slow and long"], padding=True, return_tensors="pt")).logits
    torch.testing.assert_close(padded[:1], alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", sorted(set(tiny.FAMILIES) - tiny.DECODERS))
def test_masked_language_models_are_encoders(family: str, tmp_path: Path) -> None:
    subject = Subject(tiny.save(family, tmp_path / "m", task="masked-lm"))
    assert (subject.kind, subject.task) == ("encoder", "masked-lm")
    assert subject.open().state_dict()
    assert subject.open(num_labels=2)(**batch_for(family)).logits.shape == (2, 2)


def test_forward_passes_count_texts_of_the_kept_model_only(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "c"))
    batch = batch_for("bert")
    subject.open()(**batch)
    assert subject.forward_passes == 0
    model = subject.model()
    assert model is subject.model()
    model(**batch)
    model(batch["input_ids"][:1])
    model(inputs_embeds=torch.zeros(3, 4, 32))
    assert subject.forward_passes == 6


def test_labels_by_name_and_by_id(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "c", num_labels=3))
    assert [subject.label_id(name) for name in ("positive", "Positive", "1", "LABEL_1", " 2 ")] == [1, 1, 1, 1, 2]
    for wrong in ("3", "-1", "good", "", "²"):
        with pytest.raises(UsageError) as error:
            subject.label_id(wrong)
        assert "positive (1)" in error.value.remedy
    named = Subject(edit(tmp_path / "c", id2label={"0": "1", "1": "0", "2": "2"}))
    assert named.label_id("1") == 0


def test_regression_and_what_is_not_supported(tmp_path: Path) -> None:
    assert Subject(tiny.save("bert", tmp_path / "r", num_labels=1)).task == "regression"
    folder = tiny.save("bert", tmp_path / "c")
    assert Subject(edit(folder, problem_type="regression")).task == "regression"
    many = Subject(edit(folder, problem_type="multi_label_classification"))
    tokens = Subject(tiny.save("bert", tmp_path / "t", task="token-classification"))
    assert [(one.kind, one.task) for one in (many, tokens)] == [
        ("other", "multi-label"),
        ("other", "token-classification"),
    ]
    asked = Subject(edit(tiny.save("bert", tmp_path / "q"), architectures=["BertForQuestionAnswering"]))
    for subject in (many, tokens, asked):
        with pytest.raises(UnsupportedError) as error:
            subject.open()
        assert "Llama" in error.value.remedy


@pytest.mark.parametrize("name", ["model.gguf", "model.onnx"])
def test_other_formats_are_unsupported_and_not_broken(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"GGUF")
    subject = Subject(tmp_path)
    assert (subject.kind, subject.task) == ("other", "other")
    with pytest.raises(UnsupportedError) as error:
        subject.open()
    assert error.value.where.endswith(name)
    assert subject.summary().kind == "other"
    tiny.save("bert", tmp_path / "x")
    shutil.copy(tmp_path / "x" / "config.json", tmp_path)
    with pytest.raises(UnsupportedError):
        Subject(tmp_path).open()


def test_an_unknown_architecture_names_the_known_ones(tmp_path: Path) -> None:
    subject = Subject(edit(tiny.save("bert", tmp_path / "c"), model_type="t5", architectures=["T5Model"]))
    for reader in (subject.open, subject.embeddings, lambda: subject.family):
        with pytest.raises(UnsupportedError) as error:
            reader()
        assert "DeBERTa-v2" in error.value.remedy
    assert subject.summary().parameters is not None


@pytest.mark.parametrize("inside", ["", "0_Transformer"])
def test_sentence_transformers_folders_are_the_encoder_in_them(inside: str, tmp_path: Path) -> None:
    tiny.save("bert", tmp_path / inside if inside else tmp_path, task="encoder")
    modules = [{"idx": 0, "path": inside, "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    subject = Subject(tmp_path)
    assert subject.kind == "encoder"
    assert subject.path == tmp_path
    assert subject.open(num_labels=2)(**batch_for("bert")).logits.shape == (2, 2)
    assert any(file.path.endswith("modules.json") for file in subject.summary().files)


@pytest.mark.parametrize("inside", ["../out", "/etc", "1_Pooling", None, 3])
def test_sentence_transformers_folders_that_point_elsewhere(inside: Any, tmp_path: Path) -> None:
    modules = [{"path": inside, "type": "sentence_transformers.models.Transformer"}]
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(CheckpointError):
        Subject(tmp_path).open()


def test_a_config_that_names_no_class_is_read_by_its_tensors(tmp_path: Path) -> None:
    for family, task, kind in (
        ("bert", "classifier", "classifier"),
        ("roberta", "encoder", "encoder"),
        ("llama", "causal-lm", "causal-lm"),
        ("llama", "classifier", "classifier"),
    ):
        folder = edit(tiny.save(family, tmp_path / f"{family}-{task}", task=task), architectures=None)
        assert Subject(folder).kind == kind
        Subject(folder).open()


def test_labels_without_names_are_counted_on_disk(tmp_path: Path) -> None:
    subject = Subject(edit(tiny.save("bert", tmp_path / "c", num_labels=4), id2label=None, label2id=None))
    assert subject.labels == ("LABEL_0", "LABEL_1", "LABEL_2", "LABEL_3")
    assert subject.open().config.num_labels == 4


def test_one_weights_file(tmp_path: Path) -> None:
    folder = tiny.save("bert", tmp_path / "c")
    (folder / "model.safetensors").rename(folder / "epoch3.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    subject = Subject(folder / "epoch3.safetensors")
    assert subject.kind == "classifier"
    assert subject.open().state_dict()


def test_half_precision_is_opened_as_float32(tmp_path: Path) -> None:
    tiny.build("bert").to(torch.bfloat16).save_pretrained(tmp_path)
    tiny.tokenizer("bert").save_pretrained(tmp_path)
    subject = Subject(tmp_path)
    assert subject.embeddings().dtype == torch.float32
    assert {value.dtype for value in subject.open().parameters()} == {torch.float32}


# What is wrong with a checkpoint


def test_a_missing_folder_and_one_without_a_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        Subject(tmp_path / "nowhere")
    with pytest.raises(CheckpointError) as error:
        Subject(tmp_path).open()
    assert "config.json" in error.value.problem


@pytest.mark.parametrize("text", ["", "[]", "{", "nan", '"bert"', "[" * 100_000, "\x00"])
def test_a_config_that_is_none(text: str, tmp_path: Path) -> None:
    folder = tiny.save("bert", tmp_path / "c")
    (folder / "config.json").write_text(text)
    with pytest.raises(CheckpointError) as error:
        Subject(folder).open()
    assert error.value.where == str(folder / "config.json")


@pytest.mark.parametrize(
    "name", ["classifier.weight", "bert.encoder.layer.1.attention.self.query.bias", "bert.pooler.dense.weight"]
)
def test_a_classifier_with_missing_tensors_is_no_classifier(name: str, tmp_path: Path) -> None:
    folder = edit_tensors(tiny.save("bert", tmp_path / "c"), lambda state: state.pop(name))
    with pytest.raises(CheckpointError) as error:
        Subject(folder).open()
    assert name in error.value.problem


def test_an_encoder_that_lacks_a_layer_is_broken_and_one_that_lacks_a_pooler_is_not(tmp_path: Path) -> None:
    folder = tiny.save("bert", tmp_path / "e", task="encoder")
    edit_tensors(folder, lambda state: [state.pop("pooler.dense.weight"), state.pop("pooler.dense.bias")])
    assert Subject(folder).open(num_labels=2) is not None
    edit_tensors(folder, lambda state: state.pop("encoder.layer.1.output.dense.weight"))
    for labels in (None, 2):
        with pytest.raises(CheckpointError):
            Subject(folder).open(num_labels=labels)


def test_a_tensor_too_many_is_an_error_and_a_buffer_is_not(tmp_path: Path) -> None:
    folder = tiny.save("bert", tmp_path / "c")
    edit_tensors(folder, lambda state: state.update({"bert.embeddings.position_ids": torch.arange(66)[None]}))
    Subject(folder).open()
    edit_tensors(folder, lambda state: state.update({"bert.encoder.layer.7.output.dense.weight": torch.zeros(2, 2)}))
    with pytest.raises(CheckpointError) as error:
        Subject(folder).open()
    assert "layer.7" in error.value.problem


def test_tensors_of_another_shape_are_an_error(tmp_path: Path) -> None:
    folder = tiny.save("bert", tmp_path / "c")
    edit_tensors(folder, lambda state: state.update({"classifier.weight": torch.zeros(3, 32)}))
    with pytest.raises(CheckpointError):
        Subject(folder).open()


@pytest.mark.parametrize(
    ("family", "key"),
    [
        ("bert", "hidden_size"),
        ("bert", "num_hidden_layers"),
        ("bert", "num_attention_heads"),
        ("bert", "intermediate_size"),
        ("bert", "vocab_size"),
        ("bert", "max_position_embeddings"),
        ("bert", "type_vocab_size"),
        ("albert", "num_hidden_layers"),
        ("albert", "num_hidden_groups"),
        ("distilbert", "n_layers"),
        ("distilbert", "dim"),
        ("gpt2", "n_embd"),
        ("gpt2", "n_layer"),
        ("gpt2", "n_positions"),
        ("qwen3", "head_dim"),
        ("llama", "num_key_value_heads"),
        ("deberta-v2", "position_buckets"),
        ("deberta-v2", "max_relative_positions"),
    ],
)
@pytest.mark.parametrize("value", [10**9, -5, 2.5, "32", True])
def test_numbers_that_the_tensors_do_not_bear_out(family: str, key: str, value: Any, tmp_path: Path) -> None:
    folder = edit(tiny.save(family, tmp_path / "c"), **{key: value})
    with pytest.raises(CheckpointError):
        Subject(folder).open()


@pytest.mark.parametrize("key", ["hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"])
def test_numbers_that_are_merely_wrong(key: str, tmp_path: Path) -> None:
    for value in (1, 3, 16, 396):
        folder = edit(tiny.save("bert", tmp_path / f"{value}"), **{key: value})
        if key == "num_attention_heads" and value in {1, 16}:
            continue  # another reading of the same tensors
        with pytest.raises(CheckpointError):
            Subject(folder).open()


@pytest.mark.parametrize("labels", [{"0": "a", "5": "b"}, {"x": "a"}, ["a", "b"], 7])
def test_label_names_that_do_not_count(labels: Any, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        Subject(edit(tiny.save("bert", tmp_path / "c"), id2label=labels)).open()


def test_a_number_of_labels_that_is_huge(tmp_path: Path) -> None:
    folder = edit(tiny.save("bert", tmp_path / "c"), id2label=None, label2id=None, num_labels=10**9)
    with pytest.raises(CheckpointError):
        Subject(folder).open()


def test_a_truncated_weights_file_is_named(tmp_path: Path) -> None:
    folder = tiny.save("bert", tmp_path / "c")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    for reader in (Subject(folder).open, Subject(folder).embeddings):
        with pytest.raises(CheckpointError) as error:
            reader()
        assert error.value.where == str(file)


def test_no_tokenizer_and_one_of_another_model(tmp_path: Path) -> None:
    folder = tiny.save("bert", tmp_path / "c")
    longer = tiny.tokenizer("bert")
    longer.add_tokens([f"extra{number}" for number in range(9)])
    longer.save_pretrained(folder)
    with pytest.raises(CheckpointError) as error:
        _ = Subject(folder).tokenizer
    assert "396 rows" in error.value.problem
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError):
        _ = Subject(folder).tokenizer
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError):
        _ = Subject(folder).tokenizer


def test_remote_code_is_never_followed(tmp_path: Path) -> None:
    folder = tiny.save("bert", tmp_path / "c")
    mark = tmp_path / "ran"
    (folder / "evil.py").write_text(f"import pathlib; pathlib.Path({str(mark)!r}).mkdir()\nclass M: pass\n")
    pointers = dict.fromkeys(("AutoConfig", "AutoModel", "AutoModelForSequenceClassification"), "evil.M")
    edit(folder, auto_map=pointers, _attn_implementation="org/kernels", attn_implementation="org/kernels")
    subject = Subject(folder)
    subject.open()
    _ = subject.tokenizer
    edit(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.M", "evil.M"]})
    with contextlib.suppress(CheckpointError):  # to refuse is as good as to pass over
        _ = Subject(folder).tokenizer
    assert not mark.exists()


def test_opening_says_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tiny.save("bert", tmp_path / "e", task="masked-lm")
    verbosity = transformers_logging.get_verbosity()
    capfd.readouterr()
    subject = Subject(folder)
    subject.open()
    subject.open(num_labels=2)
    _ = subject.tokenizer
    assert capfd.readouterr() == ("", "")
    assert transformers_logging.get_verbosity() == verbosity


def test_the_summary_holds_every_file_and_what_can_be_known(tmp_path: Path) -> None:
    folder = tiny.save("bert", tmp_path / "c")
    summary = Subject(folder).summary()
    assert {file.path for file in summary.files} == {path.name for path in folder.iterdir()}
    assert summary.architecture == "BertForSequenceClassification"
    assert (summary.kind, summary.labels) == ("classifier", ("negative", "positive"))
    assert summary.vocabulary == 396
    (folder / "model.safetensors").write_bytes(b"")
    broken = Subject(folder).summary()
    assert (broken.parameters, broken.vocabulary, broken.kind) == (None, None, "classifier")


def test_nothing_of_the_input_changes(tmp_path: Path) -> None:
    folder = tiny.save("bert", tmp_path / "c")
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    subject = Subject(folder)
    model = subject.open()
    with torch.no_grad():
        for value in model.parameters():
            value.zero_()
    assert subject.embeddings().any()
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_a_model_in_memory_takes_the_checkpoint_s_place(tmp_path: Path) -> None:
    """For whoever asks; what is given out are copies, and the checkpoint stays what it was."""
    subject = Subject(tiny.save("bert", tmp_path / "encoder", task="encoder"))
    made = tiny.build("bert", num_labels=3, seed=5)
    held = subject.holding(made)
    assert (held.task, held.kind, held.labels) == ("classifier", "classifier", ("negative", "positive", "neutral"))
    assert (subject.task, subject.labels) == ("encoder", ())
    opened = held.open()
    assert all(torch.equal(tensor, made.state_dict()[name]) for name, tensor in opened.state_dict().items())
    assert torch.equal(held.embeddings(), made.get_input_embeddings().weight)
    assert not torch.equal(held.embeddings(), subject.embeddings())
    with torch.no_grad():
        for parameter in (*opened.parameters(), *held.model().parameters()):
            parameter.zero_()
    assert made.classifier.weight.abs().sum() > 0
    assert held.tokenizer.get_vocab() == subject.tokenizer.get_vocab()
    assert held.open(num_labels=5).classifier.weight.shape[0] == 5
