"""What a user asks for by name: the codecs that may store a tensor, or the mask alone."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from slt_compress.artifacts.formats.base import Codec, NmPattern
from slt_compress.artifacts.formats.byte_planes import can_encode
from slt_compress.artifacts.formats.entropy import entropy_bits
from slt_compress.artifacts.formats.packed import Packed
from slt_compress.errors import ArtifactError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch
    from torch import Tensor

_WORTH = 0.99


MASK_FORMAT = "mask"


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """The smallest of some codecs for each tensor; the first of equally small ones.

    Every sparse format stores masks. It therefore stores a weight dense only where nothing is
    dropped: otherwise a kept zero could not be told from a dropped weight.

    Attributes:
        name: what a user asks for.
        codecs: what a weight may be stored by, as far as counts and patterns say.
        packings: by the name of the codec that they say, the packed one to try on the values.
    """

    name: str
    codecs: tuple[Codec, ...]
    packings: Mapping[str, Packed] = field(default_factory=dict)

    @property
    def sparse(self) -> bool:
        """Whether dropped weights cost no value bytes."""
        return any(codec.sparse for codec in self.codecs)

    @property
    def patterned(self) -> bool:
        """Whether the choice depends on an N:M pattern."""
        return any(codec.name == "nm" for codec in self.codecs)

    def choose(
        self,
        shape: tuple[int, ...],
        kept: int,
        dtype: torch.dtype,
        pattern: NmPattern | None = None,
    ) -> Codec:
        """The codec for one weight.

        Raises:
            ArtifactError: none can store it.
        """
        whole = kept == math.prod(shape)
        sizes = [
            (size, place)
            for place, codec in enumerate(self.codecs)
            if (codec.sparse or whole or not self.sparse)
            and (size := codec.nbytes(shape, kept, dtype, pattern)) is not None
        ]
        if not sizes:
            raise ArtifactError(f"the format {self.name} cannot store a mask without its pattern")
        return self.codecs[min(sizes)[1]]

    def encode(self, codec: Codec, tensor: Tensor, mask: Tensor) -> tuple[Codec, dict[str, Tensor]]:
        """Store a weight by the codec that was chosen for it, or by a packing of this format.

        A packing takes time to read, so it is used where it is at least a hundredth smaller.
        """
        best = codec, codec.encode(tensor, mask)
        packed = self.packings.get(codec.name)
        if packed is None or not can_encode(tensor.dtype):
            return best
        inner = best[1] if packed.inner is codec else packed.inner.encode(tensor, mask)
        for further in ((packed.inner, inner), (packed, packed.repack(inner))):
            if _held(further[1]) < _WORTH * _held(best[1]):
                best = further
        return best

    def nbytes(
        self,
        shape: tuple[int, ...],
        kept: int,
        dtype: torch.dtype,
        pattern: NmPattern | None = None,
    ) -> int:
        """Bytes of one weight, headers aside: exactly, or at most where something is coded."""
        return self.choose(shape, kept, dtype, pattern).nbytes(shape, kept, dtype, pattern) or 0

    def model_nbytes(self, dense_nbytes: int, sites: Sequence[tuple[Any, ...]]) -> int:
        """Bytes of all tensors of a model, headers aside.

        `dense_nbytes` counts all its tensors stored whole; `sites` are the arguments of `nbytes`:
        shape, kept count, dtype and, where it is known, the N:M pattern.
        """
        whole: int = sum(math.prod(shape) * dtype.itemsize for shape, _, dtype, *_ in sites)
        return dense_nbytes - whole + sum(self.nbytes(*site) for site in sites)


def _held(parts: Mapping[str, Tensor]) -> int:
    return sum(part.nbytes for part in parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskOnly:
    """No values at all: the mask, entropy-coded, and where the values come from."""

    name: str = MASK_FORMAT
    sparse: bool = True

    def nbytes(
        self,
        shape: tuple[int, ...],
        kept: int,
        dtype: torch.dtype,
        pattern: NmPattern | None = None,
    ) -> int:
        """The entropy of the mask; what is written is at most 0.3 % more for all but tiny ones."""
        return math.ceil(entropy_bits(math.prod(shape), kept) / 8)

    def model_nbytes(self, dense_nbytes: int, sites: Sequence[tuple[Any, ...]]) -> int:
        """As for `Format`; only masks are counted."""
        return math.ceil(sum(entropy_bits(math.prod(shape), kept) for shape, kept, *_ in sites) / 8)
