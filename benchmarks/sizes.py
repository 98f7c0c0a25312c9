"""Bytes of every format against a lower bound, as JSON.

    python benchmarks/sizes.py                    # random masks on the linear weights of ViT-base
    python benchmarks/sizes.py --source TICKET    # the masks of a ticket

The bounds assume that the density of every layer is known. The bound of `mask` is the entropy of
the masks; that of every other format adds the bytes of the kept values. Headers do not count.
Random masks have per-layer densities of half to one and a half times the mean.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from surroundings import surroundings
from torch import Tensor

from slt_compress.artifacts.formats import (
    CODECS,
    FORMATS,
    Format,
    NmPattern,
    decode_masks,
    find_pattern,
)
from slt_compress.artifacts.formats.entropy import entropy_bits
from slt_compress.artifacts.mask_only import pack_masks
from slt_compress.masks import Masks
from slt_compress.tickets import read_ticket

BLOCK = {"query": (768, 768), "key": (768, 768), "value": (768, 768), "output": (768, 768),
         "up": (3072, 768), "down": (768, 3072)}  # fmt: skip
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def random_masks(sparsity: float, seed: int) -> Masks:
    """Masks of the 72 linear weights of ViT-base, 85 million in all."""
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for layer in range(12):
        for name, shape in BLOCK.items():
            share = (1 - sparsity) * (0.5 + float(torch.rand((), generator=generator)))
            masks[f"layers.{layer}.{name}"] = torch.rand(shape, generator=generator) < share
    return Masks(masks)


def coded_parts(masks: Mapping[str, Tensor]) -> tuple[dict[str, int], float, float]:
    """Bytes of every mask on its own, and processor seconds of encoding and decoding them all."""
    parts, codec = {}, CODECS["coded"]
    started = time.process_time()
    for name, mask in masks.items():
        parts[name] = codec.encode(torch.zeros(mask.shape, dtype=torch.int8), mask)["mask"]
    encoded = time.process_time()
    for name, part in parts.items():
        decode_masks(part, [tuple(masks[name].shape)])
    seconds = encoded - started, time.process_time() - encoded
    return {name: part.nbytes for name, part in parts.items()}, *seconds


def size_of(
    format: Format,
    masks: Masks,
    patterns: Mapping[str, NmPattern | None],
    coded: Mapping[str, int],
    dtype: torch.dtype,
) -> int:
    """Bytes of all masked weights in a format; those of coded masks as they were counted."""
    total = 0
    for name, mask in masks.items():
        site = (tuple(mask.shape), int(mask.count_nonzero()), dtype, patterns[name])
        codec = format.choose(*site)
        exact = coded[name] + site[1] * dtype.itemsize
        total += exact if codec.name == "coded" else codec.nbytes(*site) or 0
    return total


def table(masks: Masks, dtypes: Mapping[str, torch.dtype], other: int) -> dict[str, Any]:
    """Bytes by format and dtype, and ratios over the bounds; `other` bytes are not masked."""
    entropy = sum(entropy_bits(m.numel(), int(m.count_nonzero())) for m in masks.values()) / 8
    coded, encoding, decoding = coded_parts(masks)
    alone = pack_masks(masks).nbytes
    patterns = {name: find_pattern(mask) for name, mask in masks.items()}
    figures: dict[str, Any] = {
        "weights": masks.total,
        "kept": masks.kept,
        "mask": {"bytes": alone, "bound": round(entropy), "over_bound": round(alone / entropy, 5)},
        "coded_seconds": {"encode": round(encoding, 2), "decode": round(decoding, 2)},
    }
    for label, dtype in dtypes.items():
        bound = masks.kept * dtype.itemsize + entropy + other
        rows = {}
        for name, format in FORMATS.items():
            if isinstance(format, Format):
                held = size_of(format, masks, patterns, coded, dtype) + other
                rows[name] = {"bytes": held, "over_bound": round(held / bound, 4)}
        figures[label] = {"bound": round(bound), **rows}
    return figures


def cases(source: str | None, sparsities: list[float], seed: int) -> Iterator[dict[str, Any]]:
    """One table for a ticket, or for every sparsity."""
    if source is None:
        for sparsity in sparsities:
            yield {"sparsity": sparsity, **table(random_masks(sparsity, seed), DTYPES, 0)}
        return
    ticket = read_ticket(source)
    name = str(next(iter(ticket.sites.values())).facts.dtype)
    dtype = vars(torch)[name]
    other = (ticket.extra.dense_nbytes or 0) - ticket.masks.total * dtype.itemsize
    yield {
        "source": ticket.origin["source"],
        "method": ticket.recipe["method"]["name"],
        "sparsity": round(1 - ticket.masks.density, 4),
        **table(ticket.masks, {name: dtype}, other),
    }


def main() -> None:
    """Parse, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", help="folder of a ticket")
    parser.add_argument("--sparsities", default="0.5,0.8,0.9,0.95,0.98")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rows = list(cases(given.source, [float(s) for s in given.sparsities.split(",")], given.seed))
    print(json.dumps({"seed": given.seed, "rows": rows, **surroundings()}, indent=2))


if __name__ == "__main__":
    main()
