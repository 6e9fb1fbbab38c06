"""How a run ends: what was raised becomes one line and an exit code. The only table of them."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import IntEnum
from typing import NoReturn

import typer

from purify_cli import terminal
from purify_cli.errors import Interrupted, PurifyError
from purify_cli.reports.escape import escape


class ExitCode(IntEnum):
    """The promise to scripts; a code never changes its meaning."""

    DONE = 0
    FAIL = 1
    BAD_INPUT = 2
    INCONCLUSIVE = 3
    OUR_FAULT = 70
    INTERRUPTED = 130


# What the machine refuses is not our fault: no room, no permission, a read-only disk.
_REFUSED = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG})


def explain(error: BaseException, verbose: bool) -> int:
    """The exit code of what was raised, after one line about it."""
    if isinstance(error, typer.Exit):
        with contextlib.suppress(OSError):
            sys.stdout.flush()
        return error.exit_code
    if isinstance(error, Interrupted):
        terminal.say(f"interrupted: {error.kept}")
        return ExitCode.INTERRUPTED
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        terminal.say("interrupted: nothing was written; run the same command again")
        return ExitCode.INTERRUPTED
    if isinstance(error, PurifyError):
        if verbose:
            logging.getLogger(__name__).debug("raised here", exc_info=error)
        terminal.say(f"error: {error}")
        return ExitCode.BAD_INPUT
    if callable(message := getattr(error, "format_message", None)):  # typer's own: an option that it does not know
        context = getattr(error, "ctx", None)
        path = getattr(context, "command_path", "purify")
        problem = str(message()).replace("Value error, ", "").rstrip(".")
        terminal.say(f"error: {problem}. See: {path} --help")
        return ExitCode.BAD_INPUT
    if isinstance(error, BrokenPipeError):
        terminal.drop(sys.stdout)
        return ExitCode.DONE
    if isinstance(error, OSError) and error.errno in _REFUSED:
        terminal.say(f"error: {error.filename or 'the system'}: {error.strerror}")
        return ExitCode.BAD_INPUT
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else ExitCode.OUR_FAULT
    return _our_fault(error, verbose)


def _our_fault(error: BaseException, verbose: bool) -> int:
    text = "".join(traceback.format_exception(error))
    if verbose:
        with contextlib.suppress(OSError):
            typer.echo(escape(text, keep="\n"), err=True)
    place = _keep_traceback(text)
    where = f"the traceback lies in {place}" if place else "run it with --verbose to see the traceback"
    terminal.say(f"a fault of ours: {type(error).__name__}: {str(error)[:200]}; {where}")
    return ExitCode.OUR_FAULT


def _keep_traceback(text: str) -> str | None:
    """Writes a traceback to a private file; None if there is no place for it."""
    import platformdirs

    for folder in (platformdirs.user_log_path("purify"), None):
        try:
            if folder is not None:
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            name = f"traceback-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-"
            descriptor, path = tempfile.mkstemp(prefix=name, suffix=".txt", dir=folder)
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
            return path
        except OSError:
            continue
    return None


@contextlib.contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Lets a polite kill (a job that ran out of time) clean up as Ctrl-C does."""

    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
