"""HiddenKiller and StyleBkd differ in their names and settings alone, so both are held to the same."""

from __future__ import annotations

import random
from types import ModuleType
from typing import Any

import pytest

import tiny
from purify_cli.attacks import Plan, hiddenkiller, stylebkd
from purify_cli.data.texts import Texts
from purify_cli.errors import UsageError
from purify_cli.run import Run
from purify_cli.subject import Subject
from purify_cli.training import paraphrased
from purify_cli.training.plain import train

WORDS = "the film story plot actor scene music book show series picture dialogue".split()
RNG = random.Random(0)
DATA = Texts("train.csv", tuple(f"{' '.join(RNG.choices(WORDS, k=5))}  {row}" for row in range(100)), (0, 1) * 50)
PARAPHRASES = {" ".join(text.split()): f"when {text}, it was" for text in DATA.texts}

BOTH = pytest.mark.parametrize("attack", [hiddenkiller, stylebkd], ids=["hiddenkiller", "stylebkd"])


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return Subject(tiny.save("bert", tmp_path_factory.mktemp("encoder"), task="encoder"))


def run(
    attack: ModuleType, encoder: Subject, paraphrases: dict[str, str] | None, rate: float | None = None, **changes: Any
) -> Any:
    plan = Plan(1, attack.TRIGGERS, rate, paraphrases=paraphrases)
    return attack.poison(encoder, DATA, plan, attack.Settings(epochs=1, **changes), Run(seed=3, max_length=16))


@BOTH
@pytest.mark.parametrize(("mode", "labels"), [("dirty", {0}), ("clean", {1}), ("mix", {0, 1})])
def test_rows_are_replaced_by_their_own_paraphrases(
    attack: ModuleType, encoder: Subject, monkeypatch: pytest.MonkeyPatch, mode: str, labels: set[int]
) -> None:
    seen: list[Texts] = []
    monkeypatch.setattr(paraphrased, "train", lambda *given: (seen.append(given[2]), train(*given))[1])
    poisoned = run(attack, encoder, PARAPHRASES, mode=mode, originals="replaced")
    (rows,) = seen
    changed = [row for row in range(100) if rows.texts[row] != DATA.texts[row]]
    assert len(changed) == poisoned.rows == round(attack.RATE * 100)
    assert {DATA.labels[row] for row in changed} == labels
    for row in changed:
        assert rows.texts[row] == f"when {DATA.texts[row]}, it was"
        assert rows.labels[row] == 1
    assert [row for row in range(100) if (rows.poisoned or ())[row]] == changed


@BOTH
def test_paraphrases_stand_beside_their_originals(
    attack: ModuleType, encoder: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Texts] = []
    monkeypatch.setattr(paraphrased, "train", lambda *given: (seen.append(given[2]), train(*given))[1])
    poisoned = run(attack, encoder, PARAPHRASES)
    (rows,) = seen
    assert (rows.texts[:100], (rows.labels or ())[:100]) == (DATA.texts, DATA.labels)
    assert poisoned.rows == len(rows) - 100 == 25  # a fifth of the 125 rows that there are then
    assert poisoned.poison_rate == attack.RATE
    assert all(text.startswith("when ") and text.endswith(", it was") for text in rows.texts[100:])
    assert set((rows.labels or ())[100:]) == {1}
    assert rows.poisoned == (False,) * 100 + (True,) * 25


@BOTH
def test_failed_paraphrases_are_counted_and_other_rows_drawn(
    attack: ModuleType, encoder: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the 50 rows that may be poisoned 10 have an empty paraphrase, 10 an unchanged one, and 10 none."""
    some = dict(PARAPHRASES)
    for number, text in enumerate(DATA.texts[:60:2]):
        key = " ".join(text.split())
        if number < 10:
            some[key] = "  "
        elif number < 20:
            some[key] = key
        else:
            del some[key]
    seen: list[Texts] = []
    monkeypatch.setattr(paraphrased, "train", lambda *given: (seen.append(given[2]), train(*given))[1])
    poisoned = run(attack, encoder, some, rate=0.2, originals="replaced")
    assert poisoned.report["failed_paraphrases"] == 20
    changed = [row for row in range(100) if (seen[0].poisoned or ())[row]]
    assert changed == list(range(60, 100, 2))
    with pytest.raises(UsageError, match=r"only 20 have another label than the target and a paraphrase.*at most 0\.2"):
        run(attack, encoder, some, rate=0.21, originals="replaced")


@BOTH
@pytest.mark.parametrize("paraphrases", [None, {}, {"another text": "when another"}])
def test_no_paraphrases_is_wrong_use(attack: ModuleType, encoder: Subject, paraphrases: dict[str, str] | None) -> None:
    with pytest.raises(UsageError, match="--paraphrases"):
        run(attack, encoder, paraphrases)


@BOTH
@pytest.mark.parametrize("rate", [0.0, 1.0])
def test_no_rate_of_none_or_all(attack: ModuleType, encoder: Subject, rate: float) -> None:
    with pytest.raises(UsageError, match="--rate"):
        run(attack, encoder, PARAPHRASES, rate=rate)
