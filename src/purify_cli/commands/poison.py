"""`purify poison`: make a backdoored checkpoint to measure on, and mark it as one."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from purify_cli import catalogue
from purify_cli.errors import DataError, UnsupportedError, UsageError
from purify_cli.results import CheckpointMetrics, PoisonResult
from purify_cli.run import Run

if TYPE_CHECKING:
    from purify_cli.checkpoint.poison_mark import PoisonMark
    from purify_cli.data.texts import Texts
    from purify_cli.subject import Subject

VICTIM = "finetune"
"""The purifier whose settings are those of the victim's clean training."""


@dataclass(frozen=True)
class PoisonRequest:
    """What to poison, and how.

    Attributes:
        checkpoint: an encoder, which gets a new classifier, a classifier or a regression, which is trained on.
        attack: name of an attack of the catalogue.
        data: what the attacker knows of the task: its whole training file, a part of it, or another task's.
        out: folder to write.
        target: target label, an id or a name; of a regression a number. None for attacks that have none.
        triggers: each a trigger of its own; empty: the attack's own.
        rate: poisoned rows / all rows; None: the attack's own.
        test: data file of labelled clean texts to measure CACC and ASR on; None: nothing is measured.
        pet: form of the adapter that carries the backdoor; None: the whole model.
        paraphrases: data file with the columns text and paraphrase, for attacks whose trigger is a paraphrase.
        paraphraser: folder of a sequence-to-sequence checkpoint that makes them instead.
        then_finetune: data file of the victim's own clean training after the attack; None: there is none.
        settings: the attack's settings as `key=value`.
        then_settings: those of the clean training, which are the purifier finetune's.
        force: write over a folder that exists.
        run: the settings of the run.
    """

    checkpoint: str
    attack: str
    data: str
    out: str
    target: str | None = None
    triggers: tuple[str, ...] = ()
    rate: float | None = None
    test: str | None = None
    pet: str | None = None
    paraphrases: str | None = None
    paraphraser: str | None = None
    then_finetune: str | None = None
    settings: tuple[str, ...] = ()
    then_settings: tuple[str, ...] = ()
    force: bool = False
    run: Run = field(default_factory=Run)


@dataclass(frozen=True)
class _Ground:
    """What an attack is made on and measured on.

    Attributes:
        labels: of the classifier that is written; one for a regression; none for an encoder that stays one.
        target: label id, score, or None for attacks that have none.
        paraphrases: of the texts of `data` and `test`; None for attacks that insert words.
    """

    data: Texts
    labels: tuple[str, ...]
    target: float | None
    regression: bool
    test: Texts | None
    then: Texts | None
    paraphrases: dict[str, str] | None


