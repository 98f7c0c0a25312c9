"""Read the weights of a local checkpoint: safetensors only, in one file or in shards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from slt_compress.checkpoints.guidance import GGUF
from slt_compress.errors import SourceError
from slt_compress.storage.files import aligned
from slt_compress.storage.memory import is_low_memory
from slt_compress.storage.outside import visible
from slt_compress.storage.regular import expect_regular, read_regular_text

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".tar", ".msgpack", ".h5", ".npz")
CONVERT = (
    "convert it once with `model.save_pretrained(FOLDER)` (transformers) or "
    "`safetensors.torch.save_file(model.state_dict(), FILE)` and give that instead"
)
# Bytes of a file that are in memory twice while it is read.
_MAPPED = 64 << 20
_JSON_LIMIT = 64 << 20  # bytes; the largest published configs and indexes are a few MiB


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        SourceError: missing, over 64 MiB, not JSON or not an object.
    """
    try:
        size = path.stat().st_size
        if size > _JSON_LIMIT:
            raise SourceError(f"{path} has {size:,} bytes, far more than any config or index needs")
        value = json.loads(read_regular_text(path, _JSON_LIMIT))
    except (OSError, ValueError, RecursionError) as error:
        raise SourceError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(value, dict):
        raise SourceError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def shard_names(index: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The file names in a shard index, sorted.

    Raises:
        SourceError: a malformed index, or one that names anything but a plain safetensors file.
    """
    keys = index.get("weight_map")
    if not isinstance(keys, dict) or not keys:
        raise SourceError(f"{where} has no weight_map to locate the weights")
    names = set(keys.values()) if all(isinstance(v, str) for v in keys.values()) else {"?"}
    for name in sorted(names):
        plain = not set(name) & set('/\\:*?[]"\0') and not name.startswith(".")
        if not plain or not name.endswith(".safetensors"):
            raise SourceError(
                f"{where} names the shard {name!r}; a shard is a plain *.safetensors file name"
            )
    return tuple(sorted(names))


def pick_weights(names: frozenset[str], where: str) -> str:
    """The file in a folder that leads to the weights: a weights file or the index of shards.

    Raises:
        SourceError: no safetensors, or several that cannot be told apart.
    """
    for name in (WEIGHTS, INDEX):
        if name in names:
            return name
    single = sorted(n for n in names if n.endswith(".safetensors") and "/" not in n)
    if len(single) == 1:
        return single[0]
    if single:
        raise SourceError(
            f"{where} has several weight files ({', '.join(single[:4])}) and no {WEIGHTS}; "
            "pick one with --weights FILE"
        )
    pickled = sorted(n for n in names if n.endswith(PICKLES))
    if pickled:
        raise SourceError(
            f"{where} has its weights only as {pickled[0]}, in a format that can run code and that "
            f"slt-compress therefore never opens; {CONVERT}"
        )
    if any(name.lower().endswith(".gguf") for name in names):
        raise SourceError(f"{where} {GGUF}")
    raise SourceError(f"{where} has no weights: no {WEIGHTS} among its files")


def weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files that hold the weights of a checkpoint folder.

    Raises:
        SourceError: none, only pickles, a malformed index or a missing shard.
    """
    try:
        names = frozenset(path.name for path in folder.iterdir() if path.is_file())
    except OSError as error:
        raise SourceError(f"the folder {folder} cannot be listed: {error}") from error
    picked = pick_weights(names, str(folder))
    if picked != INDEX:
        return (folder / picked,)
    shards = shard_names(read_json_object(folder / INDEX), str(folder / INDEX))
    missing = [name for name in shards if name not in names]
    if missing:
        raise SourceError(
            f"{folder} lacks the shard {missing[0]}, which its index names "
            f"({len(missing)} of {len(shards)} are missing); download it again"
        )
    return tuple(folder / name for name in shards)


def check_weights_path(path: Path) -> None:
    """Refuse a weights file that cannot be safetensors, before it is opened.

    Raises:
        SourceError: not a file, or not named *.safetensors.
    """
    if not path.is_file():
        raise SourceError(f"there is no weights file {path}")
    if path.suffix != ".safetensors":
        reason = "can run code when opened" if path.suffix in PICKLES else "is unknown"
        raise SourceError(
            f"{path} is not a .safetensors file; the format {path.suffix or 'without a suffix'} "
            f"{reason}: {CONVERT}"
        )


def read_tensors(files: tuple[Path, ...]) -> dict[str, Tensor]:
    """All tensors of `files` by key.

    safetensors checks each header against the size of its file before it allocates anything.

    Raises:
        SourceError: a damaged file, or a key that two files hold.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            expect_regular(path)
            for key, tensor in _tensors_of(path):
                if key in tensors:
                    raise SourceError(f"{path} repeats the tensor {key} of another shard")
                tensors[key] = tensor
        except (SafetensorError, OSError, ValueError, RuntimeError, MemoryError) as error:
            if is_low_memory(error):
                raise SourceError(f"there is not enough memory to read {path}") from error
            raise SourceError(
                f"{path} is not a valid safetensors file ({visible(error)}); it may be truncated: "
                "download it again"
            ) from error
    return tensors


def _tensors_of(path: Path) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a file; what was copied out of its mapping does not stay in memory twice."""
    with safe_open(path, framework="pt") as opened:
        keys = list(opened.keys())
    while keys:
        copied = 0
        with safe_open(path, framework="pt") as opened:  # the last mapping is gone
            while keys and copied < _MAPPED:
                key = keys.pop(0)
                mapped = opened.get_tensor(key)
                tensor = aligned(mapped)
                copied += 0 if tensor is mapped else tensor.nbytes
                yield key, tensor


def read_folder(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config of a checkpoint folder, and all its tensors by key.

    Raises:
        SourceError: no config, no safetensors, or damaged files.
    """
    return read_json_object(folder / "config.json"), read_tensors(weight_files(folder))
