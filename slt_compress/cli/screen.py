"""The only way to the terminal: every text is shown as it is, and none is read as markup.

Names out of files are printed all over: here, and nowhere else, it is seen to that they neither
style nor erase nor forge what stands beside them.
"""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.style import StyleType
from rich.text import Text as _Text

from slt_compress.cli.plain_lines import ReaderGoneError
from slt_compress.storage.outside import visible


class Text(_Text):
    """A text of one line, in which characters that act are shown as escapes."""

    def __init__(self, text: object = "", *args: Any, **kwargs: Any) -> None:
        super().__init__(visible(text), *args, **kwargs)

    def append(self, text: _Text | str, style: StyleType | None = None) -> Text:
        """Add text at the end; characters that act become escapes."""
        super().append(visible(text) if isinstance(text, str) else text, style)
        return self


class Screen(Console):
    """A console that reads no text as markup or emoji: cells, titles, labels, lines."""

    def render_str(self, text: str, **kwargs: Any) -> _Text:
        """The text as it is."""
        kwargs.update(markup=False, emoji=False)
        return super().render_str(visible(text), **kwargs)

    def on_broken_pipe(self) -> None:
        """Leave it to whoever runs the command: a reader that has seen enough is no error."""
        raise ReaderGoneError


def stacked(*texts: Text | str) -> Text:
    """Texts below one another."""
    whole = Text()
    for index, text in enumerate(texts):
        if index:
            whole.append_text(_Text("\n"))
        whole.append_text(text if isinstance(text, Text) else Text(text))
    return whole
