"""Words from outside (names, labels, paths, metadata) as text that cannot act on what shows it."""

from __future__ import annotations

import re
import unicodedata

# Line and page breaks, escapes, marks that turn the direction of a line, halves of characters.
_ACTING = ("Cc", "Cf", "Cs", "Zl", "Zp")
# Joiners, without which words of some languages and many emoji fall apart.
_JOINERS = "\u200c\u200d"
# What Markdown, the mathematics of GitHub or HTML would read as more than text. An underscore
# between letters or digits is text.
_MARKDOWN = re.compile(r"[\\`*\[\]<>|~$&#]|(?<![^\W_])_|_(?![^\W_])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def visible(text: object) -> str:
    """The text, with escapes such as `\\x1b` and `\\n` for characters that act and do not show."""
    return "".join(_escaped(char) for char in str(text))


def markdown(text: object) -> str:
    """The text as Markdown that shows it, in a line or in the cell of a table."""
    return _MARKDOWN.sub(lambda m: _ENTITIES.get(m[0], "\\" + m[0]), visible(text))


def code_span(text: object) -> str:
    """The text as a code span of Markdown."""
    shown = visible(text)
    longest = max((len(run) for run in re.findall("`+", shown)), default=0)
    fence, space = "`" * (longest + 1), " " if "`" in shown else ""
    return f"{fence}{space}{shown}{space}{fence}"


def _escaped(char: str) -> str:
    if char.isprintable() or char in _JOINERS or unicodedata.category(char) not in _ACTING:
        return char
    return char.encode("unicode_escape").decode()