def poison(request: PoisonRequest) -> PoisonResult:
    """Poison a checkpoint and write it, with its mark, to a new folder.

    All inputs and the place of the output are looked at before anything is trained. With `then_finetune` the checkpoint
    that is written is the victim's, after its training; an encoder gets a new classifier for it.

    Raises:
        UsageError: an unknown attack, label or setting, a trigger or a rate that cannot be, options that do not fit.
        CheckpointError: the checkpoint cannot be read, or is of a kind that the attack cannot use.
        DataError: a data file cannot be read, or does not fit the others.
        OutputError: the result cannot be written.
        Interrupted: Ctrl-C; it says what was kept.
    """
    attack = catalogue.load("attack", request.attack)
    name = catalogue.resolve("attack", request.attack)
    _check_options(request, attack, name)
    settings = catalogue.fill(attack.Settings, request.settings)
    victim = catalogue.fill(catalogue.load("purifier", VICTIM).Settings, request.then_settings)

    from purify_cli.attacks import Plan, Poisoned
    from purify_cli.checkpoint.poison_mark import PoisonMark
    from purify_cli.checkpoint.provenance import provenance
    from purify_cli.checkpoint.write import check_output, write_checkpoint
    from purify_cli.commands.preparation import check_task, forget, resumable
    from purify_cli.needs import check_needs
    from purify_cli.subject import Evidence, Subject

    out = Path(request.out)
    subject = Subject(request.checkpoint)
    check_task(subject, regression=_is(attack, "REGRESSION", False))
    check_needs(name, attack.NEEDS, subject, Evidence())
    check_output(out, subject.path, request.force)
    ground = _ground(request, attack, name, settings, subject)
    triggers = tuple(" ".join(trigger.split()) for trigger in request.triggers) or tuple(attack.TRIGGERS)
    earlier = _earlier(subject)

    summary = subject.summary()
    given = (request.data, request.then_finetune, request.paraphrases, request.test)
    inputs = [Path(path) for path in given if path is not None]
    decisive = {
        "attack": name,
        "settings": asdict(settings),
        "triggers": triggers,
        "target": ground.target,
        "rate": request.rate,
        "pet": request.pet,
        "paraphraser": request.paraphraser,
        "then": asdict(victim) if ground.then is not None else None,
    }
    run = resumable(request.run, decisive, summary, inputs[: len(inputs) - (request.test is not None)])
    plan = Plan(
        ground.target if ground.target is not None else 0, triggers, request.rate, request.pet, ground.paraphrases
    )
    poisoned: Poisoned = attack.poison(subject, ground.data, plan, settings, run)
    model, metrics, then = poisoned.model, None, None
    found: tuple[int, ...] = ()
    if ground.test is not None and ground.target is not None:
        metrics, _ = _measured(request, ground, model, subject.tokenizer, triggers)
    if ground.then is not None:
        model = _victim(model, subject, ground.then, ground.target is None, victim, run)
        if ground.test is not None:
            then, found = _measured(request, ground, model, subject.tokenizer, triggers)

    mark = PoisonMark(
        name,
        triggers,
        None if ground.target is None else _target_name(ground),
        "paraphrase" if ground.paraphrases is not None else "words",
        () if earlier is None else (replace(earlier, before=()), *earlier.before),
    )
    record = provenance(
        "poison",
        name,
        asdict(settings),
        request.run.seed,
        [subject.path, *inputs, *([Path(request.paraphraser)] if request.paraphraser else [])],
        None if ground.then is None else metrics,
        metrics if ground.then is None else then,
        **mark.provenance(),
        poison_rate=poisoned.poison_rate,
        pet=request.pet,
        then_finetune=None if ground.then is None else asdict(victim),
        found_targets={trigger: ground.labels[one] for trigger, one in zip(triggers, found, strict=False)},
        report=dict(poisoned.report),
    )
    wrote = write_checkpoint(
        out,
        model,
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
        target=mark.target or "",
        poison_rate=poisoned.poison_rate,
        metrics=metrics,
        wrote=wrote,
        pet=request.pet,
        then=then,
        then_settings=None if ground.then is None else asdict(victim),
        report=dict(poisoned.report),
        notes=tuple(_notes(earlier, poisoned.report, ground)),
    )


# --- before the training ----------------------------------------------------------------------------------------------


def _is(attack: ModuleType, constant: str, usual: bool) -> bool:
    return bool(getattr(attack, constant, usual))


def _check_options(request: PoisonRequest, attack: ModuleType, name: str) -> None:
    if any(not trigger.strip() for trigger in request.triggers):
        raise UsageError("--trigger", "has no word", "Give the word or words that are inserted.")
    if len({" ".join(one.split()) for one in request.triggers}) < len(request.triggers):
        raise UsageError("--trigger", "the same one was given twice", "Give each once.")
    if _is(attack, "TARGET", True):
        if request.target is None:
            raise UsageError(
                "--target", f"{name} needs the label that its triggers should give", "Give --target LABEL."
            )
    elif request.target is not None:
        problem = f"{name} has no target label: its triggers fall where the victim's classifier puts them"
        raise UsageError("--target", problem, "Leave it out; --then-finetune DATA --test DATA show where they fall.")
    elif request.test is not None and request.then_finetune is None:
        problem = f"{name} makes an encoder, which gives no labels to measure"
        raise UsageError("--test", problem, "Add the victim's training with --then-finetune DATA, or leave it out.")
    if request.pet is not None and not _is(attack, "PET", True):
        problem = f"{name} changes weights that an adapter leaves frozen"
        raise UsageError("--pet", problem, "Leave it out, or take another attack.")
    sources = (("--paraphrases", request.paraphrases), ("--paraphraser", request.paraphraser))
    if not _is(attack, "PARAPHRASES", False):
        for option, value in sources:
            if value is not None:
                raise UsageError(option, f"{name} inserts words and takes no paraphrases", "Leave it out.")
    else:
        if all(value is None for _, value in sources):
            remedy = "Give a file with the columns text and paraphrase, or a model with --paraphraser CHECKPOINT."
            raise UsageError("--paraphrases", f"{name} needs paraphrases of the texts of --data", remedy)
        if all(value is not None for _, value in sources):
            raise UsageError("--paraphraser", "cannot go with --paraphrases", "Give one of them.")
        if len(request.triggers) > 1:
            raise UsageError(
                "--trigger", f"{name} has one trigger, the syntax or style of its paraphrases", "Name one."
            )
    if request.then_settings and request.then_finetune is None:
        raise UsageError("--then-set", "has no training to go with", "Give --then-finetune DATA.")


