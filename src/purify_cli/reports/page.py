"""A page of text that rich draws into a string: headline, sections, paragraphs, tables, commands.

Takes text that is escaped already, and never reads any of it as markup.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterable, Sequence

from rich.box import Box
from rich.console import Console, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from purify_cli.reports.escape import command as shell_command

MIN_WIDTH = 80
# A line of dashes under the heads and nothing else: the same in a terminal, a pipe, and encodings with no line drawing.
_DASHES = Box("    \n    \n -- \n    \n    \n    \n    \n    \n", ascii=True)


class Page:
    """A page that is written from top to bottom."""

    def __init__(self, width: int, color: bool) -> None:
        self.width = max(MIN_WIDTH, width)
        self._buffer = io.StringIO()
        self._console = Console(
            file=self._buffer,
            width=self.width,
            force_terminal=color,
            color_system="standard" if color else None,
            no_color=not color,
            markup=False,
            emoji=False,
            highlight=False,
            legacy_windows=False,
            force_jupyter=False,
            force_interactive=False,
        )

    def text(self) -> str:
        """What was written so far, with no blanks at the ends of lines."""
        return re.sub(r"[ \t]+$", "", self._buffer.getvalue(), flags=re.MULTILINE)

    def show(self, content: RenderableType, indent: int = 0) -> None:
        """A paragraph, or anything else that rich can draw."""
        self._console.print(Padding(content, (0, 0, 0, indent)) if indent else content)

    def headline(self, word: str, style: str, sentence: str) -> None:
        """The verdict in one sentence."""
        self.show(Text.assemble((f"{word}: ", style), sentence))

    def section(self, title: str) -> None:
        """A blank line and a title."""
        self._console.print()
        self.show(Text(title, style="bold"))

    def item(self, *parts: str | tuple[str, str], bullet: str = "-", indent: int = 2) -> None:
        """A paragraph that hangs from a bullet."""
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=len(bullet), no_wrap=True)
        grid.add_column(overflow="fold")
        grid.add_row(bullet, Text.assemble(*parts))
        self.show(grid, indent)

    def table(
        self, heads: Sequence[str], rows: Iterable[Sequence[str | Text]], right: Sequence[int] = (), indent: int = 2
    ) -> None:
        """A table; the columns numbered in `right` are numbers."""
        table = Table(
            box=_DASHES, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold", title=None
        )
        for number, head in enumerate(heads):
            table.add_column(head, justify="right" if number in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self.show(table, indent)

    def line(self, text: str) -> None:
        """One line that stays one, however long."""
        self._console.print(Text(text), soft_wrap=True)

    def command(self, arguments: Sequence[str]) -> None:
        """Unwrapped: rich would break it where a shell would not."""
        self._console.print(Text(shell_command(arguments, self.width), style="cyan"), soft_wrap=True)


def draw(fill: Callable[[Page], None], width: int, color: bool) -> str:
    """Draws one page into a string."""
    page = Page(width, color)
    fill(page)
    return page.text()
