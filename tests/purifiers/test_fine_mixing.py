"""Fine-mixing: score and mixture against plain loops, the choice of rho, and bases that are none."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.purifiers import fine_mixing
from purify_cli.purifiers.fine_mixing import Settings, mix, purify, suspicion, token_frequencies
from purify_cli.run import Run
from purify_cli.subject import Evidence, Subject
from purify_cli.training.loop import Trained

TEXTS = Texts("clean.csv", ("the movie was good", "a dull plot", "so bad", "very fine") * 8, (1, 0, 0, 1) * 8)
RUN = Run(max_length=16)
TABLE = "bert.embeddings.word_embeddings.weight"
CF = tiny.tokenizer("bert").convert_tokens_to_ids("cf")
MOVIE = tiny.tokenizer("bert").convert_tokens_to_ids("movie")


def test_the_score_is_the_shift_over_the_log_of_the_frequency() -> None:
    generator = torch.Generator().manual_seed(0)
    now, base = torch.randn(6, 4, generator=generator), torch.randn(6, 4, generator=generator)
    frequencies = torch.tensor([0, 3, 20, 21, 500, 100000])
    expected = []
    for row in range(6):
        shift = math.sqrt(sum((float(now[row, i]) - float(base[row, i])) ** 2 for i in range(4)))
        expected.append(shift / math.log(max(int(frequencies[row]), 20)))
    torch.testing.assert_close(suspicion(now, base, frequencies), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_frequencies_count_every_token() -> None:
    assert token_frequencies([(1, 2, 2), (5, 2)], 7).tolist() == [0, 1, 3, 0, 0, 1, 0]


def test_a_mixture_takes_each_number_from_one_of_the_two() -> None:
    def parameters() -> dict[str, torch.nn.Parameter]:
        return {"a": torch.nn.Parameter(torch.ones(100, 100)), "own": torch.nn.Parameter(torch.ones(3))}

    kept = {}
    for rho in (0.0, 0.3, 0.7, 1.0):
        mixed = parameters()
        mix(mixed, {"a": torch.zeros(100, 100), "theirs": torch.zeros(2)}, rho, seed=5)
        kept[rho] = mixed["a"].detach()
        assert set(kept[rho].unique().tolist()) <= {0.0, 1.0}, "no averages"
        assert kept[rho].mean().item() == pytest.approx(rho, abs=0.02)
        assert mixed["own"].tolist() == [1.0] * 3
    assert (kept[0.3] <= kept[0.7]).all(), "what a low rho keeps, a higher one keeps"
    other = parameters()
    mix(other, {"a": torch.zeros(100, 100)}, 0.3, seed=6)
    assert not torch.equal(other["a"], kept[0.3])


# --- the whole --------------------------------------------------------------------------------------------------------


def pair(tmp_path: Path, **options: Any) -> tuple[Subject, Subject]:
    """A base, and a classifier made of it, whose row of `cf` moved far, of `movie` farther; all moved a little."""
    base = tiny.build("bert", **options)
    model = tiny.build("bert", **options)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        rows = model.bert.embeddings.word_embeddings.weight
        rows[CF] += 1.0
        rows[MOVIE] += 1.05
    for name, one in (("base", base.bert), ("subject", model)):
        one.save_pretrained(tmp_path / name)
        tiny.tokenizer("bert").save_pretrained(tmp_path / name)
    return Subject(tmp_path / "subject"), Subject(tmp_path / "base")


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Trainings leave the model alone; the epochs of each."""
    asked: list[int] = []

    def skipped(model: Any, tokenizer: Any, texts: Texts, how: Any, run: Run) -> Trained:
        asked.append(how.epochs)
        return Trained(model, 0, (), 0.0)

    monkeypatch.setattr(fine_mixing.plain, "train", skipped)
    return asked


def test_suspicious_rows_become_the_base_s_and_the_classifier_stays(tmp_path: Path, untrained: list[int]) -> None:
    subject, base = pair(tmp_path)
    many = TEXTS.with_(texts=("the movie movie movie movie was good",) * 32)  # so often that its row is less suspicious
    purified = purify(subject, Evidence(base=base), many, TEXTS, Settings(rho=1.0, rows=1), RUN)
    assert purified.report["reset_tokens"] == ["cf"]
    ours, suspect, clean = purified.model.state_dict(), subject.open().state_dict(), base.open().state_dict()
    assert torch.equal(ours[TABLE][CF], clean["embeddings.word_embeddings.weight"][CF])
    for name in ours:
        changed = (ours[name] != suspect[name]).nonzero()
        assert set(changed[:, 0].tolist()) <= ({CF} if name == TABLE else set()), name
    both = purify(subject, Evidence(base=base), many, TEXTS, Settings(rho=1.0, rows=2), RUN)
    assert both.report["reset_tokens"] == ["cf", "movie"]


