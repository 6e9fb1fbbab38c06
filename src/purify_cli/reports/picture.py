"""The picture of an analysis, as SVG or PNG: the same numbers give the same bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from purify_cli.reports.escape import escape
from purify_cli.results import Analysis

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS = ("svg", "png")
_TEXT_LIMIT = 60


def render(analysis: Analysis, draw: Callable[[Analysis, Figure], None], form: Literal["svg", "png"]) -> bytes:
    """Draw on a figure of no window system and give the file's content back.

    Every string of the analysis is escaped before `draw` sees it, and none is read as a formula: token names come from
    a checkpoint. No date and no random id goes into the file.

    Args:
        draw: fills a figure; it may set its size.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    settings: Any = {
        "svg.hashsalt": "purify",
        "svg.fonttype": "none",
        "text.parse_math": False,
        "text.usetex": False,
        "axes.formatter.use_mathtext": False,
        "font.size": 9.0,
        "axes.spines.top": False,
        "axes.spines.right": False,
    }
    safe = replace(
        analysis, title=_safe(analysis.title), rows=tuple(_safe(list(analysis.rows))), data=_safe(analysis.data)
    )
    buffer = io.BytesIO()
    # Whoever draws may have a style of their own; the picture does not depend on it.
    with mpl.rc_context(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a glyph that the font lacks
        mpl.rcdefaults()
        mpl.rcParams.update(settings)
        figure = Figure(figsize=(7.0, 4.0), layout="constrained")
        draw(safe, figure)
        metadata = {"Date": None} if form == "svg" else {"Software": None}
        figure.savefig(buffer, format=form, dpi=150, metadata=metadata)
    return buffer.getvalue()


def _safe(value: Any) -> Any:
    if isinstance(value, str):
        return escape(value, limit=_TEXT_LIMIT)
    if isinstance(value, Mapping):
        return {key: _safe(member) for key, member in value.items()}
    if isinstance(value, Sequence):
        return [_safe(member) for member in value]
    return value
