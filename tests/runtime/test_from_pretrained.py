"""transformers opens artifacts by itself once slt_compress is imported, and says no without it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from artifact_cases import PICO, export, mask_

import slt_compress
from slt_compress.artifacts import read_artifact
from slt_compress.artifacts.formats import FORMATS
from slt_compress.checkpoints import open_checkpoint
from slt_compress.errors import ArtifactError, SltError
from slt_compress.storage.bits import bits
from slt_compress.storage.files import read_manifest

SPARSE = [name for name in FORMATS if FORMATS[name].sparse and name != "mask"]
WEIGHTS = "weights.slt.safetensors"
AUTO = {
    "vit": transformers.AutoModelForImageClassification,
    "gpt2": transformers.AutoModelForCausalLM,
    "llama": transformers.AutoModelForCausalLM,
    "mixtral": transformers.AutoModelForCausalLM,
}


@pytest.fixture(scope="module", params=PICO)
def masked(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("origin") / request.param
    torch.manual_seed(0)
    PICO[request.param]().save_pretrained(folder)
    checkpoint = open_checkpoint(str(folder))
    return request.param, checkpoint, mask_(checkpoint)


def same_bits(left, right):
    left, right = left.state_dict(), right.state_dict()
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype is right[name].dtype, name
        assert torch.equal(bits(tensor), bits(right[name])), name


@pytest.mark.parametrize("format", SPARSE)
def test_every_format_opens_and_saves_again(masked, format, tmp_path, capfd):
    name, checkpoint, masks = masked
    export(tmp_path / "x", checkpoint, masks, format)
    export(tmp_path / "shards", checkpoint, masks, format, max_shard_size=4000)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for folder in (tmp_path / "x", tmp_path / "shards"):
        model, info = AUTO[name].from_pretrained(folder, output_loading_info=True)
        assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        same_bits(model, checkpoint.module)
        assert not model.training
    assert "Error" not in capfd.readouterr().err
    # it is an ordinary model now: saved, opened by anybody, and its config tells no tales
    model.save_pretrained(tmp_path / "again")
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert not config.keys() & {"quantization_config", "transformers_weights", "sparsity_config"}
    same_bits(AUTO[name].from_pretrained(tmp_path / "again"), checkpoint.module)
    if name != "mixtral":  # whose layers are one tensor each, and whose ties are none
        parts = [n for n, _ in model.named_parameters()]
        assert parts == [n for n, _ in checkpoint.module.named_parameters()]


def test_another_dtype_and_the_body_alone(masked, tmp_path):
    name, checkpoint, masks = masked
    export(tmp_path / "x", checkpoint, masks, "auto")
    model = AUTO[name].from_pretrained(tmp_path / "x", dtype=torch.float16)
    for key, tensor in model.named_parameters():
        assert tensor.dtype is torch.float16
        assert torch.equal(tensor, checkpoint.module.state_dict()[key].to(torch.float16))
    body = transformers.AutoModel.from_pretrained(tmp_path / "x")
    state = getattr(checkpoint.module, checkpoint.module.base_model_prefix).state_dict()
    found = body.state_dict()
    shared = [key for key in found if key in state]  # a body alone may have a pooler of its own
    assert len(shared) > 5
    assert all(torch.equal(bits(found[key]), bits(state[key])) for key in shared)


def test_damage_is_an_error_and_not_a_model(masked, tmp_path):
    name, checkpoint, masks = masked
    export(tmp_path / "x", checkpoint, masks, "bitmask")
    config = json.loads((tmp_path / "x" / "config.json").read_text())

    def with_marker(**changes):
        marker = config["quantization_config"] | changes
        (tmp_path / "x" / "config.json").write_text(
            json.dumps(config | {"quantization_config": marker})
        )

    for wrong in ({"format": "zip"}, {"format": "dense"}, {"weights": "../x.safetensors"}):
        with_marker(**wrong)
        with pytest.raises(ArtifactError):
            AUTO[name].from_pretrained(tmp_path / "x")
    with_marker()
    data = bytearray((tmp_path / "x" / WEIGHTS).read_bytes())
    data[-1] ^= 1
    (tmp_path / "x" / WEIGHTS).write_bytes(data)
    with pytest.raises(ArtifactError, match="do not have their hash"):
        AUTO[name].from_pretrained(tmp_path / "x")
    with pytest.raises(ArtifactError, match="do not have their hash"):
        read_artifact(tmp_path / "x")


def python(code, *arguments):
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
        check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip


OPEN = """
import sys
{first}
import transformers
{then}
model = transformers.AutoModelForImageClassification.from_pretrained(sys.argv[1])
print(sum(float(t.double().abs().sum()) for t in model.state_dict().values()))
"""


def test_the_import_is_what_it_takes(tmp_path):
    torch.manual_seed(0)
    PICO["vit"]().save_pretrained(tmp_path / "origin")
    checkpoint = open_checkpoint(str(tmp_path / "origin"))
    export(tmp_path / "x", checkpoint, mask_(checkpoint), "auto")
    wanted = sum(float(t.double().abs().sum()) for t in checkpoint.module.state_dict().values())
    for places in ({"first": "import slt_compress"}, {"then": "import slt_compress"}):
        done = python(OPEN.format(**{"first": "", "then": "", **places}), tmp_path / "x")
        assert done.returncode == 0, done.stderr
        assert float(done.stdout) == pytest.approx(wanted)
    done = python(OPEN.format(first="", then=""), tmp_path / "x")
    assert done.returncode != 0
    assert done.stdout == ""
    assert "no file named" in done.stderr


def test_importing_costs_nothing_and_registers_once():
    code = (
        "import sys, slt_compress, importlib; importlib.reload(slt_compress); "
        "from slt_compress.runtime.hf_registration import _Finder; "
        "assert sum(isinstance(f, _Finder) for f in sys.meta_path) == 1; "
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules); "
        "import transformers.quantizers.auto as auto; "
        "assert 'slt-compress' in auto.AUTO_QUANTIZER_MAPPING; "
        "assert not any(isinstance(f, _Finder) for f in sys.meta_path); "
        "import slt_compress.runtime.hf_registration as r; r.register(); r.register()"
    )
    done = python(code)
    assert done.returncode == 0, done.stderr


def test_a_mask_alone_opens_its_origin(checkpoints, data_sets, tmp_path):
    from pipelines import RECIPE

    ticket = slt_compress.search(
        checkpoints["vit"], data_sets["pictures"], recipe=RECIPE, out=tmp_path / "t"
    )
    out = slt_compress.export(ticket.path, format="mask", out=tmp_path / "x").path
    model = transformers.AutoModelForImageClassification.from_pretrained(out)
    same_bits(model, slt_compress.load(ticket.path))
    model.save_pretrained(tmp_path / "again")
    again = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "again")
    same_bits(again, model)
    manifest = read_manifest(out / WEIGHTS, ArtifactError)
    manifest["provenance"]["weights_hash"] = "0" * 64
    from safetensors.torch import load_file, save_file

    stored = {key: tensor.clone() for key, tensor in load_file(out / WEIGHTS).items()}
    save_file(stored, out / WEIGHTS, metadata={"slt": json.dumps(manifest)})
    with pytest.raises(SltError, match="not those that"):
        transformers.AutoModelForImageClassification.from_pretrained(out)
