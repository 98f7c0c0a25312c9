"""Audit judges what others write: every figure is counted again from values known here."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil

import numpy as np
import pytest
import torch
import transformers
from audit_files import GGUF, HEADS, SPELLINGS, in_words, save_gguf, save_spelled
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from slt_compress.cli.app import main
from slt_compress.errors import SltError, SourceError
from slt_compress.evidence.audit import audit_model
from slt_compress.evidence.audit_gguf_blocks import BLOCKS, block_of
from slt_compress.evidence.audit_sources import open_stored
from slt_compress.searching.recipes import Recipe
from slt_compress.tickets.importing import import_checkpoint


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A masked Llama, its ticket, and the tensors of its sites."""
    folder = tmp_path_factory.mktemp("audit")
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=32,
        tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2 and "embed" not in name:
            parameter.data *= torch.rand_like(parameter) < 0.2
    model.save_pretrained(folder / "origin")
    ticket = import_checkpoint(folder / "origin", folder / "t", recipe=Recipe().to_dict())
    tensors = load_file(folder / "origin" / "model.safetensors")
    return folder, ticket, tensors


def expect(case, audit, values):
    """Every layer's counts are those of the values that are in use."""
    _, ticket, tensors = case
    layers = {layer.name: layer for layer in audit.layers}
    assert layers.keys() == ticket.masks.keys()
    for name, mask in ticket.masks.items():
        layer, now = layers[name], values[name]
        assert layer.zeros == int((~mask).sum())
        assert layer.kept == int(mask.sum())
        assert layer.zeros_lost == int((~mask & (now != 0)).sum()), name
        assert layer.kept_zeroed == int((mask & (now == 0)).sum()), name
        if layer.kept_changed is not None:
            assert layer.kept_changed == int((now != tensors[name])[mask].sum()), name
            size = tensors[name][mask].norm()
            wanted = float((now - tensors[name])[mask].norm() / size)
            assert layer.change == pytest.approx(wanted, abs=1e-5)
    assert audit.holds == (not any(layer.zeros_lost for layer in audit.layers))


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_quantised_folders(case, tmp_path, spelling):
    folder, ticket, tensors = case
    values = save_spelled(tmp_path / "q", tensors, list(ticket.masks), SPELLINGS[spelling])
    audit = audit_model(tmp_path / "q", folder / "t")
    expect(case, audit, values)
    assert spelling in (
        "AWQ",
        *audit.kind.split("(")[1].rstrip(")").split(" or "),
        audit.kind[13:-1],
    )
    assert {layer.stored for layer in audit.layers} == set(ticket.masks)
    assert audit.holds == (spelling != "quanto, packed")


@pytest.mark.parametrize("kind", GGUF)
def test_gguf_without_our_names_and_with_rows_by_head(case, tmp_path, kind):
    folder, ticket, tensors = case
    sites = {name: tensors[name] for name in ticket.masks}
    values = save_gguf(tmp_path / "m.gguf", sites, kind)
    audit = audit_model(tmp_path / "m.gguf", folder / "t")
    expect(case, audit, values)
    assert audit.kind == "GGUF"
    assert audit.holds == (kind != "Q4_1")
    assert ("The ticket holds" in audit.verdict) == audit.holds
    heads = {layer.name for layer in audit.layers if layer.how == f"{HEADS} heads"}
    assert heads == {name for name in sites if "q_proj" in name or "k_proj" in name}
    with_origin_gone = audit_model(tmp_path / "m.gguf", folder / "t", origin=folder / "origin")
    assert with_origin_gone.totals() == audit.totals()


# By type: the values of 64 blocks of seeded bytes, as gguf 0.19.0 dequantises them.
BLOCK_DIGESTS = {
    "Q4_0": "033ddebcb7ce",
    "Q4_1": "5d75c0541661",
    "Q5_0": "d00ca522ef97",
    "Q5_1": "e4668ef1cfb1",
    "Q8_0": "e8d532f963dc",
    "MXFP4": "26978122ce46",
    "NVFP4": "978fd8aeca3a",
    "IQ4_NL": "7316ebf36e3e",
    "IQ4_XS": "74b2154b370f",
    "TQ1_0": "e834516c0f47",
    "TQ2_0": "6c10f74724e0",
    "Q2_K": "852138fc9db7",
    "Q3_K": "c1aa4d2ef42b",
    "Q4_K": "5d14170678ce",
    "Q5_K": "978bc23709a6",
    "Q6_K": "3fc57f2f8bf7",
}


