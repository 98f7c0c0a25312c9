"""Whatever is changed in a folder, `verify` says so: config, companion, probe or weights."""

from __future__ import annotations

import json
import shutil

import pytest
from artifact_cases import export, tiny

import slt_compress
from slt_compress.artifacts import describe_artifact, read_artifact
from slt_compress.artifacts.beside import BESIDE
from slt_compress.errors import ArtifactError, SltError
from slt_compress.searching.recipes import parse_recipe

WEIGHTS = "weights.slt.safetensors"
PICO = {"target_sparsity": 0.5, "method": "magnitude", "evaluation": {"limit": 2},
        "training": {"batch_size": 2}}  # fmt: skip


@pytest.fixture(scope="module")
def folders(checkpoints, data_sets, tmp_path_factory):
    """A ticket of a model with tokenizer files, and exports of it, by format."""
    root = tmp_path_factory.mktemp("folders")
    ticket = slt_compress.search(
        str(checkpoints["bert"]), data_sets["reviews"], out=root / "ticket",
        recipe=parse_recipe(PICO),
    ).path  # fmt: skip
    made = {"ticket": ticket}
    for format in ("dense", "bitmask", "mask"):
        made[format] = slt_compress.export(ticket, format=format, out=root / format).path
    return made


def refused(folder) -> bool:
    """Whether `verify` fails, by a check or by an error of one line."""
    try:
        return not slt_compress.verify(folder, in_process=True).ok
    except SltError as error:
        return "\n" not in str(error)


@pytest.mark.parametrize("format", ["ticket", "dense", "bitmask", "mask"])
def test_untouched_folders_verify(folders, format):
    checks = slt_compress.verify(folders[format], in_process=True)
    assert checks.ok, checks


@pytest.mark.parametrize("format", ["dense", "bitmask", "mask"])
def test_every_file_is_covered(folders, tmp_path, format):
    """A byte more, a byte changed, or no file at all: never ok, for every file but the card."""
    for file in sorted(folders[format].iterdir()):
        if file.name == "README.md":
            continue
        whole = file.read_bytes()
        for what, data in {
            "more": whole + b" ", "less": whole[:-1],
            "flip": bytes([*whole[:-2], whole[-2] ^ 1, whole[-1]]), "gone": None,
        }.items():  # fmt: skip
            folder = tmp_path / f"{file.name}-{what}"
            shutil.copytree(folders[format], folder)
            (folder / file.name).unlink()
            if data is not None:
                (folder / file.name).write_bytes(data)
            if file.name == "slt.json" and what in ("more", "less"):
                continue  # white space at the end of the manifest itself
            assert refused(folder), f"{what} of {file.name}"


@pytest.mark.parametrize("format", ["dense", "bitmask", "mask"])
def test_what_load_reads_is_checked_by_load(folders, tmp_path, format):
    manifest = describe_artifact(folders[format]).manifest.values
    names = set(manifest[BESIDE])
    assert {"config.json", "report.json", "tokenizer_config.json", "tokenizer.json"} <= names
    for name in sorted(names):
        folder = tmp_path / name
        shutil.copytree(folders[format], folder)
        (folder / name).write_bytes((folder / name).read_bytes() + b"\n")
        with pytest.raises(ArtifactError, match="was changed or damaged"):
            slt_compress.load(folder)


@pytest.mark.parametrize("name", ["preprocessor_config.json", "vocab.txt", "chat_template.jinja"])
def test_an_added_companion_is_a_failed_check(folders, tmp_path, name):
    shutil.copytree(folders["bitmask"], tmp_path / "x")
    (tmp_path / "x" / name).write_text("{}")
    assert refused(tmp_path / "x")


def test_an_added_weight_file_is_not_opened_instead(folders, tmp_path):
    shutil.copytree(folders["dense"], tmp_path / "x")
    (tmp_path / "x" / "model-2.safetensors").write_bytes(
        (tmp_path / "x" / "model.safetensors").read_bytes()
    )
    with pytest.raises(ArtifactError, match="does not list it"):
        slt_compress.load(tmp_path / "x")


def rewritten(folder, change):
    """The folder with another manifest, in its file's own header."""
    path = folder / WEIGHTS
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    manifest = json.loads(header["__metadata__"]["slt"])
    change(manifest)
    header["__metadata__"]["slt"] = json.dumps(manifest, sort_keys=True)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + length :])


SETTINGS = {
    "hidden_act": "relu", "layer_norm_eps": 0.1, "num_attention_heads": 1,
    "position_embedding_type": "relative_key", "max_position_embeddings": 64,
    "attention_probs_dropout_prob": 0.9, "id2label": {"0": "bad", "1": "good"},
    "pad_token_id": 3, "chunk_size_feed_forward": 2, "is_decoder": True,
}  # fmt: skip


