"""The probe: a few inputs of a model, stored with the logits that the masked model gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from slt_compress.errors import SltError

_LOGITS = "logits"  # the key in the file, beside the names of the inputs


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """One batch of inputs and the masked model's answer to it.

    Attributes:
        inputs: the tensors of the batch by argument name.
        logits: what the masked model gives for them.
    """

    inputs: Mapping[str, Tensor]
    logits: Tensor

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under the keys that they have in the file."""
        return {**self.inputs, _LOGITS: self.logits}

    @classmethod
    def parse(
        cls, tensors: Mapping[str, Tensor], path: Path, error: type[SltError]
    ) -> Probe | None:
        """The probe in a file that was read; None for an empty file, which says there is none.

        Raises:
            error: the logits are missing.
        """
        if not tensors:
            return None
        if _LOGITS not in tensors:
            raise error(f"{path} holds inputs without {_LOGITS}; fetch or write it again")
        inputs = {name: value for name, value in tensors.items() if name != _LOGITS}
        return cls(inputs=inputs, logits=tensors[_LOGITS])
