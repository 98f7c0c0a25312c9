"""Subjects: lines that begin with the word for what they are about, folded under their own text."""

from __future__ import annotations

from slt_compress.cli.screen import Text, stacked

# Of the column of subjects: that of the lines that a search logs, too.
WIDTH = 10


def line_of(subject: str, text: str) -> str:
    """A line about a subject."""
    return f"{subject:<{WIDTH}}{text}"


def hanging(text: str, width: int, style: str = "") -> Text:
    """A line of a subject, folded between words where it is longer than `width`.

    A command stays on one line, so that it can be copied, and so does a longer word.
    """
    indent = WIDTH if len(text) > WIDTH and text[WIDTH - 1] == " " else 0
    subject, rest = text[:indent], text[indent:]
    rows: list[str] = []
    for word in [rest] if rest.startswith("slt-compress ") else rest.split(" "):
        if rows and indent + len(rows[-1]) + 1 + len(word) <= width:
            rows[-1] += f" {word}"
        else:
            rows.append(word)
    first, *others = rows
    whole = Text(subject, "bold")
    whole.append(first, style)
    return stacked(whole, *(Text(" " * indent).append(row, style) for row in others))
