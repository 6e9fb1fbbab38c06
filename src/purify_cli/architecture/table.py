"""What the families of transformers differ in, as data: one row a family, keyed by the `model_type` of the config.

Module paths are relative to the base model (`model.base_model`), and `*` stands for every item of a list of modules.
The rest of the tool asks for "word embeddings", "heads" or "the summary token" and never for a family by its name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from purify_cli.errors import UnsupportedError

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Family:
    """One row of the table.

    Attributes:
        model_type: as in config.json.
        title: the name in prose.
        prefix: what task models put before the tensor names of the base model, without the dot.
        word_embeddings: path of the embedding module.
        attention: path of the attention blocks, in the order of the layers.
        core: path in such a block of the module that compares queries with keys; empty: the block itself.
        output: path in such a block of the output projection.
        transposed: the output projection keeps its weight as [in, out] (GPT-2's Conv1D) and not as [out, in].
        summary: the token whose last state the classifier reads: the first, or the last that is no padding.
        output_layer: path in the classification model of the linear layer that gives the logits.
        pooler: path of the module after the encoder that belongs to the base model and may be missing; None: there is
            none.
        row_from: where the attention of one token can be read: "interface" (the exchangeable attention function of
            transformers) or the path in the core of the dropout module that is handed the full map.
        layers_key, heads_key, width_key: the names that the config gives to these numbers.
        shares_layers: one layer is run at several depths (ALBERT).
        ffn_input: path in a layer of the module that is handed the feed-forward part's input.
        ffn_result: path in a layer of the module that gives the feed-forward part's result as it is added to the
            residual: after its dropout, before the layer's own addition and normalization.
        attention_result: the same of the attention part.
        ffn_norm: path in a layer of the normalization behind that addition; None: it normalizes before.
        lora_targets: names of the projections that LoRA is put on: queries and values.
        takes_prefix: the model can be handed keys and values of a past, which prefix tuning needs.
    """

    model_type: str
    title: str
    prefix: str
    word_embeddings: str
    attention: str
    output: str
    summary: Literal["first", "last"]
    output_layer: str
    core: str = ""
    transposed: bool = False
    pooler: str | None = None
    row_from: str = "interface"
    layers_key: str = "num_hidden_layers"
    heads_key: str = "num_attention_heads"
    width_key: str = "hidden_size"
    shares_layers: bool = False
    ffn_input: str = "intermediate"
    ffn_result: str = "output.dropout"
    attention_result: str = "attention.output.dropout"
    ffn_norm: str | None = "output.LayerNorm"
    lora_targets: tuple[str, ...] = ("query", "value")
    takes_prefix: bool = True

    @property
    def layer(self) -> str:
        """Path of the layers, each of which holds an attention block."""
        return self.attention.rpartition(".")[0]


def _decoder(model_type: str, title: str) -> Family:
    """The row of a decoder laid out as Llama is."""
    return Family(
        model_type,
        title,
        prefix="model",
        word_embeddings="embed_tokens",
        attention="layers.*.self_attn",
        output="o_proj",
        summary="last",
        output_layer="score",
        ffn_input="mlp",
        ffn_result="mlp",
        attention_result="self_attn.o_proj",
        ffn_norm=None,
        lora_targets=("q_proj", "v_proj"),
    )


FAMILIES: Mapping[str, Family] = {
    row.model_type: row
    for row in (
        Family(
            "bert",
            "BERT",
            prefix="bert",
            word_embeddings="embeddings.word_embeddings",
            attention="encoder.layer.*.attention",
            core="self",
            output="output.dense",
            summary="first",
            output_layer="classifier",
            pooler="pooler",
        ),
        Family(
            "roberta",
            "RoBERTa",
            prefix="roberta",
            word_embeddings="embeddings.word_embeddings",
            attention="encoder.layer.*.attention",
            core="self",
            output="output.dense",
            summary="first",
            output_layer="classifier.out_proj",
            pooler="pooler",
        ),
        Family(
            "distilbert",
            "DistilBERT",
            prefix="distilbert",
            word_embeddings="embeddings.word_embeddings",
            attention="transformer.layer.*.attention",
            output="out_lin",
            summary="first",
            output_layer="classifier",
            layers_key="n_layers",
            heads_key="n_heads",
            width_key="dim",
            ffn_input="ffn",
            ffn_result="ffn",
            attention_result="attention.out_lin",
            ffn_norm="output_layer_norm",
            lora_targets=("q_lin", "v_lin"),
            takes_prefix=False,
        ),
        Family(
            "albert",
            "ALBERT",
            prefix="albert",
            word_embeddings="embeddings.word_embeddings",
            attention="encoder.albert_layer_groups.*.albert_layers.*.attention",
            output="dense",
            summary="first",
            output_layer="classifier",
            pooler="pooler",
            shares_layers=True,
            ffn_input="ffn",
            ffn_result="ffn_output",
            attention_result="attention.output_dropout",
            ffn_norm="full_layer_layer_norm",
            takes_prefix=False,
        ),
        Family(
            "electra",
            "ELECTRA",
            prefix="electra",
            word_embeddings="embeddings.word_embeddings",
            attention="encoder.layer.*.attention",
            core="self",
            output="output.dense",
            summary="first",
            output_layer="classifier.out_proj",
        ),
        Family(
            "deberta-v2",
            "DeBERTa-v2",
            prefix="deberta",
            word_embeddings="embeddings.word_embeddings",
            attention="encoder.layer.*.attention",
            core="self",
            output="output.dense",
            summary="first",
            output_layer="classifier",
            row_from="dropout",
            lora_targets=("query_proj", "value_proj"),
            takes_prefix=False,
        ),
        Family(
            "gpt2",
            "GPT-2",
            prefix="transformer",
            word_embeddings="wte",
            attention="h.*.attn",
            output="c_proj",
            summary="last",
            output_layer="score",
            transposed=True,
            layers_key="n_layer",
            heads_key="n_head",
            width_key="n_embd",
            ffn_input="mlp",
            ffn_result="mlp",
            attention_result="attn.resid_dropout",
            ffn_norm=None,
            lora_targets=("c_attn",),
        ),
        _decoder("llama", "Llama"),
        _decoder("qwen2", "Qwen2"),
        _decoder("qwen3", "Qwen3"),
        _decoder("mistral", "Mistral"),
    )
}


def known_families() -> str:
    """The titles of all families in one line, for messages."""
    return ", ".join(family.title for family in FAMILIES.values())


def family_of(config: Mapping[str, Any] | object, where: str = "config.json") -> Family:
    """The row for a config: a mapping as in config.json, or a transformers config. `where` is named in the error.

    Raises:
        UnsupportedError: the `model_type` is missing or not in the table.
    """
    value = config.get("model_type") if isinstance(config, Mapping) else getattr(config, "model_type", None)
    family = FAMILIES.get(value) if isinstance(value, str) else None
    if family is None:
        problem = "names no model_type" if value is None else f"its model_type {str(value)[:80]!r} is not supported"
        raise UnsupportedError(where, problem, f"The architectures known are {known_families()}.")
    return family


def modules_at(root: nn.Module, path: str) -> list[nn.Module]:
    """The modules at a path of the table; `*` stands for each item of a list.

    Raises:
        AttributeError: there is no such module.
    """
    found = [root]
    for part in path.split("."):
        if part == "*":
            found = [child for module in found for child in module.children()]
        else:
            found = [module.get_submodule(part) for module in found]
    return found


def base_of(model: Any) -> Any:
    """The base model inside a task model; a base model itself; adapters that cannot be merged are looked through."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    return inner.base_model if hasattr(inner, "base_model") else inner
