"""The files of an artifact that are no weights: written, hashed, and compared with their hashes."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slt_compress.artifacts.formats import MASK_FORMAT
from slt_compress.artifacts.manifest import (
    CONFIG,
    DENSE_MANIFEST,
    ONNX,
    ONNX_MODEL,
    PROBE,
    PROOF,
    SPARSE_INDEX,
    Artifact,
)
from slt_compress.checkpoints.companions import copy_companions, is_companion, is_own_file
from slt_compress.checkpoints.sentence_files import is_module_file, module_files
from slt_compress.errors import ArtifactError
from slt_compress.storage.files import read_json, sha256_file, write_json
from slt_compress.storage.manifests import is_file_name

BESIDE = "beside"
UNPROBED = "unprobed"  # the key of an artifact whose ticket stores no inputs to compare outputs on
CARD = "README.md"
_MARKER = "quantization_config"  # the mark in config.json that only slt-compress reads the weights
LOADING = "HOW_TO_LOAD.md"
NESTED = "nested"  # the key with the hashes of files in folders of sentence-transformers' modules
# What has a hash of its own in the manifest, is the manifest, or is the user's to edit.
_HASHED_ELSEWHERE = ("*.safetensors", f"{ONNX_MODEL}*", SPARSE_INDEX, DENSE_MANIFEST, PROBE, PROOF,
                     CARD)  # fmt: skip


def write_beside(
    folder: Path, source: Path | None, report: Mapping[str, Any], card: str, loading: str
) -> dict[str, dict[str, str]]:
    """Write companions, report, card and how to load it; gives the hashes for the manifest.

    They are of every file but the card: `beside`, and `nested` where the origin is one of
    sentence-transformers. `source` is the folder of the opened origin, None where
    there is none.
    """
    copy_companions(source, folder)
    write_json(folder / "report.json", report)
    (folder / CARD).write_bytes(card.encode())
    if loading:
        (folder / LOADING).write_bytes(loading.encode())
    files = [path for path in sorted(folder.iterdir()) if path.is_file() and _counts(path.name)]
    hashes = {BESIDE: {path.name: sha256_file(path) for path in files}}
    nested = _copy_modules(source, folder)
    return {**hashes, NESTED: nested} if nested else hashes


def _copy_modules(source: Path | None, folder: Path) -> dict[str, str]:
    """Copy the modules of sentence-transformers; the hash of each of their files."""
    paths = [] if source is None or source.resolve() == folder.resolve() else module_files(source)
    for path in paths:
        target = folder / path
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(Path(str(source)) / path, target)
    return {path: sha256_file(folder / path) for path in paths}


def check_beside(artifact: Artifact) -> None:
    """Compare every file that is no weights with its hash; an older artifact has none.

    Raises:
        ArtifactError: one is missing, or is not the one that was written.
    """
    manifest = artifact.manifest
    if BESIDE not in manifest.values:
        return
    for name, expected in manifest.object(BESIDE).items():
        if not is_file_name(name):
            raise manifest.damaged(f"it lists {name[:80]!r}, which is no plain file name")
        path = artifact.path / name
        if not path.is_file():
            raise ArtifactError(f"{path} is missing; copy the folder again")
        _check(path, expected)
    for name, expected in (manifest.optional(NESTED, dict) or {}).items():
        if not is_module_file(name):
            raise manifest.damaged(f"it lists {name[:80]!r}, which is no file of a module")
        path = artifact.path / name
        if not is_own_file(path, artifact.path):
            raise ArtifactError(f"{path} is missing; copy the folder again")
        _check(path, expected)
    if CONFIG in manifest.object(BESIDE) and artifact.format not in ("dense", ONNX):
        _expect_own_config(artifact)


def _check(path: Path, expected: object) -> None:
    if sha256_file(path) != expected:
        raise ArtifactError(f"{path} was changed or damaged: its hash differs from the manifest's")


def _expect_own_config(artifact: Artifact) -> None:
    """Compare the configs in the manifest, which no hash covers, with the hashed `config.json`.

    Raises:
        ArtifactError: one of them differs.
    """
    manifest = artifact.manifest
    wanted = {**read_json(artifact.path / CONFIG, ArtifactError), _MARKER: None}
    configs: list[object] = [manifest.object("config")]
    origin = artifact.provenance.get("origin") if isinstance(artifact.provenance, dict) else None
    if artifact.format == MASK_FORMAT and isinstance(origin, dict):  # what its model is built from
        configs.append(origin.get("config"))
    if any(not isinstance(own, dict) or {**own, _MARKER: None} != wanted for own in configs):
        raise manifest.damaged(f"the config in it is not that of {CONFIG}")


def added_files(artifact: Artifact) -> list[str]:
    """The companion files that a folder has and its manifest does not list, by name."""
    listed = artifact.manifest.values.get(BESIDE)
    if not isinstance(listed, dict):
        return []
    names = (path.name for path in artifact.path.iterdir())
    return sorted(name for name in names if is_companion(name) and name not in listed)


def _counts(name: str) -> bool:
    return not any(fnmatch.fnmatchcase(name, pattern) for pattern in _HASHED_ELSEWHERE)
