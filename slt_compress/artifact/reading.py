"""Read an artifact folder, believing nothing that was not checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

from slt_compress.artifact.records import (
    DENSE_MANIFEST,
    DENSE_WEIGHTS,
    KIND,
    PROBE,
    PROOF,
    SHRUNK,
    SPARSE_INDEX,
    SPARSE_WEIGHTS,
    Artifact,
    LoadedArtifact,
)
from slt_compress.artifact.shrunken import cut_down_
from slt_compress.artifact.tensors import State, fill_, own_shapes
from slt_compress.checkpoints import TASKS, Checkpoint, Family, build_module, open_checkpoint
from slt_compress.errors import ArtifactError
from slt_compress.files import (
    parse_json,
    read_json,
    read_manifest,
    read_safetensors,
    sha256_file,
    sha256_tensors,
)
from slt_compress.formats import FORMATS, part_key
from slt_compress.manifests import Manifest, as_shape, check_manifest, is_file_name
from slt_compress.masks import Masks

_LIBRARIES = ("transformers", "timm")


def is_artifact(path: str | Path) -> bool:
    """Whether a folder holds the manifest of an artifact, of whatever version."""
    names = (SPARSE_WEIGHTS, SPARSE_INDEX, DENSE_MANIFEST)
    return any((Path(path) / name).is_file() for name in names)


def describe_artifact(path: str | Path) -> Artifact:
    """Read what an artifact says it is, without its weights.

    Raises:
        ArtifactError: the folder is no artifact, from a newer version, or damaged.
    """
    return _describe(Path(path), _open_manifest(Path(path)))


def weight_files(folder: Path) -> list[Path]:
    """List the safetensors files of an artifact that hold weights, in the order of their names."""
    return sorted(file for file in folder.glob("*.safetensors") if file.name not in (PROBE, PROOF))


def read_artifact(path: str | Path, *, model: nn.Module | None = None) -> LoadedArtifact:
    """Open an artifact as a dense model on the CPU in eval mode.

    Args:
        path: the folder.
        model: for an artifact of a user's own module, that module; it is filled in place. Not used
            for any other.

    Raises:
        ArtifactError: as in `describe_artifact`, or the weights are damaged, or do not fit.
        SourceError: the installed library cannot build the architecture.
    """
    folder = Path(path)
    manifest = _open_manifest(folder)
    artifact = _describe(folder, manifest)
    family, task = _architecture(manifest)
    probe = manifest.values.get("probe")
    if probe is not None and (
        not (folder / PROBE).is_file() or sha256_file(folder / PROBE) != probe
    ):
        raise ArtifactError(f"{folder / PROBE} is missing, changed or damaged; export again")
    if artifact.format == "dense":
        for name in manifest.object("files"):
            manifest.checked_file(name)
        if family in _LIBRARIES:
            checkpoint = open_checkpoint(str(folder), task=task)
            return LoadedArtifact(
                artifact=artifact, checkpoint=checkpoint, manifest=manifest.values
            )
    if family == "module" and model is None:
        raise ArtifactError(f"{folder} was made of a module of your own: hand it over as model=")
    module = model if family == "module" else build_module(family, task, manifest.object("config"))
    if module is None:  # for the type checker: refused above
        raise ArtifactError(f"{folder} needs model=")
    if artifact.format == SHRUNK:
        cut_down_(module, manifest)
    fill_(module, _read_state(folder, manifest, module))
    return LoadedArtifact(
        artifact=artifact,
        checkpoint=_checkpoint(folder, manifest, module.eval()),
        manifest=manifest.values,
    )


def read_masks(path: str | Path) -> Masks | None:
    """Read the masks of an artifact; None for one that stores none with its weights (dense).

    Raises:
        ArtifactError: the folder is no artifact, or damaged.
    """
    folder = Path(path)
    manifest = _open_manifest(folder)
    artifact = _describe(folder, manifest)
    if artifact.format == SHRUNK or not FORMATS[artifact.format].sparse:
        return None
    parts = _split(_sparse_tensors(folder, manifest), artifact.entries, manifest)
    masks: dict[str, Tensor] = {}
    for name, entry in artifact.entries.items():
        if "kept" in entry:
            mask = FORMATS[entry["format"]].decode_mask(parts[name], shape=tuple(entry["shape"]))
            if mask is not None:
                masks[name] = mask
    return Masks(masks)


def _open_manifest(folder: Path) -> Manifest:
    where, values = folder / SPARSE_WEIGHTS, None
    if where.is_file():
        values = read_manifest(where, ArtifactError)
    elif (folder / SPARSE_INDEX).is_file():
        where = folder / SPARSE_INDEX
        metadata = read_json(where, ArtifactError).get("metadata")
        text = metadata.get("slt") if isinstance(metadata, dict) else None
        values = parse_json(text, str(where), ArtifactError) if isinstance(text, str) else None
    elif (folder / DENSE_MANIFEST).is_file():
        where = folder / DENSE_MANIFEST
        values = read_json(where, ArtifactError)
    else:
        raise ArtifactError(
            f"{folder} is no slt-compress artifact: it has neither {SPARSE_WEIGHTS} nor"
            f" {DENSE_MANIFEST}"
        )
    if values is None:
        raise ArtifactError(f"{where} has no manifest; slt-compress did not write it")
    return check_manifest(values, where, KIND, ArtifactError)


def _describe(folder: Path, manifest: Manifest) -> Artifact:
    name = manifest.text("format")
    if name not in FORMATS and name != SHRUNK:
        raise ArtifactError(
            f"{folder} is in the format {name[:40]!r}, which this slt-compress lacks; upgrade"
        )
    entries = manifest.object("entries")
    for key, entry in entries.items():
        if (
            not isinstance(entry, dict)
            or as_shape(entry.get("shape")) is None
            or str(entry.get("format")) not in FORMATS
            or _dtype(entry) is None
        ):
            raise manifest.damaged(f"the entry of {key} is {str(entry)[:80]}")
    dense = manifest.values.get("dense_nbytes")
    if type(dense) is not int or dense < 0:
        raise manifest.damaged("it does not say how many bytes the dense model has")
    return Artifact(
        path=folder,
        format=name,
        entries=entries,
        nbytes=sum(file.stat().st_size for file in weight_files(folder)),
        dense_nbytes=dense,
    )


def _dtype(entry: Mapping[str, Any]) -> torch.dtype | None:
    """Look a dtype up by its name, without the lazy imports that `getattr` on torch would do."""
    found = vars(torch).get(str(entry.get("dtype")))
    return found if isinstance(found, torch.dtype) else None


def _architecture(manifest: Manifest) -> tuple[Family, Any]:
    family, task = manifest.text("family"), manifest.text("task")
    for known in get_args(Family):
        if known == family and task in TASKS:
            return known, task
    raise manifest.damaged(f"there is no family {family[:40]!r} with a task {task[:40]!r}")


def _checkpoint(folder: Path, manifest: Manifest, module: nn.Module) -> Checkpoint:
    family, task = _architecture(manifest)
    classes, count = manifest.values.get("classes"), manifest.values.get("num_classes")
    license_id = manifest.values.get("license")
    return Checkpoint(
        source=str(folder),
        kind="module" if family == "module" else "folder",
        revision=None,
        family=family,
        task=task,
        module=module,
        config=manifest.object("config"),
        folder=folder,
        classes=tuple(map(str, classes)) if isinstance(classes, list) else None,
        num_classes=count if type(count) is int else None,
        trained_head=task != "features",
        init=None,
        weights=None,
        license=license_id if isinstance(license_id, str) else None,
        file_keys={},
        stored=(),
    )


def _read_state(folder: Path, manifest: Manifest, module: nn.Module) -> State:
    """Decode every entry into the shape that `module` has under its name."""
    entries, ties = manifest.object("entries"), manifest.object("ties")
    for alias, name in ties.items():
        if str(name) not in entries or alias in entries:
            raise manifest.damaged(f"it ties {alias} to {str(name)[:80]}")
    if manifest.text("format") == "dense":
        stored = read_safetensors(folder / DENSE_WEIGHTS, ArtifactError)
    else:
        stored = _sparse_tensors(folder, manifest)
    parts = _split(stored, entries, manifest)
    shapes = own_shapes(module, entries)
    tensors = {}
    for name, entry in entries.items():
        shape = tuple(entry["shape"])
        if name not in shapes:
            raise ArtifactError(
                f"{folder} stores {name}, which the model does not have; install the library"
                " versions it was made with, or hand over the right model="
            )
        if shapes[name] != shape:
            raise ArtifactError(f"{folder} stores {name} as {shape}; the model has {shapes[name]}")
        try:
            tensor = FORMATS[entry["format"]].decode(
                parts[name], shape=shape, dtype=_dtype(entry) or torch.float32
            )
        except ArtifactError as cause:
            raise ArtifactError(f"{folder} is damaged: {name} {cause}") from cause
        # A copy of what still lies in the file: the model must not change when the file does, and
        # ordinary alignment keeps its arithmetic the same as that of any other model.
        tensors[name] = tensor.clone() if entry["format"] == "dense" else tensor
    return State(tensors=tensors, ties=ties)


def _split(
    stored: Mapping[str, Tensor], entries: Mapping[str, Mapping[str, Any]], manifest: Manifest
) -> dict[str, dict[str, Tensor]]:
    """Give every entry its parts; nothing may be missing and nothing left over."""
    keys = {
        name: {part: part_key(name, part) for part in FORMATS[entry["format"]].parts}
        for name, entry in entries.items()
    }
    expected = [key for parts in keys.values() for key in parts.values()]
    if len(set(expected)) != len(expected) or set(expected) != stored.keys():
        odd = sorted(set(expected) ^ stored.keys())
        raise manifest.damaged(f"its entries and the stored tensors disagree on {odd[:3]}")
    return {
        name: {part: stored[key] for part, key in parts.items()} for name, parts in keys.items()
    }


def _sparse_tensors(folder: Path, manifest: Manifest) -> dict[str, Tensor]:
    """Read all component tensors, of one file or of an index's shards, and check their hash."""
    if manifest.where.name == SPARSE_WEIGHTS:
        stored = read_safetensors(manifest.where, ArtifactError)
    else:
        stored = _shards(folder, manifest.where)
    if sha256_tensors(stored) != manifest.text("hash"):
        raise ArtifactError(f"{folder} was changed or damaged: its tensors do not have their hash")
    return stored


def _shards(folder: Path, index: Path) -> dict[str, Tensor]:
    placed = read_json(index, ArtifactError).get("weight_map")
    if not isinstance(placed, dict):
        raise ArtifactError(f"{index} has no object 'weight_map'; the artifact is damaged")
    stored: dict[str, Tensor] = {}
    for name in sorted({str(name) for name in placed.values()}):
        if not is_file_name(name) or not name.endswith(".safetensors"):
            raise ArtifactError(
                f"{index} names the shard {name[:80]!r}, which is no file beside it"
            )
        for key, tensor in read_safetensors(folder / name, ArtifactError).items():
            if placed.get(key) != name:
                raise ArtifactError(
                    f"{folder / name} holds {key}, which {index.name} puts elsewhere"
                )
            stored[key] = tensor
    if stored.keys() != placed.keys():
        missing = sorted(placed.keys() - stored.keys())
        raise ArtifactError(f"{folder} lacks {missing[0]}, which {index.name} lists")
    return stored
