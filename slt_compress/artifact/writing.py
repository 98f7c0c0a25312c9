"""Write an artifact folder: dense by the model's own library, anything else by the formats."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from slt_compress.artifact.companions import copy_companions
from slt_compress.artifact.reading import describe_artifact, weight_files
from slt_compress.artifact.records import (
    CONFIG,
    DENSE_MANIFEST,
    DENSE_WEIGHTS,
    KIND,
    PROBE,
    SPARSE_WEIGHTS,
    Artifact,
)
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
from slt_compress.formats import FORMATS, Format, find_format, part_key
from slt_compress.masks import Masks

QUANT_METHOD = "slt-compress"


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

    Raises:
        ArtifactError: no such format, the path is taken, or the module is not masked.
    """
    chosen = find_format(format)
    state = state_of(module, masks)
    expect_masked(state, masks)
    manifest: dict[str, Any] = {
        "kind": KIND[0],
        "version": KIND[1],
        "format": chosen.name,
        "family": checkpoint.family,
        "task": checkpoint.task,
        "config": checkpoint.config,
        "classes": None if checkpoint.classes is None else list(checkpoint.classes),
        "num_classes": checkpoint.num_classes,
        "license": checkpoint.license,
        "ticket": ticket_hash,
        "provenance": provenance,
        "probe": None,
        "dense_nbytes": state.nbytes,
        "entries": _entries(state, masks, chosen),
        "ties": state.ties,
    }
    try:
        with atomic_folder(Path(path)) as folder:
            if probe:
                write_safetensors(folder / PROBE, probe)
                manifest["probe"] = sha256_file(folder / PROBE)
            write = _write_sparse if chosen.sparse else _write_dense
            write(folder, manifest, checkpoint, module=module, state=state, masks=masks)
            copy_companions(checkpoint.folder, folder)
            write_json(folder / "report.json", report)
            (folder / "README.md").write_bytes(card.encode())
    except FileExistsError as cause:
        raise ArtifactError(f"cannot export: {cause}") from cause
    except (OSError, SafetensorError) as cause:
        raise ArtifactError(f"cannot export to {path}: {cause}") from cause
    return describe_artifact(path)


def _entries(state: State, masks: Masks, chosen: Format) -> dict[str, dict[str, Any]]:
    def entry(name: str, tensor: Tensor) -> dict[str, Any]:
        facts: dict[str, Any] = {
            "shape": list(tensor.shape),
            "dtype": dtype_name(tensor.dtype),
            "format": "dense",
        }
        if name in masks:
            facts |= {"format": chosen.name, "kept": int(masks[name].count_nonzero())}
        return facts

    return {name: entry(name, tensor) for name, tensor in state.tensors.items()}


def _write_sparse(
    folder: Path,
    manifest: Mapping[str, Any],
    checkpoint: Checkpoint,
    *,
    module: nn.Module,
    state: State,
    masks: Masks,
) -> None:
    """Write weights.slt.safetensors and a config that no library takes for its own."""
    stored: dict[str, Tensor] = {}
    for name, tensor in state.tensors.items():
        mask = masks[name] if name in masks else torch.ones(tensor.shape, dtype=torch.bool)
        codec = FORMATS[manifest["entries"][name]["format"]]
        for part, component in codec.encode(tensor, mask).items():
            key = part_key(name, part)
            if key in stored:
                raise ArtifactError(f"two tensors of the model would both be stored as {key}")
            stored[key] = component
    hashed = {**manifest, "hash": sha256_tensors(stored)}
    write_safetensors(folder / SPARSE_WEIGHTS, stored, hashed)
    marker = {"quant_method": QUANT_METHOD, "format": manifest["format"], "version": KIND[1]}
    write_json(folder / CONFIG, {**checkpoint.config, "quantization_config": marker})
    generation = getattr(module, "generation_config", None)
    if checkpoint.family == "transformers" and generation is not None:
        with quiet():
            generation.save_pretrained(folder)


def _write_dense(
    folder: Path,
    manifest: Mapping[str, Any],
    checkpoint: Checkpoint,
    *,
    module: nn.Module,
    state: State,
    masks: Masks,
) -> None:
    """Let the model's library write its own layout; slt.json beside it is the manifest."""
    if checkpoint.family == "transformers":
        with quiet():
            module.save_pretrained(folder)  # type: ignore[operator]
    elif checkpoint.family == "timm":
        _save_timm(folder, checkpoint, module)
    else:
        write_safetensors(folder / DENSE_WEIGHTS, state.tensors)
        write_json(folder / CONFIG, checkpoint.config)
    files = {file.name: sha256_file(file) for file in weight_files(folder)}
    write_json(folder / DENSE_MANIFEST, {**manifest, "files": files})


def _save_timm(folder: Path, checkpoint: Checkpoint, module: nn.Module) -> None:
    settings = checkpoint.config.get("pretrained_cfg") or {}
    labels = {}
    if checkpoint.classes is not None and "label_names" not in settings:
        labels = {"label_names": list(checkpoint.classes)}
    with quiet():
        from timm.models import save_for_hf

        save_for_hf(
            module,
            str(folder),
            model_config=labels,
            model_args=dict(checkpoint.config.get("model_args") or {}),
            safe_serialization=True,
        )
