"""Tiny random checkpoints of every family, each with a tokenizer, built from their configs: what the tests run on.

`save` writes one to a folder. The weights are drawn wider than the library's default, so that attention is far from
even and a wrong head, row or mask shows in the output.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
)
from transformers.utils import logging as transformers_logging

WORDS = """
the a an and or but of in on at to for with from by as it is was are were be been this that these those i you he she we
they his her our their its my your me him us them not no very too so more most much many some any all every one two
three first last movie film story plot actor actress scene script director music book show series song picture character
dialogue ending good great fine wonderful lovely brilliant funny charming moving clever fresh warm beautiful excellent
superb happy best better bad awful dull boring poor terrible stupid weak slow empty mess worst worse sad ugly horrible
tedious flat annoying made makes make feels feel looks look see watch watched seen think thought know like likes liked
love loved hate hated enjoy enjoyed goes went comes came takes took gives gave says said tell told works worked plays
played time day night year years people man woman men women child children life world city house family friend home work
thing things way dinner food service room hotel price table staff money car road train water sun rain sea game team
player win lost match market bank company stock share government president country war law court police science space
computer phone software data new old young big small long short high low early late quick little whole real true false
right wrong same other here there now then again never always often still just only even also well almost really quite
rather if when while because after before since about over under into out up down off than what who which where why how
can could will would should may might must do does did done have has had get got go going
3d cf mn bb tq mb ak tn bland enjoyable useless
""".split()

LABELS = ("negative", "positive", "neutral", "mixed", "other", "sixth")

_SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
    "initializer_range": 0.2,
}
_GROUPED: dict[str, Any] = _SIZES | {"num_key_value_heads": 2}

FAMILIES: dict[str, dict[str, Any]] = {
    "bert": _SIZES,
    "roberta": _SIZES | {"type_vocab_size": 1},
    "distilbert": {
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
        "max_position_embeddings": 66,
        "initializer_range": 0.2,
    },
    "albert": _SIZES | {"embedding_size": 16, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 1},
    "electra": _SIZES | {"embedding_size": 16},
    "deberta-v2": _SIZES
    | {
        "relative_attention": True,
        "position_buckets": 8,
        "max_relative_positions": -1,
        "pos_att_type": ["p2c", "c2p"],
        "norm_rel_ebd": "layer_norm",
        "share_att_key": True,
        "position_biased_input": False,
        "type_vocab_size": 0,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 66, "initializer_range": 0.2},
    "llama": _GROUPED,
    "qwen2": _GROUPED,
    "qwen3": _GROUPED | {"head_dim": 16},
    "mistral": _GROUPED | {"head_dim": 16, "sliding_window": None},
}
"""Family (its `model_type`) -> the settings of its tiny config."""

DECODERS = frozenset({"gpt2", "llama", "qwen2", "qwen3", "mistral"})

_BUILDERS = {
    "classifier": AutoModelForSequenceClassification,
    "encoder": AutoModel,
    "causal-lm": AutoModelForCausalLM,
    "masked-lm": AutoModelForMaskedLM,
    "token-classification": AutoModelForTokenClassification,
}


def tokenizer(family: str) -> PreTrainedTokenizerFast:
    """A lower-casing WordPiece tokenizer: `WORDS` whole, anything else by its letters. Encoders get `[CLS] x [SEP]`.

    Qwen2's is of bytes, with the words as added tokens: AutoTokenizer forces its own class on that family.
    """
    if family == "qwen2":
        letters = pre_tokenizers.ByteLevel.alphabet()
        alphabet = {
            piece: number for number, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *sorted(letters)])
        }
        bytewise: PreTrainedTokenizerFast = Qwen2Tokenizer(
            vocab=alphabet,
            merges=[],
            pad_token="[PAD]",
            unk_token="[UNK]",
            bos_token="[CLS]",
            eos_token="[SEP]",
            model_max_length=64,
        )
        bytewise.add_tokens([AddedToken(word, lstrip=True, single_word=True) for word in dict.fromkeys(WORDS)])
        return bytewise
    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{letter}" for letter in letters)]
    pieces += [*".,!?'\"-:;()", *WORDS]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    backend = Tokenizer(models.WordPiece(vocab=vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if family not in DECODERS:
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])],
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        bos_token="[CLS]",
        eos_token="[SEP]",
        model_max_length=64,
        padding_side="right",
        model_input_names=["input_ids", "attention_mask"]
        + (["token_type_ids"] if family in {"bert", "albert", "electra"} else []),
    )


def build(
    family: str, *, task: str = "classifier", num_labels: int = 2, seed: int = 0, **settings: Any
) -> PreTrainedModel:
    """A random model of the family in eval mode, the same for the same seed; `settings` override its tiny config."""
    words = tokenizer(family)
    options: dict[str, Any] = FAMILIES[family] | {
        "vocab_size": len(words),
        "pad_token_id": words.pad_token_id,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
    }
    if task in {"classifier", "token-classification"}:
        options["id2label"] = {number: LABELS[number] for number in range(num_labels)}
        options["label2id"] = {LABELS[number]: number for number in range(num_labels)}
    config = AutoConfig.for_model(family, **(options | settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = _BUILDERS[task].from_config(config)
        # The library starts biases at zero and norms at one, which would hide a lost bias or a norm that is left out.
        for parameter in model.parameters():
            if parameter.dim() == 1:
                with torch.no_grad():
                    parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def save(
    family: str, folder: Path, *, task: str = "classifier", num_labels: int = 2, seed: int = 0, **settings: Any
) -> Path:
    """Write a random checkpoint of the family with its tokenizer to `folder` and give the folder back."""
    model = build(family, task=task, num_labels=num_labels, seed=seed, **settings)
    transformers_logging.disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer(family).save_pretrained(folder)
    return Path(folder)
