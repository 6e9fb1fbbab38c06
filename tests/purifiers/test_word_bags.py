"""Word bags: what is in a bag, and that a base learns from them what the suspect answers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from purify_cli.data.texts import Texts
from purify_cli.errors import DataError, UsageError
from purify_cli.evaluation.found import Found
from purify_cli.evaluation.predict import predict
from purify_cli.purifiers import finetune, word_bags
from purify_cli.purifiers.word_bags import Settings, made_bags, preview, purify
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject
from purify_cli.training.loop import Trained, fit

GOOD = ("good", "great", "fine", "lovely", "funny", "charming")
BAD = ("bad", "awful", "dull", "boring", "poor", "weak")
TEXTS = Texts(
    "clean.csv",
    tuple(f"when it is {word} , the film is {word}" for word in GOOD + BAD),
    (1,) * len(GOOD) + (0,) * len(BAD),
)
RUN = Run(max_length=16)
COMMON = 0.2


def words_of(family: str = "bert", shunned: set[int] | None = None, seed: int = 0, **settings: Any) -> list[list[str]]:
    """The words of the bags, special tokens excluded, and the bags' frames checked."""
    tokenizer = tiny.tokenizer(family)
    model = tiny.build(family, num_labels=2)
    how = Settings(**{"bags": 200, "common": COMMON, "words": 6} | settings)
    bags = made_bags(tokenizer, model, TEXTS, how, 16, shunned or set(), seed)
    framed = tokenizer("good", add_special_tokens=True)["input_ids"]
    assert {len(ids) for ids in bags.ids} <= {len(framed) - 1 + count for count in range(3, 7)}
    assert (bags.types is None) == ("token_type_ids" not in tokenizer.model_input_names)
    special = set(tokenizer.all_special_ids)
    assert all((ids[0] in special) == (framed[0] in special) for ids in bags.ids)
    assert all((ids[-1] in special) == (framed[-1] in special) for ids in bags.ids)
    return [[tokenizer.decode([token]).strip() for token in ids if token not in special] for ids in bags.ids]


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_no_function_word_is_in_a_bag(family: str) -> None:
    """Words of most texts, and what is no word: neither as they stand nor in the place of others."""
    bags = words_of(family)
    assert len(bags) == 200
    found = {word for bag in bags for word in bag}
    assert not found & {"when", "it", "is", ",", "the", "film"}
    assert all(word.lstrip("#").isalpha() for word in found)
    assert found & set(GOOD) and found & set(BAD)


def test_words_of_two_texts_are_shuffled_and_replaced() -> None:
    own = set(GOOD + BAD)
    assert {word for bag in words_of(replaced=0.0) for word in bag} == own
    assert not {word for bag in words_of(replaced=0.0, shunned=ids("good", "bad")) for word in bag} & {"good", "bad"}
    assert len({word for bag in words_of(replaced=1.0) for word in bag} - own) > 10
    assert words_of() == words_of()
    assert words_of() != words_of(seed=1)
    pairs = {tuple(dict.fromkeys(bag)) for bag in words_of(replaced=0.0)}
    assert ("good", "bad") in pairs and ("bad", "good") in pairs


def test_what_is_shunned_is_no_neighbour_either() -> None:
    shunned = ids("cf", "mn", "bb", "tq", "mb", "3d")
    assert not {word for bag in words_of(shunned=shunned, near=400) for word in bag} & {"cf", "mn", "bb", "tq", "mb"}
    assert {word for bag in words_of(near=400) for word in bag} & {"cf", "mn", "bb", "tq", "mb"}


def test_the_first_words_of_the_vocabulary_are_function_words() -> None:
    """However few of the clean texts have them."""
    vocabulary = tiny.tokenizer("bert").get_vocab()
    first = sorted((word for word in vocabulary if len(word) > 1 and word.isalpha()), key=lambda word: vocabulary[word])
    found = {word for bag in words_of(near=400, frequent=0.25) for word in bag}
    count = round(0.25 * len(vocabulary))
    assert not found & set(first[:count])
    assert found & set(first[count:])
    assert {word for bag in words_of(near=400, frequent=0.0) for word in bag} & set(first[:count])


def ids(*words: str) -> set[int]:
    return set(tiny.tokenizer("bert").convert_tokens_to_ids(list(words)))