@pytest.mark.parametrize("where", ["config", "origin", "both"])
@pytest.mark.parametrize("name", sorted(SETTINGS))
@pytest.mark.parametrize("format", ["bitmask", "mask"])
def test_a_changed_setting_is_a_failed_check(folders, tmp_path, format, name, where):
    """In the manifest's config, in its record of the origin, and in both of them alike."""

    def change(manifest):
        changed = {"config": [manifest["config"]],
                   "origin": [manifest["provenance"]["origin"]["config"]]}  # fmt: skip
        changed["both"] = changed["config"] + changed["origin"]
        for config in changed[where]:
            config[name] = SETTINGS[name]
        manifest["probe"] = None  # so that no output says it

    if format == "mask" and where == "config":
        pytest.skip("nothing is built from the config of a mask")
    shutil.copytree(folders[format], tmp_path / "x")
    rewritten(tmp_path / "x", change)
    (tmp_path / "x" / "probe.safetensors").unlink()
    assert refused(tmp_path / "x")


@pytest.mark.parametrize("format", ["bitmask", "mask"])
def test_a_changed_setting_is_refused_by_load_too(folders, tmp_path, format):
    """The config in a manifest, which no hash covers, has to be that of the hashed config.json."""
    for where in ("config", "origin") if format == "mask" else ("config",):
        shutil.copytree(folders[format], tmp_path / where)

        def change(manifest, where=where):
            known = {"config": manifest, "origin": manifest["provenance"]["origin"]}[where]
            known["config"]["layer_norm_eps"] = 0.1

        rewritten(tmp_path / where, change)
        with pytest.raises(ArtifactError, match=r"the config in it is not that of config\.json"):
            slt_compress.load(tmp_path / where)


@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_a_changed_setting_of_a_ticket_is_a_failed_check(folders, tmp_path, name):
    shutil.copytree(folders["ticket"], tmp_path / "x")
    manifest = json.loads((tmp_path / "x" / "ticket.json").read_text())
    manifest["origin"]["config"][name] = SETTINGS[name]
    (tmp_path / "x" / "ticket.json").write_text(json.dumps(manifest))
    if name == "max_position_embeddings":  # the weights do not fit such a model
        assert refused(tmp_path / "x")
        return
    checks = slt_compress.verify(tmp_path / "x", in_process=True).checks
    (origin,) = [check for check in checks if check.name == "origin"]
    assert not origin.ok
    assert f"its configuration has {name}" in origin.detail


@pytest.mark.parametrize("format", ["bitmask", "ticket"])
def test_a_missing_probe_is_a_failed_check(folders, tmp_path, format):
    folder = tmp_path / "x"
    shutil.copytree(folders[format], folder)
    if format == "ticket":
        manifest = json.loads((folder / "ticket.json").read_text())
        (folder / "probe.safetensors").unlink()
        del manifest["files"]["probe.safetensors"]
        (folder / "ticket.json").write_text(json.dumps(manifest))
    else:
        rewritten(folder, lambda manifest: manifest.update(probe=None))
        (folder / "probe.safetensors").unlink()
    found = slt_compress.verify(folder, in_process=True)
    assert not found.ok
    assert any("probe" in check.detail for check in found.checks if not check.ok)


def test_an_artifact_of_before_the_hashes_still_opens(folders, tmp_path):
    shutil.copytree(folders["bitmask"], tmp_path / "x")
    rewritten(tmp_path / "x", lambda manifest: manifest.pop(BESIDE))
    assert slt_compress.verify(tmp_path / "x", in_process=True).ok
    config = json.loads((tmp_path / "x" / "config.json").read_text())
    (tmp_path / "x" / "config.json").write_text(json.dumps(config | {"hidden_act": "relu"}))
    assert refused(tmp_path / "x")


@pytest.mark.parametrize("name", ["../x", "/etc/hostname", ".x", "a/b"])
def test_a_manifest_lists_plain_file_names(tmp_path, name):
    export(tmp_path / "x", *tiny(), "bitmask")
    rewritten(tmp_path / "x", lambda manifest: manifest[BESIDE].update({name: "0" * 64}))
    with pytest.raises(ArtifactError, match="no plain file name"):
        read_artifact(tmp_path / "x", model=tiny()[0].module)


@pytest.mark.parametrize("format", ["ticket", "mask", "bitmask", "dense"])
def test_a_changed_gain_is_a_failed_check(tmp_path, format):
    """Also without a probe whose logits would say it."""
    recipe = parse_recipe({"target_sparsity": 0.9, "method": "magnitude", "init": "random",
                           "dataset": "digits", "evaluation": {"limit": 20}})  # fmt: skip
    folder = slt_compress.search("lenet-300-100", recipe=recipe, out=tmp_path / "ticket").path
    if format != "ticket":
        folder = slt_compress.export(folder, format=format, out=tmp_path / "x").path
    assert slt_compress.verify(folder, in_process=True).ok

    def change(manifest):
        gains = manifest["gains"] if format == "ticket" else manifest["provenance"]["gains"]
        name = min(gains)
        gains[name] *= 1.001

    if format in ("ticket", "dense"):
        path = folder / ("ticket.json" if format == "ticket" else "slt.json")
        manifest = json.loads(path.read_text())
        change(manifest)
        path.write_text(json.dumps(manifest))
    else:
        rewritten(folder, change)
    (count,) = [c for c in slt_compress.verify(folder, in_process=True).checks if c.name == "count"]
    assert not count.ok
    assert "the gain of" in count.detail
