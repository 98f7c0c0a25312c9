"""Image modes: which of Pillow's a model of so many channels reads."""

from __future__ import annotations

from slt_compress.errors import DataError

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def mode_for(channels: int, source: str) -> str:
    """The mode of Pillow with so many channels.

    Raises:
        DataError: images do not have that many.
    """
    if channels not in _MODES:
        raise DataError(
            f"{source} reads images of {channels} channels; image files give 1, 3 or 4. Search it "
            "with batches of your own: slt_compress.search(module, batches, loss_fn=loss_fn)"
        )
    return _MODES[channels]
