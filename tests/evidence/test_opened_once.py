"""Every verb opens a manifest once and an origin once, whatever the format is."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from pipelines import short

import slt_compress
from slt_compress.artifacts.formats import EXPORTS
from slt_compress.checkpoints import families, origins, streams
from slt_compress.storage import files, manifests

# Whoever reads a manifest calls these with its path; a report.json is none.
_READERS = (files.read_manifest, files.read_bytes, manifests.check_manifest)
# An origin with its weights comes out of one of these.
_OPENERS = (families.load_weights, families.random_module, streams.stream_origin, origins.reopen)
_MANIFESTS = ("ticket.json", "slt.json", "weights.slt.safetensors",
              "weights.slt.safetensors.index.json")  # fmt: skip


@contextmanager
def calls(functions: tuple[Callable[..., Any], ...]) -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The calls of some functions in the block, from wherever they were imported to."""
    codes = {function.__code__: function.__name__ for function in functions}
    seen: list[tuple[str, dict[str, Any]]] = []

    def watch(frame: FrameType, event: str, _: object) -> None:
        if event == "call" and frame.f_code in codes:
            seen.append((codes[frame.f_code], dict(frame.f_locals)))

    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        yield seen
    finally:
        sys.setprofile(before)


def opened(verb: Callable[[], object]) -> tuple[Counter[Path], int]:
    """How often a verb reads each manifest, and how often it opens an origin."""
    with calls((*_READERS, *_OPENERS)) as seen:
        verb()
    readers = {reader.__name__ for reader in _READERS}
    paths = [
        (name, Path(values.get("path") or values["where"]))
        for name, values in seen
        if name in readers
    ]
    reads = {kind: Counter(p for name, p in paths if name == kind and p.name in _MANIFESTS)
             for kind in ("read_manifest", "read_bytes", "check_manifest")}  # fmt: skip
    raw = reads["read_manifest"] + reads["read_bytes"]
    assert raw == reads["check_manifest"]  # nothing is read unchecked, or checked twice
    return raw, sum(name in ("load_weights", "random_module") for name, _ in seen)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A ticket of a reference net, and its exports by format."""
    root = tmp_path_factory.mktemp("once")
    recipe = short(init="signed-constant", pattern="neuron")
    ticket = slt_compress.search("lenet-300-100", "digits", recipe=recipe, out=root / "ticket")
    made = {"ticket": ticket.path}
    for name, options in {
        **{f: {"format": f} for f in EXPORTS},
        "shrunk": {"shrink": True},
        "shards": {"format": "bitmask", "max_shard_size": "100KB"},
    }.items():
        made[name] = slt_compress.export(ticket.path, out=root / name, **options).path
    return made


FOLDERS = ("ticket", *EXPORTS, "shrunk", "shards")


@pytest.mark.parametrize("name", FOLDERS)
def test_verify_opens_the_manifest_and_the_origin_once(folders: dict[str, Path], name: str) -> None:
    def verify() -> None:
        assert slt_compress.verify(folders[name], in_process=True).ok

    reads, origins_opened = opened(verify)
    assert list(reads.values()) == [1], reads
    assert origins_opened == 1


@pytest.mark.parametrize("name", [name for name in FOLDERS if name != "onnx"])
@pytest.mark.parametrize("runtime", ["dense", "sparse"])
def test_load_opens_the_manifest_once(folders: dict[str, Path], name: str, runtime: str) -> None:
    reads, origins_opened = opened(lambda: slt_compress.load(folders[name], runtime=runtime))
    assert list(reads.values()) == [1], reads
    assert origins_opened == (1 if name in ("ticket", "mask") else 0)


@pytest.mark.parametrize("name", FOLDERS)
def test_report_opens_the_manifest_at_most_once(folders: dict[str, Path], name: str) -> None:
    reads, origins_opened = opened(lambda: slt_compress.report(folders[name]))
    assert list(reads.values()) == ([1] if name == "ticket" else []), reads
    assert origins_opened == 0


@pytest.mark.parametrize("options", [*({"format": f} for f in EXPORTS), {"shrink": True},
                                     {"format": "auto", "values_dtype": "bf16"}],
                         ids=lambda options: "-".join(map(str, options.values())))  # fmt: skip
def test_export_opens_the_ticket_and_its_origin_once(
    folders: dict[str, Path], options: dict[str, Any], tmp_path: Path
) -> None:
    ticket = folders["ticket"]
    reads, origins_opened = opened(
        lambda: slt_compress.export(ticket, out=tmp_path / "x", **options)
    )
    # the manifest that was written is read back once
    written = [path for path in reads if path.parent == tmp_path / "x"]
    assert reads == Counter({ticket / "ticket.json": 1, written[0]: 1})
    assert len(written) == 1
    assert origins_opened <= 1


def test_bench_opens_the_manifest_and_the_origin_once(folders: dict[str, Path]) -> None:
    from slt_compress.runtime.benching import bench_path

    for name in ("ticket", "auto", "shrunk"):
        reads, origins_opened = opened(partial(bench_path, folders[name], batches=(1,), rounds=1))
        assert list(reads.values()) == [1], reads
        assert origins_opened == 1


def test_base_opens_the_manifest_once(folders: dict[str, Path]) -> None:
    module = slt_compress.open_checkpoint(
        "lenet-300-100", init="signed-constant", num_classes=10
    ).module
    base = slt_compress.Base(module)
    for name in ("ticket", "mask"):
        reads, origins_opened = opened(partial(base.swap, folders[name]))
        assert list(reads.values()) == [1], reads
        assert origins_opened == 0
