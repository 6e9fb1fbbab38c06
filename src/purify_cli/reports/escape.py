r"""Makes hostile text safe to show.

Text from a checkpoint or a dataset may hold terminal escape sequences, characters that reorder or hide what stands
around them, or markup of the library that draws our tables. Everything that does not show itself as it is becomes a
visible escape (`\x1b`, `\u202e`). Escaping twice changes nothing.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Sequence

# Unicode's Default_Ignorable_Code_Point (DerivedCoreProperties): some are letters by category, and none can be seen.
_INVISIBLE = (
    (0x00AD, 0x00AD),
    (0x034F, 0x034F),
    (0x061C, 0x061C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x2800, 0x2800),  # the blank Braille pattern: no ignorable, and just as empty
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
)
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Scripts stack two or three marks on a letter; more of them climb over the lines above.
_MARKS_IN_A_ROW = 3
_PLAIN = re.compile(r"[\x20-\x7e]*")


def _code(character: str) -> str:
    point = ord(character)
    if point <= 0xFF:
        return f"\\x{point:02x}"
    return f"\\u{point:04x}" if point <= 0xFFFF else f"\\U{point:08x}"


def _hidden(character: str) -> bool:
    category = unicodedata.category(character)
    if category in _HIDDEN_CATEGORIES or (category == "Zs" and character != " "):
        return True
    point = ord(character)
    return any(first <= point <= last for first, last in _INVISIBLE)


def escape(text: str, *, keep: str = "", limit: int | None = None) -> str:
    """The text with everything that would act on a terminal, or hide, made visible.

    Args:
        keep: control characters to leave alone, such as the newlines of a traceback.
        limit: longest result in characters; what is over is cut and marked with "...".
    """
    if not _PLAIN.fullmatch(text):
        shown, marks = [], 0
        for character in text:
            marks = marks + 1 if unicodedata.combining(character) else 0
            plain = character in keep or not (_hidden(character) or marks > _MARKS_IN_A_ROW)
            shown.append(character if plain else _code(character))
        text = "".join(shown)
    if limit is not None and len(text) > limit:
        text = text[: max(0, limit - 3)] + "..."
    return text


def quote(argument: str) -> str:
    """One argument as a shell takes it: plain, in single quotes, or, where it holds what cannot be shown, as $'...'."""
    if escape(argument) == argument:
        return shlex.quote(argument)
    quoted = []
    for character in argument:
        if character in "\\'":
            quoted.append("\\" + character)
        elif 0xDC80 <= ord(character) <= 0xDCFF:  # a byte of a file name that was no UTF-8
            quoted.append(f"\\{ord(character) - 0xDC00:03o}")
        elif ord(character) <= 0x7F and _hidden(character):
            quoted.append(f"\\{ord(character):03o}")
        elif escape(character) != character or unicodedata.combining(character):
            quoted.append(_code(character) if ord(character) > 0xFF else f"\\u{ord(character):04x}")
        else:
            quoted.append(character)
    return "$'" + "".join(quoted) + "'"


def command(arguments: Sequence[str], width: int, indent: str = "  ") -> str:
    """A command that can be pasted into a shell, broken with backslashes where it is longer than `width` columns."""
    lines, current = [], indent
    for number, argument in enumerate(arguments):
        word = quote(argument)
        if number and len(current) + 1 + len(word) + 2 > width and current.strip():
            lines.append(current + " \\")
            current = indent + "    " + word
        else:
            current += word if not current.strip() else f" {word}"
    lines.append(current)
    return "\n".join(lines)
