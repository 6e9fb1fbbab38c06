"""Which purifiers may be tried on a checkpoint, and in which order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from purify_cli import catalogue
from purify_cli.errors import UsageError
from purify_cli.needs import check_needs
from purify_cli.trials.settings import Settings

if TYPE_CHECKING:
    from purify_cli.subject import Evidence, Subject

REACHES = ("words", "weights", "base")
"""AUTO_REACH, from what was found to what was never backdoored."""


@dataclass(frozen=True)
class Candidate:
    """Methods, each applied to what the one before it made.

    Attributes:
        steps: their names; none: the input as it is.
        passes: AUTO, summed.
        reach: place in REACHES of what reaches furthest.
    """

    steps: tuple[str, ...]
    passes: float = 0.0
    reach: int = 0

    @property
    def name(self) -> str:
        """As reports call it."""
        return " + ".join(self.steps) or "(input)"

    def then(self, other: Candidate) -> Candidate:
        """The same with another on top."""
        return Candidate(self.steps + other.steps, self.passes + other.passes, max(self.reach, other.reach))


INPUT = Candidate(())


def candidates_for(subject: Subject, evidence: Evidence, settings: Settings) -> tuple[list[Candidate], dict[str, str]]:
    """The methods to try, the cheapest first, and why the others of those that could be tried are not.

    Raises:
        UsageError: `only` or `for_methods` names a method that does not take part.
    """
    every = [name for name in catalogue.names("purifier") if catalogue.declared("purifier", name, "AUTO") is not None]
    wanted = [catalogue.resolve("purifier", name, "--set only") for name in settings.only] or every
    for name in (*wanted, *settings_by_method(settings)):
        if name not in every:
            raise UsageError(
                f"--set {name}", "is not one of the methods that are tried", f"They are: {', '.join(every)}."
            )
    candidates, not_tried = [], {}
    for name in wanted:
        tasks = catalogue.declared("purifier", name, "AUTO_ON")
        try:
            if tasks is not None and subject.task not in tasks:
                raise UsageError(subject.spec, f"not for a {subject.task}")
            check_needs(name, catalogue.declared("purifier", name, "NEEDS"), subject, evidence)
        except UsageError as error:
            not_tried[name] = f"{error.where}: {error.problem}" if error.where.startswith("--") else error.problem
            continue
        reach = REACHES.index(catalogue.declared("purifier", name, "AUTO_REACH") or "weights")
        candidates.append(Candidate((name,), float(catalogue.declared("purifier", name, "AUTO")), reach))
    return sorted(candidates, key=lambda one: (one.passes, one.name)), not_tried


def settings_by_method(settings: Settings) -> dict[str, list[str]]:
    """`for_methods` by the method that each is for."""
    found: dict[str, list[str]] = {}
    for assignment in settings.for_methods:
        method, dot, rest = assignment.partition(".")
        if not dot:
            raise UsageError("--set for_methods", f"{assignment!r} names no method", "Write for example pure.epochs=2")
        found.setdefault(catalogue.resolve("purifier", method, "--set for_methods"), []).append(rest)
    for method, assignments in found.items():
        catalogue.fill(catalogue.load("purifier", method).Settings, assignments)
    return found
