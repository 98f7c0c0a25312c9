"""Bench: the rows, their figures, and what is said where something cannot be measured."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from pipelines import RECIPE

import slt_compress
from slt_compress.checkpoints.tasks import forward_of
from slt_compress.cli.app import main
from slt_compress.errors import DataError, SltError
from slt_compress.runtime import benching, kernel_plan, rivals
from slt_compress.runtime.benching import bench_path
from slt_compress.runtime.kernels import can_compile
from slt_compress.runtime.opening import Opened, open_path
from slt_compress.runtime.probes import example_inputs
from slt_compress.runtime.resting import resting
from slt_compress.storage.files import write_safetensors

NAMES = ["origin", "dense", "sparse", "auto"]


@pytest.fixture(scope="module")
def ticket(checkpoints, data_sets, tmp_path_factory):
    out = tmp_path_factory.mktemp("bench") / "t"
    return slt_compress.search(checkpoints["vit"], data_sets["pictures"], recipe=RECIPE, out=out)


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as done:
        main(["bench", *arguments])
    captured = capsys.readouterr()
    return int(done.value.code or 0), captured.out, captured.err


def test_the_rows_are_of_every_runtime_and_batch(ticket, capsys):
    code, out, err = run(capsys, str(ticket.path), "--batch", "1,3", "--rounds", "2", "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    rows = found["rows"]
    assert [(row["runtime"], row["batch"]) for row in rows] == [
        (name, batch) for batch in (1, 3) for name in NAMES
    ]
    for row in rows:
        latency = row["latency_ms"]
        assert set(latency) == {"median", "min", "max"}
        assert 0 < latency["min"] <= latency["median"] <= latency["max"]
        assert row["throughput"] == pytest.approx(
            1000 * row["batch"] / latency["median"], rel=0.01, abs=0.01
        )
    weights = sum(p.nbytes for p in open_path(ticket.path).module.parameters())
    peaks = {(row["runtime"], row["batch"]): row["peak_bytes"] for row in rows}
    # a forward needs at least its inputs once more, and a larger batch more than a smaller one
    assert peaks["dense", 1] > weights + 3 * 32 * 32 * 4
    assert peaks["dense", 3] > peaks["dense", 1]
    assert peaks["origin", 1] == peaks["dense", 1]
    assert peaks["sparse", 1] > peaks["dense", 1]  # the kernels lie beside the weights
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert sum(found["layers"]["sparse"].values()) == len(ticket.masks)


def test_a_person_sees_a_table_and_what_the_layers_are_on(ticket, capsys):
    code, out, _ = run(capsys, str(ticket.path), "--batch", "2", "--rounds", "1", "--threads", "1")
    assert code == 0
    for word in (*NAMES, "examples/s", "1.00x", "layers on"):
        assert word in out


def test_the_module_is_left_dense_and_an_origin_that_is_gone_is_a_note(ticket, tmp_path, capsys):
    folder = tmp_path / "artifact"
    slt_compress.export(ticket.path, format="auto", out=folder)
    gone = tmp_path / "moved"
    origin = ticket.origin["source"]
    shutil.move(origin, gone)
    try:
        found = bench_path(folder, batches=[1], rounds=1)
        assert [row.runtime for row in found.rows] == NAMES[1:]
        assert "the origin was not measured" in found.notes[0]
        code, out, _ = run(capsys, str(folder), "--batch", "1", "--rounds", "1")
        assert code == 0
        assert "note: the origin was not measured" in out
        again = bench_path(folder, batches=[1], rounds=1, origin=gone)
        assert [row.runtime for row in again.rows] == NAMES
    finally:
        shutil.move(gone, origin)


def test_rivals_are_measured_on_the_same_inputs(ticket, capsys, tmp_path, monkeypatch):
    asked = []

    def noted(row, path, inputs, *, threads, origin):
        asked.append((row, path == ticket.path, inputs.is_file(), threads, origin))
        return {"load_seconds": 1.0, "resting_bytes": 2, "peak_bytes": 3}

    monkeypatch.setattr(benching, "resting", noted)
    monkeypatch.setattr(kernel_plan, "SECONDS", 0.1)
    monkeypatch.setenv("SLT_COMPRESS_CACHE", str(tmp_path))
    code, out, err = run(
        capsys, str(ticket.path), "--batch", "1,3", "--rounds", "2", "--against", "onnxruntime",
        "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    found = json.loads(out)
    lower = ["auto bf16", "auto int8"] if can_compile() else []
    names = [*NAMES, *lower, "onnxruntime"]
    assert [row["runtime"] for row in found["rows"]] == names * 2
    assert {row["runtime"] for row in found["rows"] if row["peak_bytes"] is None} == {"onnxruntime"}
    served = {row["runtime"]: row for row in found["served"]}
    assert list(served) == [row for row, *_ in asked] == names[1:]
    assert all(seen[1:] == (seen[0] != "onnxruntime", True, 1, None) for seen in asked)
    assert served["dense"]["error"] == 0.0
    assert served["sparse"]["error"] < 1e-4
    assert served["onnxruntime"]["error"] < 1e-4
    assert served["auto"]["load_seconds"] == 1.0
    assert "onnxruntime" in found["machine"]
    assert not any("forward" in vars(layer) for layer in open_path(ticket.path).module.modules())


def test_serving_is_measured_in_a_process_of_its_own(ticket, tmp_path):
    write_safetensors(tmp_path / "inputs", example_inputs(open_path(ticket.path), 1))
    facts = resting("sparse", ticket.path, tmp_path / "inputs", threads=1, origin=None)
    assert facts["load_seconds"] > 0
    assert facts["peak_bytes"] >= facts["resting_bytes"]
    with pytest.raises(SltError, match="could not be measured in a process of its own"):
        resting("sparse", tmp_path / "none", tmp_path / "inputs", threads=1, origin=None)


def test_rivals_that_cannot_be_measured_are_one_sentence(ticket, capsys, monkeypatch):
    code, _, err = run(capsys, str(ticket.path), "--against", "tensorrt")
    assert (code, err.count("\n")) == (1, 1)
    assert "unknown rival 'tensorrt'; known: onnxruntime, openvino" in err
    monkeypatch.setattr(rivals, "find_spec", lambda name: None)
    code, _, err = run(capsys, str(ticket.path), "--against", "openvino")
    assert (code, err.count("\n")) == (1, 1)
    assert "pip install 'slt-compress[bench]'" in err


@pytest.mark.parametrize("batch", ["0", "x", "1,,2", "-1", "1.5", "", "1,0", "9999999"])
def test_wrong_batches_are_usage_errors(batch, capsys):
    code, _, err = run(capsys, "t", f"--batch={batch}")
    assert code == 2
    assert "--batch" in err


def test_wrong_paths_and_numbers_are_one_sentence(tmp_path, capsys):
    code, _, err = run(capsys, str(tmp_path / "none"))
    assert (code, err.count("\n")) == (1, 1)
    assert "there is no" in err
    with pytest.raises(SltError, match="at least 1"):
        bench_path(tmp_path, batches=[0])
    with pytest.raises(SltError, match="at least 1"):
        bench_path(tmp_path, rounds=0)


def test_inputs_are_the_probe_over_and_over(ticket):
    opened = open_path(ticket.path)
    one, many = example_inputs(opened, 1), example_inputs(opened, 19)
    assert set(one) == {"pixel_values"}
    assert len(many["pixel_values"]) == 19
    stored = len(slt_compress.tickets.read_probe(ticket.path).logits)
    assert torch.equal(many["pixel_values"][stored], many["pixel_values"][0])
    assert not torch.equal(many["pixel_values"][1], many["pixel_values"][0])


@pytest.mark.parametrize("kind", ["vit", "bert", "gpt2", "resnet"])
def test_inputs_are_generated_where_there_is_no_probe(kind, checkpoints, tmp_path):
    checkpoint = slt_compress.open_checkpoint(checkpoints[kind])
    inputs = example_inputs(Opened(path=tmp_path, checkpoint=checkpoint, masks=None), 3)
    run = forward_of(checkpoint.family, checkpoint.task)
    with torch.no_grad():
        assert len(run(checkpoint.module, inputs)) == 3


def test_inputs_that_cannot_be_generated_are_refused(tmp_path):
    checkpoint = slt_compress.checkpoints.Checkpoint.of_module(torch.nn.Linear(2, 2))
    with pytest.raises(DataError, match="no probe was stored"):
        example_inputs(Opened(path=tmp_path, checkpoint=checkpoint, masks=None), 1)