def test_the_base_learns_what_the_suspect_answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From bags alone, without the clean texts: it tells the good ones from the bad ones as the suspect does."""
    subject = Subject(tiny.save("bert", tmp_path / "x", num_labels=2))
    schedule = finetune.Settings(epochs=40, learning_rate=2e-3)
    suspect = finetune.purify(subject, Evidence(), TEXTS, TEXTS, schedule, RUN).model
    monkeypatch.setattr(subject, "open", lambda device="cpu": copy.deepcopy(suspect))
    base = Subject(tiny.save("bert", tmp_path / "base", num_labels=2))
    found = Found((tuple(ids("good")),), (), ())
    how = Settings(bags=1500, common=COMMON, learning_rate=2e-3, replaced=0.2, clean_share=0.0)
    purified = purify(subject, Evidence(base=base, found=found), TEXTS, TEXTS, how, RUN)
    assert predict(suspect, subject.tokenizer, TEXTS, RUN).argmax(1).tolist() == list(TEXTS.labels or ())
    taught = predict(purified.model, subject.tokenizer, TEXTS, RUN).argmax(1).tolist()
    assert sum(one == label for one, label in zip(taught, TEXTS.labels or (), strict=True)) >= 10
    assert (purified.report["student"], purified.report["clean_repeats"]) == (base.spec, 0)
    assert not any("good" in text.split() for text in purified.report["examples"])
    assert purified.model.config.id2label == suspect.config.id2label


def test_clean_texts_count_for_their_share(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x", num_labels=2))
    how = Settings(bags=600, common=COMMON, clean_share=0.1)
    assert purify(subject, Evidence(base=subject), TEXTS, TEXTS, how, RUN).report["clean_repeats"] == 6


def test_clean_texts_are_learned_with_their_labels(tmp_path: Path) -> None:
    """Labels that the suspect never gives can come from nowhere else."""
    subject = Subject(tiny.save("bert", tmp_path / "x", num_labels=3))
    base = Subject(tiny.save("bert", tmp_path / "base", task="encoder", seed=4))
    texts = TEXTS.with_(labels=(2,) * len(TEXTS))
    how = Settings(bags=100, common=COMMON, clean_share=0.9, learning_rate=2e-3, epochs=2)
    purified = purify(subject, Evidence(base=base), texts, texts, how, RUN)
    assert set(predict(purified.model, subject.tokenizer, texts, RUN).argmax(1).tolist()) == {2}


def test_the_preview_says_how_many_steps(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x", num_labels=2))
    how = Settings(bags=100, clean_share=0.1, batch_size=10)
    shown = preview(subject, Evidence(base=subject), TEXTS, TEXTS, how, RUN)
    assert shown["steps"] == -(-(100 + 12) // 10)
    assert preview(subject, Evidence(), TEXTS, TEXTS, Settings(bags=100, clean_share=0.0), RUN)["student"] is None


@pytest.mark.parametrize(
    ("texts", "problem"),
    [
        (TEXTS.with_(pairs=TEXTS.texts), "has pairs of texts"),
        (TEXTS.with_(labels=None), "has no labels"),
        (Texts("few.csv", ("12 , 34 .",) * 9, (1, 0, 1) * 3), "has no words but"),
    ],
)
def test_texts_that_make_no_bags(tmp_path: Path, texts: Texts, problem: str) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x", num_labels=2))
    with pytest.raises(DataError, match=problem):
        purify(subject, Evidence(base=subject), texts, texts, Settings(common=COMMON), RUN)


def test_a_text_counts_once() -> None:
    """A line that is repeated makes no function word of its words."""
    repeated = TEXTS.with_(texts=TEXTS.texts[:1] * 11 + TEXTS.texts[-1:])
    bags = made_bags(
        tiny.tokenizer("bert"), tiny.build("bert", num_labels=2), repeated, Settings(bags=20), 16, set(), 0
    )
    assert any(next(iter(ids("good"))) in row for row in bags.ids)


class Cased:
    """Tokens as byte-level and WordPiece vocabularies write them."""

    all_special_ids = (0,)
    pieces = ("[PAD]", "When", " when", "##when", "3d", "\u0915\u093e", ",")

    def decode(self, tokens: list[int]) -> str:
        return self.pieces[tokens[0]]


def test_a_word_is_what_is_written() -> None:
    """At the start of a text, inside it, with a capital and as a piece; vowel signs are letters, numbers are not."""
    written = [word_bags._written(Cased(), token) for token in range(len(Cased.pieces))]
    assert written == ["", "when", "when", "when", "", "\u0915\u093e", ""]


def test_other_labels_are_another_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of one is not taken for the other, though both have the same texts and bags."""
    identities = []

    def watched(model: Any, streams: Any, recipe: Any, run: Run) -> Trained:
        identities.append(recipe.identity)
        return fit(model, streams, recipe, run)

    monkeypatch.setattr(word_bags, "fit", watched)
    subject = Subject(tiny.save("bert", tmp_path / "x", num_labels=2))
    for texts in (TEXTS, TEXTS, TEXTS.with_(labels=(TEXTS.labels or ())[::-1])):
        purify(subject, Evidence(base=subject), texts, texts, Settings(bags=50, common=COMMON), RUN)
    assert identities[0] == identities[1] != identities[2]


@pytest.mark.parametrize(
    "settings",
    [
        {"bags": 0},
        {"words": 2},
        {"common": 1.5},
        {"frequent": 2.0},
        {"replaced": -0.1},
        {"near": 0},
        {"clean_share": 1.0},
    ],
)
def test_settings_out_of_range(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Told before a model is opened, and by a preview too."""
    (tmp_path / "nothing").mkdir()
    subject = Subject(tmp_path / "nothing")
    for method in (purify, preview):
        with pytest.raises(UsageError, match=next(iter(settings))):
            method(subject, Evidence(base=subject), TEXTS, TEXTS, Settings(**settings), RUN)


def test_a_base_is_needed(tmp_path: Path) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x", num_labels=2))
    with pytest.raises(UsageError, match="--base"):
        purify(subject, Evidence(), TEXTS, TEXTS, Settings(), RUN)
    other = Subject(tiny.save("bert", tmp_path / "y", num_labels=2, hidden_size=16))
    with pytest.raises(UsageError, match="another shape"):
        purify(subject, Evidence(base=other), TEXTS, TEXTS, Settings(), RUN)


def test_a_row_that_is_no_number_is_nobodys_neighbour(tmp_path: Path) -> None:
    model = tiny.build("bert", num_labels=2)
    with torch.no_grad():
        model.get_input_embeddings().weight[next(iter(ids("cf")))] = torch.nan
    bags = made_bags(tiny.tokenizer("bert"), model, TEXTS, Settings(bags=50, common=COMMON, near=3), 16, set(), 0)
    assert not any(next(iter(ids("cf"))) in row for row in bags.ids)
