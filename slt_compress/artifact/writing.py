"""Write an artifact folder: dense by the model's own library, anything else by the codecs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from slt_compress.artifact.companions import copy_companions
from slt_compress.artifact.masking import BUFFER, STORED, STREAM, pack_masks
from slt_compress.artifact.reading import describe_artifact, weight_files
from slt_compress.artifact.records import (
    CONFIG,
    DENSE_MANIFEST,
    DENSE_WEIGHTS,
    KIND,
    MASK_FORMAT,
    PROBE,
    SPARSE_INDEX,
    SPARSE_WEIGHTS,
    Artifact,
    manifest_head,
)
from slt_compress.artifact.sharding import ShardWriter
from slt_compress.artifact.tensors import State, expect_masked, state_of
from slt_compress.checkpoints import Checkpoint
from slt_compress.checkpoints.quiet import quiet
from slt_compress.errors import ArtifactError
from slt_compress.files import (
    atomic_folder,
    dtype_name,
    sha256_file,
    sha256_tensors,
    write_json,
    write_safetensors,
)
from slt_compress.formats import (
    CODECS,
    Format,
    MaskOnly,
    find_format,
    find_pattern,
    part_key,
)
from slt_compress.masks import Masks

QUANT_METHOD = "slt-compress"
MAX_SHARD_SIZE = 5 * 10**9  # bytes; what the hub's own tools split at


def write_artifact(
    path: str | Path,
    *,
    format: str,
    checkpoint: Checkpoint,
    module: nn.Module,
    masks: Masks,
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
    state = state_of(module, masks)
    draft = _Draft(checkpoint=checkpoint, module=module, masks=masks, state=state, format=chosen,
                   values_dtype=values_dtype, max_shard_size=max_shard_size,
                   buffers=buffers or {}, stored=stored or {})  # fmt: skip
    manifest = draft.manifest(ticket_hash, provenance)
    try:
        with atomic_folder(Path(path)) as folder:
            if probe:
                write_safetensors(folder / PROBE, probe)
                manifest["probe"] = sha256_file(folder / PROBE)
            draft.write(folder, manifest)
            copy_companions(checkpoint.folder, folder)
            write_json(folder / "report.json", report)
            (folder / "README.md").write_bytes(card.encode())
    except FileExistsError as cause:
        raise ArtifactError(f"cannot export: {cause}") from cause
    except (OSError, SafetensorError) as cause:
        raise ArtifactError(f"cannot export to {path}: {cause}") from cause
    return describe_artifact(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Draft:
    """What is about to be written, and how."""

    checkpoint: Checkpoint
    module: nn.Module
    masks: Masks
    state: State
    format: Format | MaskOnly
    values_dtype: torch.dtype | None
    max_shard_size: int
    buffers: Mapping[str, Tensor]
    stored: Mapping[str, Tensor]

    def manifest(self, ticket_hash: str, provenance: Mapping[str, Any]) -> dict[str, Any]:
        """What is known before a tensor is written."""
        return manifest_head(
            self.checkpoint, format=self.format.name, ticket_hash=ticket_hash,
            provenance=provenance, dense_nbytes=self.state.nbytes, ties=self.state.ties,
        )  # fmt: skip

    def write(self, folder: Path, manifest: Mapping[str, Any]) -> None:
        """The weight files with their manifest, and the config."""
        if isinstance(self.format, MaskOnly):
            _write_masks(folder, manifest, self)
        elif self.format.sparse:
            _write_sparse(folder, manifest, self)
        else:
            _write_dense(folder, manifest, self)

    def entry(self, name: str, tensor: Tensor) -> dict[str, Any]:
        """What the manifest says of one tensor."""
        facts = {"shape": list(tensor.shape), "dtype": dtype_name(tensor.dtype), "format": "dense"}
        if name not in self.masks:
            return facts
        mask, stored = self.masks[name], self.stored_dtype(tensor)
        kept = int(mask.count_nonzero())
        if isinstance(self.format, MaskOnly):
            flip = self.masks.flips.get(name)
            flips = {} if flip is None else {"flips": int(flip.count_nonzero())}
            return {**facts, "format": MASK_FORMAT, "kept": kept, **flips}
        pattern = find_pattern(mask)
        codec = self.format.choose(tuple(tensor.shape), kept, stored, pattern)
        rounded = {} if stored is tensor.dtype else {"values": dtype_name(stored)}
        return {**facts, "format": codec.name, "kept": kept, **rounded}

    def stored_dtype(self, tensor: Tensor) -> torch.dtype:
        """The dtype of a site's values in the file: never a wider one than they have."""
        narrower = self.values_dtype
        if narrower is None or not tensor.is_floating_point():
            return tensor.dtype
        return narrower if narrower.itemsize < tensor.dtype.itemsize else tensor.dtype


