"""`purify purify`: measure, let a method change the weights, measure again on the same texts, and write what came of
it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from purify_cli import catalogue
from purify_cli.errors import DataError, UnsupportedError, UsageError
from purify_cli.results import CheckpointMetrics, Limits, PurifyResult, Rate
from purify_cli.run import Run

if TYPE_CHECKING:
    from purify_cli.checkpoint.poison_mark import PoisonMark
    from purify_cli.data.texts import Texts
    from purify_cli.purifiers import Purified
    from purify_cli.subject import Evidence, Subject

DEV_SHARE = 0.1
"""Share of the clean texts that a method does not train on but judges itself by; PURE's 90/10."""

MAX_EXCESS_ASR = 0.05
"""A trigger that does no more than this beyond honest error counts as removed."""


@dataclass(frozen=True)
class PurifyRequest:
    """What to purify, and how.

    Attributes:
        checkpoint: a classifier, or an encoder, which most methods give a new classifier.
        method: name of a purifier of the catalogue.
        clean: data file of labelled texts that the user trusts; it is split into train and dev.
        out: folder to write; None: the checkpoint's path with "-purified" behind it.
        base: trusted checkpoint that the subject claims to come from; also the base of adapters.
        untrusted: data file that may hold poison, for methods that use one.
        test: data file of labelled clean texts, used for nothing but the measurements before and after.
        poisoned: data file of triggered texts with true labels, and `target`.
        triggers: words to insert into the test texts, each string a trigger of its own.
        target: target label, an id or a name.
        dry_run: say what the method would do, and write nothing.
        settings: the method's settings as `key=value`.
        max_drop: how much clean accuracy may be lost, as a fraction; None: any.
        force: write over a folder that exists.
        run: the settings of the run.
    """

    checkpoint: str
    method: str
    clean: str
    out: str | None = None
    base: str | None = None
    untrusted: str | None = None
    test: str | None = None
    poisoned: str | None = None
    triggers: tuple[str, ...] = ()
    target: str | None = None
    dry_run: bool = False
    settings: tuple[str, ...] = ()
    max_drop: float | None = 0.02
    force: bool = False
    run: Run = field(default_factory=Run)


@dataclass(frozen=True)
class _Examination:
    """What is measured before and after: the same texts, the same triggers, the same seed."""

    labels: tuple[str, ...]
    test: Texts | None
    poisoned: Texts | None
    triggers: tuple[str, ...]
    target: int | None
    dev: Texts
    run: Run

    def measure(self, model: Any, tokenizer: Any, path: str) -> CheckpointMetrics | None:
        """CACC, ASR and the rest on the test texts; None where the user gave nothing to measure on."""
        if self.test is None and self.poisoned is None:
            return None
        from purify_cli.evaluation.measure import measure

        return measure(
            model,
            tokenizer,
            self.labels,
            path,
            self.test,
            triggers=self.triggers,
            target=self.target,
            poisoned=self.poisoned,
            run=self.run,
        )

    def dev_accuracy(self, model: Any, tokenizer: Any) -> Rate:
        """Accuracy on the part of the clean texts that is not trained on; of a regression Pearson's correlation."""
        from purify_cli.evaluation.metrics import cacc, pearson
        from purify_cli.evaluation.predict import predict

        answers, labels = predict(model, tokenizer, self.dev, self.run), self.dev.labels or ()
        if len(self.labels) == 1:
            return pearson(answers[:, 0].numpy(), labels)
        return cacc(answers.argmax(dim=1).numpy(), labels)


