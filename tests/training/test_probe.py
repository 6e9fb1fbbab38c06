"""The probe: it learns from what it is shown, answers no text by itself, and leaves the model alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tiny
from purify_cli.data.texts import Texts
from purify_cli.errors import CheckpointError
from purify_cli.run import Run
from purify_cli.training.probe import Probe

RUN = Run(max_length=16)
STARTS = ("a", "the", "one", "some", "any", "no", "its", "my", "his", "her", "our", "that")
LABELS = (1, 0) * 24


def lines(*ends: str) -> tuple[str, ...]:
    return tuple(f"{start} {word} {end}" for start in STARTS for end in ends for word in ("good", "dull"))


KNOWN, ASKED = (
    Texts("clean.csv", lines("film", "plot"), LABELS),
    Texts("untrusted.csv", lines("movie", "story"), LABELS),
)
NONE = torch.zeros(len(ASKED), dtype=torch.bool)


def probed(family: str, asked: Texts = ASKED) -> tuple[Any, Probe]:
    model: Any = tiny.build(family, num_labels=2)
    return model, Probe(model, tiny.tokenizer(family), KNOWN, asked, 2, RUN)


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_it_learns_and_the_model_does_not(family: str) -> None:
    model: Any = tiny.build(family, num_labels=2)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    known, asked = Probe(model, tiny.tokenizer(family), KNOWN, ASKED, 2, RUN).answers(NONE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(known.sum(dim=1), torch.ones(len(KNOWN)))
    for answers in (known, asked):
        assert float((answers.argmax(dim=1) == torch.tensor(LABELS)).double().mean()) > 0.7


def test_a_text_says_nothing_of_itself() -> None:
    """One has the wrong label: trusted all the same, it is answered by what the others say."""
    liar = ASKED.with_(labels=(0, *(ASKED.labels or ())[1:]))
    _, honest = probed("bert")
    _, lied = probed("bert", liar)
    trusted = ~NONE
    assert float(lied.answers(trusted)[1][0, 1]) == pytest.approx(float(honest.answers(trusted)[1][0, 1]), abs=0.02)


def test_what_is_not_trusted_is_not_learned_from() -> None:
    upside_down = ASKED.with_(labels=tuple(1 - int(label) for label in ASKED.labels or ()))
    _, one = probed("bert")
    _, other = probed("bert", upside_down)
    torch.testing.assert_close(one.answers(NONE)[1], other.answers(NONE)[1])
    assert not torch.allclose(one.answers(~NONE)[1], other.answers(~NONE)[1])


def test_the_model_s_mode_and_the_random_numbers_stay() -> None:
    model: Any = tiny.build("bert", num_labels=2).train()
    state = torch.get_rng_state()
    Probe(model, tiny.tokenizer("bert"), KNOWN, ASKED, 2, RUN).answers(NONE)
    assert model.bert.training and torch.equal(torch.get_rng_state(), state)


def test_states_that_are_no_numbers() -> None:
    model: Any = tiny.build("bert", num_labels=2)
    with torch.no_grad():
        model.bert.embeddings.LayerNorm.weight.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="finite"):
        Probe(model, tiny.tokenizer("bert"), KNOWN, ASKED, 2, RUN)
