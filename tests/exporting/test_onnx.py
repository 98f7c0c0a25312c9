"""ONNX models of real tickets: run by onnxruntime, proven against the origin, damage found."""

from __future__ import annotations

import builtins
import json
import re
import shutil

import numpy as np
import onnx
import onnxruntime
import pico
import pytest
import torch
import transformers
from onnx import numpy_helper
from PIL import Image

import slt_compress
from slt_compress import cli
from slt_compress.artifacts import onnx_file
from slt_compress.errors import ArtifactError, SltError
from slt_compress.searching.recipes import parse_recipe
from slt_compress.storage.files import read_json, sha256_file, write_json

RECIPE = {"target_sparsity": 0.8, "method": "magnitude", "training": {"steps": 1, "batch_size": 4},
          "evaluation": {"limit": 4}}  # fmt: skip
CASES = {
    "vit": ("vit", "pictures", {}),
    "bert": ("bert", "reviews", {}),
    "gpt2": ("gpt2", "prose", {"data": {"max_length": 12}}),
    "resnet": ("resnet", "pictures", {}),
    "lenet": ("lenet-300-100", "digits", {"init": "random"}),
    "resnet20": ("resnet20-cifar", "pictures", {"init": "random", "pattern": "channel"}),
    "signed": ("lenet-300-100", "digits",
               {"init": "random", "method": {"name": "edge-popup", "signed": True}}),
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(checkpoints, data_sets, tmp_path_factory):
    """Tickets and their ONNX folders by case, each made once."""
    root, made = tmp_path_factory.mktemp("onnx"), {}

    def get(case):
        if case not in made:
            source, data, changes = CASES[case]
            ticket = slt_compress.search(
                checkpoints.get(source, source), data_sets.get(data, data),
                recipe=parse_recipe({**RECIPE, **changes}), out=root / f"{case}-ticket",
            )  # fmt: skip
            out = root / case
            made[case] = ticket, slt_compress.export(ticket.path, format="onnx", out=out)
        return made[case]

    return get


def session_of(folder):
    return onnxruntime.InferenceSession(str(folder / "model.onnx"))


def failed(folder, **how):
    checks = slt_compress.verify(folder, in_process=True, **how).checks
    return [check.name for check in checks if not check.ok]


@pytest.mark.parametrize("case", CASES)
def test_the_model_is_the_masked_one(exported, case):
    ticket, artifact = exported(case)
    assert failed(artifact.path) == []
    stored = {
        entry.name: numpy_helper.to_array(entry)
        for entry in onnx.load(artifact.path / "model.onnx").graph.initializer
    }
    masked = slt_compress.load(ticket.path)
    state = masked.state_dict()
    for name, mask in ticket.masks.items():
        entry = artifact.entries[name]
        found = torch.from_numpy(stored[entry.initializer].copy())
        assert torch.equal(found, state[name])
        assert not found[~mask].any()
        assert entry.kept == int(mask.sum())
        assert entry.nonzero == int((found != 0).sum())
    # the files and their names
    assert artifact.nbytes == (artifact.path / "model.onnx").stat().st_size
    assert artifact.nbytes > 0.9 * artifact.dense_nbytes
    config = read_json(artifact.path / "config.json", ArtifactError)
    assert "quantization_config" not in config
    facts = read_json(artifact.path / "report.json", ArtifactError)["onnx"]
    assert facts["difference"] < 1e-3
    assert facts["runs"] == (3 if case in ("bert", "gpt2") else 2)
    assert slt_compress.report(artifact.path).sizes["onnx"] == artifact.nbytes
    # no trace of where the libraries are installed
    assert b"site-packages" not in (artifact.path / "model.onnx").read_bytes()


@pytest.mark.parametrize("case", ["vit", "bert", "lenet"])
def test_batches_and_sequences_may_have_any_size(exported, case):
    ticket, artifact = exported(case)
    session, model = session_of(artifact.path), slt_compress.load(ticket.path)
    chance = np.random.default_rng(0)
    for rows, length in ((1, 3), (5, 17)):
        inputs = {}
        for value in session.get_inputs():
            sizes = {"batch": rows, "sequence": length}
            shape = [sizes.get(size, size) for size in value.shape]
            assert value.shape[0] == "batch"
            if value.type == "tensor(float)":
                inputs[value.name] = chance.random(shape, np.float32)
            elif value.name == "input_ids":
                inputs[value.name] = chance.integers(6, 20, shape)
            else:
                inputs[value.name] = np.full(shape, int(value.name == "attention_mask"))
        found = session.run(["logits"], inputs)[0]
        given = {name: torch.from_numpy(value) for name, value in inputs.items()}
        with torch.inference_mode():
            wanted = model(*given.values()) if case == "lenet" else model(**given).logits
        assert np.allclose(found, wanted.numpy(), atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    ("case", "given"),
    [("vit", {"picture": Image.new("RGB", (20, 20), "teal")}), ("bert", {}), ("gpt2", {})],
)
def test_the_code_in_the_card_runs(exported, monkeypatch, case, given):
    _, artifact = exported(case)
    monkeypatch.chdir(artifact.path.parent)
    first, second = re.findall(
        r"```python\n(.*?)```", (artifact.path / "README.md").read_text(), re.S
    )
    scope = dict(given)
    opened, run = first.rsplit("\nlogits", 1)
    exec(opened, scope)
    exec(second, scope)
    exec(f"logits{run}", scope)
    assert len(scope["logits"]) == 1


def test_ties_and_weights_that_nothing_reads(exported):
    _, artifact = exported("gpt2")
    manifest = read_json(artifact.path / "slt.json", ArtifactError)
    assert manifest["ties"]
    names = [e.name for e in onnx.load(artifact.path / "model.onnx").graph.initializer]
    assert len({"transformer.wte.weight", "lm_head.weight"} & set(names)) == 1
    assert set(names) >= {entry.initializer for entry in artifact.entries.values()}
    # biases that are 0 are in no graph
    _, lenet = exported("lenet")
    assert read_json(lenet.path / "slt.json", ArtifactError)["absent"] == [
        "fc1.bias", "fc2.bias", "fc3.bias"
    ]  # fmt: skip
    ungated = slt_compress.verify(lenet.path, in_process=True).checks[-2]
    assert "3 more tensors are not in the graph" in ungated.detail


def test_a_gated_weight_that_no_output_needs_is_in_the_file(data_sets, tmp_path):
    config = transformers.BertConfig(**pico.SMALL, **pico.TEXT, intermediate_size=32)
    transformers.BertModel(config).save_pretrained(tmp_path / "bert")
    source = pico.save_tokenizer(tmp_path / "bert")
    recipe = parse_recipe(RECIPE)
    ticket = slt_compress.search(source, data_sets["reviews"], recipe=recipe, out=tmp_path / "t")
    assert "pooler.dense.weight" in ticket.masks
    artifact = slt_compress.export(ticket.path, format="onnx", out=tmp_path / "x")
    assert artifact.entries["pooler.dense.weight"].initializer == "pooler.dense.weight"
    assert failed(artifact.path) == []


def rewrite(source, target, change):
    """A copy of an ONNX folder whose model was changed, with the hash that goes with it."""
    shutil.copytree(source, target)
    model = onnx.load(target / "model.onnx")
    change(model)
    onnx.save(model, target / "model.onnx")
    manifest = json.loads((target / "slt.json").read_text())
    manifest["files"]["model.onnx"] = sha256_file(target / "model.onnx")
    write_json(target / "slt.json", manifest)
    return target


def set_value(name, pick, value):
    """Change one weight: the first that `pick` finds."""

    def change(model):
        entry = next(e for e in model.graph.initializer if e.name == name)
        array = numpy_helper.to_array(entry).copy()
        array.reshape(-1)[np.flatnonzero(pick(array))[0]] = value
        entry.CopyFrom(numpy_helper.from_array(array, name))

    return change


def test_a_changed_weight_is_found(exported, tmp_path):
    _, artifact = exported("vit")
    weight, bias = "vit.layers.0.mlp.fc1.weight", "vit.layers.0.mlp.fc1.bias"
    kept = rewrite(artifact.path, tmp_path / "kept", set_value(weight, lambda a: a != 0, 0.5))
    assert "weights" in failed(kept)
    more = rewrite(artifact.path, tmp_path / "more", set_value(weight, lambda a: a == 0, 1e-6))
    assert failed(more) == ["files"]  # it has a zero less than recorded
    manifest = json.loads((more / "slt.json").read_text())
    manifest["entries"][weight]["nonzero"] += 1
    write_json(more / "slt.json", manifest)
    assert set(failed(more)) >= {"count", "weights"}
    other = rewrite(artifact.path, tmp_path / "other", set_value(bias, lambda a: a == 0, 0.5))
    assert set(failed(other)) >= {"ungated", "logits"}

    def rewire(model):  # every weight is there, and another one is read
        node = next(n for n in model.graph.node if n.op_type == "LayerNormalization")
        node.input[1] = bias.replace("fc1", "fc2")

    assert failed(rewrite(artifact.path, tmp_path / "rewired", rewire)) == ["logits"]


def test_damaged_folders(exported, tmp_path):
    _, artifact = exported("lenet")

    def copy(name):
        return shutil.copytree(artifact.path, tmp_path / name)

    flipped = copy("flipped")
    content = bytearray((flipped / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (flipped / "model.onnx").write_bytes(content)
    assert failed(flipped) == ["files"]
    cut = copy("cut")
    (cut / "model.onnx").write_bytes(content[:1000])
    manifest = json.loads((cut / "slt.json").read_text())
    manifest["files"]["model.onnx"] = sha256_file(cut / "model.onnx")
    write_json(cut / "slt.json", manifest)
    assert failed(cut) == ["files"]
    for name, change in {
        "initializer": lambda m: m["entries"]["fc1.weight"].update(initializer="nothing"),
        "shape": lambda m: m["entries"]["fc1.weight"].update(shape=[784, 300]),
        "dtype": lambda m: m["entries"]["fc1.weight"].update(dtype="int32"),
        "absent": lambda m: m.update(absent="none"),
        "tolerance": lambda m: m["onnx"].update(tolerance=1e9),
    }.items():
        folder = copy(name)
        manifest = json.loads((folder / "slt.json").read_text())
        change(manifest)
        write_json(folder / "slt.json", manifest)
        assert len(failed(folder)) == 1
    gone = copy("gone")
    (gone / "model.onnx").unlink()
    assert failed(gone) == ["files"]

    def elsewhere(model):
        entry = next(e for e in model.graph.initializer if e.name == "fc1.weight")
        entry.ClearField("raw_data")
        entry.data_location = onnx.TensorProto.EXTERNAL
        entry.external_data.add(key="location", value="../secret")

    folder = copy("elsewhere")
    model = onnx.load(folder / "model.onnx")
    elsewhere(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    manifest = json.loads((folder / "slt.json").read_text())
    manifest["files"]["model.onnx"] = sha256_file(folder / "model.onnx")
    write_json(folder / "slt.json", manifest)
    found = slt_compress.verify(folder, in_process=True).checks[-1]
    assert "takes weights from" in found.detail


def test_weights_beside_the_graph(exported, tmp_path, monkeypatch):
    ticket, inline = exported("lenet")
    monkeypatch.setattr(onnx_file, "EXTERNAL_ABOVE", 1000)
    artifact = slt_compress.export(ticket.path, format="onnx", out=tmp_path / "x")
    assert (artifact.path / "model.onnx.data").stat().st_size > 100 * 1000
    assert (artifact.path / "model.onnx").stat().st_size < inline.nbytes / 10
    assert artifact.nbytes == sum(f.stat().st_size for f in artifact.path.glob("model.onnx*"))
    assert failed(artifact.path) == []
    data = bytearray((artifact.path / "model.onnx.data").read_bytes())
    data[77] ^= 64
    (artifact.path / "model.onnx.data").write_bytes(data)
    assert failed(artifact.path) == ["files"]


def test_what_cannot_be_exported_is_refused_in_a_sentence(exported, tmp_path, monkeypatch):
    ticket, _ = exported("lenet")
    out = tmp_path / "x"
    for options, said in (
        ({"values_dtype": "fp16"}, "no values to round"),
        ({"max_shard_size": "1GB"}, "--max-shard-size"),
        ({"shrink": True}, "--shrink goes with the format dense"),
    ):
        with pytest.raises(ArtifactError, match=said):
            slt_compress.export(ticket.path, format="onnx", out=out, **options)
    merged = tmp_path / "merged"
    cli_run("tickets", "merge", "--op", "or", ticket.path, ticket.path, "-o", merged)
    with pytest.raises(ArtifactError, match="stores no inputs"):
        slt_compress.export(merged, format="onnx", out=out)
    found = builtins.__import__

    def without(name, *rest, **named):
        if name.partition(".")[0] == "onnxruntime":
            raise ImportError(name)
        return found(name, *rest, **named)

    _, artifact = exported("lenet")
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without)
        for act in (
            lambda: slt_compress.export(ticket.path, format="onnx", out=out),
            lambda: slt_compress.verify(artifact.path, in_process=True),
        ):
            with pytest.raises(ArtifactError, match=r"pip install 'slt-compress\[onnx\]'"):
                act()
    assert not out.exists()


def cli_run(*arguments):
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    assert not stopped.value.code


def test_what_the_exporter_or_onnxruntime_cannot_do_is_said(checkpoints, data_sets, tmp_path):
    def search(name, source, **changes):
        recipe = parse_recipe({**RECIPE, "data": {"max_length": 12}, **changes})
        return slt_compress.search(source, data_sets["prose"], recipe=recipe, out=tmp_path / name)

    ticket = search("mixtral", checkpoints["mixtral"])
    with pytest.raises(ArtifactError, match=r"cannot write this model as ONNX: \w+: .*grouped_mm"):
        slt_compress.export(ticket.path, format="onnx", out=tmp_path / "x")
    source = pico.save_llama(tmp_path / "llama")
    for dtype in (torch.float16, torch.bfloat16):
        model = slt_compress.open_checkpoint(str(source)).module.to(dtype)
        model.save_pretrained(source)
        ticket = search(f"{dtype}", source)
        if dtype is torch.bfloat16:
            with pytest.raises(ArtifactError, match="no kernels for bfloat16"):
                slt_compress.export(ticket.path, format="onnx", out=tmp_path / "y")
        else:
            out = slt_compress.export(ticket.path, format="onnx", out=tmp_path / "half").path
            assert failed(out) == []
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()


def test_an_export_that_gives_other_logits_leaves_nothing(exported, tmp_path, monkeypatch):
    ticket, _ = exported("lenet")
    monkeypatch.setattr(
        "slt_compress.exporting.onnx_conversion.answer", lambda session, batch: torch.ones(4, 10)
    )
    with pytest.raises(ArtifactError, match="other outputs than torch"):
        slt_compress.export(ticket.path, format="onnx", out=tmp_path / "x")
    monkeypatch.undo()
    # a pass that touches a weight would be found
    stored = onnx_file.weights_of
    monkeypatch.setattr(
        "slt_compress.exporting.onnx_conversion.weights_of",
        lambda program: {name: tensor * 2 for name, tensor in stored(program).items()},
    )
    with pytest.raises(ArtifactError, match=r"did not keep fc1\.weight as it is"):
        slt_compress.export(ticket.path, format="onnx", out=tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_the_commands(exported, capsys, tmp_path):
    ticket, artifact = exported("lenet")
    with pytest.raises(SltError, match="is an ONNX model: onnxruntime"):
        slt_compress.load(artifact.path)
    cli_run("export", ticket.path, "--format", "onnx", "-o", tmp_path / "x")
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path / 'x'}\n"
    assert "onnxruntime.InferenceSession" in shown.err
    cli_run("report", tmp_path / "x", "--json")
    assert json.loads(capsys.readouterr().out)["sizes"]["onnx"] > 0
    cli_run("verify", tmp_path / "x")
    assert "onnxruntime's differ by up to" in capsys.readouterr().out
    # the same ticket gives the same bytes
    assert (tmp_path / "x" / "model.onnx").read_bytes() == (
        artifact.path / "model.onnx"
    ).read_bytes()
