"""Write an artifact folder: dense by the model's own library, anything else by the codecs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from slt_compress.artifacts.beside import UNPROBED, write_beside
from slt_compress.artifacts.content import ArtifactContent, Evidence
from slt_compress.artifacts.dense import Beside, write_dense
from slt_compress.artifacts.draft import Draft
from slt_compress.artifacts.entries import Entry, entry_dicts
from slt_compress.artifacts.formats import (
    CODECS,
    Format,
    MaskOnly,
    find_format,
    in_order,
    part_key,
)
from slt_compress.artifacts.manifest import (
    CONFIG,
    PROBE,
    SPARSE_INDEX,
    SPARSE_WEIGHTS,
    Artifact,
    config_marker,
)
from slt_compress.artifacts.mask_only import BUFFER, STORED, STREAM, TUNED, pack_masks
from slt_compress.artifacts.reading import describe_artifact
from slt_compress.artifacts.sharding import ShardWriter
from slt_compress.checkpoints import Checkpoint
from slt_compress.checkpoints.quiet import quiet
from slt_compress.errors import ArtifactError
from slt_compress.storage.files import (
    atomic_folder,
    sha256_file,
    sha256_tensors,
    write_json,
    write_safetensors,
)

MAX_SHARD_SIZE = 5 * 10**9  # bytes; the limit of the hub's own tools


def write_artifact(
    path: str | Path,
    content: ArtifactContent,
    *,
    format: str,
    values_dtype: torch.dtype | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
) -> Artifact:
    """Export a masked model into a new folder, whole or not at all.

    Args:
        path: the folder; it must not exist, or be empty.
        content: the model and the evidence for it.
        format: a name in `FORMATS`.
        values_dtype: a narrower dtype that kept weights are rounded to in the file.
        max_shard_size: bytes that one weight file holds at most, as far as tensors can be split.

    Raises:
        ArtifactError: no such format, the path is taken, or the module is not masked.
    """
    chosen = find_format(format)
    if values_dtype is not None and not (chosen.sparse and isinstance(chosen, Format)):
        raise ArtifactError(f"the format {format} has no values to round; choose another")
    draft = Draft(content=content, state=content.state(), format=chosen,
                  values_dtype=values_dtype, max_shard_size=max_shard_size)  # fmt: skip
    with new_folder(Path(path)) as folder:
        manifest = {**draft.manifest(), **write_probe(folder, content.evidence)}
        beside = partial(write_evidence, folder, content.checkpoint, content.evidence)
        _write(folder, manifest, draft, beside)
    return describe_artifact(path)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield a folder that becomes `path`, or leaves nothing.

    Raises:
        ArtifactError: the path is taken or cannot be written.
    """
    try:
        with atomic_folder(path) as folder:
            yield folder
    except FileExistsError as cause:
        raise ArtifactError(f"cannot export: {cause}") from cause
    except (OSError, SafetensorError) as cause:
        raise ArtifactError(f"cannot export to {path}: {cause}") from cause


def write_probe(folder: Path, evidence: Evidence) -> dict[str, Any]:
    """Write the probe, where there is one; gives what the manifest says of it."""
    if evidence.probe is None:
        return {UNPROBED: True}
    evidence.probe.write(folder / PROBE)
    return {"probe": sha256_file(folder / PROBE)}


def write_evidence(
    folder: Path, checkpoint: Checkpoint, evidence: Evidence
) -> dict[str, dict[str, str]]:
    """Write the report and the card, and copy the tokenizer and processor files.

    Gives what the manifest says of every file that is not weights, the config among them.
    """
    return write_beside(folder, checkpoint.folder, evidence.report, evidence.card, evidence.loading)


def _write(folder: Path, manifest: Mapping[str, object], draft: Draft, beside: Beside) -> None:
    """The weight files with their manifest, the config, and by `beside` all other files."""
    if isinstance(draft.format, MaskOnly):
        _write_masks(folder, manifest, draft, beside)
    elif draft.format.sparse:
        _write_sparse(folder, manifest, draft, draft.format, beside)
    else:
        write_dense(folder, manifest, draft, beside)


def _write_sparse(
    folder: Path,
    manifest: Mapping[str, object],
    draft: Draft,
    format: Format,
    beside: Beside,
) -> None:
    """Write the weights tensor by tensor, and a config that no library takes for its own."""
    entries: dict[str, Entry] = {}
    masks, writer = draft.content.masks, ShardWriter(folder, draft.max_shard_size)
    for name in sorted(draft.state.tensors):
        tensor, entries[name] = draft.state.tensors[name], draft.entry(name)
        if name in masks:
            mask = masks[name]
            tensor = tensor.to(draft.stored_dtype(tensor))
        else:
            mask = torch.ones(tensor.shape, dtype=torch.bool)
        codec = in_order(CODECS[entries[name].format], draft.content.orders.get(name))
        codec, components = format.encode(codec, tensor, mask)
        entries[name] = replace(entries[name], format=codec.name)
        writer.add({part_key(name, part): value for part, value in components.items()})
    _write_config(folder, draft, SPARSE_INDEX if writer.is_sharded else SPARSE_WEIGHTS)
    writer.close({**manifest, "entries": entry_dicts(entries), **beside()})


def _write_masks(
    folder: Path, manifest: Mapping[str, object], draft: Draft, beside: Beside
) -> None:
    """Write the masks of all sites as one stream, and what neither they nor the origin give."""
    content = draft.content
    components = {
        STREAM: pack_masks(content.masks),
        **{BUFFER + name: tensor for name, tensor in content.buffers.items()},
        **{STORED + name: tensor for name, tensor in content.stored.items()},
        **{TUNED + name: tensor for name, tensor in content.tuned.items()},
    }
    whole: dict[str, Any] = {
        **manifest,
        "ties": {},
        "entries": entry_dicts({name: draft.entry(name) for name in content.masks}),
        "buffers": sorted(content.buffers),
        "stored": sorted(content.stored),
        **({"tuned": sorted(content.tuned)} if content.tuned else {}),
        "hash": sha256_tensors(components),
    }
    _write_config(folder, draft, SPARSE_WEIGHTS)
    write_safetensors(folder / SPARSE_WEIGHTS, components, {**whole, **beside()})


def _write_config(folder: Path, draft: Draft, weights: str) -> None:
    """Write the model's config, with a mark that only slt-compress can read the weights."""
    checkpoint = draft.content.checkpoint
    marker = {**config_marker(draft.format.name), "weights": weights}
    write_json(folder / CONFIG, {**checkpoint.config, "quantization_config": marker})
    generation = getattr(draft.content.module, "generation_config", None)
    if checkpoint.family == "transformers" and generation is not None:
        with quiet():
            generation.save_pretrained(folder)
