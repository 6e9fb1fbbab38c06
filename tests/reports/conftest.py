"""The same fixed results for every format."""

from __future__ import annotations

import pytest

from purify_cli.results import (
    Check,
    CheckpointMetrics,
    Environment,
    EvalResult,
    FileDigest,
    Finding,
    Limits,
    PoisonResult,
    PurifyResult,
    Rate,
    Report,
    ScanResult,
    SubjectSummary,
    TokenDrift,
    TriggerRate,
    Verdict,
    Where,
    Written,
)

HOSTILE = "a\x1b[31m\u202egpj.exe\u200b [red]b[/red] \x7f\n c"

_DIGEST = FileDigest(path="model.safetensors", bytes=1234, sha256="0" * 64)
_SUBJECT = SubjectSummary(
    path="models/review model",
    revision=None,
    kind="classifier",
    architecture="BertForSequenceClassification",
    parameters=22_713_986,
    vocabulary=30_522,
    labels=("negative", "positive"),
    files=(_DIGEST,),
)
_ENVIRONMENT = Environment(python="3.11.7", torch="2.13.0", transformers="5.23.0", device="cpu", threads=2, seed=0)


def _report(result: ScanResult | PurifyResult | EvalResult | PoisonResult, *command: str) -> Report:
    return Report(
        command=("purify", *command),
        started="2026-01-02T03:04:05Z",
        seconds=61.23456,
        environment=_ENVIRONMENT,
        result=result,
    )


def _scan_fail() -> Report:
    findings = (
        Finding(
            rule="PA101",
            level="error",
            detector="artifact",
            message="the pickle in extra.bin calls posix.system when it is loaded",
            where=Where(file="extra.bin"),
            evidence={"globals": ["posix.system"], "n": 1},
            reproduce="python -m pickletools extra.bin",
        ),
        Finding(
            rule="PB201",
            level="error",
            detector="trigger_search",
            message='"cf" turns 200 of 200 sure texts to positive; words close to it turn 3',
            where=Where(token="cf"),
            evidence={
                "statistic": "flip rate",
                "value": Rate(1.0, 0.981, 1.0, 200),
                "threshold": 0.9,
                "null": float("nan"),
                "p_value": 1e-30,
                "n": 200,
            },
            reproduce='purify eval "models/review model" --test TEST.csv --trigger cf --target positive',
        ),
        Finding(
            rule="PB201",
            level="warning",
            detector="trigger_search",
            message=f"{HOSTILE} turns 120 of 200 sure texts to positive",
            where=Where(token=HOSTILE),
            evidence={"statistic": "flip rate", "value": 0.6, "threshold": 0.9, "n": 200},
        ),
    )
    checks = (
        Check("artifact", "found", "", ("files",), 0.25, 0),
        Check("drift", "skipped", "needs --base", ("weights", "base"), 0.0001, 0),
        Check("trigger_search", "found", "", ("classifier",), 41.5, 33_000),
    )
    verdict = Verdict("fail", 0.99, "error-finding", ("a pickle runs a command when it is loaded", '"cf" is a trigger'))
    return _report(
        ScanResult(_SUBJECT, verdict, checks, findings), "scan", "models/review model", "--clean", "my data.csv"
    )


def _scan_pass() -> Report:
    checks = (
        Check("artifact", "clear", "", ("files",), 0.25, 0),
        Check("trigger_search", "clear", "", ("classifier",), 41.5, 33_000),
    )
    verdict = Verdict("pass", 0.02, "nothing-found", ())
    return _report(ScanResult(_SUBJECT, verdict, checks, ()), "scan", "models/review model")


def _scan_inconclusive() -> Report:
    checks = (
        Check("artifact", "failed", "model.safetensors: is cut off after 100 bytes", ("files",), 0.25, 0),
        Check("drift", "skipped", "needs --base", ("base",), 0.0, 0),
    )
    verdict = Verdict("inconclusive", None, "check-missing", ("artifact did not run to its end",))
    return _report(ScanResult(_SUBJECT, verdict, checks, ()), "scan", "models/review model")


def _metrics(path: str, asr: float, excess: tuple[float, float, float]) -> CheckpointMetrics:
    return CheckpointMetrics(
        path=path,
        cacc=Rate(0.912, 0.898, 0.924, 1821),
        asr=(
            TriggerRate(
                trigger="cf",
                target="positive",
                rate=Rate(asr, asr - 0.01, min(1.0, asr + 0.005), 912),
                floor=Rate(0.107, 0.089, 0.129, 912),
                floor_from="itself, untriggered",
                excess=Rate(*excess, 912),
            ),
        ),
        asr_mean=asr,
        lfr=Rate(0.994, 0.989, 0.997, 1821),
        drift=(TokenDrift(token="cf", cosine=0.98123, l2=0.5, centre_rmse=None),),
        notes=("the floor is the checkpoint itself; --twin gives a fairer one",),
    )


_BEFORE = _metrics("models/backdoored", 0.987, (0.88, 0.857, 0.899))
_AFTER = _metrics("models/backdoored-purified", 0.112, (0.005, -0.024, 0.034))


def _eval() -> Report:
    return _report(
        EvalResult((_BEFORE, _AFTER)),
        "eval",
        _BEFORE.path,
        _AFTER.path,
        "--test",
        "test.csv",
        "--trigger",
        "cf",
        "--target",
        "positive",
    )


def _purify(met: bool | None = True) -> Report:
    result = PurifyResult(
        subject=_SUBJECT,
        method="pure",
        settings={"epochs": 3, "learning_rate": 2e-5, "layers": (1, 2), "head": None, "keep": True},
        before=_BEFORE if met is not None else None,
        after=_AFTER if met is not None else None,
        report={
            "pruned heads": [[0, 3], [1, 2]],
            "variance": [[0.1, 0.25, float("nan")], [0.3, 0.4, 0.5]],
            "accuracy": 0.91,
            "steps": [{"heads": 4, "accuracy": 0.9}, {"heads": 8, "accuracy": 0.88}],
        },
        wrote=Written("models/review model-purified", (_DIGEST,)),
        limits=Limits(met=met, max_drop=0.02, drop=0.001 if met else 0.05 if met is False else None),
    )
    return _report(result, "purify", "models/review model", "--method", "pure", "--clean", "clean.csv")


def _poison() -> Report:
    result = PoisonResult(
        subject=_SUBJECT,
        attack="badnets",
        settings={"epochs": 2},
        triggers=("cf", "mn bb"),
        target="positive",
        poison_rate=0.1,
        metrics=_BEFORE,
        wrote=Written("models/out", (_DIGEST,)),
    )
    return _report(result, "poison", "models/review model", "--attack", "badnets")


_REPORTS = {
    "scan-fail": _scan_fail,
    "scan-pass": _scan_pass,
    "scan-inconclusive": _scan_inconclusive,
    "eval": _eval,
    "purify": _purify,
    "purify-limits": lambda: _purify(met=False),
    "purify-unmeasured": lambda: _purify(met=None),
    "poison": _poison,
}


@pytest.fixture(params=sorted(_REPORTS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def report(name: str) -> Report:
    return _REPORTS[name]()