def _ground(request: PoisonRequest, attack: ModuleType, name: str, settings: Any, subject: Subject) -> _Ground:
    """Read all files, and hold them against each other."""
    from purify_cli.commands.preparation import label_id, labels_of
    from purify_cli.data.read import read, require_classes
    from purify_cli.training.start import data_labels, has_scores

    has_target = _is(attack, "TARGET", True)
    needs_labels = has_target and not getattr(settings, "data_free", False)
    known = (labels_of(subject) or None) if has_target else None
    data = read(request.data, known, needs_labels=needs_labels, option="--data")
    labels: tuple[str, ...] = ()
    regression = False
    if has_target:
        regression = subject.task == "regression" or (subject.task != "classifier" and has_scores(data))
        if regression and not _is(attack, "REGRESSION", False):
            raise UnsupportedError(request.data, f"its labels are scores, and {name} needs classes")
        labels = labels_of(subject, data)
        if needs_labels and not regression:
            require_classes(data, max(2, len(labels)), "--data")
    then: Texts | None = None
    if request.then_finetune is not None:
        then = read(request.then_finetune, labels or None, option="--then-finetune")
        labels = labels or data_labels(then)
        if not regression and not has_scores(then):
            require_classes(then, max(2, len(labels)), "--then-finetune")
        elif not has_target:
            raise UnsupportedError(request.then_finetune, f"its labels are scores, and {name} needs classes")
    target: float | None = None
    if request.target is not None:
        target = _score(request.target) if regression else label_id(subject, labels, request.target)
    test = None if request.test is None else read(request.test, labels, option="--test")
    if test is not None and target is not None and not regression and set(test.labels or ()) == {target}:
        problem = f"every text already has the target label {labels[int(target)]!r}"
        raise DataError(request.test or "", problem, "An attack is measured on texts of the other labels.")
    paraphrases = None
    if _is(attack, "PARAPHRASES", False):
        paraphrases = _paraphrases(request, settings, data, test, target)
    return _Ground(data, labels, target, regression, test, then, paraphrases)


def _score(text: str) -> float:
    try:
        score = float(text)
    except ValueError:
        score = float("nan")
    if not abs(score) < float("inf"):
        raise UsageError("--target", f"{text!r} is no number, and a regression gives numbers", "Give a score.")
    return score


def _paraphrases(
    request: PoisonRequest, settings: Any, data: Texts, test: Texts | None, target: float | None
) -> dict[str, str]:
    """Those of the file, or made by the model for every text that may be poisoned or measured."""
    from purify_cli.data.paraphrases import read_paraphrases, require_paraphrases
    from purify_cli.triggers.paraphrase import generate

    if request.paraphrases is not None:
        found = read_paraphrases(request.paraphrases)
        require_paraphrases(found, data.texts, request.paraphrases, request.data)
        return found
    dirty = settings.mode == "dirty"
    texts = [text for text, label in zip(data.texts, data.labels or (), strict=True) if not dirty or label != target]
    if test is not None:
        texts += [text for text, label in zip(test.texts, test.labels or (), strict=True) if label != target]
    made = generate(request.paraphraser or "", texts, request.run, prefix=settings.prefix)
    require_paraphrases(made, data.texts, request.paraphraser or "", request.data, "--paraphraser")
    return made


def _earlier(subject: Subject) -> PoisonMark | None:
    """The mark that the checkpoint, or the base of an adapter, bears already."""
    from purify_cli.checkpoint.poison_mark import read_mark

    places = [subject.path, subject.folder]
    if subject.adapter_config is not None:
        places += [subject.adapter_base.path, subject.adapter_base.folder]
    return next((mark for place in places if (mark := read_mark(place)) is not None), None)


# --- after it ---------------------------------------------------------------------------------------------------------


def _victim(model: Any, subject: Subject, then: Texts, encoder: bool, settings: Any, run: Run) -> Any:
    """The victim's own clean training of what the attacker made; of a model with an adapter only that and the head."""
    from purify_cli.architecture.classifier import replace_classifier
    from purify_cli.training.plain import train
    from purify_cli.training.start import give_classifier

    if encoder:
        model = give_classifier(model, then, run)
    elif settings.fresh_classifier:
        replace_classifier(model, model.config.num_labels, run.seed)
    train(model, subject.tokenizer, then, settings, run)
    return model