@pytest.mark.parametrize("kind", [kind for kind, block in BLOCKS.items() if block.nbytes > 8])
def test_any_bytes_are_the_numbers_that_gguf_reads(kind):
    block = BLOCKS[kind]
    random = np.random.default_rng(kind)
    data = random.integers(0, 256, (64, block.nbytes), dtype=np.uint8)
    with np.errstate(all="ignore"):
        values = np.nan_to_num(block.decode(data).astype(np.float32))
    assert values.shape == (64, block.weights)
    digest = hashlib.sha256((values + 0.0).tobytes()).hexdigest()[:12]
    assert digest == BLOCK_DIGESTS[block.name]


def test_types_with_grids_are_read_by_their_own_package():
    gguf = pytest.importorskip("gguf")
    for name in ("IQ1_S", "IQ2_XXS", "IQ3_S"):
        kind = gguf.GGMLQuantizationType[name]
        block = block_of(int(kind))
        assert (block.weights, block.nbytes) == gguf.GGML_QUANT_SIZES[kind]
        assert block.decode(np.full((2, block.nbytes), 17, dtype=np.uint8)).all()  # no level is 0


def test_a_type_that_nobody_knows_is_refused_by_its_number():
    assert block_of(9999) is None


def test_a_group_of_gptq_without_negative_weights(case, tmp_path):
    """Its zero point is 0, which is stored as the largest number."""
    folder, ticket, tensors = case

    def spell(name, weight):
        one_sign = weight.abs()
        scale = one_sign.amax(1, keepdim=True).clamp(min=1e-9) / 15
        codes, layer = torch.round(one_sign / scale), name.removesuffix(".weight")
        parts = {
            f"{layer}.qweight": in_words(codes).T.contiguous(),
            f"{layer}.qzeros": in_words(torch.full((1, len(weight)), 15)),
            f"{layer}.scales": scale.T.contiguous(),
        }
        return codes * scale, parts

    values = save_spelled(tmp_path / "q", tensors, list(ticket.masks), spell)
    audit = audit_model(tmp_path / "q", folder / "t")
    expect(case, audit, values)
    assert audit.holds


def test_without_the_origin_the_pattern_of_zeros_is_enough(case, tmp_path):
    folder, ticket, tensors = case
    shutil.copytree(folder / "t", tmp_path / "t")
    record = json.loads((tmp_path / "t" / "ticket.json").read_text())
    record["origin"]["path"] = record["origin"]["source"] = str(tmp_path / "gone")
    (tmp_path / "t" / "ticket.json").write_text(json.dumps(record))
    sites = {name: tensors[name] for name in ticket.masks}
    values = save_gguf(tmp_path / "m.gguf", sites, "Q8_0")
    audit = audit_model(tmp_path / "m.gguf", tmp_path / "t")
    expect(case, audit, values)
    assert all(layer.kept_changed is None for layer in audit.layers)
    assert "kept weights were not compared" in audit.notes[0]
    with pytest.raises(SltError):
        audit_model(tmp_path / "m.gguf", tmp_path / "t", origin=tmp_path / "nowhere")


def test_a_fine_tuned_and_a_merged_folder(case, tmp_path):
    folder, ticket, tensors = case
    moved = {
        f"base_model.model.{n}": t + 0.01 * (t != 0) if n in ticket.masks else t
        for n, t in tensors.items()
    }
    save_file(moved, tmp_path / "tuned.safetensors")
    audit = audit_model(tmp_path / "tuned.safetensors", folder / "t")
    assert audit.holds
    assert audit.totals()["kept_changed"] == ticket.masks.kept
    merged = {n: t + 0.01 if n in ticket.masks else t for n, t in tensors.items()}
    save_file(merged, tmp_path / "merged.safetensors")
    audit = audit_model(tmp_path / "merged.safetensors", folder / "t")
    assert audit.totals()["zeros_lost"] == ticket.masks.total - ticket.masks.kept
    assert audit.verdict.startswith("The ticket is lost")
    assert all(layer.how == "as stored" for layer in audit.layers)


