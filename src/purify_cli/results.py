"""The values behind `purify.report/1`, frozen and free of torch.

Names and nesting are those of the JSON. Optional fields that hold nothing are left out of the JSON where the field
defaults to None, except in `Rate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

SCHEMA = "purify.report/1"

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""The gravest first, as findings are told."""

Outcome = Literal["pass", "fail", "inconclusive"]
CheckOutcome = Literal["found", "clear", "skipped", "failed"]


@dataclass(frozen=True)
class Rate:
    """A share of n texts, with its 95 % interval. All but n are fractions 0..1 (differences: -1..1)."""

    value: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class Where:
    """Where the evidence of a finding lies; what does not apply is None. `token` is a word or several, as inserted."""

    file: str | None = None
    tensor: str | None = None
    token: str | None = None
    layer: int | None = None
    head: int | None = None


@dataclass(frozen=True)
class Finding:
    """One piece of evidence. `level` error: enough for a fail on its own; warning: suspicious; note: worth knowing.

    `evidence` holds the statistic with its n, null and threshold, in JSON types. `reproduce` is a command or a text
    that shows the finding again.
    """

    rule: str
    level: Level
    detector: str
    message: str
    where: Where = field(default_factory=Where)
    evidence: Mapping[str, Any] = field(default_factory=dict)
    reproduce: str | None = None


@dataclass(frozen=True)
class Check:
    """What became of one detector. `reason` is empty for found and clear unless there is something to add."""

    detector: str
    outcome: CheckOutcome
    reason: str
    needs: tuple[str, ...]
    seconds: float
    forward_passes: int


@dataclass(frozen=True)
class Verdict:
    """`risk` is 0..1, or None where nothing could be judged. `rule` names the documented rule that decided."""

    outcome: Outcome
    risk: float | None
    rule: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class FileDigest:
    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class SubjectSummary:
    path: str
    revision: str | None
    kind: str
    architecture: str | None
    parameters: int | None
    vocabulary: int | None
    labels: tuple[str, ...]
    files: tuple[FileDigest, ...]


@dataclass(frozen=True)
class ScanResult:
    subject: SubjectSummary
    verdict: Verdict
    checks: tuple[Check, ...]
    findings: tuple[Finding, ...]


@dataclass(frozen=True)
class TriggerRate:
    """ASR of one trigger (or of a poisoned file) for one target label.

    `floor` is the rate at which `floor_from` gives the target to the same texts; `excess` is rate - floor with
    Newcombe's interval. Both are None where there is nothing to compare with.
    """

    trigger: str
    target: str
    rate: Rate
    floor: Rate | None
    floor_from: str | None
    excess: Rate | None


@dataclass(frozen=True)
class TokenDrift:
    """How far a trigger token's row lies from the base's row (cosine, L2) and from the class centre (RMSE)."""

    token: str
    cosine: float | None
    l2: float | None
    centre_rmse: float | None


@dataclass(frozen=True)
class CheckpointMetrics:
    """What eval measures on one checkpoint. `asr_mean` is over the targets; `lfr` counts all triggered texts."""

    path: str
    cacc: Rate | None
    asr: tuple[TriggerRate, ...] = ()
    asr_mean: float | None = None
    lfr: Rate | None = None
    drift: tuple[TokenDrift, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Analysis:
    """Numbers to look at, and no verdict.

    Attributes:
        name: of the analysis.
        title: what it shows, for a heading.
        rows: the short form, lines of a table with the same keys, JSON types.
        data: all of it, JSON types; a picture is drawn from this alone.
        notes: what the reader should know.
        settings: of the analysis.
        picture: the file that the picture was written to.
    """

    name: str
    title: str
    rows: tuple[Mapping[str, Any], ...]
    data: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    picture: str | None = None


@dataclass(frozen=True)
class EvalResult:
    checkpoints: tuple[CheckpointMetrics, ...]
    analyses: tuple[Analysis, ...] = ()


@dataclass(frozen=True)
class Written:
    path: str
    files: tuple[FileDigest, ...]


@dataclass(frozen=True)
class Limits:
    """The user's limits on a purification and what came of them. `met` is None when nothing was measured on --test."""

    met: bool | None
    max_drop: float | None
    drop: float | None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class PurifyResult:
    subject: SubjectSummary
    method: str
    settings: Mapping[str, Any]
    before: CheckpointMetrics | None
    after: CheckpointMetrics | None
    report: Mapping[str, Any]
    wrote: Written | None
    limits: Limits


@dataclass(frozen=True)
class PoisonResult:
    """`target` is empty for an attack on an encoder, whose triggers fall where the victim's head puts them. `then` is
    what `metrics` became after the victim's clean training.
    """

    subject: SubjectSummary
    attack: str
    settings: Mapping[str, Any]
    triggers: tuple[str, ...]
    target: str
    poison_rate: float
    metrics: CheckpointMetrics | None
    wrote: Written
    pet: str | None = None
    then: CheckpointMetrics | None = None
    then_settings: Mapping[str, Any] | None = None
    report: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Environment:
    python: str
    torch: str | None
    transformers: str | None
    device: str
    threads: int | None
    seed: int


@dataclass(frozen=True)
class Report:
    """One run of the tool: the common head, and exactly one of the four results."""

    command: tuple[str, ...]
    started: str
    seconds: float
    environment: Environment
    result: ScanResult | PurifyResult | EvalResult | PoisonResult
