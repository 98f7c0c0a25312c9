"""Single lines on stdout and stderr, without the libraries that lay out tables."""

from __future__ import annotations

import sys

from slt_compress.storage.outside import visible


def say(text: object, *, err: bool = False) -> None:
    """Print one line on stdout, or on stderr; characters that act are shown as escapes."""
    print(visible(text), file=sys.stderr if err else sys.stdout, flush=err)
