"""The baselines that train an adapter on untrusted texts, and what texts they refuse."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import tiny
from purify_cli.checkpoint.write import write_checkpoint
from purify_cli.data.texts import Texts
from purify_cli.errors import DataError, UsageError
from purify_cli.evaluation.predict import predict
from purify_cli.purifiers import adapter, lora, prefix
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject
from purify_cli.training.untrusted import open_base, untrusted_texts

RUN = Run(max_length=16)
LINES = tuple(f"the {word} film was slow and long" for word in ("good", "bad") * 10)
TEXTS = Texts("untrusted.csv", LINES, (1, 0) * 10)
SHORT: dict[str, Any] = {"epochs": 3, "learning_rate": 1e-2, "batch_size": 10}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save("bert", tmp_path_factory.mktemp("base") / "base", task="encoder", initializer_range=0.05)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (lora, lora.Settings(**SHORT)),
        (lora, lora.Settings(output="adapter", **SHORT)),
        (adapter, adapter.Settings(**SHORT)),
        (prefix, prefix.Settings(**SHORT)),
    ],
    ids=["lora", "lora-adapter", "adapter", "prefix"],
)
def test_the_base_stays_and_the_output_reads_back(
    method: ModuleType, settings: Any, base: Path, tmp_path: Path
) -> None:
    subject = Subject(base)
    done = method.purify(subject, Evidence(untrusted=TEXTS), TEXTS.take(range(4)), TEXTS, settings, RUN)
    merged = getattr(settings, "output", "adapter") == "merged"
    ours, start = done.model.state_dict(), subject.open(num_labels=2).state_dict()
    same = sum(any(torch.equal(value, other) for other in ours.values()) for value in start.values())
    assert same >= len(start) - 8, "all but classifier, pooler and LoRA's four products"
    assert done.report["untrusted_rows"] == 20
    assert done.report["losses"][-1] < done.report["losses"][0]
    write_checkpoint(tmp_path / "out", done.model, subject.tokenizer, source=subject.folder, provenance={})
    assert (tmp_path / "out" / "config.json").is_file() == merged
    again = Subject(tmp_path / "out")
    assert again.task == "classifier"
    expected = predict(done.model, subject.tokenizer, TEXTS, RUN)
    torch.testing.assert_close(predict(again.open(), again.tokenizer, TEXTS, RUN), expected, atol=1e-5, rtol=1e-5)


def test_texts_that_nothing_can_be_trained_on() -> None:
    with pytest.raises(UsageError, match="--untrusted"):
        untrusted_texts(Evidence(), TEXTS)
    with pytest.raises(DataError, match="all 10 texts have the label 1"):
        untrusted_texts(Evidence(untrusted=TEXTS.take(range(0, 20, 2))), TEXTS)
    with pytest.raises(DataError, match="no labels"):
        untrusted_texts(Evidence(untrusted=TEXTS.with_(labels=None)), TEXTS)
    with pytest.raises(DataError, match="text_pair") as caught:
        untrusted_texts(Evidence(untrusted=TEXTS), TEXTS.with_(path="clean.csv", pairs=LINES))
    assert str(caught.value.where) == "untrusted.csv"


def test_an_adapter_is_no_base(base: Path, tmp_path: Path) -> None:
    subject = Subject(base)
    done = adapter.purify(subject, Evidence(untrusted=TEXTS), TEXTS, TEXTS, adapter.Settings(epochs=1), RUN)
    write_checkpoint(tmp_path / "out", done.model, subject.tokenizer, source=subject.folder, provenance={})
    with pytest.raises(UsageError, match="is an adapter"):
        open_base(Subject(tmp_path / "out"), TEXTS, RUN)
