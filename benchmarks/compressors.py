"""Bytes of `auto` against general compressors on masked real weights, as JSON.

    pip install slt-compress[bench]
    python benchmarks/compressors.py MODEL.safetensors --tensors 'encoder.layer.[2-3].*weight'

Compared are the masked weights as dense bytes, one tensor after the other, through each compressor
at its strongest, and the parts of `auto`, headers aside. `before` is `auto` without packed values.
The bound is the entropy of each mask, of the exponents of its kept values, and their other bits.
"""

from __future__ import annotations

import argparse
import bz2
import json
import lzma
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import brotli
import torch
import zstandard
from safetensors.torch import load_file
from surroundings import surroundings
from torch import Tensor

from slt_compress.artifacts.formats import FORMATS, Format, find_pattern
from slt_compress.artifacts.formats.entropy import entropy_bits
from slt_compress.storage.bits import bits

COMPRESSORS: Mapping[str, Callable[[bytes], bytes]] = {
    "xz -9e": lambda data: lzma.compress(data, preset=9 | lzma.PRESET_EXTREME),
    "bz2 -9": lambda data: bz2.compress(data, 9),
    "zstd -19": lambda data: zstandard.ZstdCompressor(level=19).compress(data),
    "brotli -11": lambda data: brotli.compress(data, quality=11),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
MANTISSA = {torch.float32: 23, torch.bfloat16: 7}


def masks_of(weights: Mapping[str, Tensor], kind: str, sparsity: float) -> dict[str, Tensor]:
    """Magnitude over all tensors together, or every weight with the same chance."""
    flat = torch.cat([weight.reshape(-1) for weight in weights.values()])
    if kind == "magnitude":
        scores = flat.abs()
    else:
        scores = torch.rand(len(flat), generator=torch.Generator().manual_seed(0))
    kept = scores > scores.kthvalue(max(1, round(len(flat) * sparsity))).values
    parts = kept.split([weight.numel() for weight in weights.values()])
    return {
        name: part.reshape(weight.shape)
        for (name, weight), part in zip(weights.items(), parts, strict=True)
    }


def bound_bits(weight: Tensor, mask: Tensor) -> float:
    """Entropy of the mask with its density known, entropy of exponents, and all other bits."""
    kept, width = int(mask.sum()), MANTISSA[weight.dtype]
    exponents = bits(weight)[mask].long() >> width & 255
    counts = exponents.bincount().double()
    counts = counts[counts > 0]
    entropy = float(-(counts * (counts / kept).log2()).sum()) if kept else 0.0
    return entropy_bits(mask.numel(), kept) + entropy + kept * (width + 1)


def written(format: Format, weights: Mapping[str, Tensor], masks: Mapping[str, Tensor]) -> int:
    """Bytes of all parts in a format."""
    total = 0
    for name, weight in weights.items():
        mask = masks[name]
        pattern = find_pattern(mask)
        codec = format.choose(tuple(mask.shape), int(mask.sum()), weight.dtype, pattern)
        _, parts = format.encode(codec, weight, mask)
        total += sum(part.nbytes for part in parts.values())
    return total


def row(weights: Mapping[str, Tensor], kind: str, sparsity: float, label: str) -> dict[str, Any]:
    """One line: a mask, a dtype, all compressors."""
    masks = masks_of(weights, kind, sparsity)
    narrow = {name: weight.to(DTYPES[label]) for name, weight in weights.items()}
    dense = b"".join(
        bits(weight).masked_fill(~masks[name], 0).numpy().tobytes()
        for name, weight in narrow.items()
    )
    general = {name: len(compress(dense)) for name, compress in COMPRESSORS.items()}
    auto = FORMATS["auto"]
    if not isinstance(auto, Format):
        raise TypeError("auto is a format of codecs")
    started = time.process_time()
    now = written(auto, narrow, masks)
    seconds = time.process_time() - started
    before = written(replace(auto, packings={}), narrow, masks)
    bound = sum(bound_bits(weight, masks[name]) for name, weight in narrow.items()) / 8
    best = min(general, key=lambda name: general[name])
    return {
        "mask": kind, "sparsity": sparsity, "dtype": label, "dense": len(dense), **general,
        "auto": now, "before": before, "bound": round(bound), "best": best,
        "auto_over_best": round(now / general[best], 3), "auto_over_before": round(now / before, 3),
        "auto_over_bound": round(now / bound, 4), "encode_seconds": round(seconds, 2),
    }  # fmt: skip


def rows(weights: Mapping[str, Tensor], sparsities: list[float]) -> Iterator[dict[str, Any]]:
    """All lines."""
    for label in DTYPES:
        for kind in ("magnitude", "random"):
            for sparsity in sparsities:
                yield row(weights, kind, sparsity, label)


def main() -> None:
    """Parse, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", help="a safetensors file")
    parser.add_argument("--tensors", default=".*", help="regular expression of their names")
    parser.add_argument("--label", default="", help="what the weights are")
    parser.add_argument("--sparsities", default="0.5,0.8,0.9,0.95")
    given = parser.parse_args()
    weights = {
        name: tensor.float()
        for name, tensor in sorted(load_file(given.source).items())
        if tensor.dim() > 1 and re.fullmatch(given.tensors, name)
    }
    found = list(rows(weights, [float(part) for part in given.sparsities.split(",")]))
    count = sum(weight.numel() for weight in weights.values())
    content = {"label": given.label, "tensors": given.tensors, "weights": count, "rows": found}
    print(json.dumps({**content, **surroundings()}, indent=2))


if __name__ == "__main__":
    main()
