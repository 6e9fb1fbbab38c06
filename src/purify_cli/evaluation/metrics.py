"""CACC, ASR, LFR and excess ASR: counts over predicted and true label ids.

Names differ between papers. LFR here is the label flip rate of gradient control (Gu et al. 2023, equation 8), over
all triggered texts; what PURE (Zhao et al. 2024) and RIPPLe (Kurita et al. 2020) call LFR is our ASR; MuScleLoRA's
LFR is a ratio of frequencies and none of these.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from purify_cli.evaluation.intervals import newcombe, wilson
from purify_cli.results import Rate


def cacc(predicted: Any, labels: Any) -> Rate:
    """Share of untriggered texts that get their true label.

    Args:
        predicted: [texts] label ids, an array, a CPU tensor or a sequence.
        labels: [texts] true label ids.

    Raises:
        ValueError: no texts, or columns of different length.
    """
    predicted, labels = _ids(predicted, labels)
    return wilson(int((predicted == labels).sum()), len(labels))


def asr(predicted: Any, labels: Any, target: Any) -> Rate:
    """Attack success rate: of the triggered texts whose true label is not the target, the share given the target.

    Args:
        predicted: [texts] label ids of the triggered texts.
        labels: [texts] their true label ids.
        target: the target label id, or one a text.

    Raises:
        ValueError: every text has the target as its true label, or columns of different length.
    """
    predicted, labels = _ids(predicted, labels)
    targets = np.broadcast_to(np.asarray(target), labels.shape)
    counted = labels != targets
    return wilson(int((predicted == targets)[counted].sum()), int(counted.sum()))


def lfr(predicted: Any, target: Any) -> Rate:
    """Label flip rate: of all triggered texts, the share given the target (gradient control, equation 8).

    Args:
        predicted: [texts] label ids of the triggered texts.
        target: the target label id, or one a text.

    Raises:
        ValueError: no texts, or columns of different length.
    """
    (predicted,) = _ids(predicted)
    targets = np.broadcast_to(np.asarray(target), predicted.shape)
    return wilson(int((predicted == targets).sum()), len(predicted))


def excess(rate: Rate, floor: Rate) -> Rate:
    """Excess ASR: `rate` - `floor`, what the trigger does beyond honest error, with Newcombe's interval.

    Args:
        rate: ASR of the subject on triggered texts.
        floor: the rate at which a reference gives the target to the same texts.
    """
    return newcombe(round(rate.value * rate.n), rate.n, round(floor.value * floor.n), floor.n)


def pearson(scores: Any, truth: Any) -> Rate:
    """Pearson's correlation of a regression's scores with the true ones, with Fisher's 95 % interval.

    Args:
        scores: [texts] floats.
        truth: [texts] floats.

    Returns:
        the correlation; 0 in -1..1 where a column is all the same number, or there are fewer than four texts.

    Raises:
        ValueError: columns of different length.
    """
    from scipy.stats import pearsonr

    scores, truth = np.asarray(scores, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if scores.shape != truth.shape:
        raise ValueError(f"columns of different length: {len(scores)} and {len(truth)}")
    if len(truth) < 4 or np.ptp(scores) == 0 or np.ptp(truth) == 0:
        return Rate(0.0, -1.0, 1.0, len(truth))
    found = pearsonr(scores, truth)
    low, high = found.confidence_interval(0.95)
    return Rate(float(found.statistic), float(low), float(high), len(truth))


def _ids(*columns: Any) -> tuple[NDArray[np.int64], ...]:
    arrays = tuple(np.asarray(column, dtype=np.int64) for column in columns)
    if len({array.shape for array in arrays}) > 1:
        raise ValueError(f"columns of different length: {[len(array) for array in arrays]}")
    return arrays
