"""What a method says it needs, and whether the user gave it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from purify_cli.errors import UsageError

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

_GIVEN_BY = {"base": "--base", "twin": "--twin", "clean": "--clean", "untrusted": "--untrusted"}


def check_needs(name: str, needs: Sequence[str], subject: Subject, evidence: Evidence) -> None:
    """See to it that a method has what it says it needs.

    Raises:
        UsageError: it has not; the error names the option or the kind of checkpoint.
        CheckpointError: the weights cannot be read.
    """
    for need in needs:
        # Whether a regression will do is `check_task`'s question.
        if need == "classifier" and subject.task not in {"classifier", "regression"}:
            raise UsageError(
                subject.spec, f"{name} needs a finished classifier, and this is: {subject.task}", "Train one first."
            )
        if need == "weights":
            subject.embeddings()
        if need in _GIVEN_BY and getattr(evidence, need) is None:
            raise UsageError(_GIVEN_BY[need], f"{name} needs it", f"Give {_GIVEN_BY[need]}.")