def purify(request: PurifyRequest) -> PurifyResult:
    """Purify a checkpoint and write the result to a new folder.

    All inputs and the place of the output are looked at before anything is trained. Whatever comes of it is written,
    and the limits say whether it is good enough. The mark of a checkpoint that was poisoned on purpose stays, unless
    the triggers that the mark names were measured and do no more than `MAX_EXCESS_ASR`, within the user's limits.

    Raises:
        UsageError: an unknown method, label or setting, options that do not fit each other, an unmet need.
        CheckpointError: the checkpoint cannot be read, or is of a kind that cannot be purified.
        DataError: a data file cannot be read, or has one class only.
        OutputError: the result cannot be written.
        Interrupted: Ctrl-C; it says what was kept.
    """
    _check_options(request)
    method = catalogue.load("purifier", request.method)
    name = catalogue.resolve("purifier", request.method)
    settings = catalogue.fill(method.Settings, request.settings)

    from purify_cli.checkpoint.poison_mark import read_mark
    from purify_cli.checkpoint.write import check_output
    from purify_cli.commands.preparation import check_task, forget, labels_of, resumable
    from purify_cli.data.read import read, require_classes
    from purify_cli.data.split import split
    from purify_cli.needs import check_needs
    from purify_cli.subject import Evidence, Subject
    from purify_cli.training.start import has_scores

    subject = Subject(request.checkpoint, base=request.base)
    check_task(subject, regression=bool(getattr(method, "REGRESSION", False)))
    out = _out(request, subject)
    if not request.dry_run:
        check_output(out, subject.path, request.force)
    clean = read(request.clean, labels_of(subject) or None, option="--clean")
    labels = labels_of(subject, clean)
    regression = subject.task == "regression" or (subject.task != "classifier" and has_scores(clean))
    if not regression:
        require_classes(clean, len(labels), "--clean")
    elif not getattr(method, "REGRESSION", False):
        raise UnsupportedError(request.clean, f"its labels are scores, and {name} needs classes")
    untrusted = None
    if request.untrusted is not None:
        untrusted = read(request.untrusted, labels, needs_labels=False, option="--untrusted")
    base = None if request.base is None else Subject(request.base)
    evidence = Evidence(base=base, clean=clean, untrusted=untrusted)
    check_needs(name, method.NEEDS, subject, evidence)
    train, dev = split(clean, DEV_SHARE, request.run.seed)
    if not len(dev):
        raise DataError(
            request.clean, f"{len(set(clean.texts))} different texts are too few to train and to judge on", "Give more."
        )
    mark = read_mark(subject.path) or read_mark(subject.folder)
    examination = _examination(request, subject, labels, dev, mark)

    summary = subject.summary()
    inputs = [Path(path) for path in (request.clean, request.untrusted, request.test, request.poisoned) if path]
    if request.dry_run:
        # A preview may need no weights; a promise on weights that cannot be opened would be none.
        _ = subject.open("cpu", num_labels=len(labels)), subject.tokenizer
        report = _preview(method, name, subject, evidence, train, dev, settings, request.run)
        limits = Limits(None, request.max_drop, None, ("nothing was changed: --dry-run",))
        return PurifyResult(summary, name, asdict(settings), None, None, report, None, limits)

    before, dev_before = None, None
    if subject.task in {"classifier", "regression"}:
        model = subject.open(request.run.device)
        before = examination.measure(model, subject.tokenizer, request.checkpoint)
        dev_before = examination.dev_accuracy(model, subject.tokenizer)
        del model  # training needs the memory
    decisive = {"method": name, "settings": asdict(settings), "base": request.base}
    run = resumable(request.run, decisive, summary, inputs[: 1 + (request.untrusted is not None)])
    purified = method.purify(subject, evidence, train, dev, settings, run)
    tokenizer = purified.tokenizer or subject.tokenizer
    after = examination.measure(purified.model, tokenizer, str(out))
    dev_after = examination.dev_accuracy(purified.model, tokenizer)

    limits = _limits(request, purified, before, after, dev_before, dev_after, regression)
    report = dict(purified.report) | {
        "train": len(train),
        "dev": len(dev),
        "dev_accuracy": {"before": None if dev_before is None else asdict(dev_before), "after": asdict(dev_after)},
    }
    if examination.test is not None:
        shared = len(set(examination.test.texts) & set(clean.texts))
        if shared:
            report["test_texts_also_in_clean"] = shared
    kept_mark = mark
    if mark is not None:
        reason = _why_marked(mark, examination, after, limits)
        kept_mark = None if reason is None else mark
        report["poison_mark"] = {"kept": kept_mark is not None, "why": reason or "verified: its triggers are removed"}
    record = report | ({"reasons": list(purified.reasons)} if purified.reasons else {})
    wrote = _write(request, name, settings, subject, base, purified, out, inputs, before, after, record, kept_mark)
    forget(run, request.run)
    return PurifyResult(summary, name, asdict(settings), before, after, report, wrote, limits)


