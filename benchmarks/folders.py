"""Bytes of whole folders, as `du` counts them, against the entropy of the mask, as JSON.

    python benchmarks/folders.py TICKET --out benchmarks/results/folders-vit-base.json

Exports the ticket as `mask` and as `auto`. The bound of `mask` is the entropy of the masks, given
the density of every layer, plus the stored tensors and buffers; that of `auto` adds the kept values
and everything that is not masked. The bound knows nothing of rows, columns or exponents.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surroundings import surroundings

import slt_compress
from slt_compress.artifacts.formats.entropy import entropy_bits
from slt_compress.tickets import read_ticket

BLOCK = 4096  # bytes that a file system gives at a time


def folder_bytes(folder: Path) -> dict[str, int]:
    """The bytes of all files, the blocks that they take, and the bytes of the probe."""
    sizes = {file.name: file.stat().st_size for file in folder.rglob("*") if file.is_file()}
    blocks = sum(-(-size // BLOCK) * BLOCK for size in sizes.values())
    return {
        "bytes": sum(sizes.values()),
        "du": blocks,
        "probe": sizes.get("probe.safetensors", 0),
    }


def measured(path: Path) -> dict[str, Any]:
    """Bytes of the exports of a ticket, and the bounds."""
    ticket = read_ticket(path)
    masks = ticket.masks
    kept = {name: int(mask.count_nonzero()) for name, mask in masks.items()}
    entropy = sum(entropy_bits(mask.numel(), kept[name]) for name, mask in masks.items()) / 8
    extra = sum(t.nbytes for t in (*ticket.buffers.values(), *ticket.stored.values()))
    with tempfile.TemporaryDirectory() as scratch:
        exported = {
            format: slt_compress.export(path, format=format, out=Path(scratch) / format)
            for format in ("mask", "auto")
        }
        entries = exported["auto"].entries.items()
        dense_size = exported["auto"].dense_nbytes
        sites = sum(4 * mask.numel() for name, mask in masks.items())
        rest = dense_size - sites
        bounds = {"mask": entropy + extra, "auto": entropy + 4 * sum(kept.values()) + rest}
        folders = {format: folder_bytes(artifact.path) for format, artifact in exported.items()}
    return {
        "sites": sum(1 for name, _ in entries if name in masks),
        "density": sum(kept.values()) / sum(mask.numel() for mask in masks.values()),
        "ticket": folder_bytes(path),
        "folders": folders,
        "bounds": {format: round(bound) for format, bound in bounds.items()},
        "over_bound": {f: round(folders[f]["bytes"] / bounds[f], 5) for f in folders},
        "du_over_bound": {f: round(folders[f]["du"] / bounds[f], 5) for f in folders},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse and measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("ticket", type=Path)
    parser.add_argument("--out", type=Path, help="default: printed")
    given = parser.parse_args(arguments)
    text = json.dumps({**measured(given.ticket), **surroundings()}, indent=2) + "\n"
    if given.out is None:
        print(text, end="")
    else:
        given.out.write_text(text)


if __name__ == "__main__":
    main()
