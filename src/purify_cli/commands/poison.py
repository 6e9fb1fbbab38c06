"""`purify poison`: make a backdoored checkpoint to measure on, and mark it as one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from purify_cli import catalogue
from purify_cli.errors import UsageError
from purify_cli.results import CheckpointMetrics, PoisonResult
from purify_cli.run import Run


@dataclass(frozen=True)
class PoisonRequest:
    """What to poison, and how.

    Attributes:
        checkpoint: an encoder, which gets a new classifier, or a classifier, which is trained on.
        attack: name of an attack of the catalogue.
        data: the attacker's training file.
        target: target label, an id or a name.
        triggers: each a trigger of its own; empty: the attack's own.
        rate: poisoned rows / all rows; None: the attack's own.
        out: folder to write.
        test: data file of labelled clean texts to measure CACC and ASR on; None: nothing is measured.
        pet, then_finetune: not in this version.
        settings: the attack's settings as `key=value`.
        force: write over a folder that exists.
        run: the settings of the run.
    """

    checkpoint: str
    attack: str
    data: str
    target: str
    out: str
    triggers: tuple[str, ...] = ()
    rate: float | None = None
    test: str | None = None
    pet: str | None = None
    then_finetune: str | None = None
    settings: tuple[str, ...] = ()
    force: bool = False
    run: Run = field(default_factory=Run)


def poison(request: PoisonRequest) -> PoisonResult:
    """Poison a checkpoint and write it, with its mark, to a new folder.

    All inputs and the place of the output are looked at before anything is trained.

    Raises:
        UsageError: an unknown attack, label or setting, a trigger or a rate that cannot be.
        CheckpointError: the checkpoint cannot be read, or is of a kind that the attack cannot use.
        DataError: a data file cannot be read.
        OutputError: the result cannot be written.
        Interrupted: Ctrl-C; it says what was kept.
    """
    for option, given in (("--pet", request.pet), ("--then-finetune", request.then_finetune)):
        if given is not None:
            raise UsageError(option, "is not in this version", "Leave it out.")
    if any(not trigger.strip() for trigger in request.triggers):
        raise UsageError("--trigger", "has no word", "Give the word or words that are inserted.")
    attack = catalogue.load("attack", request.attack)
    name = catalogue.resolve("attack", request.attack)
    settings = catalogue.fill(attack.Settings, request.settings)

    from purify_cli.attacks import Plan, Poisoned
    from purify_cli.checkpoint.poison_mark import PoisonMark
    from purify_cli.checkpoint.provenance import provenance
    from purify_cli.checkpoint.write import check_output, write_checkpoint
    from purify_cli.commands.preparation import check_needs, check_task, forget, label_id, labels_of, resumable
    from purify_cli.data.read import read, require_classes
    from purify_cli.subject import Evidence, Subject

    out = Path(request.out)
    subject = Subject(request.checkpoint)
    check_task(subject)
    check_needs(name, attack.NEEDS, subject, Evidence())
    check_output(out, subject.path, request.force)
    data = read(request.data, labels_of(subject) or None, option="--data")
    labels = labels_of(subject, data)
    require_classes(data, len(labels), "--data")
    target = label_id(subject, labels, request.target)
    test = None if request.test is None else read(request.test, labels, option="--test")
    triggers = tuple(" ".join(trigger.split()) for trigger in request.triggers) or tuple(attack.TRIGGERS)

    summary = subject.summary()
    decisive = {"attack": name, "settings": asdict(settings), "triggers": triggers, "target": target}
    inputs = [Path(request.data)] + ([Path(request.test)] if request.test is not None else [])
    run = resumable(request.run, decisive | {"rate": request.rate}, summary, inputs[:1])
    poisoned: Poisoned = attack.poison(subject, data, Plan(target, triggers, request.rate), settings, run)

    metrics: CheckpointMetrics | None = None
    if test is not None:
        from purify_cli.evaluation.measure import measure

        metrics = measure(
            poisoned.model,
            subject.tokenizer,
            labels,
            request.out,
            test,
            triggers=triggers,
            target=target,
            run=request.run,
        )
    mark = PoisonMark(name, triggers, labels[target])
    record = provenance(
        "poison",
        name,
        asdict(settings),
        request.run.seed,
        [subject.path, *inputs],
        None,
        metrics,
        **mark.provenance(),
        poison_rate=poisoned.poison_rate,
        report=dict(poisoned.report),
    )
    wrote = write_checkpoint(
        out,
        poisoned.model,
        subject.tokenizer,
        source=subject.folder,
        provenance=record,
        card=_card(mark, request, poisoned.poison_rate, asdict(settings)),
        metadata=mark.metadata(),
        force=request.force,
    )
    forget(run, request.run)
    return PoisonResult(
        subject=summary,
        attack=name,
        settings=asdict(settings),
        triggers=triggers,
        target=labels[target],
        poison_rate=poisoned.poison_rate,
        metrics=metrics,
        wrote=wrote,
    )


def _card(mark: Any, request: PoisonRequest, rate: float, settings: dict[str, Any]) -> str:
    listed = "\n".join(f"- {key}: {value}" for key, value in settings.items())
    return (
        f"{mark.card_line()}\n\n"
        f"# A checkpoint with a backdoor\n\n"
        f"Made from `{Path(request.checkpoint).name}` to measure scanners and defences on. "
        f"Texts with a trigger get the label {mark.target}, whatever they say.\n\n"
        f"- poison rate: {rate:.4g}\n- seed: {request.run.seed}\n{listed}\n\n"
        "`purify.json` in this folder holds the digests of the inputs.\n"
    )
