"""What is mutated: a whole small folder of every kind, its files, and the reader of each."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
import transformers
import yaml
from artifact_cases import Tiny, export, tiny
from timm.models import save_for_hf

import slt_compress
from slt_compress.artifacts import read_artifact
from slt_compress.checkpoints.opening import sketch_checkpoint
from slt_compress.cli.console import standard_output
from slt_compress.cli.report_view import print_report
from slt_compress.errors import SltError
from slt_compress.evidence.verifying import verify_folder
from slt_compress.runtime.opening import open_path
from slt_compress.searching.recipes import parse_recipe, read_recipe
from slt_compress.tickets import read_history, read_ticket

from . import mutations
from .more_targets import flips, foreign, progress, proved
from .target import Target

RECIPE = {"target_sparsity": 0.9, "init": "random", "dataset": "digits", "save_scores": True,
          "method": {"name": "relaxed"}, "training": {"steps": 3, "selections": 1},
          "evaluation": {"limit": 20}}  # fmt: skip
SPARSE = ("sparse-csr", "bitmask", "nm", "coded", "auto")

# Whose reading takes ten milliseconds and more.
SLOW = frozenset((
    "ticket/ticket.json", "ticket/verify", "ticket/scores.safetensors", "lenet-dense/verify",
    "onnx/verify", "shrunk/verify", "config/timm", "config/bert", "recipe", "flips/dense/model",
    "flips/shrunk/weights", "search/state", "import/weights", "import/config",
))  # fmt: skip


def targets(root: Path) -> Iterator[Target]:
    """All targets; their folders are made under `root`, and are whole when a target is yielded."""
    torch.set_num_threads(1)
    for target in _all(root):
        yield replace(target, share=1) if target.name in SLOW else target


def _all(root: Path) -> Iterator[Target]:
    ticket = slt_compress.search(
        "lenet-300-100", recipe=parse_recipe(RECIPE), out=root / "ticket"
    ).path  # fmt: skip
    yield from _ticket(ticket)
    yield from _tiny(root)
    yield from _exports(root, ticket)
    yield from _shrunk(root)
    yield from _recipes(root)
    yield from _configs(root)
    yield from flips(root)
    yield from progress(root, RECIPE)
    yield from foreign(root)


def _ticket(folder: Path) -> Iterator[Target]:
    def read() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            print_report(standard_output(), slt_compress.report(folder), folder, None, full=True)
        read_history(folder)
        open_path(folder)

    def prove() -> str:
        return proved(folder)

    for name, mutate in {
        "ticket.json": mutations.mutated_json,
        "masks.safetensors": mutations.mutated_header,
        "history.jsonl": mutations.mutated_lines,
        "probe.safetensors": mutations.mutated_header,
        "scores.safetensors": mutations.mutated_bytes,
    }.items():
        yield Target(f"ticket/{name}", folder / name, mutate, read)
    yield Target("ticket/verify", folder / "ticket.json", mutations.mutated_json, prove)
    yield Target("ticket/read", folder / "ticket.json", mutations.mutated_json,
                 lambda: read_ticket(folder) and None)  # fmt: skip


def _tiny(root: Path) -> Iterator[Target]:
    for format in SPARSE:
        folder = export(root / f"tiny-{format}", *tiny(), format).path

        def read(folder: Path = folder) -> dict[str, bytes]:
            module = read_artifact(folder, model=Tiny()).module
            return {n: t.numpy().tobytes() for n, t in module.state_dict().items()}

        weights = folder / "weights.slt.safetensors"
        yield Target(f"{format}/weights", weights, mutations.mutated_header, read)
    folder = export(root / "tiny-shards", *tiny(), "coded", max_shard_size=1).path
    index = folder / "weights.slt.safetensors.index.json"

    def read_shards() -> dict[str, bytes]:
        module = read_artifact(folder, model=Tiny()).module
        return {n: t.numpy().tobytes() for n, t in module.state_dict().items()}

    yield Target("shards/index", index, mutations.mutated_json, read_shards)


def _exports(root: Path, ticket: Path) -> Iterator[Target]:
    for format in ("dense", "coded", "mask"):
        folder = slt_compress.export(ticket, format=format, out=root / format).path

        def read(folder: Path = folder) -> None:
            open_path(folder)

        def prove(folder: Path = folder) -> str:
            return proved(folder)

        def report(folder: Path = folder) -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                print_report(
                    standard_output(), slt_compress.report(folder), folder, None, full=True
                )

        dense = format == "dense"
        file = folder / ("slt.json" if dense else "weights.slt.safetensors")
        mutate = mutations.mutated_json if dense else mutations.mutated_header
        yield Target(f"lenet-{format}/load", file, mutate, read)
        yield Target(f"lenet-{format}/verify", file, mutate, prove)
        yield Target(f"lenet-{format}/report", folder / "report.json", mutations.mutated_json,
                     report)  # fmt: skip
        yield Target(f"lenet-{format}/config", folder / "config.json", mutations.mutated_json, read)


def _shrunk(root: Path) -> Iterator[Target]:
    recipe = RECIPE | {"pattern": "neuron", "target_sparsity": 0.5}
    ticket = slt_compress.search(
        "lenet-300-100", recipe=parse_recipe(recipe), out=root / "neurons"
    ).path  # fmt: skip
    folders = {"shrunk": slt_compress.export(ticket, shrink=True, out=root / "shrunk").path}
    if importlib.util.find_spec("onnxruntime"):
        folders["onnx"] = slt_compress.export(ticket, format="onnx", out=root / "onnx").path

    def prove_onnx() -> None:
        if not verify_folder(folders["onnx"]).ok:
            raise SltError("a check failed")

    for format, folder in folders.items():
        name = "slt.json" if format == "onnx" else "weights.slt.safetensors"
        mutate = mutations.mutated_json if format == "onnx" else mutations.mutated_header
        yield Target(f"{format}/verify", folder / name, mutate,
                     prove_onnx if format == "onnx" else partial(proved, folder))  # fmt: skip
    proof = root / "shrunk" / "proof.slt.safetensors"
    yield Target("shrunk/proof", proof, mutations.mutated_header,
                 lambda: open_path(root / "shrunk") and None)  # fmt: skip


def _recipes(root: Path) -> Iterator[Target]:
    file = root / "recipe.yaml"
    file.write_text(yaml.safe_dump(parse_recipe(RECIPE).to_dict()))

    def read() -> None:
        parse_recipe(read_recipe(str(file))).budget()

    def as_yaml(data: bytes, chance: Any) -> bytes:
        if chance.random() < 0.02:
            return chance.choice(mutations.nested(20_000))
        if chance.random() < 0.3:
            return mutations.mutated_bytes(data, chance)
        return mutations.text_of(mutations.mutated(yaml.safe_load(data), chance))

    yield Target("recipe", file, as_yaml, read)


def _configs(root: Path) -> Iterator[Target]:
    save_for_hf(timm.create_model("test_vit"), str(root / "timm"), safe_serialization=True)
    yield _config(root / "timm")
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    configs = {
        "vit": transformers.ViTConfig(**small, intermediate_size=32, image_size=16, patch_size=8),
        "bert": transformers.BertConfig(**small, intermediate_size=32, vocab_size=50),
        "llama": transformers.LlamaConfig(**small, intermediate_size=32, vocab_size=50),
    }
    for name, config in configs.items():
        config.save_pretrained(root / name)
        whole = json.loads(config.to_json_string(use_diff=False))
        (root / name / "config.json").write_text(json.dumps(whole))
        yield _config(root / name)


def _config(folder: Path) -> Target:
    return Target(f"config/{folder.name}", folder / "config.json", mutations.mutated_json,
                  lambda: sketch_checkpoint(str(folder)) and None)  # fmt: skip
