"""Read an artifact folder, believing nothing that was not checked."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import get_args

import torch
from torch import nn

from slt_compress.artifacts.beside import check_beside
from slt_compress.artifacts.decoding import decode, errors_of, split, stored_parts
from slt_compress.artifacts.entries import Entry, parse_entries
from slt_compress.artifacts.folding import unfold_
from slt_compress.artifacts.formats import FORMATS
from slt_compress.artifacts.manifest import (
    DENSE_MANIFEST,
    DENSE_WEIGHTS,
    KIND,
    NO_MODULE,
    ONNX,
    PROBE,
    SHRUNK,
    SPARSE_INDEX,
    SPARSE_WEIGHTS,
    Artifact,
    LoadedArtifact,
)
from slt_compress.artifacts.shrunk import cut_down_, whole_shapes
from slt_compress.artifacts.state import State, fill_, hollow_, own_shapes
from slt_compress.artifacts.stored_sizes import expect_stored_sizes
from slt_compress.artifacts.weight_files import check_weights, weight_files
from slt_compress.checkpoints import TASKS, Checkpoint, Family, Task, build_module, open_checkpoint
from slt_compress.checkpoints.bounds import bounded_by_shapes
from slt_compress.errors import ArtifactError, OwnModuleError, SourceError
from slt_compress.masks import Masks
from slt_compress.storage.files import (
    parse_json,
    read_json,
    read_manifest,
    read_safetensors,
    sha256_file,
)
from slt_compress.storage.manifests import Manifest, check_manifest, is_count

_LIBRARIES = ("transformers", "timm")


def is_artifact(path: str | Path) -> bool:
    """Whether a folder holds the manifest of an artifact, of whatever version."""
    names = (SPARSE_WEIGHTS, SPARSE_INDEX, DENSE_MANIFEST)
    return any((Path(path) / name).is_file() for name in names)


def describe_artifact(path: str | Path) -> Artifact:
    """Open the manifest of an artifact and read what it says, without the weights.

    Raises:
        ArtifactError: the folder is not an artifact, is from a newer version, or damaged.
    """
    folder = Path(path)
    manifest, shards = _open_manifest(folder)
    name = manifest.text("format")
    if name not in FORMATS and name not in (SHRUNK, ONNX):
        raise ArtifactError(
            f"{folder} is in the format {name[:40]!r}, which this slt-compress lacks; upgrade"
        )
    entries = parse_entries(manifest, name)
    dense_nbytes = manifest.values.get("dense_nbytes")
    if not is_count(dense_nbytes, least=0):
        raise manifest.damaged("it does not say how many bytes the dense model has")
    return Artifact(
        path=folder,
        format=name,
        entries=entries,
        nbytes=sum(file.stat().st_size for file in weight_files(folder)),
        dense_nbytes=dense_nbytes,
        manifest=manifest,
        shards=shards,
    )


def as_artifact(path: Artifact | str | Path) -> Artifact:
    """The artifact itself where it was described already, so that no manifest is opened twice."""
    return path if isinstance(path, Artifact) else describe_artifact(path)


def read_artifact(path: Artifact | str | Path, *, model: nn.Module | None = None) -> LoadedArtifact:
    """Open an artifact as a dense model on the CPU in eval mode.

    Args:
        path: the folder, or what was described of it.
        model: for an artifact of a user's own module, that module; it is filled in place. Not used
            for any other.

    Raises:
        ArtifactError: as in `describe_artifact`, or the weights are damaged, or do not fit.
        SourceError: the installed library cannot build the architecture.
    """
    artifact = as_artifact(path)
    folder, manifest = artifact.path, artifact.manifest
    if artifact.format in NO_MODULE:
        raise ArtifactError(f"{folder} {NO_MODULE[artifact.format]}")
    family, task = _architecture(manifest)
    expect_probe(artifact)
    if artifact.format == "dense":
        check_beside(artifact)  # the library reads the config among them
        check_weights(artifact)
        if family in _LIBRARIES:
            checkpoint = open_checkpoint(str(folder), task=task)
            unfold_(checkpoint.module, manifest)
            return LoadedArtifact(artifact=artifact, checkpoint=checkpoint, masks=None)
    expect_stored_sizes(artifact)
    shapes = {name: entry.shape for name, entry in artifact.entries.items()}
    if artifact.format == SHRUNK:
        shapes |= whole_shapes(manifest)
    with bounded_by_shapes(shapes, folder, ArtifactError):
        module = _blank(artifact, model)
    if artifact.format == SHRUNK:
        cut_down_(module, manifest)
    state, masks = _read_state(artifact, module)
    check_beside(artifact)
    fill_(module, state)
    unfold_(module, manifest)
    checkpoint = _checkpoint(folder, manifest, module.eval())
    return LoadedArtifact(artifact=artifact, checkpoint=checkpoint, masks=masks)


def _blank(artifact: Artifact, model: nn.Module | None) -> nn.Module:
    """The module that the weights go into."""
    folder, manifest = artifact.path, artifact.manifest
    family, task = _architecture(manifest)
    if family == "module":
        if model is None:
            raise OwnModuleError(folder)
        return model
    config = manifest.object("config")
    if family != "transformers" and artifact.format != SHRUNK:
        # These libraries initialise what they build, so sizes are compared before any memory is
        # allocated. A model that cannot be built on the meta device is compared afterwards.
        with (
            contextlib.suppress(SourceError, RuntimeError, NotImplementedError),
            torch.device("meta"),
        ):
            shell = build_module(family, task, config)
            _expect_shapes(folder, artifact.entries, own_shapes(shell, {}))
    return build_module(family, task, config)


def expect_probe(artifact: Artifact) -> None:
    """Refuse a probe that is not the one that was written.

    Raises:
        ArtifactError: it is missing, or has another hash.
    """
    probe, file = artifact.manifest.values.get("probe"), artifact.path / PROBE
    if probe is not None and (not file.is_file() or sha256_file(file) != probe):
        raise ArtifactError(f"{file} is missing, changed or damaged; export again")


def _open_manifest(folder: Path) -> tuple[Manifest, object]:
    """The manifest of an artifact, its kind and version checked, and the map of its shards."""
    where, values, shards = folder / SPARSE_WEIGHTS, None, None
    if where.is_file():
        values = read_manifest(where, ArtifactError)
    elif (folder / SPARSE_INDEX).is_file():
        where = folder / SPARSE_INDEX
        index = read_json(where, ArtifactError)
        metadata, shards = index.get("metadata"), index.get("weight_map")
        text = metadata.get("slt") if isinstance(metadata, dict) else None
        values = parse_json(text, str(where), ArtifactError) if isinstance(text, str) else None
    elif (folder / DENSE_MANIFEST).is_file():
        where = folder / DENSE_MANIFEST
        values = read_json(where, ArtifactError)
    else:
        raise ArtifactError(
            f"{folder} is not an slt-compress artifact: it has neither {SPARSE_WEIGHTS} nor"
            f" {DENSE_MANIFEST}"
        )
    if values is None:
        raise ArtifactError(f"{where} has no manifest; slt-compress did not write it")
    return check_manifest(values, where, KIND, ArtifactError), shards


def _architecture(manifest: Manifest) -> tuple[Family, Task]:
    family, task = manifest.text("family"), manifest.text("task")
    for known_family in get_args(Family):
        for known_task in TASKS:
            if (known_family, known_task) == (family, task):
                return known_family, known_task
    raise manifest.damaged(f"there is no family {family[:40]!r} with a task {task[:40]!r}")


def _checkpoint(folder: Path, manifest: Manifest, module: nn.Module) -> Checkpoint:
    family, task = _architecture(manifest)
    classes, count = manifest.values.get("classes"), manifest.values.get("num_classes")
    license_id = manifest.values.get("license")
    return Checkpoint(
        source=str(folder),
        kind="module" if family == "module" else "folder",
        family=family,
        task=task,
        module=module,
        config=manifest.object("config"),
        folder=folder,
        classes=tuple(map(str, classes)) if isinstance(classes, list) else None,
        num_classes=count if type(count) is int else None,
        license=license_id if isinstance(license_id, str) else None,
    )


def checked_ties(artifact: Artifact) -> dict[str, str]:
    """The further names of tied tensors, each with the name that it is stored under.

    Raises:
        ArtifactError: a name is not stored, or a further name is.
    """
    ties = artifact.manifest.object("ties")
    for alias, name in ties.items():
        if str(name) not in artifact.entries or alias in artifact.entries:
            raise artifact.manifest.damaged(f"it ties {alias} to {str(name)[:80]}")
    return ties


def _read_state(artifact: Artifact, module: nn.Module) -> tuple[State, Masks | None]:
    """Decode every entry into the shape that `module` has under its name, and the masks."""
    folder, manifest, entries = artifact.path, artifact.manifest, artifact.entries
    ties = checked_ties(artifact)
    _expect_shapes(folder, entries, own_shapes(module, entries))
    hollow_(module, entries)
    if artifact.format == "dense":
        parts = split(read_safetensors(folder / DENSE_WEIGHTS, ArtifactError), entries, manifest)
    else:
        parts = stored_parts(artifact)
    masked = artifact.format not in ("dense", SHRUNK)
    tensors, masks = {}, {}
    for name, entry in entries.items():
        with errors_of(folder, name):
            tensors[name], mask = decode(parts[name], entry, masked=masked)
            if mask is not None:
                masks[name] = mask
    return State(tensors=tensors, ties=ties), Masks.made(masks, {}) if masked else None


def _expect_shapes(
    folder: Path, entries: Mapping[str, Entry], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse entries that are not tensors of the model, before anything of their size is made."""
    for name, entry in entries.items():
        if name not in shapes:
            raise ArtifactError(
                f"{folder} stores {name}, which the model does not have; install the library"
                " versions it was made with, or pass the right model="
            )
        if shapes[name] != entry.shape:
            raise ArtifactError(
                f"{folder} stores {name} as {entry.shape}; the model has {shapes[name]}"
            )
