"""Keep the model libraries from writing to the user's terminal."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.utils import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

_LOGGERS = ("transformers", "timm", "huggingface_hub")
_SILENT = logging.CRITICAL + 1


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' warnings, log lines and progress bars inside this block."""
    loggers = {logger: logger.level for logger in map(logging.getLogger, _LOGGERS)}
    bars_were_on = not are_progress_bars_disabled()
    # Only an imported transformers can print, and importing it here would take seconds.
    library = sys.modules.get("transformers.utils.logging")
    its_bars_were_on = library is not None and library.is_progress_bar_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            for logger in loggers:
                logger.setLevel(_SILENT)
            if its_bars_were_on and library is not None:
                library.disable_progress_bar()
            disable_progress_bars()
            yield
        finally:
            for logger, level in loggers.items():
                if (
                    logger.level == _SILENT
                ):  # else the library was imported just now and set its own
                    logger.setLevel(level)
            if its_bars_were_on and library is not None:
                library.enable_progress_bar()
            (enable_progress_bars if bars_were_on else disable_progress_bars)()