def _write_sparse(folder: Path, manifest: Mapping[str, Any], draft: _Draft) -> None:
    """Write the weights tensor by tensor, and a config that no library takes for its own."""
    entries: dict[str, dict[str, Any]] = {}
    writer = ShardWriter(folder, draft.max_shard_size)
    for name in sorted(draft.state.tensors):
        tensor = draft.state.tensors[name]
        entries[name] = draft.entry(name, tensor)
        mask = torch.ones(tensor.shape, dtype=torch.bool)
        if name in draft.masks:
            mask = draft.masks[name]
            expect_masked(name, tensor, mask)
            tensor = tensor.to(draft.stored_dtype(tensor))
        components = CODECS[entries[name]["format"]].encode(tensor, mask)
        writer.add({part_key(name, part): value for part, value in components.items()})
    writer.close({**manifest, "entries": entries})
    _write_config(folder, manifest, draft)


def _write_masks(folder: Path, manifest: Mapping[str, Any], draft: _Draft) -> None:
    """Write the masks of all sites as one stream, and what neither they nor the origin give."""
    names = sorted(draft.masks)
    for name in names:
        expect_masked(name, draft.state.tensors[name], draft.masks[name])
    components = {
        STREAM: pack_masks(draft.masks),
        **{BUFFER + name: tensor for name, tensor in draft.buffers.items()},
        **{STORED + name: tensor for name, tensor in draft.stored.items()},
    }
    content = {
        **manifest,
        "ties": {},
        "entries": {name: draft.entry(name, draft.state.tensors[name]) for name in names},
        "buffers": sorted(draft.buffers),
        "stored": sorted(draft.stored),
        "hash": sha256_tensors(components),
    }
    write_safetensors(folder / SPARSE_WEIGHTS, components, content)
    _write_config(folder, manifest, draft)


def _write_config(folder: Path, manifest: Mapping[str, Any], draft: _Draft) -> None:
    """Write the model's config, with a mark that nothing but slt-compress can read the weights."""
    weights = SPARSE_INDEX if (folder / SPARSE_INDEX).exists() else SPARSE_WEIGHTS
    marker = {"quant_method": QUANT_METHOD, "format": manifest["format"], "version": KIND[1]}
    marker["weights"] = weights
    write_json(folder / CONFIG, {**draft.checkpoint.config, "quantization_config": marker})
    generation = getattr(draft.module, "generation_config", None)
    if draft.checkpoint.family == "transformers" and generation is not None:
        with quiet():
            generation.save_pretrained(folder)


def _write_dense(folder: Path, manifest: Mapping[str, Any], draft: _Draft) -> None:
    """Let the model's library write its own layout; slt.json beside it is the manifest."""
    checkpoint, tensors = draft.checkpoint, draft.state.tensors
    for name, mask in draft.masks.items():
        expect_masked(name, tensors[name], mask)
    if checkpoint.family == "transformers":
        module: Any = draft.module
        with quiet():
            module.save_pretrained(folder, max_shard_size=draft.max_shard_size)
    elif checkpoint.family == "timm":
        _save_timm(folder, checkpoint, draft.module)
    else:
        write_safetensors(folder / DENSE_WEIGHTS, tensors)
        write_json(folder / CONFIG, checkpoint.config)
    files = {file.name: sha256_file(file) for file in weight_files(folder)}
    entries = {name: draft.entry(name, tensor) for name, tensor in tensors.items()}
    write_json(folder / DENSE_MANIFEST, {**manifest, "entries": entries, "files": files})


def _save_timm(folder: Path, checkpoint: Checkpoint, module: nn.Module) -> None:
    settings = checkpoint.config.get("pretrained_cfg") or {}
    labels = {}
    if checkpoint.classes is not None and "label_names" not in settings:
        labels = {"label_names": list(checkpoint.classes)}
    with quiet():
        # Not `save_for_hf`: it refuses weights that modules share, as those of CoaT.
        from timm.models._hub import save_config_for_hf

        write_safetensors(folder / DENSE_WEIGHTS, module.state_dict())
        save_config_for_hf(
            module,
            str(folder / CONFIG),
            model_config=labels,
            model_args=dict(checkpoint.config.get("model_args") or {}),
        )
