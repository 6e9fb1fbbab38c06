"""Detectors: each judges one kind of evidence on one checkpoint and knows no other detector.

A detector is a module of this package whose name is its file's name:

    SUMMARY: str                 one line for `purify methods`
    RULES: dict[str, str]        the rule ids that it owns, each with one line
    NEEDS: tuple[str, ...]       of "files", "weights", "classifier", "base", "twin", "clean", "untrusted"
    BUDGET: str                  the smallest --budget that runs it: "fast", "standard" or "deep"
    Settings                     a frozen dataclass; each field's metadata has "help", "range" and "source", and by
                                 the name of a budget the value that it takes there
    detect(subject, evidence, settings, run) -> Iterator[Finding]

`detect` is a generator: what it has yielded stays when it later raises. It raises `errors.Incomplete` when it could
not look at everything that it is there to look at.
"""
