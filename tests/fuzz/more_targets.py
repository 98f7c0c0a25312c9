"""More of what is mutated: flips in weights, progress of searches, other people's files."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from audit_files import SPELLINGS, save_gguf, save_spelled
from safetensors.torch import save_file

import slt_compress
from slt_compress.errors import SltError
from slt_compress.evidence.audit_sources import open_stored
from slt_compress.evidence.verifying import verify_folder
from slt_compress.runtime.opening import open_path
from slt_compress.searching.comparing import _before
from slt_compress.searching.recipes import Recipe, parse_recipe
from slt_compress.searching.resuming import SearchFolder
from slt_compress.storage.files import read_json, sha256_tensors
from slt_compress.tickets.importing import import_checkpoint

from . import mutations
from .target import Target


class _Stopped(BaseException):
    pass


def model_hash(folder: Path) -> str:
    """A hash of every tensor of the model in a folder."""
    return sha256_tensors(open_path(folder).module.state_dict())


def proved(folder: Path) -> str:
    """The hash of a model that `verify` says is right.

    Raises:
        SltError: a check failed.
    """
    failed = [check.detail for check in verify_folder(folder).checks if not check.ok]
    if failed:
        raise SltError(failed[0])
    return model_hash(folder)


def flips(root: Path) -> Iterator[Target]:
    """Weights and probes with flipped, cut and added bytes: never another model."""
    for folder, name in (
        ("ticket", "masks.safetensors"),
        ("dense", "model.safetensors"),
        ("coded", "weights.slt.safetensors"),
        ("shrunk", "weights.slt.safetensors"),
        ("shrunk", "proof.slt.safetensors"),
    ):
        file = root / folder / name
        yield Target(f"flips/{folder}/{name.partition('.')[0]}", file, mutations.mutated_bytes,
                     lambda folder=folder: model_hash(root / folder))  # fmt: skip
    # a mask stores the gains in its manifest: they are compared by verify
    for folder, name in (("mask", "weights.slt.safetensors"), ("dense", "probe.safetensors")):
        file = root / folder / name
        yield Target(f"flips/{folder}/{name.partition('.')[0]}", file, mutations.mutated_bytes,
                     lambda folder=folder: proved(root / folder))  # fmt: skip


def progress(root: Path, recipe: dict[str, Any]) -> Iterator[Target]:
    """What an interrupted search left, and the rows of a comparison."""

    def stop(_step: object) -> None:
        raise _Stopped

    with contextlib.suppress(_Stopped):
        slt_compress.search(
            "lenet-300-100", recipe=parse_recipe(recipe), out=root / "stopped", on_step=stop,
            save_every=0.0,
        )  # fmt: skip
    folder = root / "stopped.search"

    def read() -> None:
        SearchFolder(folder, 300.0).load()

    yield Target("search/state", folder / "state.safetensors", mutations.mutated_header, read)
    yield Target("search/about", folder / "search.json", mutations.mutated_json,
                 lambda: read_json(folder / "search.json", SltError) and None)  # fmt: skip
    compared = slt_compress.compare(
        "lenet-300-100", recipe=parse_recipe({**recipe, "dataset": "digits"}),
        methods=["magnitude"], seeds=1, out=root / "compared",
    ).folder  # fmt: skip
    rows = compared / "compare.json"
    known = json.loads(rows.read_text())
    settings = {key: value for key, value in known.items() if key not in ("rows", "folder")}
    yield Target("compare", rows, mutations.mutated_json,
                 lambda: _before(rows, settings) and None)  # fmt: skip


def foreign(root: Path) -> Iterator[Target]:
    """Checkpoints that others pruned, quantised or converted."""
    generator = torch.Generator().manual_seed(0)
    weights = {f"model.layers.0.self_attn.{name}_proj.weight":
               torch.randn(64, 64, generator=generator) for name in "qkvo"}  # fmt: skip
    save_gguf(root / "model.gguf", weights, "Q4_1")
    yield Target("audit/gguf", root / "model.gguf", mutations.mutated_bytes,
                 lambda: _decoded(root / "model.gguf"))  # fmt: skip
    for name in ("bitsandbytes nf4", "GPTQ or AWQ"):
        folder = root / name.partition(" ")[0]
        save_spelled(folder, weights, list(weights), SPELLINGS[name])
        yield Target(f"audit/{folder.name}", folder / "model.safetensors", mutations.mutated_header,
                     lambda folder=folder: _decoded(folder))  # fmt: skip
    yield from _imported(root)


def _decoded(path: Path) -> None:
    for weight in open_stored(path).weights.values():
        weight.read()


def _imported(root: Path) -> Iterator[Target]:
    import transformers

    folder, out = root / "masked", root / "imported"
    config = transformers.ViTConfig(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        image_size=8, patch_size=4, num_labels=3,
    )  # fmt: skip
    module = transformers.ViTForImageClassification(config)
    module.save_pretrained(folder)
    tensors = module.state_dict()
    for name in [name for name, tensor in tensors.items() if tensor.dim() == 2]:
        tensors[f"{name}_orig"] = tensors.pop(name)
        tensors[f"{name}_mask"] = (tensors[f"{name}_orig"] > 0).float()
    save_file({name: t.clone() for name, t in tensors.items()}, folder / "model.safetensors")

    def read() -> None:
        for left in (out, out.with_name("imported-origin")):
            if left.exists():
                for file in left.iterdir():
                    file.unlink()
                left.rmdir()
        import_checkpoint(folder, out, recipe=Recipe().to_dict())

    yield Target("import/weights", folder / "model.safetensors", mutations.mutated_header, read)
    yield Target("import/config", folder / "config.json", mutations.mutated_json, read)
