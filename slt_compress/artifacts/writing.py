"""Write an artifact folder: dense by the model's own library, anything else by the codecs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from slt_compress.artifacts.dense import write_dense
from slt_compress.artifacts.draft import Draft
from slt_compress.artifacts.formats import CODECS, Format, MaskOnly, find_format, part_key
from slt_compress.artifacts.manifest import (
    CONFIG,
    KIND,
    PROBE,
    SPARSE_INDEX,
    SPARSE_WEIGHTS,
    Artifact,
)
from slt_compress.artifacts.mask_only import BUFFER, STORED, STREAM, pack_masks
from slt_compress.artifacts.reading import describe_artifact
from slt_compress.artifacts.sharding import ShardWriter
from slt_compress.artifacts.state import State, masked_state
from slt_compress.checkpoints import Checkpoint
from slt_compress.checkpoints.companions import copy_companions
from slt_compress.checkpoints.quiet import quiet
from slt_compress.errors import ArtifactError
from slt_compress.masks import Masks
from slt_compress.storage.files import (
    atomic_folder,
    sha256_file,
    sha256_tensors,
    write_json,
    write_safetensors,
)

QUANT_METHOD = "slt-compress"
MAX_SHARD_SIZE = 5 * 10**9  # bytes; what the hub's own tools split at


def write_artifact(
    path: str | Path,
    *,
    format: str,
    checkpoint: Checkpoint,
    module: nn.Module,
    masks: Masks,
    state: State | None = None,
    report: Mapping[str, Any],
    card: str,
    ticket_hash: str,
    provenance: Mapping[str, Any],
    probe: Mapping[str, Tensor] | None = None,
    values_dtype: torch.dtype | None = None,
    max_shard_size: int = MAX_SHARD_SIZE,
    buffers: Mapping[str, Tensor] | None = None,
    stored: Mapping[str, Tensor] | None = None,
) -> Artifact:
    """Export a masked model into a new folder, whole or not at all.

    Args:
        path: the folder; it must not exist, or be empty.
        format: a name in `FORMATS`.
        checkpoint: where the model came from: family, config, classes, companion files.
        module: the model with its masks (and gains) already applied.
        masks: what was kept; kept weights are stored even where they are 0.
        state: the tensors of the masked model, where `module` has none because they are made one at
            a time; the format `dense` takes it for models of transformers only.
        report: JSON-able, becomes report.json.
        card: Markdown, becomes README.md.
        ticket_hash: hash of the ticket's manifest.
        provenance: what proves the weights: `origin`, `gains`, `weights_hash`, `budget`, `counts`.
        probe: inputs and logits of the masked model, kept beside the weights.
        values_dtype: a narrower dtype that kept weights are rounded to in the file.
        max_shard_size: bytes that one weight file holds at most, as far as tensors can be split.
        buffers: what the search changed beside the masks; the format `mask` stores it.
        stored: tensors that the origin's seed does not give; the format `mask` stores them.

    Raises:
        ArtifactError: no such format, the path is taken, or the module is not masked.
    """
    chosen = find_format(format)
    if values_dtype is not None and not (chosen.sparse and isinstance(chosen, Format)):
        raise ArtifactError(f"the format {format} has no values to round; choose another")
    draft = Draft(checkpoint=checkpoint, module=module, masks=masks,
                  state=masked_state(module, masks) if state is None else state, format=chosen,
                  values_dtype=values_dtype, max_shard_size=max_shard_size,
                  buffers=buffers or {}, stored=stored or {})  # fmt: skip
    manifest = draft.manifest(ticket_hash, provenance)
    try:
        with atomic_folder(Path(path)) as folder:
            if probe:
                write_safetensors(folder / PROBE, probe)
                manifest["probe"] = sha256_file(folder / PROBE)
            _write(folder, manifest, draft)
            copy_companions(checkpoint.folder, folder)
            write_json(folder / "report.json", report)
            (folder / "README.md").write_bytes(card.encode())
    except FileExistsError as cause:
        raise ArtifactError(f"cannot export: {cause}") from cause
    except (OSError, SafetensorError) as cause:
        raise ArtifactError(f"cannot export to {path}: {cause}") from cause
    return describe_artifact(path)


def _write(folder: Path, manifest: Mapping[str, Any], draft: Draft) -> None:
    """The weight files with their manifest, and the config."""
    if isinstance(draft.format, MaskOnly):
        _write_masks(folder, manifest, draft)
    elif draft.format.sparse:
        _write_sparse(folder, manifest, draft)
    else:
        write_dense(folder, manifest, draft)


def _write_sparse(folder: Path, manifest: Mapping[str, Any], draft: Draft) -> None:
    """Write the weights tensor by tensor, and a config that no library takes for its own."""
    entries: dict[str, dict[str, Any]] = {}
    writer = ShardWriter(folder, draft.max_shard_size)
    for name in sorted(draft.state.tensors):
        tensor, entries[name] = draft.state.tensors[name], draft.entry(name)
        if name in draft.masks:
            mask = draft.masks[name]
            tensor = tensor.to(draft.stored_dtype(tensor))
        else:
            mask = torch.ones(tensor.shape, dtype=torch.bool)
        components = CODECS[entries[name]["format"]].encode(tensor, mask)
        writer.add({part_key(name, part): value for part, value in components.items()})
    writer.close({**manifest, "entries": entries})
    _write_config(folder, manifest, draft)


def _write_masks(folder: Path, manifest: Mapping[str, Any], draft: Draft) -> None:
    """Write the masks of all sites as one stream, and what neither they nor the origin give."""
    names = sorted(draft.masks)
    components = {
        STREAM: pack_masks(draft.masks),
        **{BUFFER + name: tensor for name, tensor in draft.buffers.items()},
        **{STORED + name: tensor for name, tensor in draft.stored.items()},
    }
    content = {
        **manifest,
        "ties": {},
        "entries": {name: draft.entry(name) for name in names},
        "buffers": sorted(draft.buffers),
        "stored": sorted(draft.stored),
        "hash": sha256_tensors(components),
    }
    write_safetensors(folder / SPARSE_WEIGHTS, components, content)
    _write_config(folder, manifest, draft)


def _write_config(folder: Path, manifest: Mapping[str, Any], draft: Draft) -> None:
    """Write the model's config, with a mark that nothing but slt-compress can read the weights."""
    weights = SPARSE_INDEX if (folder / SPARSE_INDEX).exists() else SPARSE_WEIGHTS
    marker = {"quant_method": QUANT_METHOD, "format": manifest["format"], "version": KIND[1]}
    marker["weights"] = weights
    write_json(folder / CONFIG, {**draft.checkpoint.config, "quantization_config": marker})
    generation = getattr(draft.module, "generation_config", None)
    if draft.checkpoint.family == "transformers" and generation is not None:
        with quiet():
            generation.save_pretrained(folder)
