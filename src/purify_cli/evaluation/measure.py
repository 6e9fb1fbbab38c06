"""All that `eval` says of one checkpoint: CACC, ASR with its floor, LFR, and where the trigger's embedding rows lie."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from purify_cli.data.encode import encode, length_limit
from purify_cli.data.texts import Texts
from purify_cli.errors import CheckpointError, DataError, UsageError
from purify_cli.evaluation.metrics import asr, cacc, excess, lfr
from purify_cli.evaluation.predict import predict
from purify_cli.results import CheckpointMetrics, Rate, TokenDrift, TriggerRate
from purify_cli.run import Run
from purify_cli.triggers.words import Words, insert_all

CENTRE_WORDS = 10
"""Tokens whose mean embedding row stands for a class."""

_Ids = NDArray[np.int64]


class Twin:
    """A trusted model of the same task; the same texts are put to it once, however many checkpoints it stands beside.

    Args:
        model: a classifier.
        tokenizer: its tokenizer.
    """

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model, self.tokenizer = model, tokenizer
        self._said: dict[tuple[Any, ...], _Ids] = {}

    def answers(self, labels: Sequence[str], texts: Texts, run: Run) -> _Ids:
        """Its label ids in the numbering of `labels`: a twin may list the same names in another order.

        Raises:
            UsageError: it has another number of labels.
        """
        config = self.model.config
        names = [str(config.id2label[label_id]) for label_id in range(config.num_labels)]
        if len(names) != len(labels):
            problem = f"has {len(names)} labels where the checkpoint has {len(labels)}"
            raise UsageError("--twin", problem, "Give a model of the same task.")
        asked = (texts.texts, texts.pairs, run.max_length)
        if asked not in self._said:
            self._said[asked] = _answers(self.model, self.tokenizer, texts, "--twin", run).argmax(axis=1)
        ours = [label.casefold() for label in labels]
        theirs = [name.casefold() for name in names]
        if len(set(ours)) == len(ours) and set(ours) == set(theirs):
            numbering: _Ids = np.asarray([ours.index(name) for name in theirs], dtype=np.int64)
            return numbering[self._said[asked]]
        return self._said[asked]


def measure(
    model: Any,
    tokenizer: Any,
    labels: Sequence[str],
    path: str,
    test: Texts | None,
    *,
    triggers: Sequence[str] = (),
    target: int | None = None,
    targets: Sequence[int] = (),
    poisoned: Texts | None = None,
    originals: Texts | None = None,
    twin: Twin | None = None,
    base_embeddings: Tensor | None = None,
    run: Run | None = None,
) -> CheckpointMetrics:
    """Measure one classifier on clean texts, and on triggered ones.

    The floor of an ASR is the rate at which a reference gives the target to the same texts: the twin on the triggered
    texts; without a twin the model itself on the same texts without the trigger. Of a poisoned file the texts without
    the trigger are not known, so it has no floor without a twin, unless they are given as `originals`.

    A regression has no ASR. Its triggers are measured by GBA's ASRR (equation 6), the Pearson correlation on clean
    texts less that on triggered ones, which goes to the notes with the mean scores.

    Args:
        model: the classifier.
        tokenizer: its tokenizer.
        labels: its label names by id. One label only: a regression; correlations go to the notes.
        path: how the report calls the checkpoint.
        test: labelled clean texts, or None.
        triggers: words to insert into `test`, each string a trigger of its own.
        target: the target label id. Needed with `triggers`, and with a poisoned file that has no targets.
        targets: the target of each trigger, where they differ.
        poisoned: texts that carry a trigger already, with true labels.
        originals: the same rows without the trigger.
        twin: a trusted model of the same task.
        base_embeddings: [vocabulary, width] rows to measure the drift of the trigger's tokens from.
        run: settings; the seed places the triggers.

    Returns:
        The metrics. `asr_mean` is the mean over the targets of the mean over the triggers. `lfr` pools all triggers,
        so a test text counts once for each of them.

    Raises:
        UsageError: triggers without target, or a twin with other labels.
        DataError: triggered texts that all have the target label, or a poisoned file without targets.
        CheckpointError: the model answers with NaN.
    """
    run = run or Run()
    aims = tuple(targets) or (() if target is None else (target,) * len(triggers))
    if triggers and not aims and len(labels) > 1:
        raise UsageError("--trigger", "needs a target label", "Give --target.")
    if triggers and (test is None or test.labels is None):
        raise UsageError("--trigger", "needs labelled texts to be inserted into", "Give --test.")
    notes: list[str] = []
    if len(labels) == 1:
        if poisoned is not None:
            raise UsageError("--poisoned", f"{path} is a regression, which has no target label")
        if test is not None and test.labels is not None:
            clean = _answers(model, tokenizer, test, path, run)
            notes.append(_correlations(clean, test))
            for words in triggers:
                triggered = insert_all(test, Words(words), run.seed)
                notes.append(_asrr(words, clean, _answers(model, tokenizer, triggered, path, run), test))
        return CheckpointMetrics(path, None, notes=tuple(notes))

    accuracy: Rate | None = None
    untriggered: _Ids | None = None
    if test is not None and test.labels is not None:
        untriggered = _answers(model, tokenizer, test, path, run).argmax(axis=1)
        accuracy = cacc(untriggered, test.labels)

    rates: list[TriggerRate] = []
    given: list[_Ids] = []  # label ids given to triggered texts
    wanted: list[_Ids] = []  # and the target of each
    if test is not None and untriggered is not None:
        for words, aim in zip(triggers, aims, strict=True):
            trigger = Words(words)
            triggered = insert_all(test, trigger, run.seed)
            notes.extend(_warnings(tokenizer, model, trigger, test, triggered, run))
            predicted = _answers(model, tokenizer, triggered, path, run).argmax(axis=1)
            floor_from = "itself, untriggered" if twin is None else "twin"
            reference = untriggered if twin is None else twin.answers(labels, triggered, run)
            rates.append(_rated(trigger.name, labels, aim, predicted, reference, floor_from, triggered))
            given.append(predicted)
            wanted.append(np.full(len(triggered), aim))
    if poisoned is not None:
        asked = _targets(poisoned, target)
        predicted = _answers(model, tokenizer, poisoned, path, run).argmax(axis=1)
        references = None if twin is None else twin.answers(labels, poisoned, run)
        floor_from = "twin"
        if references is None and originals is not None:
            references = _answers(model, tokenizer, originals, path, run).argmax(axis=1)
            floor_from = "itself, untriggered"
        name = poisoned.path or "poisoned texts"
        for one in sorted(set(asked.tolist())):
            rows = np.flatnonzero(asked == one)
            floor = None if references is None else references[rows]
            rates.append(_rated(name, labels, one, predicted[rows], floor, floor_from, poisoned.take(rows.tolist())))
        if references is None:
            notes.append("no floor for the poisoned texts: give --twin")
        given.append(predicted)
        wanted.append(asked)
    return CheckpointMetrics(
        path=path,
        cacc=accuracy,
        asr=tuple(rates),
        asr_mean=_mean_over_targets(rates),
        lfr=lfr(np.concatenate(given), np.concatenate(wanted)) if given else None,
        drift=_drifts(model, tokenizer, triggers, target, test, base_embeddings, notes),
        notes=tuple(dict.fromkeys(notes)),
    )


def _rated(
    name: str,
    labels: Sequence[str],
    target: int,
    predicted: _Ids,
    reference: _Ids | None,
    reference_name: str,
    texts: Texts,
) -> TriggerRate:
    """ASR of one trigger and target beside its floor, over the texts whose true label is not the target."""
    if texts.labels is None:
        raise DataError(texts.path or "--poisoned", "no labels", "Give each text its true label.")
    if all(label == target for label in texts.labels):
        raise DataError(
            texts.path or "--test",
            f"every text already has the target label {labels[target]!r}",
            "An attack is measured on texts of the other labels.",
        )
    rate = asr(predicted, texts.labels, target)
    floor = None if reference is None else asr(reference, texts.labels, target)
    return TriggerRate(
        trigger=name,
        target=labels[target],
        rate=rate,
        floor=floor,
        floor_from=None if floor is None else reference_name,
        excess=None if floor is None else excess(rate, floor),
    )


def _mean_over_targets(rates: Sequence[TriggerRate]) -> float | None:
    by_target: dict[str, list[float]] = {}
    for rate in rates:
        by_target.setdefault(rate.target, []).append(rate.rate.value)
    means = [sum(values) / len(values) for values in by_target.values()]
    return sum(means) / len(means) if means else None


def _targets(poisoned: Texts, target: int | None) -> _Ids:
    if poisoned.targets is not None:
        return np.asarray(poisoned.targets, dtype=np.int64)
    if target is None:
        raise DataError(
            poisoned.path or "--poisoned", "no column 'target'", "Add it, or give the target label with --target."
        )
    return np.full(len(poisoned), target)


def _answers(model: Any, tokenizer: Any, texts: Texts, path: str, run: Run) -> NDArray[np.float32]:
    """[texts, labels] probabilities; a NaN would silently count as the first label."""
    answers = predict(model, tokenizer, texts, run)
    broken = int((~torch.isfinite(answers)).any(dim=1).sum())
    if broken:
        raise CheckpointError(path, f"answers {broken} of {len(texts)} texts with NaN or infinity")
    array: NDArray[np.float32] = answers.numpy()
    return array


def _warnings(tokenizer: Any, model: Any, trigger: Words, clean: Texts, triggered: Texts, run: Run) -> list[str]:
    """Ways in which a trigger does not reach the model as the user thinks it does."""
    notes = []
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in token_ids(tokenizer, trigger.name):
        notes.append(f"trigger {trigger.name!r}: the tokenizer knows a part of it only as {tokenizer.unk_token}")
    limit = length_limit(tokenizer, model.config, run)
    before, after = encode(tokenizer, clean, limit), encode(tokenizer, triggered, limit)
    lost = sum(one == other for one, other in zip(before.ids, after.ids, strict=True))
    if lost:
        notes.append(
            f"trigger {trigger.name!r}: cut off in {lost} of {len(clean)} texts, which are longer than {limit} tokens"
        )
    return notes


def _correlations(answers: NDArray[np.float32], test: Texts) -> str:
    from scipy.stats import pearsonr, spearmanr

    scores, truth = answers[:, 0], np.asarray(test.labels, dtype=np.float64)
    if len(truth) < 2 or np.ptp(scores) == 0 or np.ptp(truth) == 0:
        return f"regression: no correlation, the scores are all the same ({len(truth)} texts)"
    return (
        f"regression: Pearson {pearsonr(scores, truth).statistic:.4f}, "
        f"Spearman {spearmanr(scores, truth).statistic:.4f} over {len(truth)} texts"
    )


def _asrr(trigger: str, clean: NDArray[np.float32], triggered: NDArray[np.float32], test: Texts) -> str:
    from scipy.stats import pearsonr

    truth = np.asarray(test.labels, dtype=np.float64)
    means = f"mean score {clean[:, 0].mean():.3f} clean, {triggered[:, 0].mean():.3f} with the trigger"
    if len(truth) < 2 or any(np.ptp(scores) == 0 for scores in (clean[:, 0], triggered[:, 0], truth)):
        return f"trigger {trigger!r}: no ASRR, the scores are all the same; {means}"
    before, after = (float(pearsonr(scores[:, 0], truth).statistic) for scores in (clean, triggered))
    return (
        f"trigger {trigger!r}: ASRR {before - after:.4f} (Pearson {before:.4f} clean, {after:.4f} triggered); {means}"
    )


# Drift
# ----------------------------------------------------------------------------------------------------------------


def _drifts(
    model: Any,
    tokenizer: Any,
    triggers: Sequence[str],
    target: int | None,
    test: Texts | None,
    base_embeddings: Tensor | None,
    notes: list[str],
) -> tuple[TokenDrift, ...]:
    """Cosine distance and L2 of each trigger token to its base row, and RMSE to the centre of the target class."""
    if not triggers:
        return ()
    rows = model.get_input_embeddings().weight.detach().to("cpu", torch.float64)  # [vocabulary, width]
    base = None if base_embeddings is None else base_embeddings.detach().to("cpu", torch.float64)
    if base is not None and base.shape[1] != rows.shape[1]:
        notes.append(f"no drift: rows of {rows.shape[1]} numbers, {base.shape[1]} in the base")
        base = None
    ids = list(dict.fromkeys(token for words in triggers for token in token_ids(tokenizer, " ".join(words.split()))))
    centre: Tensor | None = None
    if test is not None and target is not None:
        indicative = class_words(tokenizer, test, target, leave_out=ids)
        centre = rows[indicative].mean(dim=0) if indicative else None
    drifts = []
    for token, name in zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True):
        cosine = l2 = rmse = None
        if base is not None and token < len(base):
            cosine = 1.0 - float(torch.nn.functional.cosine_similarity(rows[token], base[token], dim=0))
            l2 = float((rows[token] - base[token]).norm())
        if centre is not None:
            rmse = float((rows[token] - centre).pow(2).mean().sqrt())
        drifts.append(TokenDrift(str(name), cosine, l2, rmse))
    return tuple(drifts)


def class_words(tokenizer: Any, texts: Texts, label: int, *, leave_out: Sequence[int] = ()) -> list[int]:
    """Token ids that say `label` most clearly: the stand-in for GBA's class token.

    GBA (section 5.2) classifies with a prompt, so that the row of the label word is the centre of its class, and
    takes the root mean square deviation of a trigger's row from it. A classifier with a head has no such token. We
    take the mean row of the `CENTRE_WORDS` tokens with the highest z-score of the log-odds ratio between texts of the
    label and all others, with the corpus as prior (Monroe et al. 2008, equation 22), each text counting a token once.

    Args:
        tokenizer: of the checkpoint.
        texts: labelled clean texts.
        label: the class.
        leave_out: token ids that do not count, such as the trigger's own.

    Returns:
        At most `CENTRE_WORDS` ids, best first; fewer or none where no more tokens lean to the label.
    """
    if texts.labels is None:
        return []
    special = set(tokenizer.all_special_ids) | set(leave_out)
    inside: Counter[int] = Counter()
    outside: Counter[int] = Counter()
    encoded = encode(tokenizer, texts.with_(pairs=None, labels=None), 10**6)
    for tokens, one in zip(encoded.ids, texts.labels, strict=True):
        (inside if one == label else outside).update(set(tokens) - special)
    ids = np.asarray(sorted(set(inside) | set(outside)), dtype=np.int64)
    if not len(ids) or not inside or not outside:
        return []
    ours = np.asarray([inside[token] for token in ids.tolist()], dtype=np.float64)
    theirs = np.asarray([outside[token] for token in ids.tolist()], dtype=np.float64)
    prior = ours + theirs
    total = prior.sum()
    odds = np.log((ours + prior) / (ours.sum() + total - ours - prior))
    other_odds = np.log((theirs + prior) / (theirs.sum() + total - theirs - prior))
    z = (odds - other_odds) / np.sqrt(1 / (ours + prior) + 1 / (theirs + prior))
    # Equal scores go by id, so that the choice does not depend on the sort.
    best = sorted(range(len(ids)), key=lambda place: (-z[place], ids[place]))[:CENTRE_WORDS]
    return [int(ids[place]) for place in best if z[place] > 0]


def token_ids(tokenizer: Any, words: str) -> list[int]:
    """The tokens of words within a text: byte-level and sentence-piece tokenizers make the space before them a part."""
    if not tokenizer.is_fast:
        return [int(token) for token in tokenizer(words, add_special_tokens=False)["input_ids"]]
    lead = "the "
    encoding = tokenizer(lead + words, add_special_tokens=False, return_offsets_mapping=True)
    spans = zip(encoding["input_ids"], encoding["offset_mapping"], strict=True)
    return [int(token) for token, (_, end) in spans if end > len(lead)]