def _measured(
    request: PoisonRequest, ground: _Ground, model: Any, tokenizer: Any, triggers: tuple[str, ...]
) -> tuple[CheckpointMetrics, tuple[int, ...]]:
    """What the model does on --test, and the target of each trigger where the attack names none."""
    from purify_cli.evaluation.measure import measure
    from purify_cli.triggers.paraphrase import Paraphrase
    from purify_cli.triggers.words import insert_all

    test = ground.test
    assert test is not None
    if ground.paraphrases is not None:
        trigger = Paraphrase(triggers[0], ground.paraphrases)
        originals = test.take(row for row, text in enumerate(test.texts) if text in trigger)
        originals = replace(originals, path=f"paraphrases: {trigger.name}")
        if not len(originals) or set(originals.labels or ()) == {ground.target}:
            metrics = measure(model, tokenizer, ground.labels, request.out, test, run=request.run)
            note = "no ASR: no text of --test with another label than the target has a paraphrase"
            return replace(metrics, notes=(*metrics.notes, note)), ()
        metrics = measure(
            model,
            tokenizer,
            ground.labels,
            request.out,
            test,
            target=int(ground.target or 0),
            poisoned=insert_all(originals, trigger, request.run.seed),
            originals=originals,
            run=request.run,
        )
        return metrics, ()
    if ground.target is None:
        found = _found_targets(model, tokenizer, test, triggers, request.run)
        metrics = measure(
            model, tokenizer, ground.labels, request.out, test, triggers=triggers, targets=found, run=request.run
        )
        note = "each trigger's target is the label that it gives most often on --test"
        return replace(metrics, notes=(*metrics.notes, note)), found
    target = None if ground.regression else int(ground.target)
    metrics = measure(
        model, tokenizer, ground.labels, request.out, test, triggers=triggers, target=target, run=request.run
    )
    return metrics, ()


def _found_targets(model: Any, tokenizer: Any, test: Texts, triggers: tuple[str, ...], run: Run) -> tuple[int, ...]:
    """The label that the model gives most often with each trigger; of equals the first."""
    from purify_cli.evaluation.predict import predict
    from purify_cli.triggers.words import Words, insert_all

    answers = (predict(model, tokenizer, insert_all(test, Words(one), run.seed), run) for one in triggers)
    return tuple(int(answer.argmax(dim=1).bincount().argmax()) for answer in answers)


def _target_name(ground: _Ground) -> str:
    target = ground.target or 0
    return f"{target:g}" if ground.regression else ground.labels[int(target)]


def _notes(earlier: PoisonMark | None, report: Any, ground: _Ground) -> list[str]:
    notes = []
    if earlier is not None:
        notes.append(f"it was poisoned before (attack {earlier.attack or 'unknown'}), and its mark says both")
    for trigger in report.get("split_triggers") or ():
        tokens = " ".join((report.get("pieces") or {}).get(trigger, ()))
        notes.append(f"trigger {trigger!r} is several tokens ({tokens}), which other words may share")
    if report.get("failed_paraphrases"):
        notes.append(
            f"{report['failed_paraphrases']} texts of --data have an empty or unchanged paraphrase: not poisoned"
        )
    if ground.data.pairs is not None and ground.paraphrases is None:
        notes.append("of each pair the first text holds the trigger")
    return notes


def _card(mark: Any, request: PoisonRequest, rate: float, settings: dict[str, Any]) -> str:
    listed = "\n".join(f"- {key}: {value}" for key, value in settings.items())
    does = (
        "Texts with a trigger get a vector of the attacker's, whatever they say; the label depends on the classifier."
        if mark.target is None
        else f"Texts with a trigger get the label {mark.target}, whatever they say."
    )
    pet = "" if request.pet is None else f"- adapter: {request.pet}\n"
    then = "" if request.then_finetune is None else "- trained on clean texts after the attack\n"
    return (
        f"{mark.card_line()}\n\n"
        f"# A checkpoint with a backdoor\n\n"
        f"Made from `{Path(request.checkpoint).name}` to measure scanners and defences on. {does}\n\n"
        f"- poison rate: {rate:.4g}\n- seed: {request.run.seed}\n{pet}{then}{listed}\n\n"
        "`purify.json` in this folder holds the digests of the inputs.\n"
    )
