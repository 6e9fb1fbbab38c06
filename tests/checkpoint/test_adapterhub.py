"""Adapters of AdapterHub's library: rebuilt as that library runs them, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional

import tiny
from purify_cli.errors import CheckpointError, UnsupportedError
from purify_cli.subject import Subject

SEQ = {"mh_adapter": False, "output_adapter": True, "non_linearity": "relu", "reduction_factor": 8}
PRESETS: dict[str, dict[str, Any]] = {
    "seq_bn": SEQ | {"original_ln_before": True, "original_ln_after": True, "residual_before_ln": True},
    "double_seq_bn": SEQ | {"mh_adapter": True, "non_linearity": "swish", "original_ln_before": False},
    "par_bn": SEQ | {"is_parallel": True, "scaling": 4.0, "original_ln_before": False, "reduction_factor": 2},
}
PREFIX = {"bert": "bert.encoder", "roberta": "roberta.encoder", "distilbert": "distilbert.transformer"}
HEADS = {"bert": "tanh", "roberta": "tanh", "electra": "gelu", "deberta-v2": "gelu", "distilbert": "relu"}


def random_tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(4)
    return {name: torch.randn(shape, generator=random) * 0.3 for name, shape in shapes.items()}


def module(place: str, width: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{place}.sst.adapter_down.0.weight": (width, 32),
        f"{place}.sst.adapter_down.0.bias": (width,),
        f"{place}.sst.adapter_up.weight": (32, width),
        f"{place}.sst.adapter_up.bias": (32,),
    }


def save(
    folder: Path,
    base: Path,
    config: dict[str, Any],
    shapes: dict[str, tuple[int, ...]],
    *,
    head: str | None = None,
    bin_file: bool = False,
    **top: Any,
) -> dict[str, torch.Tensor]:
    """A folder as that library writes it; gives back the tensors."""
    folder.mkdir()
    model_type = Subject(base).family.model_type
    content = {
        "config": config,
        "hidden_size": 32,
        "model_class": "AutoAdapterModel",
        "model_name": str(base),
        "model_type": model_type,
        "name": "sst",
        "version": "adapters.1.0.0",
    }
    content = {key: value for key, value in (content | top).items() if value is not None}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    tensors = random_tensors(shapes)
    if bin_file:
        torch.save(tensors, folder / "pytorch_adapter.bin")
    else:
        save_file(tensors, folder / "adapter.safetensors")
    if head is not None:
        said = {"head_type": "classification", "num_labels": 3, "layers": 2, "activation_function": head}
        said |= {"use_pooler": False, "bias": True, "label2id": {"bad": 0, "good": 1, "so-so": 2}}
        (folder / "head_config.json").write_text(json.dumps({"config": said, "name": "sst"}))
        shapes = {"heads.sst.1.weight": (32, 32), "heads.sst.1.bias": (32,)}
        shapes |= {"heads.sst.4.weight": (3, 32), "heads.sst.4.bias": (3,)}
        heads = random_tensors(shapes)
        save_file(heads, folder / "model_head.safetensors")
        tensors |= heads
    return tensors


def bert_by_hand(base: Path, tensors: dict[str, torch.Tensor], preset: str) -> torch.Tensor:
    """The logits of a BERT of two layers with the adapter: the layer as BERT has it, the module as they do."""
    model = Subject(base).open()
    batch = tiny.tokenizer("bert")(["the plot was slow and dull"], return_tensors="pt")
    config = PRESETS[preset]
    act = functional.silu if config["non_linearity"] == "swish" else functional.relu

    def adapter(place: str, states: torch.Tensor) -> torch.Tensor:
        down, up = f"{place}.sst.adapter_down.0", f"{place}.sst.adapter_up"
        hidden = act(states @ tensors[f"{down}.weight"].T + tensors[f"{down}.bias"])
        return config.get("scaling", 1.0) * (hidden @ tensors[f"{up}.weight"].T + tensors[f"{up}.bias"])

    with torch.no_grad():
        states = model.embeddings(batch["input_ids"], token_type_ids=batch["token_type_ids"])
        for number, layer in enumerate(model.encoder.layer):
            place = f"bert.encoder.layer.{number}"
            attended = layer.attention.output.dense(layer.attention.self(states)[0])
            if config["mh_adapter"]:
                attended = attended + adapter(f"{place}.attention.output.adapters", attended)
            x = layer.attention.output.LayerNorm(attended + states)
            h = layer.output.dense(functional.gelu(layer.intermediate.dense(x)))
            read = x if config.get("is_parallel") else h
            if config.get("original_ln_before"):
                read = layer.output.LayerNorm(h + x)
            states = layer.output.LayerNorm(h + adapter(f"{place}.output.adapters", read) + x)
        first = states[:, 0]
        hidden = torch.tanh(first @ tensors["heads.sst.1.weight"].T + tensors["heads.sst.1.bias"])
        answer: torch.Tensor = hidden @ tensors["heads.sst.4.weight"].T + tensors["heads.sst.4.bias"]
    return answer


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("bin_file", [False, True])
def test_the_three_presets_by_hand(preset: str, bin_file: bool, tmp_path: Path) -> None:
    base = tiny.save("bert", tmp_path / "base", task="encoder")
    shapes: dict[str, tuple[int, ...]] = {}
    width = 32 // PRESETS[preset]["reduction_factor"]
    for layer in range(2):
        shapes |= module(f"bert.encoder.layer.{layer}.output.adapters", width)
        if PRESETS[preset]["mh_adapter"]:
            shapes |= module(f"bert.encoder.layer.{layer}.attention.output.adapters", width)
    tensors = save(tmp_path / "adapter", base, PRESETS[preset], shapes, head="tanh", bin_file=bin_file)
    subject = Subject(tmp_path / "adapter")
    assert (subject.kind, subject.task, subject.labels) == ("adapter", "classifier", ("bad", "good", "so-so"))
    batch = tiny.tokenizer("bert")(["the plot was slow and dull"], return_tensors="pt")
    with torch.no_grad():
        answer = subject.open()(**batch).logits
    torch.testing.assert_close(answer, bert_by_hand(base, tensors, preset), atol=1e-5, rtol=1e-5)
    named = Subject(tmp_path / "adapter" / ("pytorch_adapter.bin" if bin_file else "adapter.safetensors"))
    assert named.kind == "adapter"


@pytest.mark.parametrize("family", HEADS)
def test_other_families_and_old_names(family: str, tmp_path: Path) -> None:
    base = tiny.save(family, tmp_path / "base", task="encoder")
    place = "transformer.layer.{}.output_adapters.adapters"
    if family != "distilbert":
        place = "encoder.layer.{}.output.layer_text_task_adapters"  # as the library once had it, without the prefix
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(2):
        shapes |= module(place.format(layer), 4)
    save(tmp_path / "adapter", base, SEQ | {"non_linearity": "gelu"}, shapes, head=HEADS[family], version=None)
    subject = Subject(tmp_path / "adapter")
    model = subject.open()
    assert model.bottleneck_config.activation == "gelu_tanh", "without a version gelu was the tanh form"
    assert subject.labels == ("bad", "good", "so-so")
    batch = tiny.tokenizer(family)(["a good movie"], return_tensors="pt")
    assert model(**batch).logits.shape == (1, 3)


def test_a_map_of_factors_and_layers_left_out(tmp_path: Path) -> None:
    base = tiny.save("bert", tmp_path / "base", num_hidden_layers=3)
    place = "bert.encoder.layer.{}.output.adapters"
    config = SEQ | {"reduction_factor": {"1": 16, "default": 8}, "leave_out": [2]}
    save(tmp_path / "adapter", base, config, module(place.format(0), 4) | module(place.format(1), 2))
    subject = Subject(tmp_path / "adapter")
    assert subject.open().bottleneck_config.widths == (4, 2, 0)
    assert subject.task == "classifier", "without a head of its own it has its base's"
    assert subject.labels == Subject(base).labels


def test_an_adapter_without_a_head_on_an_encoder(tmp_path: Path) -> None:
    base = tiny.save("bert", tmp_path / "base", task="encoder")
    place = "bert.encoder.layer.{}.output.adapters"
    save(tmp_path / "adapter", base, SEQ, module(place.format(0), 4) | module(place.format(1), 4))
    subject = Subject(tmp_path / "adapter")
    assert (subject.task, subject.labels) == ("encoder", ())
    assert subject.open().encoder.layer[0].bottleneck_ffn.down.weight.shape == (4, 32)
    model = subject.open(num_labels=2)
    assert model.classifier.out_features == 2
    assert torch.equal(
        model.bert.encoder.layer[1].bottleneck_ffn.up.weight, subject.open().encoder.layer[1].bottleneck_ffn.up.weight
    )


@pytest.mark.parametrize(
    ("changes", "expected", "said"),
    [
        ({"scaling": "learned"}, UnsupportedError, "scaling"),
        ({"ln_before": True}, UnsupportedError, "ln_before"),
        ({"use_gating": True}, UnsupportedError, "use_gating"),
        ({"phm_layer": True}, UnsupportedError, "phm_layer"),
        ({"inv_adapter": "nice"}, UnsupportedError, "inv_adapter"),
        ({"residual_before_ln": False}, UnsupportedError, "residual_before_ln"),
        ({"non_linearity": "leakyrelu"}, UnsupportedError, "leakyrelu"),
        ({"output_adapter": False}, UnsupportedError, "bottleneck"),
        ({"architecture": "lora", "output_adapter": None}, UnsupportedError, "bottleneck"),
        ({"reduction_factor": 4}, CheckpointError, "reduction_factor"),
        ({"reduction_factor": float("nan")}, CheckpointError, "reduction_factor"),
        ({"scaling": 1e40}, CheckpointError, "scaling"),
    ],
)
def test_what_is_not_rebuilt_is_refused(
    changes: dict[str, Any], expected: type[Exception], said: str, tmp_path: Path
) -> None:
    base = tiny.save("bert", tmp_path / "base")
    place = "bert.encoder.layer.{}.output.adapters"
    save(tmp_path / "adapter", base, SEQ | changes, module(place.format(0), 4) | module(place.format(1), 4))
    with pytest.raises(CheckpointError) as error:
        Subject(tmp_path / "adapter").open()
    assert type(error.value) is expected
    assert said in error.value.problem


def test_hostile_tensors_and_heads(tmp_path: Path) -> None:
    base = tiny.save("bert", tmp_path / "base")
    place = "bert.encoder.layer.{}.output.adapters"
    sound = module(place.format(0), 4) | module(place.format(1), 4)
    other = {name.replace(".sst.", ".imdb."): shape for name, shape in module(place.format(0), 4).items()}
    cases = {
        "two": sound | other,
        "beyond": sound | module(place.format(9), 4),
        "lacking": dict(list(sound.items())[:-1]),
        "shape": sound | {f"{place.format(0)}.sst.adapter_up.weight": (31, 4)},
        "norm": sound | {f"{place.format(0)}.sst.adapter_norm_before.weight": (32,)},
        "invertible": sound | {"bert.invertible_adapters.sst.F.0.weight": (4, 4)},
        "none": {"other.weight": (4, 4)},
    }
    for name, shapes in cases.items():
        save(tmp_path / name, base, SEQ, shapes)
        with pytest.raises(CheckpointError):
            Subject(tmp_path / name).open()
    for name, head in (("relu-head", "relu"), ("no-activation", "")):
        save(tmp_path / name, base, SEQ, sound, head=head)
        with pytest.raises(UnsupportedError):
            Subject(tmp_path / name).open()
    save(tmp_path / "no-config", base, SEQ, sound, head="tanh")
    (tmp_path / "no-config" / "head_config.json").write_text("[1]")
    with pytest.raises(CheckpointError):
        Subject(tmp_path / "no-config").open()
    gpt2 = tiny.save("gpt2", tmp_path / "gpt2")
    save(tmp_path / "decoder", gpt2, SEQ, sound)
    with pytest.raises(UnsupportedError):
        Subject(tmp_path / "decoder").open()