def onnx_model(path, tensors, *, kind):
    """Matrices without our names and transposed: dense, in QDQ form, or dynamically quantised."""
    onnx = pytest.importorskip("onnx")
    helper, numpy = onnx.helper, onnx.numpy_helper
    nodes, entries, values = [], [], {}
    for place, (name, tensor) in enumerate(tensors.items()):
        turned, key = tensor.T.contiguous(), f"onnx::MatMul_{place}"
        if kind == "dense":
            entries.append(numpy.from_array(turned.numpy(), key))
            nodes.append(helper.make_node("MatMul", [f"x{place}", key], [f"y{place}"]))
            values[name] = tensor
            continue
        each = kind == "qdq"  # one scale for every output, or one for all
        top = turned.abs().amax(0, keepdim=True) if each else turned.abs().max().reshape(1, 1)
        scale = top / 127
        codes = torch.round(turned / scale).to(torch.int8)
        parts = {
            f"{key}_quantized": codes,
            f"{key}_scale": scale.reshape(-1) if each else scale[0, 0],
            f"{key}_zero_point": torch.zeros(scale.shape[1] if each else 1, dtype=torch.int8),
        }
        entries += [numpy.from_array(part.numpy(), name) for name, part in parts.items()]
        if each:
            nodes.append(helper.make_node("DequantizeLinear", list(parts), [f"w{place}"], axis=1))
        else:
            inputs = [f"x{place}", f"{key}_quantized", "", f"{key}_zero_point"]
            nodes.append(helper.make_node("MatMulInteger", inputs, [f"y{place}"]))
        values[name] = (codes * scale).T
    graph = helper.make_graph(nodes, "g", [], [], entries)
    onnx.save(helper.make_model(graph), path)
    return values


@pytest.mark.parametrize("kind", ["dense", "qdq", "dynamic"])
def test_onnx_without_names(case, tmp_path, kind):
    folder, ticket, tensors = case
    sites = {name: tensors[name] for name in ticket.masks}
    values = onnx_model(tmp_path / "m.onnx", sites, kind=kind)
    audit = audit_model(tmp_path / "m.onnx", folder / "t")
    expect(case, audit, values)
    assert audit.holds
    assert {layer.how for layer in audit.layers} == {"transposed"}
    assert (audit.totals()["kept_changed"] == 0) == (kind == "dense")


def test_onnx_weights_elsewhere_are_not_followed(case, tmp_path):
    onnx = pytest.importorskip("onnx")
    folder, ticket, tensors = case
    onnx_model(tmp_path / "m.onnx", {n: tensors[n] for n in ticket.masks}, kind="dense")
    model = onnx.load(tmp_path / "m.onnx")
    for entry in model.graph.initializer:
        entry.ClearField("raw_data")
        entry.data_location = onnx.TensorProto.EXTERNAL
        entry.external_data.add(key="location", value="../elsewhere")
    onnx.save(model, tmp_path / "m.onnx")
    audit = audit_model(tmp_path / "m.onnx", folder / "t")
    assert not audit.holds
    assert audit.totals()["layers_found"] == 0
    assert "another one" in audit.verdict


# torch 2.11 warns of its own exporter
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")
def test_a_file_that_onnxruntime_padded_says_so(tmp_path):
    onnx, runtime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 5, 3)).eval()
    shown = torch.onnx.export(model, (torch.randn(1, 3, 9, 9),), dynamo=True, verbose=False)
    shown.save(tmp_path / "m.onnx")
    options = runtime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 4
    runtime.InferenceSession(tmp_path / "m.onnx", options, providers=["CPUExecutionProvider"])
    padded = "nchwc" in {
        node.domain.rpartition(".")[2] for node in onnx.load(tmp_path / "optimised.onnx").graph.node
    }
    notes = open_stored(tmp_path / "optimised.onnx").notes
    assert any("convolutions are padded" in note for note in notes) == padded
    assert not any("padded" in note for note in open_stored(tmp_path / "m.onnx").notes)
    node = onnx.helper.make_node("Conv", ["x"], ["y"], domain="com.microsoft.nchwc")
    graph = onnx.helper.make_graph([node], "g", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "by_hand.onnx")  # on any machine
    assert "convolutions are padded" in open_stored(tmp_path / "by_hand.onnx").notes[0]


# torch 2.11 warns of its own exporter
@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*:FutureWarning")
def test_tied_weights_that_a_file_holds_twice_are_named(tmp_path):
    onnx = pytest.importorskip("onnx")

    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(64, 32)
            self.head = nn.Linear(32, 64, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids):
            return self.head(self.embedding(ids))

    ids = torch.zeros(1, 4, dtype=torch.long)
    shown = torch.onnx.export(Tied().eval(), (ids,), dynamo=True, verbose=False)
    shown.save(tmp_path / "folded.onnx")
    stored = onnx.load(tmp_path / "folded.onnx").graph.initializer
    notes = open_stored(tmp_path / "folded.onnx").notes
    assert len(notes) == sum(len(entry.dims) == 2 for entry in stored) - 1  # as torch folds it
    onnx_model(tmp_path / "twice.onnx", {"a": torch.randn(64, 32), "b": torch.randn(64, 32)},
               kind="dense")  # fmt: skip
    assert open_stored(tmp_path / "twice.onnx").notes == ()
    weight = torch.randn(64, 32)
    for copy in (weight, weight.T.contiguous()):
        onnx_model(tmp_path / "twice.onnx", {"a": weight, "b": copy}, kind="dense")
        (note,) = open_stored(tmp_path / "twice.onnx").notes
        assert "onnx::MatMul_0 and onnx::MatMul_1 are one weight that is stored twice" in note
        assert "8,192 bytes more" in note


