"""MuScleLoRA: its equations against plain loops, what learns and what does not, resuming, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tiny
from purify_cli.architecture.scaled import penultimate_linear
from purify_cli.architecture.table import FAMILIES
from purify_cli.checkpoint.write import write_checkpoint
from purify_cli.commands.purify import PurifyRequest
from purify_cli.commands.purify import purify as command
from purify_cli.data.encode import collate, encode
from purify_cli.data.texts import Texts
from purify_cli.errors import DataError, Interrupted, UsageError
from purify_cli.evaluation.predict import predict
from purify_cli.purifiers import musclelora
from purify_cli.purifiers.musclelora import (
    Alignment,
    Numbers,
    Settings,
    low_rank_model,
    numbers,
    purify,
    scaling_factors,
)
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject
from purify_cli.training.losses import cross_entropy

RUN = Run(max_length=16)


def texts(rows: int, name: str = "untrusted.csv", flip: int = 0) -> Texts:
    words = ("good", "bad", "fine", "dull")
    lines = tuple(f"the {words[row % 4]} film was {words[(row + 2 * (row % 3)) % 4]} and slow" for row in range(rows))
    return Texts(name, lines, tuple((row + flip) % 2 for row in range(rows)))


CLEAN = texts(16, "clean.csv", flip=1)
SHORT = Settings(epochs=2, batch_size=8, learning_rate=1e-2, factors=(1.0, 2.0), scaled_alpha=0.5)


# --- equations 7 and 8 ------------------------------------------------------------------------------------------------


def true_gradients(family: str) -> dict[str, dict[str, torch.Tensor]]:
    """The gradients of an untrusted and of a clean batch on a tiny model with its modules."""
    model: Any = tiny.build(family)
    layer, _ = penultimate_linear(model)
    model = low_rank_model(model, layer, (1.0, 2.0), Numbers(), Settings(), seed=1)
    opened = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    with torch.no_grad():
        for parameter in opened.values():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2)) * 0.1)
    found = {}
    for name, data in (("untrusted", texts(6)), ("clean", CLEAN.take(range(6)))):
        batch = collate(encode(tiny.tokenizer(family), data, 16), range(6), 0)
        answers = torch.autograd.grad(cross_entropy(model, batch), list(opened.values()))
        found[name] = dict(zip(opened, answers, strict=True))
    return found


def slow(gradients: dict[str, dict[str, torch.Tensor]], mu: float, whole: bool) -> dict[str, list[float]]:
    """Equations 7 and 8, number by number."""
    raw = {name: value.double().flatten().tolist() for name, value in gradients["untrusted"].items()}
    clean = {name: value.double().flatten().tolist() for name, value in gradients["clean"].items()}
    groups = [list(raw)] if whole else [[name] for name in raw]
    answer = {}
    for group in groups:
        inner = sum(g * c for name in group for g, c in zip(raw[name], clean[name], strict=True))
        square = sum(c * c for name in group for c in clean[name])
        for name in group:
            answer[name] = [
                (1 - mu) * abs(inner) / square * c + mu * g for g, c in zip(raw[name], clean[name], strict=True)
            ]
    return answer


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "llama", "qwen2"])
def test_gradients_are_those_of_the_plain_loop(family: str) -> None:
    gradients = true_gradients(family)
    inner = [float((value * gradients["clean"][name]).sum()) for name, value in gradients["untrusted"].items()]
    assert min(inner) < 0 < max(abs(one) for one in inner), "some point away from the clean ones"
    for form in ("tensor", "model"):
        for mu_max, epoch in ((0.0, 0), (0.4, 3)):
            chosen = Numbers(mu_max=mu_max, mu_from=1, epochs=5)
            alignment = Alignment(chosen, Settings(align=form), epoch_steps=10)
            ours = alignment(gradients, 10 * epoch + 9)
            expected = slow(gradients, mu_max * (epoch - 1) / 4 if epoch else 0.0, form == "model")
            assert ours.keys() == expected.keys()
            for name, value in ours.items():
                assert value.flatten().tolist() == pytest.approx(expected[name], abs=1e-5, rel=1e-5)
    against = sum(one < 0 for one in inner) / len(inner)
    assert alignment.report()["against_clean"] == pytest.approx(against)


def test_what_points_away_is_turned_and_not_reversed() -> None:
    gradients = {"untrusted": {"w": torch.tensor([-3.0, 1.0])}, "clean": {"w": torch.tensor([2.0, 0.0])}}
    alignment = Alignment(Numbers(mu_max=0.0), Settings(), 1)
    torch.testing.assert_close(alignment(gradients, 0)["w"], torch.tensor([3.0, 0.0]))
    gradients["clean"]["w"] = torch.zeros(2)
    torch.testing.assert_close(alignment(gradients, 0)["w"], torch.zeros(2))  # along nothing nothing is kept
    alignment = Alignment(Numbers(mu_max=0.5, mu_from=0, epochs=2), Settings(), 1)
    gradients["untrusted"]["v"] = gradients["clean"].pop("w") + 1.0
    gradients["clean"]["v"] = torch.ones(2)
    torch.testing.assert_close(alignment(gradients, 1)["w"], 0.25 * gradients["untrusted"]["w"])


def test_mu_rises_linearly() -> None:
    alignment = Alignment(Numbers(mu_max=0.1, mu_from=1, epochs=10), Settings(), 7)
    assert [alignment.mu(epoch) for epoch in range(10)] == pytest.approx([0.0] + [0.1 * e / 9 for e in range(9)])
    assert Alignment(Numbers(epochs=1), Settings(), 7).mu(0) == 0.0


@pytest.mark.parametrize(
    ("loss", "norm", "epoch", "mu"),
    [(0.5, 1.0, 3, 0.0), (0.3, 1.0, 3, 0.05), (0.5, 1e-8, 3, 0.05), (0.3, 1.0, 0, 1.0), (0.3, 1.0, 1, 0.0)],
)
def test_the_released_code_s_regimes(loss: float, norm: float, epoch: int, mu: float) -> None:
    chosen = Numbers(mu_max=0.1, mu_from=1, epochs=5)
    alignment = Alignment(chosen, Settings(regimes="reference"), 4)
    alignment._loss = torch.tensor(loss)
    raw, clean = torch.tensor([1.0, 2.0]), torch.tensor([norm, 0.0])
    found = alignment({"untrusted": {"w": raw}, "clean": {"w": clean}}, 4 * epoch)["w"]
    torch.testing.assert_close(found, (1 - mu) * torch.tensor([1.0, 0.0]) + mu * raw)
    assert (
        Alignment(replace(chosen, mu_max=0.0, min_loss=0.0), Settings(regimes="reference"), 4)._mu(
            epoch, torch.tensor([1.0])
        )
        == 1.0
    ), "a loss of zero is not above zero"


# --- settings ---------------------------------------------------------------------------------------------------------


def test_the_paper_s_numbers() -> None:
    assert numbers(Settings(), FAMILIES["bert"]) == Numbers()
    llama = numbers(Settings(rank=5), FAMILIES["llama"])
    assert (llama.rank, llama.alpha, llama.mu_max, llama.epochs, llama.batch_size) == (5, 8.0, 0.0, 5, 16)
    assert llama.learning_rate == 1e-5
    bert, roberta = FAMILIES["bert"], FAMILIES["roberta"]
    assert scaling_factors(bert, 768, "pooler") == (1, 4, 8, 12, 16, 20, 24, 28, 32)
    assert scaling_factors(roberta, 768, "classifier") == (1, 2, 4, 6, 8, 10, 12, 14, 16)
    assert scaling_factors(bert, 1024, "pooler") == scaling_factors(roberta, 1024, "classifier") == tuple(range(1, 10))
    assert scaling_factors(FAMILIES["llama"], 4096, "layer") == (1, 2, 3, 4)


def learns(family: str, **changes: Any) -> set[str]:
    model: Any = tiny.build(family)
    layer, _ = penultimate_linear(model)
    model = low_rank_model(model, layer, (1.0, 2.0), Numbers(), Settings(**changes), seed=1)
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", "")
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


@pytest.mark.parametrize("family", ["bert", "roberta", "gpt2"])
def test_what_learns(family: str) -> None:
    model: Any = tiny.build(family)
    layer, _ = penultimate_linear(model)
    last = {"bert": {"classifier.weight", "classifier.bias"}, "gpt2": {"score.weight"}}.get(
        family, {"classifier.out_proj.weight", "classifier.out_proj.bias"}
    )
    usual = learns(family)
    assert {name for name in usual if "lora" not in name} == last
    assert {name for name in usual if name.startswith(f"{layer}.lora")}
    assert {name for name in learns(family, frozen_classifier=True) if "lora" not in name} == set()
    without = learns(family, scalings=False)
    assert not any(name.startswith(f"{layer}.lora") for name in without)
    assert any("lora" in name for name in without)
    every = {name for name, _ in model.named_parameters()}
    assert {name for name in learns(family, low_rank=False) if "lora" not in name} == every
    assert learns(family, low_rank=False, scalings=False) == every


# --- the whole --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "bert": tiny.save("bert", folder / "bert", task="encoder"),
        "llama": tiny.save("llama", folder / "llama", task="encoder"),
        "classifier": tiny.save("roberta", folder / "classifier"),
    }


def test_only_what_should_change_changes(places: dict[str, Path]) -> None:
    subject = Subject(places["bert"])
    done = purify(subject, Evidence(untrusted=texts(24)), CLEAN, CLEAN, replace(SHORT, frozen_classifier=True), RUN)
    start = subject.open(num_labels=2).state_dict()
    after = done.model.state_dict()
    assert after.keys() == start.keys()
    changed = {name for name in after if not torch.equal(after[name], start[name])}
    layers = [f"bert.encoder.layer.{n}.attention.self.{one}.weight" for n in (0, 1) for one in ("query", "value")]
    assert changed == {"bert.pooler.dense.weight", *layers}
    assert done.report["steps"] == 6
    assert done.report["alignment"]["steps"] == {"aligned": 6, "mixed": 0, "raw": 0}
    assert done.report["factors"] == [1.0, 2.0]


@pytest.mark.parametrize("name", ["bert", "classifier", "llama"])
def test_an_adapter_says_what_merged_weights_say_and_peft_loads_it(
    places: dict[str, Path], tmp_path: Path, name: str
) -> None:
    """The scaled module lies in the pooler, in the classifier, or in the last layer, where it is LoRA itself."""
    subject, evidence = Subject(places[name]), Evidence(untrusted=texts(24))
    merged = purify(subject, evidence, CLEAN, CLEAN, SHORT, RUN)
    done = purify(subject, evidence, CLEAN, CLEAN, replace(SHORT, output="adapter"), RUN)
    expected = predict(merged.model, subject.tokenizer, CLEAN, RUN)
    torch.testing.assert_close(predict(done.model, subject.tokenizer, CLEAN, RUN), expected, atol=1e-5, rtol=1e-5)
    assert done.report == merged.report
    write_checkpoint(tmp_path / "out", done.model, subject.tokenizer, source=subject.folder, provenance={})
    again = Subject(tmp_path / "out")
    assert again.task == "classifier"
    torch.testing.assert_close(predict(again.open(), again.tokenizer, CLEAN, RUN), expected, atol=1e-5, rtol=1e-5)
    base = AutoModelForSequenceClassification.from_pretrained(places[name], num_labels=2)
    plain = PeftModel.from_pretrained(base, tmp_path / "out").eval()
    torch.testing.assert_close(predict(plain, subject.tokenizer, CLEAN, RUN), expected, atol=1e-5, rtol=1e-5)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    inside = name == "llama"
    assert bool(config["rank_pattern"]) == bool(config["alpha_pattern"]) == inside
    assert any("." in target for target in config["target_modules"]) == inside, "by its whole name"
    assert config["task_type"] == "SEQ_CLS" and again.labels == tuple(plain.config.id2label.values())
    with safe_open(tmp_path / "out" / "adapter_model.safetensors", "pt") as file:
        assert not [key for key in list(file.keys()) if "lora" in key and ("pooler" in key or "classifier" in key)]


def test_where_all_weights_learn_there_is_no_adapter(places: dict[str, Path]) -> None:
    settings = replace(SHORT, output="adapter", low_rank=False)
    with pytest.raises(UsageError, match="low_rank=false"):
        purify(Subject(places["bert"]), Evidence(untrusted=texts(24)), CLEAN, CLEAN, settings, RUN)


def test_aligned_training_follows_the_clean_texts(places: dict[str, Path]) -> None:
    """Every untrusted label is wrong: whoever follows them learns the opposite, and whoever is aligned does not."""
    subject = Subject(places["classifier"])
    settings = replace(SHORT, epochs=5, mu_max=0.0, learning_rate=2e-2)

    def right(**changes: Any) -> float:
        done = purify(subject, Evidence(untrusted=texts(40)), CLEAN, CLEAN, replace(settings, **changes), RUN)
        said = predict(done.model, subject.tokenizer, CLEAN, RUN).argmax(dim=1)
        return float((said == torch.tensor(CLEAN.labels)).float().mean())

    assert right(alignment=False) < 0.3
    assert right() > 0.7


def test_a_stopped_training_ends_the_same(places: dict[str, Path], tmp_path: Path) -> None:
    subject, evidence = Subject(places["bert"]), Evidence(untrusted=texts(24))
    settings = replace(SHORT, mu_max=0.3, mu_from=0)
    whole = purify(subject, evidence, CLEAN, CLEAN, settings, RUN)

    def stop(stage: str, done: int, total: int) -> None:
        if stage == "training" and done == 4:
            raise KeyboardInterrupt

    run = replace(RUN, state=tmp_path / "state")
    with pytest.raises(Interrupted):
        purify(subject, evidence, CLEAN, CLEAN, settings, replace(run, progress=stop))
    again = purify(subject, evidence, CLEAN, CLEAN, settings, run)
    assert again.report == whole.report
    for name, value in whole.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name


def test_a_sample_of_the_clean_texts_has_every_class() -> None:
    part = musclelora._auxiliary((), texts(8), CLEAN, Settings(auxiliary=4), RUN)
    assert 2 <= len(part) <= 6, "texts that stand there twice go together"
    assert set(part.labels or ()) == {0, 1}
    assert set(part.texts) <= set(CLEAN.texts)


def test_a_class_that_the_clean_texts_lack(places: dict[str, Path]) -> None:
    three = texts(12).with_(labels=(0, 1, 2) * 4)
    with pytest.raises(DataError, match="no text of the label 2"):
        purify(Subject(places["bert"]), Evidence(untrusted=three), CLEAN, CLEAN, SHORT, RUN)


def test_a_class_that_the_sample_lacks() -> None:
    """The clean texts have it once, and the texts that are drawn of them do not."""
    clean = CLEAN.with_(texts=(*CLEAN.texts, "once"), labels=(*(CLEAN.labels or ()), 2))
    with pytest.raises(DataError, match="no text of the label 2"):
        musclelora._auxiliary((), texts(12).with_(labels=(0, 1, 2) * 4), clean, Settings(auxiliary=4), RUN)


def write(path: Path, data: Texts, names: tuple[str, ...]) -> str:
    rows = [f"{text},{names[int(label)]}" for text, label in zip(data.texts, data.labels or (), strict=True)]
    path.write_text("text,label\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("base", ["bert", "llama"])
def test_the_command_s_output_loads_in_plain_transformers(
    places: dict[str, Path], base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = ("negative", "positive")
    request = PurifyRequest(
        checkpoint=str(places[base]),
        method="musclelora",
        untrusted=write(tmp_path / "untrusted.csv", texts(24), names),
        clean=write(tmp_path / "clean.csv", texts(8), names),
        test=write(tmp_path / "test.csv", texts(8), names),
        out=str(tmp_path / "out"),
        settings=("epochs=1", "batch_size=8", "learning_rate=0.01"),
        run=RUN,
    )
    result = command(request)
    assert result.before is None
    assert result.after is not None and result.after.cacc is not None
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    words = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert model.config.id2label == dict(enumerate(names))
    if model.config.pad_token_id is None:
        model.config.pad_token_id = words.pad_token_id
    right = sum(
        int(model(**words(text, return_tensors="pt")).logits.argmax()) == label
        for text, label in zip(texts(8).texts, texts(8).labels or (), strict=True)
    )
    assert right / 8 == pytest.approx(result.after.cacc.value)
    other = replace(request, untrusted=write(tmp_path / "u.csv", texts(24), ("neg", "pos")), out=str(tmp_path / "no"))
    with pytest.raises(DataError, match="negative"):
        command(other)
    with pytest.raises(UsageError, match="--untrusted"):
        command(replace(request, untrusted=None, out=str(tmp_path / "no")))
