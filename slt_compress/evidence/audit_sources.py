"""Open whatever a masked model became: which reader a path takes, and what is not read."""

from __future__ import annotations

from pathlib import Path

from slt_compress.artifacts import ONNX_MODEL, describe_artifact, is_artifact
from slt_compress.checkpoints.weight_files import check_weights_path, weight_files
from slt_compress.errors import SourceError
from slt_compress.evidence.audit_gguf import read_gguf
from slt_compress.evidence.audit_onnx import read_onnx
from slt_compress.evidence.audit_quantised import stored_weights
from slt_compress.evidence.audit_tensors import StoredModel, StoredWeight
from slt_compress.runtime.opening import open_path
from slt_compress.storage.lazy import LazyTensors

_ADAPTER = "adapter_config.json"


def open_stored(path: Path) -> StoredModel:
    """The weights of a file or folder, of whatever kind.

    Raises:
        SltError: there is nothing of the kind, or it is damaged.
    """
    if path.is_file():
        if path.suffix == ".gguf":
            return read_gguf(path)
        if path.suffix == ".onnx":
            return read_onnx(path)
        check_weights_path(path)
        return _safetensors((path,), str(path))
    if not path.is_dir():
        raise SourceError(f"there is no file or folder {path}")
    if is_artifact(path):
        return _artifact(path)
    for suffix in ("gguf", "onnx"):
        files = sorted(path.glob(f"*.{suffix}"))
        if files and not any(path.glob("*.safetensors")):
            if len(files) > 1:
                listed = ", ".join(file.name for file in files[:4])
                raise SourceError(f"{path} has several .{suffix} files ({listed}): name one")
            return open_stored(files[0])
    if (path / _ADAPTER).is_file():
        raise SourceError(
            f"{path} is an adapter and no whole model: merge it into its base first, save that "
            "with `model.save_pretrained(FOLDER)`, and audit the folder"
        )
    return _safetensors(weight_files(path), str(path))


def _safetensors(files: tuple[Path, ...], where: str) -> StoredModel:
    weights = stored_weights(LazyTensors(files, SourceError), where)
    kinds = sorted({weight.encoding for weight in weights.values()} - {"plain"})
    kind = f"safetensors ({', '.join(kinds)})" if kinds else "safetensors"
    return StoredModel(kind=kind, weights=weights)


def _artifact(path: Path) -> StoredModel:
    """One of our own exports, decoded."""
    if (path / ONNX_MODEL).is_file():
        return read_onnx(path / ONNX_MODEL)
    form = describe_artifact(path).format
    module = open_path(path).module
    weights = {
        name: StoredWeight(encoding=form, read=lambda tensor=tensor: tensor)  # type: ignore[misc]
        for name, tensor in module.state_dict().items()
    }
    return StoredModel(kind=f"slt-compress artifact ({form})", weights=weights)
