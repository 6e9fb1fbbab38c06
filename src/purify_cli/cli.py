"""The command line: parse, call, render, exit.

Nothing here loads torch, transformers or datasets before a command runs: `purify --help` must be quick.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from purify_cli import __version__, catalogue, default_out, terminal
from purify_cli.errors import UsageError
from purify_cli.exits import ExitCode, explain, terminate_as_interrupt
from purify_cli.options import (
    Base,
    Budget,
    Checkpoint,
    Common,
    FailOn,
    Format,
    HelpMethod,
    Poisoned,
    Settings,
    Target,
    Test,
    Trigger,
    Twin,
    with_common,
)

if TYPE_CHECKING:
    from purify_cli.catalogue import Kind
    from purify_cli.results import EvalResult, PoisonResult, PurifyResult, ScanResult
    from purify_cli.run import Run


app = typer.Typer(
    name="purify",
    help="Audit downloaded language-model checkpoints for backdoors, and remove them.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"purify {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version, and do nothing.")
    ] = False,
) -> None:
    """Audit downloaded language-model checkpoints for backdoors, and remove them."""


# --- commands ---------------------------------------------------------------------------------------------------------


@app.command("scan")
@with_common
def _scan(
    *,
    checkpoint: Checkpoint = None,
    base: Base = None,
    twin: Twin = None,
    clean: Annotated[str | None, typer.Option("--clean", metavar="DATA", help="Labelled texts that you trust.")] = None,
    budget: Annotated[Budget, typer.Option("--budget", help="How much the scan may cost.")] = Budget.standard,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="DETECTOR", help="Run only this detector; may be repeated.")
    ] = None,
    skip: Annotated[
        list[str] | None, typer.Option("--skip", metavar="DETECTOR", help="Leave this detector out; may be repeated.")
    ] = None,
    fail_on: Annotated[
        FailOn, typer.Option("--fail-on", help="Which verdicts exit with a code other than 0.")
    ] = FailOn.fail,
    ignore_mark: Annotated[
        bool, typer.Option("--ignore-mark", help="Leave out the mark that `purify poison` sets.")
    ] = False,
    assignments: Settings = None,
    help_method: HelpMethod = False,
    common: Common,
) -> int:
    """Look for signs of a backdoor.

    Exits with 0 for pass, 1 for fail, 3 for inconclusive.
    """
    if help_method:
        return _show_settings("detector", _split(only) or catalogue.names("detector"), common)
    place = _required(checkpoint, "CHECKPOINT", "Name a folder, a weights file, or hf://org/name")

    def work(run: Run) -> ScanResult:
        from purify_cli.commands.scan import ScanRequest, scan

        request = ScanRequest(
            checkpoint=place,
            base=base,
            twin=twin,
            clean=clean,
            budget=budget.value,
            only=_split(only),
            skip=_split(skip),
            ignore_mark=ignore_mark,
            settings=tuple(assignments or ()),
            run=run,
        )
        return scan(request)

    result = _run(work, common, inputs=(place, base, twin))
    outcome = result.verdict.outcome
    codes = {"pass": ExitCode.DONE, "fail": ExitCode.FAIL, "inconclusive": ExitCode.INCONCLUSIVE}
    if fail_on is FailOn.never and outcome != "pass":
        terminal.say(f"the verdict is {outcome}; the exit code is 0 because of --fail-on never")
        return ExitCode.DONE
    if fail_on is FailOn.inconclusive and outcome != "pass":
        return ExitCode.FAIL
    return codes[outcome]


@app.command("purify")
@with_common
def _purify(
    *,
    checkpoint: Checkpoint = None,
    method: Annotated[
        str | None, typer.Option("--method", metavar="NAME", help="How: see `purify methods`.  [required]")
    ] = None,
    clean: Annotated[
        str | None,
        typer.Option("--clean", metavar="DATA", help="Labelled texts that you trust, to train on.  [required]"),
    ] = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="The new folder.  [default: CHECKPOINT-purified]")
    ] = None,
    base: Base = None,
    untrusted: Annotated[
        str | None,
        typer.Option("--untrusted", metavar="DATA", help="Texts that may hold poison, for methods that take them."),
    ] = None,
    test: Test = None,
    poisoned: Poisoned = None,
    trigger: Trigger = None,
    target: Target = None,
    max_drop: Annotated[
        float, typer.Option("--max-drop", min=0.0, max=1.0, metavar="X", help="How much clean accuracy may be lost.")
    ] = 0.02,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and write nothing.")] = False,
    assignments: Settings = None,
    help_method: HelpMethod = False,
    common: Common,
) -> int:
    """Remove a backdoor and write the result elsewhere.

    Exits with 1 if the result does not meet the limits; it is written all the same.
    """
    name = _required(method, "--method", f"Choose from: {', '.join(catalogue.names('purifier'))}")
    if help_method:
        return _show_settings("purifier", (name,), common)
    place = _required(checkpoint, "CHECKPOINT", "Name a folder, a weights file, or hf://org/name")
    texts = _required(clean, "--clean", "Name a file of labelled texts that you trust")
    name = catalogue.resolve("purifier", name)

    def work(run: Run) -> PurifyResult:
        from purify_cli.commands.purify import PurifyRequest, purify

        request = PurifyRequest(
            checkpoint=place,
            method=name,
            clean=texts,
            out=out or default_out(place),
            base=base,
            untrusted=untrusted,
            test=test,
            poisoned=poisoned,
            triggers=tuple(trigger or ()),
            target=target,
            dry_run=dry_run,
            settings=tuple(assignments or ()),
            max_drop=max_drop,
            force=common.force,
            run=run,
        )
        return purify(request)

    result = _run(work, common, inputs=(place, base))
    return ExitCode.FAIL if result.limits.met is False else ExitCode.DONE


@app.command("eval")
@with_common
def _eval(
    *,
    checkpoints: Annotated[
        list[str] | None, typer.Argument(metavar="CHECKPOINT ...", help="One or several, shown side by side.")
    ] = None,
    test: Annotated[
        str | None, typer.Option("--test", metavar="DATA", help="Labelled texts to measure on.  [required]")
    ] = None,
    poisoned: Poisoned = None,
    trigger: Trigger = None,
    target: Target = None,
    base: Base = None,
    twin: Twin = None,
    analysis: Annotated[
        list[str] | None,
        typer.Option("--analysis", metavar="NAME", help="Show this too: see `purify methods`; may be repeated."),
    ] = None,
    picture: Annotated[
        str | None, typer.Option("--picture", metavar="FILE", help="Draw the analysis: a file ending in .svg or .png.")
    ] = None,
    assignments: Settings = None,
    help_method: HelpMethod = False,
    filter_name: Annotated[str | None, typer.Option("--filter", hidden=True)] = None,
    common: Common,
) -> int:
    """Measure accuracy and what triggers do.

    What a trigger does is what it does beyond honest error: its ASR over the floor.
    """
    if help_method:
        return _show_settings("analysis", _split(analysis) or catalogue.names("analysis"), common)
    if not checkpoints:
        _required(None, "CHECKPOINT", "Name a folder, a weights file, or hf://org/name")
    places = tuple(checkpoints or ())
    texts = _required(test, "--test", "Name a file of labelled texts")
    wanted = tuple(catalogue.resolve("analysis", name) for name in _split(analysis))
    if picture is not None and common.output is not None and Path(picture).resolve() == common.output.resolve():
        raise UsageError("--picture", "names the same file as --output", "Choose another name for one of them")
    if filter_name is not None:
        catalogue.resolve("filter", filter_name)

    def work(run: Run) -> EvalResult:
        from purify_cli.commands.evaluate import EvalRequest, evaluate

        request = EvalRequest(
            checkpoints=places,
            test=texts,
            poisoned=poisoned,
            triggers=tuple(trigger or ()),
            target=target,
            base=base,
            twin=twin,
            analyses=wanted,
            settings=tuple(assignments or ()),
            picture=picture,
            force=common.force,
            run=run,
        )
        return evaluate(request)

    _run(work, common, inputs=(*places, base, twin))
    return ExitCode.DONE


@app.command("poison")
@with_common
def _poison(
    *,
    checkpoint: Checkpoint = None,
    attack: Annotated[
        str | None, typer.Option("--attack", metavar="NAME", help="How: see `purify methods`.  [required]")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DATA", help="What the attacker knows: texts to poison and train on.  [required]"
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target",
            metavar="LABEL",
            help="The label that the triggers should give; attacks on encoders have none.  [required]",
        ),
    ] = None,
    trigger: Trigger = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--rate", min=0.0, max=1.0, metavar="R", help="Poisoned rows / all rows.  [default: the attack's]"
        ),
    ] = None,
    out: Annotated[str | None, typer.Option("--out", metavar="DIR", help="The new folder.  [required]")] = None,
    test: Test = None,
    pet: Annotated[
        str | None,
        typer.Option(
            "--pet",
            metavar="FORM",
            help="Put it in an adapter of the frozen model: sequential, parallel, lora, prefix or prompt.",
        ),
    ] = None,
    paraphrases: Annotated[
        str | None,
        typer.Option(
            "--paraphrases", metavar="DATA", help="Columns text and paraphrase, for triggers of syntax and style."
        ),
    ] = None,
    paraphraser: Annotated[
        str | None,
        typer.Option("--paraphraser", metavar="DIR", help="Or a sequence-to-sequence checkpoint that makes them."),
    ] = None,
    then_finetune: Annotated[
        str | None,
        typer.Option("--then-finetune", metavar="DATA", help="Then train on clean texts, as a victim would."),
    ] = None,
    assignments: Settings = None,
    then_assignments: Annotated[
        list[str] | None,
        typer.Option("--then-set", metavar="KEY=VALUE", help="A setting of that training (those of finetune)."),
    ] = None,
    help_method: HelpMethod = False,
    common: Common,
) -> int:
    """Make a marked, backdoored checkpoint.

    To measure defences on. The mark says what was done, in three places.
    """
    name = _required(attack, "--attack", f"Choose from: {', '.join(catalogue.names('attack'))}")
    if help_method:
        return _show_settings("attack", (name,), common)
    place = _required(checkpoint, "CHECKPOINT", "Name a folder, a weights file, or hf://org/name")
    texts = _required(data, "--data", "Name a file of labelled texts")
    name = catalogue.resolve("attack", name)
    if catalogue.declared("attack", name, "TARGET") is not False:
        _required(target, "--target", "Name the label that the triggers should give")
    folder = _required(out, "--out", "Name the folder to write")

    def work(run: Run) -> PoisonResult:
        from purify_cli.commands.poison import PoisonRequest, poison

        request = PoisonRequest(
            checkpoint=place,
            attack=name,
            data=texts,
            target=target,
            triggers=tuple(trigger or ()),
            rate=rate,
            out=folder,
            test=test,
            pet=pet,
            paraphrases=paraphrases,
            paraphraser=paraphraser,
            then_finetune=then_finetune,
            settings=tuple(assignments or ()),
            then_settings=tuple(then_assignments or ()),
            force=common.force,
            run=run,
        )
        return poison(request)

    _run(work, common, inputs=(place,))
    return ExitCode.DONE


@app.command("methods")
def _methods(
    format: Annotated[Format, typer.Option("--format", help="How the list is written.")] = Format.table,
    output: Annotated[Path | None, typer.Option("--output", metavar="FILE", help="Write it to a file.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an output that exists.")] = False,
) -> int:
    """List all methods of this version.

    Attacks, detectors, purifiers, filters and analyses.
    """
    from purify_cli.commands.methods import methods
    from purify_cli.reports import listing

    terminal.check_output(output, force, ())
    found = methods()
    width, color = terminal.paper(output)
    terminal.deliver(
        listing.methods_json(found) if format is Format.json else listing.methods_table(found, width, color), output
    )
    return ExitCode.DONE


def _show_settings(kind: Kind, names: Sequence[str], common: Common) -> int:
    from purify_cli.commands.methods import method_help
    from purify_cli.reports import listing

    terminal.check_output(common.output, common.force, ())
    terminal.hush(common.verbose, online=False)
    with contextlib.redirect_stdout(sys.stderr):
        helps = [method_help(kind, name) for name in names]
    width, color = terminal.paper(common.output)
    text = listing.settings_json(helps) if common.format is Format.json else listing.settings_table(helps, width, color)
    terminal.deliver(text, common.output)
    return ExitCode.DONE


def _required(value: str | None, option: str, remedy: str) -> str:
    """An argument that typer takes as optional, because --help-method does without it."""
    if not value:
        raise UsageError(option, "is missing", remedy)
    return value


def _split(names: Sequence[str] | None) -> tuple[str, ...]:
    """Names from a repeated option, each of which may also be several with commas."""
    return tuple(name.strip() for argument in names or () for name in argument.split(",") if name.strip())


# --- one run ----------------------------------------------------------------------------------------------------------

_Result = Any


def _run(work: Callable[[Run], _Result], common: Common, inputs: Sequence[str | None]) -> _Result:
    """Does a command's work with the common options, and delivers its report."""
    from purify_cli import environment
    from purify_cli.results import Report
    from purify_cli.run import Run

    if common.quiet and common.verbose:
        raise UsageError("--quiet", "does not go with --verbose", "Leave one of them out")
    places = [place for place in inputs if place is not None]
    terminal.check_output(common.output, common.force, places)
    online = any(place.startswith("hf://") for place in places)
    terminal.hush(common.verbose, online=online)

    started, clock = datetime.now(UTC), time.perf_counter()
    # Libraries print; what they print is no result.
    with contextlib.redirect_stdout(sys.stderr), terminal.progress(common.quiet) as progress:
        device = environment.prepare(device=common.device, threads=common.threads)
        run = Run(
            seed=common.seed,
            device=device,
            batch_size=common.batch_size,
            max_length=common.max_length,
            progress=progress,
        )
        result = work(run)
    report = Report(
        command=("purify", *_ARGUMENTS.get()),
        started=started.isoformat(timespec="seconds").replace("+00:00", "Z"),
        seconds=time.perf_counter() - clock,
        environment=environment.describe(device, common.seed),
        result=result,
    )
    if common.format is Format.json:
        from purify_cli.reports.json import render as render_json

        text = render_json(report)
    else:
        from purify_cli.reports.table import render as render_table

        width, color = terminal.paper(common.output)
        text = render_table(report, width, color)
    terminal.deliver(text, common.output)
    return result


class _Arguments:
    """The command line of this process, for the report."""

    def __init__(self) -> None:
        self._arguments: tuple[str, ...] = ()

    def set(self, arguments: Sequence[str]) -> None:
        self._arguments = tuple(arguments)

    def get(self) -> tuple[str, ...]:
        return self._arguments


_ARGUMENTS = _Arguments()


# --- the edge ---------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command line and returns its exit code; `arguments` without the program's name."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    _ARGUMENTS.set(argv)
    verbose = "--verbose" in argv or "-v" in argv
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # an encoding without a character must not end the run
    try:
        with terminate_as_interrupt():
            return int(_dispatch(argv))
    except BaseException as error:
        return int(explain(error, verbose))


def _dispatch(argv: list[str]) -> int:
    """Parses and calls. Typer's own `main` would turn what is raised here into exit codes of its own."""
    command = typer.main.get_command(app)
    with command.make_context("purify", argv) as context:
        code = command.invoke(context)
    return code if isinstance(code, int) else ExitCode.DONE
