"""Masks: an immutable mapping from the name of a site to a boolean tensor, `True` = keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain

import numpy as np
import torch
from torch import Tensor


class Masks(Mapping[str, Tensor]):
    """One boolean tensor per site, on the CPU, in the shape of its weight; `True` = keep.

    The mapping is immutable and keeps a bit per weight, of which every look-up makes a tensor.
    `flips` holds the kept weights whose sign is flipped, for the sites that have any; an unsigned
    mask has none.
    """

    __slots__ = ("_flips", "_masks")

    def __init__(
        self, masks: Mapping[str, Tensor], flips: Mapping[str, Tensor] | None = None
    ) -> None:
        flips = flips or {}
        for name, mask in chain(masks.items(), flips.items()):
            if mask.dtype is not torch.bool:
                raise TypeError(f"the mask of {name} is {mask.dtype}; a mask is torch.bool")
        self._masks = packed(masks.items())
        for name, flip in flips.items():
            kept = self._masks.get(name)
            if kept is None or flip.shape != kept.shape or bool((flip.cpu() & ~kept).any()):
                raise ValueError(f"the flips of {name} are not among its kept weights")
        self._flips = packed((name, flip) for name, flip in flips.items() if bool(flip.any()))

    @classmethod
    def made(cls, masks: Mapping[str, Tensor], flips: Mapping[str, Tensor]) -> Masks:
        """Masks from mappings that make a tensor whenever it is looked up.

        They are neither copied nor checked: the caller has to know that they are sound.
        """
        lazy = cls.__new__(cls)
        lazy._masks, lazy._flips = masks, flips
        return lazy

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __contains__(self, name: object) -> bool:
        return name in self._masks

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"Masks({len(self)} sites, kept {self.kept:,} of {self.total:,})"

    @property
    def kept(self) -> int:
        """How many weights survive, over all sites."""
        return sum(count_kept(mask) for mask in self.values())

    @property
    def flips(self) -> Mapping[str, Tensor]:
        """The kept weights whose sign is flipped, of the sites that have any."""
        return self._flips

    @property
    def flipped(self) -> int:
        """How many of the kept weights have their sign flipped, over all sites."""
        return sum(count_kept(flip) for flip in self._flips.values())

    @property
    def total(self) -> int:
        """How many weights are gated, over all sites."""
        return sum(mask.numel() for mask in self.values())

    @property
    def density(self) -> float:
        """Kept fraction of the gated weights; 0 where nothing is gated."""
        return self.kept / self.total if self.total else 0.0

    def density_of(self, name: str) -> float:
        """Kept fraction of one site."""
        mask = self[name]
        return int(mask.count_nonzero()) / mask.numel() if mask.numel() else 0.0

    def overlap(self, other: Masks) -> float:
        """Share of this mask's kept weights that `other` keeps too, in [0, 1]."""
        return self._both(other) / self.kept if self.kept else 0.0

    def iou(self, other: Masks) -> float:
        """Intersection over union of the kept weights, in [0, 1]; 1 for two empty masks."""
        both = self._both(other)
        either = self.kept + other.kept - both
        return both / either if either else 1.0

    def _both(self, other: Masks) -> int:
        if {n: m.shape for n, m in self.items()} != {n: m.shape for n, m in other.items()}:
            raise ValueError("the two masks cover different sites or shapes")
        return sum(int((mask & other[name]).count_nonzero()) for name, mask in self.items())


def count_kept(mask: Tensor) -> int:
    """How many elements of a boolean tensor are true; numpy counts faster than torch."""
    return int(np.count_nonzero(mask.cpu().numpy()))


def pack_bits(mask: Tensor) -> Tensor:
    """Pack a boolean tensor into ceil(numel / 8) bytes (uint8), row-major, lowest bit first."""
    return torch.from_numpy(np.packbits(mask.cpu().numpy().reshape(-1), bitorder="little"))


def unpack_bits(packed: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Undo `pack_bits` for a mask of `shape`.

    Raises:
        ValueError: the number of bytes does not fit the shape, or a padding bit is set.
    """
    count = int(np.prod(shape, dtype=np.int64))
    if packed.dtype is not torch.uint8 or packed.shape != ((count + 7) // 8,):
        raise ValueError(
            f"{tuple(packed.shape)} {packed.dtype} is not the packed form of a mask of {shape}"
        )
    bits = np.unpackbits(packed.cpu().numpy(), bitorder="little")
    if bits[count:].any():
        raise ValueError("a padding bit after the mask is set")
    return torch.from_numpy(bits[:count].view(np.bool_)).reshape(shape)


def packed(
    masks: Iterable[tuple[str, Tensor]], order: Iterable[str] | None = None
) -> Mapping[str, Tensor]:
    """Boolean tensors by name, kept as bits: every look-up makes the tensor anew, on the CPU.

    They are in the `order` of names, or in that in which they come.
    """
    bits = {name: (pack_bits(mask), tuple(mask.shape)) for name, mask in masks}
    return _Packed(bits if order is None else {name: bits[name] for name in order})


class _Packed(Mapping[str, Tensor]):
    def __init__(self, bits: Mapping[str, tuple[Tensor, tuple[int, ...]]]) -> None:
        self._bits = bits

    def __getitem__(self, name: str) -> Tensor:
        return unpack_bits(*self._bits[name])

    def __contains__(self, name: object) -> bool:
        return name in self._bits

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def __len__(self) -> int:
        return len(self._bits)


_SELECTED = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def masked_weight(
    weight: Tensor, mask: Tensor, gain: float | Tensor, flip: Tensor | None = None
) -> Tensor:
    """fl(gain * weight) where the mask keeps it, else zero; the weight's bits where gain is 1.

    The gain is a number, or one per weight (fp32, its shape).

    The sign is flipped where `flip` is true.
    """
    kept = weight
    if isinstance(gain, Tensor):
        kept = (weight.float() * gain.to(weight.device)).to(weight.dtype)
    elif gain != 1.0:  # one multiplication in fp32, one rounding to the dtype of the weight
        kept = (weight.float() * torch.tensor(gain, dtype=torch.float32)).to(weight.dtype)
    if flip is not None:
        kept = torch.where(flip.to(weight.device), -kept, kept)
    mask = mask.to(weight.device)
    if kept.dtype in _SELECTED:
        # the backward pass of a threshold, which is one vectorised pass where `where` is not
        chosen: Tensor = torch.ops.aten.threshold_backward(kept, mask.to(kept.dtype), 0.5)
        return chosen
    return torch.where(mask, kept, torch.zeros((), dtype=weight.dtype).to(weight))
