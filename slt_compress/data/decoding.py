"""Decoding: the text of a file, by its byte-order mark or as UTF-8."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

# The mark of UTF-32 begins with that of UTF-16, so the longer ones stand in front.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path, *, newlines: bool = True) -> str:
    """The text of a file without its byte-order mark; with `newlines` all line ends are that.

    Raises:
        ValueError: it is not text in the encoding that it has to be in; says where.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"it is not {encoding.upper().removesuffix('-SIG')} text (byte "
            f"0x{data[error.start]:02x} in line {line}); save it as UTF-8, for example with: "
            f"iconv -f latin1 -t utf-8"
        ) from None
    return text.replace("\r\n", "\n").replace("\r", "\n") if newlines else text
