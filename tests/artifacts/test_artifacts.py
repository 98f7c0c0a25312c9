"""Artifacts: every family through both formats bit for bit, golden bytes, every damage refused."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import pytest
import timm
import torch
from artifact_cases import PICO, Tiny, export, mask_, own, tiny
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import nn
from torch.nn.utils import parametrizations

from slt_compress.artifacts import (
    PROBE,
    describe_artifact,
    entry_dicts,
    is_artifact,
    read_artifact,
    read_mask_artifact,
)
from slt_compress.artifacts.formats import FORMATS
from slt_compress.checkpoints import open_checkpoint
from slt_compress.errors import ArtifactError, OwnModuleError
from slt_compress.masks import Masks
from slt_compress.storage.bits import bits
from slt_compress.storage.files import read_manifest
from slt_compress.storage.probe import Probe

WHOLE = [name for name in FORMATS if name != "mask"]  # a mask alone is no model; see test_exporting
SPARSE = "weights.slt.safetensors"
GOLDEN = "ca1c45f00c6f88004e92289be2001da5761b6a2b4b1d03d09b9b8d379630e23f"


@pytest.fixture(scope="module", params=[*PICO, "resnet", "lenet-300-100"])
def masked(request, tmp_path_factory):
    """A checkpoint of every family, its masks, and its plain class where there is one."""
    name, folder = request.param, tmp_path_factory.mktemp("origin") / request.param
    torch.manual_seed(0)
    if name in PICO:
        PICO[name]().save_pretrained(folder)
        (folder / "tokenizer_config.json").write_text("{}")
        (folder / "README.md").write_text("---\nlicense: mit\n---\n")
        (folder / "training_log.json").write_text("{}")
    elif name == "resnet":
        model = timm.create_model("test_resnet", num_classes=5)
        save_for_hf(model, str(folder), safe_serialization=True)
    if name == "lenet-300-100":
        checkpoint = open_checkpoint(name, init="random")
    else:
        checkpoint = open_checkpoint(str(folder))
    return checkpoint, mask_(checkpoint)


def same_bits(left, right):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype is right[name].dtype
        assert torch.equal(bits(tensor), bits(right[name]))


@pytest.mark.parametrize("format", WHOLE)
def test_every_family_comes_back_bit_for_bit(masked, tmp_path, format, capfd):
    checkpoint, masks = masked
    artifact = export(tmp_path / "out", checkpoint, masks, format)
    loaded = read_artifact(tmp_path / "out")
    same_bits(loaded.module.state_dict(), checkpoint.module.state_dict())
    assert not loaded.module.training
    # Ties hold: as many distinct parameters, under the same names.
    names = [name for name, _ in checkpoint.module.named_parameters()]
    assert [name for name, _ in loaded.module.named_parameters()] == names
    assert loaded.artifact == artifact
    assert loaded.checkpoint.task == checkpoint.task
    assert loaded.checkpoint.num_classes == checkpoint.num_classes
    found = loaded.masks
    if FORMATS[format].sparse:
        assert {name: mask.tolist() for name, mask in found.items()} == {
            name: mask.tolist() for name, mask in masks.items()
        }
    else:
        assert found is None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("format", WHOLE)
def test_the_record_is_the_truth(masked, tmp_path, format):
    checkpoint, masks = masked
    artifact = export(tmp_path / "out", checkpoint, masks, format)
    assert artifact == describe_artifact(tmp_path / "out")
    weights = next((tmp_path / "out").glob("*.safetensors"))
    assert artifact.nbytes == weights.stat().st_size
    distinct = {id(t): t for t in checkpoint.module.state_dict(keep_vars=True).values()}
    assert artifact.dense_nbytes == sum(t.nbytes for t in distinct.values())
    if FORMATS[format].sparse:
        held = sum(tensor.nbytes for tensor in load_file(weights).values())
        state = checkpoint.module.state_dict()
        sites = [
            (tuple(mask.shape), int(mask.sum()), state[name].dtype) for name, mask in masks.items()
        ]
        promised = FORMATS[format].model_nbytes(artifact.dense_nbytes, sites)
        used = {entry.format for entry in artifact.entries.values()}
        coded = any(codec == "coded" or codec.startswith("packed-") for codec in used)
        assert held <= promised if coded else held == promised
    kept = {name: e.kept for name, e in artifact.entries.items() if e.kept is not None}
    assert kept == {name: int(mask.sum()) for name, mask in masks.items()}
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == {"sparsity": 0.7}
    assert (tmp_path / "out" / "README.md").read_text() == "# card\n"


@pytest.mark.parametrize("name", PICO)
def test_transformers_opens_dense_by_itself(name, tmp_path):
    torch.manual_seed(0)
    model = PICO[name]()
    model.save_pretrained(tmp_path / "origin")
    (tmp_path / "origin" / "tokenizer_config.json").write_text("{}")
    (tmp_path / "origin" / "training_log.json").write_text("{}")
    (tmp_path / "origin" / "modeling.py").write_text("")
    checkpoint = open_checkpoint(str(tmp_path / "origin"))
    masks = mask_(checkpoint)
    for format in WHOLE:
        export(tmp_path / format, checkpoint, masks, format)
        files = {file.name for file in (tmp_path / format).iterdir()}
        assert "tokenizer_config.json" in files
        assert not files & {"training_log.json", "modeling.py"}
    same_bits(
        type(model).from_pretrained(tmp_path / "dense").state_dict(),
        checkpoint.module.state_dict(),
    )
    config = json.loads((tmp_path / "sparse-csr" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "slt-compress"
    assert not config.keys() & {"transformers_weights", "sparsity_config"}


def test_timm_opens_dense_and_only_dense(tmp_path):
    model = timm.create_model("test_resnet", num_classes=5)
    save_for_hf(model, str(tmp_path / "origin"), safe_serialization=True)
    checkpoint = open_checkpoint(str(tmp_path / "origin"))
    masks = mask_(checkpoint)
    for format in WHOLE:
        # A further safetensors file must not confuse timm.
        export(
            tmp_path / format,
            checkpoint,
            masks,
            format,
            probe=Probe(inputs={"x": torch.ones(1)}, logits=torch.ones(1)),
        )
    opened = timm.create_model(f"local-dir:{tmp_path / 'dense'}", pretrained=True)
    same_bits(opened.state_dict(), checkpoint.module.state_dict())
    with pytest.raises(RuntimeError):
        timm.create_model(f"local-dir:{tmp_path / 'sparse-csr'}", pretrained=True)


@pytest.fixture
def path(tmp_path):
    export(tmp_path / "tiny", *tiny())
    return tmp_path / "tiny"


@pytest.mark.parametrize("format", WHOLE)
def test_an_own_module_needs_the_module(tmp_path, format):
    checkpoint, masks = tiny()
    export(tmp_path / "tiny", checkpoint, masks, format)
    with pytest.raises(OwnModuleError, match="model="):
        read_artifact(tmp_path / "tiny")
    module = Tiny()
    loaded = read_artifact(tmp_path / "tiny", model=module)
    assert loaded.module is module
    assert module.tied.weight is module.first.weight
    same_bits(module.state_dict(), checkpoint.module.state_dict())
    assert module.first.weight.requires_grad
    with pytest.raises(ArtifactError, match="does not have"):
        read_artifact(tmp_path / "tiny", model=nn.Sequential(Tiny()))
    bigger = Tiny()
    bigger.more = nn.Linear(1, 1)
    with pytest.raises(ArtifactError, match=r"disagree on more\.bias"):
        read_artifact(tmp_path / "tiny", model=bigger)
    other = Tiny()
    other.first = nn.Linear(4, 2)
    with pytest.raises(ArtifactError, match=r"first\.weight"):
        read_artifact(tmp_path / "tiny", model=other)


def test_the_model_does_not_depend_on_the_file(path):
    module = read_artifact(path, model=Tiny()).module
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    data = bytearray((path / SPARSE).read_bytes())
    data[-64:] = b"\xff" * 64
    with (path / SPARSE).open("r+b") as stream:
        stream.write(data)
    same_bits(module.state_dict(), before)


def test_golden_bytes(path):
    data = (path / SPARSE).read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert list(header["__metadata__"]) == ["slt"]
    begin, end = header["first.weight.values"]["data_offsets"]
    # 0, 1.5, -0 and 2: kept zeros are stored, with their sign.
    assert data[8 + length + begin : 8 + length + end].hex() == (
        "00000000" "0000c03f" "00000080" "00000040"
    )  # fmt: skip
    begin, end = header["first.weight.crow_indices"]["data_offsets"]
    assert data[8 + length + begin : 8 + length + end] == bytes([0, 2, 4])
    begin, end = header["first.weight.col_indices"]["data_offsets"]
    assert data[8 + length + begin : 8 + length + end] == bytes([0, 1, 0, 2])
    manifest = json.loads(header["__metadata__"]["slt"])
    assert manifest["ties"] == {"tied.weight": "first.weight"}
    assert manifest["entries"]["first.weight"] == {
        "dtype": "float32",
        "format": "sparse-csr",
        "kept": 4,
        "shape": [2, 3],
    }
    # the hashes of the other files came later: without them the bytes are those of before
    beside = manifest.pop("beside")
    assert manifest.pop("unprobed") is True
    assert beside.keys() == {"config.json", "report.json"}
    header["__metadata__"]["slt"] = json.dumps(manifest, sort_keys=True, ensure_ascii=False)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    first = len(text).to_bytes(8, "little") + text + data[8 + length :]
    assert hashlib.sha256(first).hexdigest() == GOLDEN


def test_the_tie_goes_under_the_name_of_the_site(tmp_path):
    checkpoint, masks = tiny()
    masks = Masks({"tied.weight": masks["first.weight"]})
    artifact = export(tmp_path / "tiny", checkpoint, masks)
    assert "tied.weight" in artifact.entries
    assert "first.weight" not in artifact.entries
    module = read_artifact(tmp_path / "tiny", model=Tiny()).module
    assert module.tied.weight is module.first.weight


@pytest.mark.parametrize("format", WHOLE)
def test_the_probe_is_guarded_and_no_weight(tmp_path, format):
    checkpoint, masks = tiny()
    plain = export(tmp_path / "plain", checkpoint, masks, format)
    probe = Probe(inputs={"x": torch.ones(8, 3)}, logits=torch.zeros(8, 2))
    artifact = export(tmp_path / "x", checkpoint, masks, format, probe=probe)
    assert artifact.entries == plain.entries
    # Only the hash in the manifest differs, not the eight inputs.
    assert abs(artifact.nbytes - plain.nbytes) < 100
    stored = load_file(tmp_path / "x" / PROBE)
    assert torch.equal(stored["x"], probe.inputs["x"])
    assert read_artifact(tmp_path / "x", model=Tiny()).artifact.provenance == {"gains": {}}
    save_file(stored | {"logits": torch.ones(8, 2)}, tmp_path / "x" / PROBE)
    with pytest.raises(ArtifactError, match="changed or damaged"):
        read_artifact(tmp_path / "x", model=Tiny())
    (tmp_path / "x" / PROBE).unlink()
    with pytest.raises(ArtifactError, match="missing"):
        read_artifact(tmp_path / "x", model=Tiny())


def test_a_weight_behind_a_parametrization_is_put_in_plain(tmp_path):
    plain = nn.Sequential(nn.Linear(4, 3))
    masks = mask_(own(plain))
    export(tmp_path / "x", own(plain), masks)
    normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)))
    loaded = read_artifact(tmp_path / "x", model=normed)
    same_bits(loaded.module.state_dict(), plain.state_dict())


@pytest.mark.parametrize("format", [name for name in WHOLE if FORMATS[name].sparse])
def test_shards_hold_what_one_file_holds(masked, tmp_path, format):
    checkpoint, masks = masked
    whole = export(tmp_path / "whole", checkpoint, masks, format)
    limit = sum(tensor.nbytes for tensor in load_file(tmp_path / "whole" / SPARSE).values()) // 4
    artifact = export(tmp_path / "shards", checkpoint, masks, format, max_shard_size=limit)
    assert artifact.entries == whole.entries
    files = sorted(file.name for file in (tmp_path / "shards").glob("*.safetensors"))
    count = len(files)
    assert count > 2
    assert files == [f"weights.slt-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
    largest = max(
        sum(t.nbytes for t in load_file(tmp_path / "shards" / name).values()) for name in files
    )
    assert largest <= max(limit, *(t.nbytes for t in checkpoint.module.state_dict().values()))
    loaded = read_artifact(tmp_path / "shards")
    same_bits(loaded.module.state_dict(), checkpoint.module.state_dict())
    marker = json.loads((tmp_path / "shards" / "config.json").read_text())["quantization_config"]
    assert marker["weights"] == f"{SPARSE}.index.json"
    one, many = (
        read_artifact(tmp_path / name).artifact.manifest.text("hash")
        for name in ("whole", "shards")
    )
    assert one == many


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_are_rounded_to_nearest(tmp_path, dtype):
    checkpoint, masks = tiny()
    with torch.no_grad():
        checkpoint.module.first.weight[1, 2] = 1.0 + 2**-8 + 2**-11
    weight = checkpoint.module.first.weight.detach().clone()
    plain = export(tmp_path / "plain", checkpoint, masks)
    artifact = export(tmp_path / "x", checkpoint, masks, values_dtype=dtype)
    entry = artifact.entries["first.weight"]
    assert entry == replace(plain.entries["first.weight"], values=dtype)
    assert entry.to_dict()["values"] == str(dtype).removeprefix("torch.")
    assert artifact.entries["first.bias"] == plain.entries["first.bias"]
    stored = load_file(tmp_path / "x" / SPARSE)
    assert stored["first.weight.values"].dtype is dtype
    back = read_artifact(tmp_path / "x", model=Tiny()).module.first.weight
    assert torch.equal(bits(back), bits(weight.to(dtype).to(torch.float32)))
    assert not torch.equal(bits(back), bits(weight))
    with pytest.raises(ArtifactError, match="dense"):
        export(tmp_path / "y", checkpoint, masks, "dense", values_dtype=dtype)


def test_nothing_narrow_is_rounded(tmp_path):
    module = nn.Sequential(nn.Linear(4, 3)).to(torch.bfloat16)
    masks = mask_(own(module))
    artifact = export(tmp_path / "x", own(module), masks, values_dtype=torch.float16)
    assert artifact.entries["0.weight"].values is None
    loaded = read_artifact(tmp_path / "x", model=nn.Sequential(nn.Linear(4, 3)))
    same_bits(loaded.module.state_dict(), module.state_dict())


def test_a_mask_alone_carries_flips(tmp_path):
    module = nn.Sequential(nn.Linear(40, 30), nn.Linear(30, 20), nn.Linear(20, 10))
    masks = mask_(own(module))
    generator = torch.Generator().manual_seed(2)
    flips = {name: masks[name] & (torch.rand(masks[name].shape, generator=generator) < 0.5)
             for name in ("0.weight", "2.weight")}  # fmt: skip
    artifact = export(tmp_path / "x", own(module), Masks(masks, flips), "mask")
    assert artifact.entries["0.weight"].flips == int(flips["0.weight"].sum())
    assert artifact.entries["1.weight"].flips is None
    found = read_mask_artifact(tmp_path / "x").masks()
    assert all(torch.equal(found[name], masks[name]) for name in masks)
    assert found.flips.keys() == flips.keys()
    assert all(torch.equal(found.flips[name], flips[name]) for name in flips)
    for lie in ({"flips": 3}, {"kept": 2**60}, {"flips": 0}):
        rewrite(tmp_path / "x", lambda m, lie=lie: m["entries"]["0.weight"].update(lie))
        with pytest.raises(ArtifactError, match="damaged"):
            read_mask_artifact(tmp_path / "x").masks()
        rewrite(tmp_path / "x", lambda m: m["entries"].update(entry_dicts(artifact.entries)))


def test_what_cannot_be_exported_is_refused(tmp_path):
    checkpoint, masks = tiny()
    with pytest.raises(ArtifactError, match="no format 'zip'"):
        export(tmp_path / "x", checkpoint, masks, "zip")
    with pytest.raises(ArtifactError, match="is not a weight of the model"):
        export(tmp_path / "x", checkpoint, Masks({"other": masks["first.weight"]}))
    with pytest.raises(ArtifactError, match="apply the masks first"):
        export(tmp_path / "x", checkpoint, Masks({"first.weight": ~masks["first.weight"]}))
    assert not (tmp_path / "x").exists()


def test_keys_that_would_collide_are_refused(tmp_path):
    class Clash(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Parameter(torch.zeros(2, 2))
            self.b = nn.ParameterDict({"c": nn.Parameter(torch.zeros(2, 2))})

        def state_dict(self, *args, **kwargs):
            return {"a": self.a, "a.values": self.b["c"]}

    masks = Masks({"a": torch.ones(2, 2, dtype=torch.bool)})
    with pytest.raises(ArtifactError, match=r"both be stored as a\.values"):
        export(tmp_path / "x", own(Clash()), masks)
    assert list(tmp_path.iterdir()) == []


def test_a_taken_folder_is_refused(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine").write_text("1")
    for name in ("x", "x/mine"):
        with pytest.raises(ArtifactError, match="cannot export"):
            export(tmp_path / name, *tiny())
    assert [file.name for file in (tmp_path / "x").rglob("*")] == ["mine"]


def rewrite(path, change=lambda manifest: None, tensors=None):
    """Write the sparse file of an artifact again with a changed manifest or other tensors."""
    manifest = read_manifest(path / SPARSE, ArtifactError)
    change(manifest)
    stored = {k: v.clone() for k, v in load_file(path / SPARSE).items()}
    save_file(tensors or stored, path / SPARSE, metadata={"slt": json.dumps(manifest)})


def test_a_newer_artifact_is_refused_with_the_way_out(path):
    rewrite(path, lambda m: m.update(version=3))
    for reader in (read_artifact, describe_artifact):
        with pytest.raises(ArtifactError, match=r"newer slt-compress.*upgrade"):
            reader(path)


def test_foreign_folders_are_refused(tmp_path, path):
    assert is_artifact(path)
    assert not is_artifact(tmp_path)
    with pytest.raises(ArtifactError, match="not an slt-compress artifact"):
        read_artifact(tmp_path)
    save_file({"a": torch.zeros(1)}, path / SPARSE)
    with pytest.raises(ArtifactError, match="has no manifest"):
        read_artifact(path)
    (path / SPARSE).write_bytes(b"garbage")
    with pytest.raises(ArtifactError, match="not an intact safetensors file"):
        read_artifact(path)


def test_one_flipped_bit_is_refused(path, tmp_path):
    data = bytearray((path / SPARSE).read_bytes())
    data[-1] ^= 1
    (path / SPARSE).write_bytes(data)
    with pytest.raises(ArtifactError, match="do not have their hash"):
        read_artifact(path, model=Tiny())
    export(tmp_path / "dense", *tiny(), "dense")
    data = bytearray((tmp_path / "dense" / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "dense" / "model.safetensors").write_bytes(data)
    with pytest.raises(ArtifactError, match="was changed or damaged"):
        read_artifact(tmp_path / "dense", model=Tiny())


DAMAGE = {
    "another kind": lambda m: m.update(kind="x"),
    "an unknown format": lambda m: m.update(format="zip"),
    "a format that is a number": lambda m: m.update(format=1),
    "an unknown family": lambda m: m.update(family="x"),
    "an unknown task": lambda m: m.update(task="x"),
    "no entries": lambda m: m.pop("entries"),
    "a lost entry": lambda m: m["entries"].pop("first.bias"),
    "a further entry": lambda m: m["entries"].update(x=m["entries"]["first.bias"]),
    "an entry of text": lambda m: m["entries"].update({"first.bias": "x"}),
    "a wrong shape": lambda m: m["entries"]["first.weight"].update(shape=[3, 2]),
    "a huge shape": lambda m: m["entries"]["first.weight"].update(shape=[2**40, 2**40]),
    "a negative shape": lambda m: m["entries"]["first.weight"].update(shape=[-2, 3]),
    "a wrong dtype": lambda m: m["entries"]["first.weight"].update(dtype="float16"),
    "a dtype that is a function": lambda m: m["entries"]["first.weight"].update(dtype="load"),
    "a wrong count": lambda m: m["entries"]["first.weight"].update(kept=3),
    "a count of text": lambda m: m["entries"]["first.weight"].update(kept="4"),
    "another dtype of values": lambda m: m["entries"]["first.weight"].update(values="bfloat16"),
    "a dtype of values that is none": lambda m: m["entries"]["first.weight"].update(values="x"),
    "another codec": lambda m: m["entries"]["first.weight"].update(format="dense"),
    "an unknown codec": lambda m: m["entries"]["first.weight"].update(format="x"),
    "no ties": lambda m: m.pop("ties"),
    "a lost tie": lambda m: m.update(ties={}),
    "a tie to nothing": lambda m: m["ties"].update({"tied.weight": "x"}),
    "a tie to a list": lambda m: m["ties"].update({"tied.weight": ["first.weight"]}),
    "a tie of an entry": lambda m: m["ties"].update({"first.bias": "first.weight"}),
    "another hash": lambda m: m.update(hash="0"),
    "no hash": lambda m: m.pop("hash"),
    "no bytes": lambda m: m.update(dense_nbytes="1"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_manifest_that_lies_is_refused(path, damage):
    rewrite(path, DAMAGE[damage])
    with pytest.raises(ArtifactError) as caught:
        read_artifact(path, model=Tiny())
    assert "\n" not in str(caught.value)


def shard(path, places):
    """Split a sparse artifact by a function from key to file name."""
    stored = {k: v.clone() for k, v in load_file(path / SPARSE).items()}
    manifest = read_manifest(path / SPARSE, ArtifactError)
    (path / SPARSE).unlink()
    weight_map = {key: places(key) for key in stored}
    for name in sorted(set(weight_map.values())):
        part = {key: stored[key] for key in stored if weight_map[key] == name}
        save_file(part, path / name)
    return {"metadata": {"slt": json.dumps(manifest)}, "weight_map": weight_map}


def by_kind(key):
    return f"weights.slt-{1 + key.endswith('values')}-of-2.safetensors"


def test_shards_are_read(path):
    index = shard(path, by_kind)
    (path / f"{SPARSE}.index.json").write_text(json.dumps(index))
    loaded = read_artifact(path, model=Tiny())
    same_bits(loaded.module.state_dict(), tiny()[0].module.state_dict())
    assert loaded.artifact.nbytes == sum(f.stat().st_size for f in path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../outside.safetensors", "not a file beside it"),
        ("/etc/passwd.safetensors", "not a file beside it"),
        ("..\\outside.safetensors", "not a file beside it"),
        (".hidden.safetensors", "not a file beside it"),
        ("weights.bin", "not a file beside it"),
        ("gone.safetensors", "does not exist"),
        ("weights.slt-2-of-2.safetensors", "puts elsewhere"),
    ],
)
def test_an_index_that_lies_is_refused(path, name, words):
    index = shard(path, by_kind)
    index["weight_map"]["first.bias"] = name
    save_file({"first.bias": torch.zeros(2)}, path.parent / "outside.safetensors")
    (path / f"{SPARSE}.index.json").write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match=words):
        read_artifact(path, model=Tiny())


def test_an_index_without_its_parts_is_refused(path):
    index = shard(path, by_kind)
    file = path / f"{SPARSE}.index.json"
    for broken in ({}, {"metadata": 1}, {"metadata": {"slt": 1}}):
        file.write_text(json.dumps(broken))
        with pytest.raises(ArtifactError, match="has no manifest"):
            read_artifact(path, model=Tiny())
    file.write_text(json.dumps(index | {"weight_map": []}))
    with pytest.raises(ArtifactError, match="weight_map"):
        read_artifact(path, model=Tiny())
    index["weight_map"]["more"] = by_kind("more")
    file.write_text(json.dumps(index))
    with pytest.raises(ArtifactError, match="lacks more"):
        read_artifact(path, model=Tiny())


def test_a_config_that_is_none_is_refused(tmp_path):
    checkpoint = open_checkpoint("lenet-300-100", init="random")
    export(tmp_path / "x", checkpoint, mask_(checkpoint))
    rewrite(tmp_path / "x", lambda m: m.update(config="x"))
    with pytest.raises(ArtifactError, match="'config' is a str"):
        read_artifact(tmp_path / "x")
