from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

import tiny
from purify_cli.errors import CheckpointError, UnsupportedError
from purify_cli.subject import Subject

TARGETS = {"bert": ["query", "value"], "gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"], "roberta": ["query", "dense"]}


def save_adapter(
    folder: Path, base: Path, family: str, *, settings: Any = None, safe: bool = True, labels: int = 2
) -> Any:
    """A random adapter with its classifier on the checkpoint in `base`; gives back the model that it makes."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels)
    settings = settings or LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=TARGETS[family], fan_in_fan_out=family == "gpt2", lora_dropout=0.1
    )
    wrapped = get_peft_model(model, settings)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.normal_(0, 0.3)
    wrapped.save_pretrained(folder, safe_serialization=safe)
    return wrapped.eval()


def logits(model: Any, family: str) -> torch.Tensor:
    batch = tiny.tokenizer(family)(["a good movie", "the plot was slow"], padding=True, return_tensors="pt")
    with torch.no_grad():
        answer: torch.Tensor = model(**batch).logits
    return answer


@pytest.mark.parametrize("family", TARGETS)
@pytest.mark.parametrize("task", ["classifier", "encoder"])
def test_an_adapter_opens_merged(family: str, task: str, tmp_path: Path) -> None:
    base = tiny.save(family, tmp_path / "base", task=task)
    expected = logits(save_adapter(tmp_path / "adapter", base, family), family)
    subject = Subject(tmp_path / "adapter")
    assert (subject.kind, subject.task) == ("adapter", "classifier")
    assert len(subject.labels) == 2
    model = subject.open()
    assert not isinstance(model, PeftModel)
    assert not any("lora" in name for name in model.state_dict())
    if task == "classifier" or family != "bert":  # a pooler that the encoder lacks would be drawn anew by each
        torch.testing.assert_close(logits(model, family), expected, atol=1e-5, rtol=1e-5)
    assert subject.tokenizer("good").input_ids == tiny.tokenizer(family)("good").input_ids
    assert torch.equal(subject.embeddings(), Subject(base).embeddings())


def test_a_bin_adapter_is_read_without_free_unpickling(tmp_path: Path) -> None:
    base = tiny.save("bert", tmp_path / "base")
    expected = logits(save_adapter(tmp_path / "adapter", base, "bert"), "bert")
    from safetensors.torch import load_file

    weights = tmp_path / "adapter" / "adapter_model.safetensors"
    torch.save(load_file(weights), tmp_path / "adapter" / "adapter_model.bin")
    weights.unlink()
    torch.testing.assert_close(logits(Subject(tmp_path / "adapter").open(), "bert"), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        IA3Config(task_type="SEQ_CLS", target_modules=["query", "output.dense"], feedforward_modules=["output.dense"]),
        PromptTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=3),
    ],
)
def test_other_types_of_adapter(settings: Any, tmp_path: Path) -> None:
    base = tiny.save("bert", tmp_path / "base")
    expected = logits(save_adapter(tmp_path / "adapter", base, "bert", settings=settings), "bert")
    model = Subject(tmp_path / "adapter").open()
    torch.testing.assert_close(logits(model, "bert"), expected, atol=1e-5, rtol=1e-5)


def test_the_base_may_be_given_and_may_be_relative_to_the_adapter(tmp_path: Path) -> None:
    base = tiny.save("bert", tmp_path / "base")
    save_adapter(tmp_path / "adapter", base, "bert")
    file = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(file.read_text())
    file.write_text(json.dumps(settings | {"base_model_name_or_path": "../base"}))
    Subject(tmp_path / "adapter").open()
    file.write_text(json.dumps(settings | {"base_model_name_or_path": "org/name"}))
    with pytest.raises(CheckpointError) as error:
        Subject(tmp_path / "adapter").open()
    assert "--base" in error.value.remedy
    assert "org/name" in error.value.problem
    assert Subject(tmp_path / "adapter", base=base).open() is not None
    file.write_text(json.dumps(settings | {"base_model_name_or_path": None}))
    with pytest.raises(CheckpointError):
        Subject(tmp_path / "adapter").open()


def test_an_adapter_of_another_base_is_an_error(tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", tiny.save("bert", tmp_path / "base"), "bert")
    wider = tiny.save("bert", tmp_path / "wider", hidden_size=64)
    deeper = tiny.save("bert", tmp_path / "deeper", num_hidden_layers=3)
    other = tiny.save("gpt2", tmp_path / "other")
    for wrong in (wider, deeper, other):
        with pytest.raises(CheckpointError) as error:
            Subject(tmp_path / "adapter", base=wrong).open()
        assert "--base" in error.value.remedy


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"r": 10**9}, CheckpointError),
        ({"r": -1}, CheckpointError),
        ({"r": 4}, CheckpointError),
        ({"rank_pattern": {"query": 10**9}}, CheckpointError),
        ({"peft_type": "NEW"}, UnsupportedError),
        ({"megatron_config": {"a": 1}, "megatron_core": "this"}, UnsupportedError),
        ({"layer_replication": [[0, 10**6]]}, UnsupportedError),
    ],
)
def test_hostile_adapter_configs(change: dict[str, Any], expected: type[Exception], tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", tiny.save("bert", tmp_path / "base"), "bert")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(expected):
        Subject(tmp_path / "adapter").open()


def test_a_truncated_adapter_is_named(tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", tiny.save("bert", tmp_path / "base"), "bert")
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(CheckpointError) as error:
        Subject(tmp_path / "adapter").open()
    assert error.value.where == str(file)