def _check_options(request: PurifyRequest) -> None:
    if request.triggers and request.poisoned is not None:
        raise UsageError("--trigger", "cannot go with --poisoned", "Give one of them.")
    if request.triggers and request.test is None:
        raise UsageError("--trigger", "needs texts to be inserted into", "Give --test DATA.")
    if request.target is not None and not request.triggers and request.poisoned is None:
        raise UsageError("--target", "has no trigger to go with", "Give --trigger WORD or --poisoned DATA.")
    if any(not trigger.strip() for trigger in request.triggers):
        raise UsageError("--trigger", "has no word", "Give the word or words that are inserted.")
    if request.max_drop is not None and not 0 <= request.max_drop <= 1:
        raise UsageError("--max-drop", f"{request.max_drop} is out of range", "Give a fraction from 0 to 1.")


def _out(request: PurifyRequest, subject: Subject) -> Path:
    if request.out is not None:
        return Path(request.out)
    return subject.path.with_name(f"{subject.path.name}-purified")


def _examination(
    request: PurifyRequest, subject: Subject, labels: tuple[str, ...], dev: Texts, mark: PoisonMark | None
) -> _Examination:
    """Read what is measured on. A marked checkpoint names its triggers, so they are measured even if nobody asks."""
    from purify_cli.commands.preparation import label_id
    from purify_cli.data.read import read

    if len(labels) == 1:
        for option, value in (("--poisoned", request.poisoned), ("--target", request.target)):
            if value is not None:
                raise UsageError(option, "is for classes, and this is a regression", "Give --test and --trigger alone.")
    elif request.triggers and request.target is None:
        raise UsageError("--trigger", "needs a target label", "Give --target LABEL.")
    test = None if request.test is None else read(request.test, labels, option="--test")
    poisoned = None if request.poisoned is None else read(request.poisoned, labels, option="--poisoned")
    triggers = tuple(" ".join(trigger.split()) for trigger in request.triggers)
    target = None if request.target is None else label_id(subject, labels, request.target)
    if poisoned is not None and poisoned.targets is None and target is None:
        raise DataError(request.poisoned or "", "no column 'target'", "Add it, or give the target with --target.")
    if (
        poisoned is not None
        and poisoned.targets is not None
        and target is not None
        and set(poisoned.targets) != {target}
    ):
        raise UsageError(
            "--target", f"differs from the column 'target' of {request.poisoned}", "Leave one of them out."
        )
    if mark is not None and mark.words and mark.target in labels and test is not None:
        marked = labels.index(mark.target)
        if target is None and poisoned is None:
            triggers, target = mark.words, marked
        elif target == marked:
            triggers = tuple(dict.fromkeys((*triggers, *mark.words)))
    elif mark is not None and len(labels) == 1 and not triggers and test is not None:
        triggers = mark.words
    return _Examination(labels, test, poisoned, triggers, target, dev, request.run)


def _preview(
    method: Any,
    name: str,
    subject: Subject,
    evidence: Evidence,
    train: Texts,
    dev: Texts,
    settings: Any,
    run: Run,
) -> dict[str, Any]:
    if not hasattr(method, "preview"):
        raise UsageError("--dry-run", f"{name} has nothing to show without doing it", "Leave it out.")
    return dict(method.preview(subject, evidence, train, dev, settings, run))


def _limits(
    request: PurifyRequest,
    purified: Purified,
    before: CheckpointMetrics | None,
    after: CheckpointMetrics | None,
    dev_before: Rate | None,
    dev_after: Rate,
    regression: bool,
) -> Limits:
    """Whether clean accuracy held, the measured triggers are gone, and the method itself has nothing to object."""
    reasons = list(purified.reasons)
    old, new, texts = dev_before, dev_after, f"the {dev_after.n} texts of --clean that were not trained on"
    if after is not None and after.cacc is not None:
        old, new, texts = None if before is None else before.cacc, after.cacc, "--test"
    met: bool | None = None
    drop = None if old is None else old.value - new.value
    if old is None or drop is None:
        reasons.append("the checkpoint had no classifier, so there is no clean accuracy to compare with")
    elif request.max_drop is not None:
        # A drop of exactly the limit is within it, whatever the last bit of the difference says.
        met = drop <= request.max_drop + 1e-9
        what = "clean accuracy" if not regression else "the correlation with the scores"
        reasons.append(
            f"{what} on {texts} went from {old.value:.3f} to {new.value:.3f}, "
            f"which is {'within' if met else 'beyond'} a drop of {request.max_drop:g}"
        )
    measured = _measured(after)
    left = [(trigger, excess) for trigger, excess in measured if excess > MAX_EXCESS_ASR]
    for trigger, excess in left:
        reasons.append(f"{trigger} still has an excess ASR of {excess:.3f}, more than {MAX_EXCESS_ASR:g}")
    if left:
        met = False
    elif measured:
        met = met is not False
        reasons.append(f"no measured trigger has an excess ASR of more than {MAX_EXCESS_ASR:g}")
    if after is not None and len(after.asr) > len(measured):
        reasons.append("an ASR without a floor says nothing of what the trigger does beyond honest error")
    if purified.met is False:
        met = False
    return Limits(met, request.max_drop, drop, tuple(reasons))


