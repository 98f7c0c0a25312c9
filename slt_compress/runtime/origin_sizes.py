"""The sizes of a random init, compared with those of its mask before any memory is taken."""

from __future__ import annotations

from collections.abc import Mapping

from slt_compress.checkpoints.bounds import MOST_TENSORS, bounded
from slt_compress.checkpoints.families import sketch_module
from slt_compress.checkpoints.origins import checked_record
from slt_compress.checkpoints.recorded import RecordedOrigin
from slt_compress.errors import SourceError


def expect_sizes(
    recorded: RecordedOrigin, parameters: int, sites: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse a random init with other sites, or many more weights, than its mask says.

    An origin of another kind is as large as its files.

    Args:
        recorded: the origin.
        parameters: how many weights its parameters have, as the mask says.
        sites: the shapes of the masked weights.

    Raises:
        SltError: a size differs.
    """
    if recorded.record.get("kind") != "random":
        return
    family, task, _, config = checked_record(recorded.record)
    try:
        with bounded(parameters, MOST_TENSORS, recorded.path, recorded.error):
            module = sketch_module(family, task, config)
    except (SourceError, RuntimeError, NotImplementedError):
        return  # some architectures compute with values while they are built
    shapes = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    for name, shape in sites.items():
        if shapes.get(name, shape) != shape:
            raise recorded.error(
                f"{recorded.path} has a mask of {shape} for {name}, and its origin a weight of "
                f"{shapes[name]}: one of the two is damaged"
            )
