from __future__ import annotations

import pytest
import torch
from torch import nn

import tiny
from purify_cli.architecture.classifier import classifier_parameters, output_layer, replace_classifier
from purify_cli.architecture.embeddings import embedding_name, word_embeddings
from purify_cli.architecture.table import FAMILIES, base_of, family_of
from purify_cli.errors import CheckpointError, UnsupportedError


def test_every_family_sits_every_exam() -> None:
    assert set(FAMILIES) == set(tiny.FAMILIES)
    assert {name for name, row in FAMILIES.items() if row.summary == "last"} == tiny.DECODERS


@pytest.mark.parametrize("config", [{"model_type": "t5"}, {}, {"model_type": ["bert"]}, {"model_type": None}])
def test_an_unknown_architecture_is_told_the_known_ones(config: dict[str, object]) -> None:
    with pytest.raises(UnsupportedError) as error:
        family_of(config, "x/config.json")
    assert error.value.where == "x/config.json"
    for row in FAMILIES.values():
        assert row.title in error.value.remedy


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_word_embeddings(family: str) -> None:
    model = tiny.build(family)
    assert word_embeddings(model) is model.get_input_embeddings()
    assert word_embeddings(base_of(model)) is model.get_input_embeddings()
    prefixed = embedding_name(model.state_dict(), FAMILIES[family])
    bare = embedding_name(base_of(model).state_dict(), FAMILIES[family])
    assert torch.equal(model.state_dict()[prefixed], base_of(model).state_dict()[bare])
    assert prefixed != bare


def test_no_embeddings_and_two_are_errors() -> None:
    names = ["bert.embeddings.word_embeddings.weight", "embeddings.word_embeddings.weight"]
    for wrong in ([], names):
        with pytest.raises(CheckpointError):
            embedding_name(wrong, FAMILIES["bert"])


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_fresh_classifier_of_the_standard_form(family: str) -> None:
    model, standard = tiny.build(family), tiny.build(family, num_labels=5)
    encoder = {name: value.clone() for name, value in base_of(model).state_dict().items()}
    old = output_layer(model).weight.clone()
    replace_classifier(model, 5, seed=3)
    assert {name: value.shape for name, value in model.state_dict().items()} == {
        name: value.shape for name, value in standard.state_dict().items()
    }
    assert model.config.num_labels == model.num_labels == len(model.config.id2label) == len(model.config.label2id) == 5
    assert all(torch.equal(value, encoder[name]) for name, value in base_of(model).state_dict().items())
    names = classifier_parameters(model)
    assert names == [name for name in model.state_dict() if name.split(".")[0] != FAMILIES[family].prefix]
    parameters = dict(model.named_parameters())
    for name in names:
        values = parameters[name]
        assert values.requires_grad
        if name.endswith("bias"):
            assert not values.any()
        elif values.numel() > 100:
            assert 0.1 < values.std() < 0.3  # the tiny configs say 0.2
    assert not torch.allclose(output_layer(model).weight[:2], old)

    batch = tiny.tokenizer(family)(["a good movie", "bad"], padding=True, return_tensors="pt")
    output = model(**batch, labels=torch.tensor([4, 0]))
    assert output.logits.shape == (2, 5)
    output.loss.backward()

    again, other = tiny.build(family), tiny.build(family)
    replace_classifier(again, 5, seed=3)
    replace_classifier(other, 5, seed=4)
    assert torch.equal(output_layer(again).weight, output_layer(model).weight)
    assert not torch.equal(output_layer(other).weight, output_layer(model).weight)


def test_the_names_of_the_labels_stay_when_their_number_does() -> None:
    model = tiny.build("bert")
    replace_classifier(model, 2, seed=0)
    assert model.config.id2label == {0: "negative", 1: "positive"}


def test_the_random_state_of_the_caller_is_left_alone() -> None:
    model = tiny.build("roberta")
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    replace_classifier(model, 2, seed=0)
    assert torch.equal(torch.rand(3), expected)
    assert isinstance(output_layer(model), nn.Linear)
