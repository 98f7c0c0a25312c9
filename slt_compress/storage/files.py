"""Bytes on disk: writes that are whole or absent, hashes, and reading that trusts no header."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from slt_compress.errors import SltError
from slt_compress.storage.locks import part_name, unfinished_folder
from slt_compress.storage.memory import is_low_memory, is_out_of_files
from slt_compress.storage.regular import expect_regular, open_regular

MANIFEST_KEY = "slt"
JSON_LIMIT = 64 * 1024 * 1024
_ALIGNMENT = 64  # bytes, of what torch allocates on the CPU
_FLOAT_TAG = "__float__"
UNREADABLE = (SafetensorError, OSError, ValueError, TypeError, RuntimeError, MemoryError)


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Yield a binary file that becomes `path` at the end of the block, or leaves nothing.

    The bytes are flushed to disk before the rename, so `path` is either the old file or the new
    one, never a part of either.
    """
    with _part(path) as part, part.open("r+b") as stream:
        yield stream
        stream.flush()


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a new sibling folder that is renamed to `path` when the block ends.

    After an exception nothing is left. `path` may exist as an empty folder.

    Raises:
        FileExistsError: `path` is a file or a folder with something in it.
    """
    _refuse_taken(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with unfinished_folder(path) as part:
        mode = _file_mode(part)
        yield part
        for file in sorted(part.rglob("*")):
            if file.is_file():
                # Some libraries write files that only their owner can read.
                file.chmod(mode)
                _sync(file)
        _refuse_taken(path)
        part.replace(path)  # in the place of an empty folder too, in one step


def sha256_file(path: Path) -> str:
    """Hash the bytes of a file, as 64 hex digits."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def sha256_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Hash names, dtypes, shapes and values (little-endian), in the order of the names.

    Two mappings have one hash only if every bit of every tensor agrees.
    """
    digest = hashlib.sha256()
    for name in sorted(tensors):
        update_digest(digest, name, tensors[name])
    return digest.hexdigest()


def update_digest(digest: hashlib._Hash, name: str, tensor: Tensor) -> None:
    """Add one tensor to a hash of tensors: its name, dtype, shape and values."""
    plain = tensor.detach().cpu().contiguous()
    head = json.dumps([name, dtype_name(plain.dtype), list(plain.shape)])
    digest.update(head.encode() + b"\n")
    digest.update(plain.reshape(-1).view(torch.uint8).numpy().data)


def dtype_name(dtype: torch.dtype) -> str:
    """Name of a dtype without its package: `float32`, `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def read_bytes(path: Path, error: type[SltError]) -> bytes:
    """Read a file of at most `JSON_LIMIT` bytes.

    Raises:
        error: it is missing, cannot be read, or is larger.
    """
    try:
        with open_regular(path) as stream:
            # no more than the file has: Python allocates as much as it is asked to read
            data = stream.read(min(os.fstat(stream.fileno()).st_size, JSON_LIMIT) + 1)
    except OSError as cause:
        raise error(f"cannot read {path} ({cause.strerror or cause})") from cause
    if len(data) > JSON_LIMIT:
        raise error(
            f"{path} is larger than {JSON_LIMIT // 2**20} MiB, which no file of this kind is"
        )
    return data


def read_json(path: Path, error: type[SltError]) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        error: the file is missing, too large, not UTF-8, not JSON, or not an object.
    """
    return parse_json(read_bytes(path, error), str(path), error)


def parse_json(text: str | bytes, where: str, error: type[SltError]) -> dict[str, Any]:
    """Parse a JSON object; `where` names it in the message of `error`."""
    try:
        value = json.loads(text)
        if isinstance(value, dict):
            return {key: _untag(entry) for key, entry in value.items()}
    except (ValueError, RecursionError) as cause:
        raise error(f"{where} is not valid JSON ({cause}); fetch or write it again") from cause
    raise error(f"{where} holds a JSON {type(value).__name__} where an object is expected")


def json_text(value: Mapping[str, object], *, indent: int | None = None) -> str:
    """Serialise with sorted keys; `inf` and `nan` become `{"__float__": ...}`."""
    return json.dumps(
        _tag(value), sort_keys=True, indent=indent, allow_nan=False, ensure_ascii=False
    )


def write_json(path: Path, value: Mapping[str, object]) -> None:
    """Write a JSON object: sorted keys, two spaces, a newline at the end, whole or not at all."""
    with atomic_write(path) as stream:
        stream.write((json_text(value, indent=2) + "\n").encode())


def write_safetensors(
    path: Path, tensors: Mapping[str, Tensor], manifest: Mapping[str, object] | None = None
) -> None:
    """Write tensors, whole or not at all, with `manifest` as sorted JSON in one metadata key.

    With more than one key the bytes would differ between processes. Tensors may share memory.
    """
    metadata = None if manifest is None else {MANIFEST_KEY: json_text(manifest)}
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        flat = tensor.detach().cpu().contiguous()
        storage = flat.untyped_storage().data_ptr()
        plain[name] = flat.clone() if storage in seen else flat
        seen.add(storage)
    with _part(path) as part:
        # The writer replaces the file with one that only its owner can read.
        mode = part.stat().st_mode
        save_file(plain, str(part), metadata=metadata)
        part.chmod(mode)


def read_safetensors(path: Path, error: type[SltError]) -> dict[str, Tensor]:
    """Read all tensors of a safetensors file, on the CPU.

    Raises:
        error: the file is missing, cut short, or its header does not describe its bytes.
    """
    try:
        expect_regular(path)
        with safe_open(str(path), framework="pt") as file:
            return {name: aligned(file.get_tensor(name)) for name in sorted(file.keys())}
    except UNREADABLE as cause:
        raise unreadable(path, cause, error) from cause


def aligned(tensor: Tensor) -> Tensor:
    """The tensor, copied if it is not aligned as torch's own allocator aligns tensors.

    In a mapped file a tensor starts at any multiple of its element size. Kernels sum in another
    order there, so that the same weights would give outputs that differ in the last bits.
    """
    return tensor.clone() if tensor.data_ptr() % _ALIGNMENT else tensor


def read_manifest(path: Path, error: type[SltError]) -> dict[str, Any] | None:
    """Read the JSON object under the metadata key `slt`; None if the file has no such key.

    Raises:
        error: as in `read_safetensors`, or the value of the key is not a JSON object.
    """
    try:
        expect_regular(path)
        with safe_open(str(path), framework="pt") as file:
            text = (file.metadata() or {}).get(MANIFEST_KEY)
    except UNREADABLE as cause:
        raise unreadable(path, cause, error) from cause
    return None if text is None else parse_json(text, f"the manifest in {path}", error)


@contextmanager
def _part(path: Path) -> Iterator[Path]:
    """Yield an empty file beside `path` that replaces it at the end and is removed on failure."""
    part = part_name(path)
    try:
        part.open("xb").close()  # inside, as an interrupt can come right after it
        yield part
        _sync(part)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _file_mode(folder: Path) -> int:
    """Permissions that a new file in `folder` gets, without touching the process's umask."""
    trial = folder / ".mode"
    trial.open("xb").close()
    mode = trial.stat().st_mode
    trial.unlink()
    return mode


def _sync(path: Path) -> None:
    with path.open("r+b") as stream:
        os.fsync(stream.fileno())


def _refuse_taken(path: Path) -> None:
    if path.is_dir():
        if any(path.iterdir()):
            raise FileExistsError(f"{path} is not empty; name another folder or empty this one")
    elif path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists and is not a folder; name another")


def unreadable(path: Path, cause: Exception, error: type[SltError]) -> SltError:
    """The error that says why a safetensors file cannot be read."""
    if not path.exists():
        return error(f"{path} does not exist")
    if not path.is_file():
        return error(f"{path} is not a regular file")
    if is_low_memory(cause):
        return error(f"there is not enough memory to read {path}, which may be intact")
    if is_out_of_files(cause):
        return error(
            f"too many files are open to read {path}, which may be intact: raise `ulimit -n`"
        )
    reason = " ".join(str(cause).split("\n")[0].split())[:200]
    return error(f"{path} is not an intact safetensors file ({reason}); fetch or write it again")


def _tag(value: Any) -> Any:
    """Replace the numbers that JSON lacks: inf, -inf and nan."""
    if isinstance(value, float) and not math.isfinite(value):
        return {
            _FLOAT_TAG: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
        }
    if isinstance(value, Mapping):
        # Keys as JSON writes them. Otherwise 2 sorts before 10 here, and after it once read back.
        return {str(key): _tag(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_tag(entry) for entry in value]
    return value


def _untag(value: Any) -> Any:
    """Undo `_tag`, also for numbers that other writers tagged (transformers does)."""
    if isinstance(value, dict):
        if value.keys() == {_FLOAT_TAG} and value[_FLOAT_TAG] in ("NaN", "Infinity", "-Infinity"):
            return float(value[_FLOAT_TAG])
        return {key: _untag(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_untag(entry) for entry in value]
    return value