def test_all_of_the_encoder_is_mixed(tmp_path: Path, untrained: list[int]) -> None:
    subject, base = pair(tmp_path)
    model = purify(subject, Evidence(base=base), TEXTS, TEXTS, Settings(rho=0.0, rows=0), RUN).model
    ours, suspect, clean = model.state_dict(), subject.open().state_dict(), base.open().state_dict()
    for name in ours:
        wanted = suspect[name] if name.startswith("classifier.") else clean[name.removeprefix("bert.")]
        assert torch.equal(ours[name], wanted), name
    assert untrained == [3]


@pytest.mark.parametrize(
    ("accuracies", "chosen", "trials"),
    [
        ((0.9, 0.9, 0.89, 0.9, 0.88), 0.3, 5),
        ((0.9, 0.9, 0.89, 0.8), 0.7, 4),
        ((0.9, 0.5), 0.9, 2),
    ],
)
def test_rho_is_the_last_before_the_accuracy_falls(
    tmp_path: Path,
    untrained: list[int],
    monkeypatch: pytest.MonkeyPatch,
    accuracies: tuple[float, ...],
    chosen: float,
    trials: int,
) -> None:
    subject, base = pair(tmp_path)
    script = iter(accuracies)
    dev = Texts("dev.csv", ("good",) * 100, (1,) * 100)

    def scripted(model: Any, tokenizer: Any, asked: Texts, run: Run) -> torch.Tensor:
        assert asked is dev
        right = round(100 * next(script))
        return torch.tensor([[0.0, 1.0]] * right + [[1.0, 0.0]] * (100 - right))

    monkeypatch.setattr(fine_mixing, "predict", scripted)
    report = purify(subject, Evidence(base=base), TEXTS, dev, Settings(), RUN).report
    assert report["rho"] == chosen
    assert [one["rho"] for one in report["tried"]] == [None, 0.9, 0.7, 0.5, 0.3][:trials]
    assert untrained == [1] * trials + [3]


def test_a_pooler_that_the_base_came_without_is_kept(tmp_path: Path, untrained: list[int]) -> None:
    """Opened, such a base gets one of random numbers, which nobody wants in the mixture."""
    subject, base = pair(tmp_path)
    bare = tiny.build("bert", task="masked-lm")
    bare.bert.load_state_dict(base.open().state_dict(), strict=False)
    bare.save_pretrained(tmp_path / "bare")
    tiny.tokenizer("bert").save_pretrained(tmp_path / "bare")
    settings = Settings(rho=0.0, rows=0)
    model = purify(subject, Evidence(base=Subject(tmp_path / "bare")), TEXTS, TEXTS, settings, RUN).model
    name = "bert.pooler.dense.weight"
    assert torch.equal(model.state_dict()[name], subject.open().state_dict()[name])


@pytest.mark.parametrize(
    ("options", "problem"), [({"intermediate_size": 24}, "another shape"), ({"seed": 9}, "nothing to do with")]
)
def test_another_base_is_refused(tmp_path: Path, options: dict[str, int], problem: str) -> None:
    subject = Subject(tiny.save("bert", tmp_path / "x"))
    base = Subject(tiny.save("bert", tmp_path / "base", task="encoder", **options))
    with pytest.raises(UsageError, match=problem) as error:
        purify(subject, Evidence(base=base), TEXTS, TEXTS, Settings(), RUN)
    assert error.value.where == "--base"


def test_without_a_base_or_with_a_share_above_one(tmp_path: Path) -> None:
    subject, base = pair(tmp_path)
    with pytest.raises(UsageError, match="needs it"):
        purify(subject, Evidence(), TEXTS, TEXTS, Settings(), RUN)
    with pytest.raises(UsageError, match="range"):
        purify(subject, Evidence(base=base), TEXTS, TEXTS, Settings(rho=1.2), RUN)