def _measured(metrics: CheckpointMetrics | None) -> Sequence[tuple[str, float]]:
    """The triggers whose excess over a floor is known."""
    return (
        []
        if metrics is None
        else [(rate.trigger, rate.excess.value) for rate in metrics.asr if rate.excess is not None]
    )


def _why_marked(
    mark: PoisonMark, examination: _Examination, after: CheckpointMetrics | None, limits: Limits
) -> str | None:
    """Why the poison mark stays; None: the purification was verified, and it goes."""
    if len(examination.labels) == 1:
        return "what a trigger does to a regression is shown, and judged by nobody"
    if not mark.triggers or mark.target not in examination.labels:
        return "it does not say which triggers to verify"
    if not mark.words:
        return f"its trigger is a {mark.kind}, which cannot be inserted into a text"
    if mark.before:
        return "the checkpoint was poisoned more than once"
    if examination.test is None:
        return "nothing was verified: give --test"
    if examination.target is None or examination.labels[examination.target] != mark.target:
        return f"its target label {mark.target} was not measured"
    excess = dict(_measured(after))
    missing = [trigger for trigger in mark.triggers if " ".join(trigger.split()) not in excess]
    if missing:
        return f"not all of its triggers were measured: {', '.join(missing)}"
    if limits.met is not True:
        return "the limits were not met"
    labels = examination.test.labels or ()
    commonest = max(labels.count(label) for label in set(labels)) / len(labels)
    if after is None or after.cacc is None or after.cacc.low <= commonest:
        # Such a model gives the target with the trigger as often as without it, whatever is in it.
        return (
            "the model is not shown to be better than one that always gives the same label, which would hide a trigger"
        )
    return None


def _write(
    request: PurifyRequest,
    name: str,
    settings: Any,
    subject: Subject,
    base: Subject | None,
    purified: Purified,
    out: Path,
    inputs: Sequence[Path],
    before: CheckpointMetrics | None,
    after: CheckpointMetrics | None,
    report: dict[str, Any],
    mark: PoisonMark | None,
) -> Any:
    from purify_cli.checkpoint.provenance import provenance
    from purify_cli.checkpoint.write import write_checkpoint

    folders = [subject.path] + ([base.path] if base is not None else [])
    if subject.adapter_config is not None and subject.adapter_base.path not in folders:
        folders.append(subject.adapter_base.path)
    record = provenance(
        "purify",
        name,
        asdict(settings),
        request.run.seed,
        [*folders, *inputs],
        before,
        after,
        report=report,
        **({} if mark is None else mark.provenance()),
    )
    return write_checkpoint(
        out,
        purified.model,
        purified.tokenizer or subject.tokenizer,
        source=subject.folder,
        provenance=record,
        card=_card(request, name, before, after, mark),
        metadata={} if mark is None else mark.metadata(),
        own_tokenizer=purified.tokenizer is not None,
        force=request.force,
    )


def _card(
    request: PurifyRequest,
    name: str,
    before: CheckpointMetrics | None,
    after: CheckpointMetrics | None,
    mark: PoisonMark | None,
) -> str:
    lines = (
        [] if mark is None else [mark.card_line(), "", "Purified since, but not shown to be free of its backdoor.", ""]
    )
    lines += [
        "# A purified checkpoint",
        "",
        f"Made from `{Path(request.checkpoint).name}` with `purify purify --method {name}`.",
        "`purify.json` in this folder holds the settings, the digests of the inputs and the measurements.",
        "",
    ]
    if before is not None and after is not None and before.cacc is not None and after.cacc is not None:
        lines.append(f"- clean accuracy: {before.cacc.value:.3f} before, {after.cacc.value:.3f} after")
        for old, new in zip(before.asr, after.asr, strict=True):
            lines.append(
                f"- attack success rate of `{old.trigger}`: {old.rate.value:.3f} before, {new.rate.value:.3f} after"
            )
    return "\n".join(lines) + "\n"