def test_an_export_of_our_own(case, tmp_path):
    import slt_compress

    folder, _, _ = case
    for format in ("auto", "dense"):
        slt_compress.export(folder / "t", format=format, out=tmp_path / format)
        audit = audit_model(tmp_path / format, folder / "t")
        assert audit.holds
        assert audit.totals()["kept_changed"] == 0
        assert audit.verdict.startswith("The ticket holds: all")


def test_another_model_and_missing_layers(case, tmp_path):
    folder, ticket, tensors = case
    save_file({n: torch.randn_like(t) for n, t in tensors.items()}, tmp_path / "a.safetensors")
    names = {f"other.{i}": t for i, t in enumerate(load_file(tmp_path / "a.safetensors").values())}
    save_file(names, tmp_path / "b.safetensors")
    audit = audit_model(tmp_path / "b.safetensors", folder / "t")
    assert audit.totals()["layers_found"] == 0
    first = sorted(ticket.masks)[0]
    save_file({n: t for n, t in tensors.items() if n != first}, tmp_path / "c.safetensors")
    audit = audit_model(tmp_path / "c.safetensors", folder / "t")
    assert not audit.holds
    assert f"1 of {len(ticket.masks)} layers were not found, first {first}" in audit.verdict


def test_what_is_not_opened(case, tmp_path):
    folder = case[0]
    (tmp_path / "m.bin").write_bytes(b"x")
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text("{}")
    save_file({"a": torch.ones(2)}, tmp_path / "lora" / "adapter_model.safetensors")
    for name, said in (("m.bin", "can run code"), ("lora", "merge it"), ("none", "no file")):
        with pytest.raises(SourceError, match=said):
            audit_model(tmp_path / name, folder / "t")


def test_damaged_parts_are_named(case, tmp_path):
    folder, ticket, tensors = case
    sites = list(ticket.masks)
    save_spelled(tmp_path / "q", tensors, sites, SPELLINGS["bitsandbytes nf4"])
    stored = load_file(tmp_path / "q" / "model.safetensors")
    key = next(key for key in stored if key.endswith(".absmax"))
    stored[key] = stored[key][:-1].clone()
    save_file(stored, tmp_path / "q" / "model.safetensors")
    with pytest.raises(SourceError, match="is not stored as bitsandbytes nf4"):
        audit_model(tmp_path / "q", folder / "t")


@settings(max_examples=60, deadline=None, derandomize=True,
          suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
@given(data=st.data())
def test_a_damaged_gguf_is_refused_or_read(case, tmp_path, data):
    _, ticket, tensors = case
    name = sorted(ticket.masks)[0]
    path = tmp_path / "m.gguf"
    save_gguf(path, {name: tensors[name]}, "Q8_0")
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, 400))] = data.draw(st.integers(0, 255))
    path.write_bytes(bytes(raw[: data.draw(st.integers(8, len(raw)))]))
    with contextlib.suppress(SltError):
        for weight in open_stored(path).weights.values():
            assert weight.read().numel() <= 32 * len(raw)


def test_the_command(case, tmp_path, capsys):
    folder, ticket, tensors = case
    save_file({n: t + 1e-3 for n, t in tensors.items()}, tmp_path / "m.safetensors")
    main_ok(["audit", str(folder / "origin"), "--ticket", str(folder / "t"), "--strict"])
    assert "The ticket holds" in capsys.readouterr().out
    with pytest.raises(SystemExit) as left:
        main(["audit", str(tmp_path / "m.safetensors"), "--ticket", str(folder / "t"),
              "--strict", "--json"])  # fmt: skip
    assert left.value.code == 1
    found = json.loads(capsys.readouterr().out)
    assert found["holds"] is False
    assert found["totals"]["zeros_lost"] == ticket.masks.total - ticket.masks.kept
    assert len(found["layers"]) == len(ticket.masks)
    main_ok(["audit", str(tmp_path / "m.safetensors"), "--ticket", str(folder / "t")])


def main_ok(arguments):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    assert left.value.code == 0
