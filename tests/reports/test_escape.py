from __future__ import annotations

import shutil
import subprocess
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from purify_cli.reports.escape import command, escape, quote

ANY = st.text(st.characters())


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain text, 100 %", "plain text, 100 %"),
        ("naïve Größe 日本語 हिन्दी", "naïve Größe 日本語 हिन्दी"),
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("a\nb\tc\x7f\x9b", "a\\x0ab\\x09c\\x7f\\x9b"),
        ("\u202egpj.exe", "\\u202egpj.exe"),
        ("c\u200bf", "c\\u200bf"),
        ("\ufefftag\U000e0041", "\\ufefftag\\U000e0041"),
        ("x\u2028y\u00a0z", "x\\u2028y\\xa0z"),
        ("\u3164\u115f\u2800", "\\u3164\\u115f\\u2800"),
        ("\udc80", "\\udc80"),
        ("e" + "\u0301" * 5, "e" + "\u0301" * 3 + "\\u0301\\u0301"),
    ],
)
def test_shows_what_hides(text: str, shown: str) -> None:
    assert escape(text) == shown


@given(ANY)
@example("\x00\u202e")
def test_nothing_that_acts_or_hides_is_left(text: str) -> None:
    shown = escape(text)
    assert all(unicodedata.category(character) not in {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"} for character in shown)
    assert "\x1b" not in shown
    shown.encode("utf-8")


@given(ANY)
def test_escaping_twice_changes_nothing(text: str) -> None:
    assert escape(escape(text)) == escape(text)


@given(ANY, st.integers(3, 50))
def test_a_limit_holds(text: str, limit: int) -> None:
    assert len(escape(text, limit=limit)) <= limit


def test_kept_characters_stay() -> None:
    assert escape("a\n\x1b", keep="\n") == "a\n\\x1b"


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
@pytest.mark.parametrize(
    "argument",
    [
        "plain",
        "two words",
        "it's",
        "$(touch x)",
        "`id`",
        "-rf",
        "a\nb",
        "\x1b[31m\x01",
        "\u202ex'y\\z",
        "\u00a0é",
        "",
        "a\u200b5",
        "\\",
        "\\\n'",
    ],
)
def test_a_quoted_argument_is_what_the_shell_gets(argument: str) -> None:
    printed = subprocess.run(
        ["bash", "-c", f"printf %s {quote(argument)}"], capture_output=True, check=True, env={"LC_ALL": "C.UTF-8"}
    ).stdout
    assert printed.decode("utf-8") == argument
    assert escape(quote(argument)) == quote(argument)


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_a_broken_command_is_one_command() -> None:
    arguments = ["printf", "%s|", *(f"argument number {number}" for number in range(12)), "--option", "v"]
    text = command(arguments, 80)
    assert len(text.splitlines()) > 2
    assert max(map(len, text.splitlines())) <= 80
    printed = subprocess.run(["bash", "-c", text], capture_output=True, check=True, text=True).stdout
    assert printed == "".join(f"{argument}|" for argument in arguments[2:])
