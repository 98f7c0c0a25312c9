"""Read an artifact folder, believing nothing that was not checked."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from slt_compress.artifacts.decoding import decode, said_of, split, stored_parts
from slt_compress.artifacts.formats import CODECS, FORMATS
from slt_compress.artifacts.manifest import (
    DENSE_MANIFEST,
    DENSE_WEIGHTS,
    KIND,
    MASK_FORMAT,
    NO_MODULE,
    ONNX,
    ONNX_MODEL,
    PROBE,
    PROOF,
    SHRUNK,
    SPARSE_INDEX,
    SPARSE_WEIGHTS,
    Artifact,
    LoadedArtifact,
)
from slt_compress.artifacts.shrunk import cut_down_
from slt_compress.artifacts.state import State, fill_, own_shapes
from slt_compress.checkpoints import TASKS, Checkpoint, Family, build_module, open_checkpoint
from slt_compress.errors import ArtifactError, SourceError
from slt_compress.masks import Masks
from slt_compress.storage.files import (
    parse_json,
    read_json,
    read_manifest,
    read_safetensors,
    sha256_file,
)
from slt_compress.storage.manifests import Manifest, as_shape, check_manifest

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
    return described(Path(path), open_manifest(Path(path)))


def weight_files(folder: Path) -> list[Path]:
    """List the files of an artifact that hold weights, in the order of their names."""
    found = [*folder.glob("*.safetensors"), *folder.glob(f"{ONNX_MODEL}*")]
    return sorted(file for file in found if file.name not in (PROBE, PROOF))


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
    manifest = open_manifest(folder)
    artifact = described(folder, manifest)
    if artifact.format in NO_MODULE:
        raise ArtifactError(f"{folder} {NO_MODULE[artifact.format]}")
    family, task = _architecture(manifest)
    expect_probe(folder, manifest)
    if artifact.format == "dense":
        for name in manifest.object("files"):
            manifest.checked_file(name)
        if family in _LIBRARIES:
            checkpoint = open_checkpoint(str(folder), task=task)
            return LoadedArtifact(
                artifact=artifact, checkpoint=checkpoint, masks=None, manifest=manifest.values
            )
    module = _blank(folder, manifest, model)
    if artifact.format == SHRUNK:
        cut_down_(module, manifest)
    state, masks = _read_state(folder, manifest, module)
    fill_(module, state)
    return LoadedArtifact(
        artifact=artifact,
        checkpoint=_checkpoint(folder, manifest, module.eval()),
        masks=masks,
        manifest=manifest.values,
    )


def _blank(folder: Path, manifest: Manifest, model: nn.Module | None) -> nn.Module:
    """The module that the weights go into."""
    family, task = _architecture(manifest)
    if family == "module":
        if model is None:
            raise ArtifactError(
                f"{folder} was made of a module of your own: hand it over as model="
            )
        return model
    config = manifest.object("config")
    if family != "transformers" and manifest.text("format") != SHRUNK:
        # These libraries fill what they build: compare sizes before there is memory behind them.
        # What cannot be built without memory is compared afterwards.
        with (
            contextlib.suppress(SourceError, RuntimeError, NotImplementedError),
            torch.device("meta"),
        ):
            shell = build_module(family, task, config)
            _expect_shapes(folder, manifest.object("entries"), own_shapes(shell, {}))
    return build_module(family, task, config)


def expect_probe(folder: Path, manifest: Manifest) -> None:
    """Refuse a probe that is not the one that was written.

    Raises:
        ArtifactError: it is missing, or has another hash.
    """
    probe = manifest.values.get("probe")
    if probe is not None and (
        not (folder / PROBE).is_file() or sha256_file(folder / PROBE) != probe
    ):
        raise ArtifactError(f"{folder / PROBE} is missing, changed or damaged; export again")


def open_manifest(folder: Path) -> Manifest:
    """The manifest of an artifact, its kind and version checked.

    Raises:
        ArtifactError: as in `describe_artifact`.
    """
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


def described(folder: Path, manifest: Manifest) -> Artifact:
    """What a folder holds, by its manifest; as `describe_artifact`, which opens that first."""
    name = manifest.text("format")
    if name not in FORMATS and name not in (SHRUNK, ONNX):
        raise ArtifactError(
            f"{folder} is in the format {name[:40]!r}, which this slt-compress lacks; upgrade"
        )
    entries = manifest.object("entries")
    for key, entry in entries.items():
        codec = entry.get("format") if isinstance(entry, dict) else None
        if isinstance(codec, str) and codec not in (*CODECS, MASK_FORMAT):
            raise ArtifactError(
                f"{folder} stores {key} by the codec {codec[:40]!r}, which this slt-compress"
                " lacks; upgrade"
            )
        if not _is_entry(entry, name):
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


def _is_entry(entry: object, format: str) -> bool:
    if not isinstance(entry, dict) or as_shape(entry.get("shape")) is None:
        return False
    counts = [entry.get("kept", 0), entry.get("flips", 0)]
    dtypes = [entry.get("dtype"), entry.get("values", "float32")]
    known = all(isinstance(vars(torch).get(str(name)), torch.dtype) for name in dtypes)
    codecs = (MASK_FORMAT,) if format == MASK_FORMAT else CODECS
    return (
        known
        and str(entry.get("format")) in codecs
        and all(type(count) is int and count >= 0 for count in counts)
    )


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
        family=family,
        task=task,
        module=module,
        config=manifest.object("config"),
        folder=folder,
        classes=tuple(map(str, classes)) if isinstance(classes, list) else None,
        num_classes=count if type(count) is int else None,
        license=license_id if isinstance(license_id, str) else None,
    )


def _read_state(folder: Path, manifest: Manifest, module: nn.Module) -> tuple[State, Masks | None]:
    """Decode every entry into the shape that `module` has under its name; and the masks."""
    entries, ties = manifest.object("entries"), manifest.object("ties")
    for alias, name in ties.items():
        if str(name) not in entries or alias in entries:
            raise manifest.damaged(f"it ties {alias} to {str(name)[:80]}")
    _expect_shapes(folder, entries, own_shapes(module, entries))
    if manifest.text("format") == "dense":
        parts = split(read_safetensors(folder / DENSE_WEIGHTS, ArtifactError), entries, manifest)
    else:
        parts = stored_parts(folder, manifest)
    masked = manifest.text("format") not in ("dense", SHRUNK)
    tensors, masks = {}, {}
    for name, entry in entries.items():
        with said_of(folder, name):
            tensors[name], mask = decode(parts[name], entry, masked=masked)
            if mask is not None:
                masks[name] = mask
    return State(tensors=tensors, ties=ties), Masks.made(masks, {}) if masked else None


def _expect_shapes(
    folder: Path,
    entries: Mapping[str, Mapping[str, Any]],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Refuse entries that are no tensors of the model, before anything is made in their size."""
    for name, entry in entries.items():
        shape = tuple(entry["shape"])
        if name not in shapes:
            raise ArtifactError(
                f"{folder} stores {name}, which the model does not have; install the library"
                " versions it was made with, or hand over the right model="
            )
        if shapes[name] != shape:
            raise ArtifactError(f"{folder} stores {name} as {shape}; the model has {shapes[name]}")
