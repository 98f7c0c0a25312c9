"""What a file may hand to a library's constructor: names that shape a network, and plain values."""

from __future__ import annotations

import inspect
import json
import shutil

import pytest
import timm
import torch
from timm.models._builder import build_model_with_cfg, load_pretrained

import slt_compress
from slt_compress.checkpoints import open_checkpoint
from slt_compress.checkpoints.config_values import checked_config
from slt_compress.checkpoints.opening import sketch_checkpoint
from slt_compress.checkpoints.plain_values import is_no_place, is_plain, is_word
from slt_compress.checkpoints.timm_arguments import argument_names, checked_arguments
from slt_compress.errors import SourceError
from slt_compress.searching.recipes import parse_recipe

# arguments of timm's loaders, each with a value that would be harmless if it were used
LOADERS = {
    "checkpoint_path": "nothing.txt",
    "cache_dir": "nowhere",
    "pretrained_cfg": "a1_in1k",
    "pretrained_cfg_overlay": {"file": "nothing.txt"},
    "pretrained_strict": False,
    "pretrained_model_args": {},
    "pruned": True,
    "scriptable": True,
    "device": "cpu",
    "file": "nothing.txt",
    "state_dict": "nothing",
}
VALUES = ["a/b", "../x", "C:\\x", "x:y", ".hidden", "a b", "x" * 65, {"a": 1}, 2**64, "é", "a\n"]
PICO = {"target_sparsity": 0.5, "method": "magnitude", "evaluation": {"limit": 2},
        "training": {"batch_size": 2}}  # fmt: skip


def test_no_argument_of_a_loader_is_allowed_for_any_timm_model():
    loaders = {
        name
        for loader in (timm.create_model, build_model_with_cfg, load_pretrained)
        for name in inspect.signature(loader).parameters
    } - {"num_classes", "in_chans"}
    for name in timm.list_models(module="resnet") + timm.list_models("*tiny*")[:80]:
        assert not argument_names(name) & (loaders | set(LOADERS)), name


def test_arguments_of_published_configs_are_allowed():
    for name, arguments in {
        "vit_base_patch16_224": {"img_size": 384, "global_pool": "avg", "class_token": False},
        "resnet50": {"stem_type": "deep", "block_args": None, "aa_layer": "blurpool"},
        "efficientnet_b0": {"bn_eps": 1e-3, "act_layer": "silu", "pad_type": "same"},
        "convnext_tiny": {"depths": [2, 2, 6, 2], "dims": (8, 8, 8, 8), "norm_layer": None},
        "regnety_002": {"se_ratio": 0.25, "depth": 12, "drop_path_rate": 0.1},
    }.items():
        assert checked_arguments(name, arguments) == arguments


@pytest.mark.parametrize("value", VALUES, ids=str)
def test_a_value_that_is_not_plain_is_refused(value):
    with pytest.raises(SourceError, match="numbers, booleans, short words") as caught:
        checked_arguments("resnet18", {"stem_type": value})
    assert "\n" not in str(caught.value)
    assert not is_plain(value)


def changed(source, folder, **arguments):
    shutil.copytree(source, folder)
    config = json.loads((folder / "config.json").read_text())
    config["model_args"] = {**(config.get("model_args") or {}), **arguments}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", sorted(LOADERS))
def test_a_timm_folder_cannot_set_an_argument_of_a_loader(checkpoints, tmp_path, name):
    folder = changed(checkpoints["resnet"], tmp_path / "x", **{name: LOADERS[name]})
    for opened in (open_checkpoint, sketch_checkpoint, slt_compress.plan):
        with pytest.raises(SourceError, match=f"{name}.* is not an argument that shapes"):
            opened(str(folder))


def test_neither_a_ticket_nor_an_artifact_nor_a_recipe_can(checkpoints, data_sets, tmp_path):
    ticket = slt_compress.search(
        str(checkpoints["resnet"]), data_sets["pictures"], out=tmp_path / "t",
        recipe=parse_recipe(PICO),
    ).path  # fmt: skip
    refused = "is not an argument that shapes"
    recipe = parse_recipe({**PICO, "model": {"checkpoint_path": "nothing.txt"}})
    with pytest.raises(SourceError, match=refused):
        slt_compress.plan(str(checkpoints["resnet"]), recipe=recipe)
    dense = slt_compress.export(ticket, format="dense", out=tmp_path / "dense").path
    changed(dense, tmp_path / "changed", checkpoint_path="nothing.txt")
    with pytest.raises(slt_compress.SltError, match=r"config\.json was changed"):
        slt_compress.load(tmp_path / "changed")
    assert not slt_compress.verify(tmp_path / "changed", in_process=True).ok
    manifest = json.loads((ticket / "ticket.json").read_text())
    manifest["origin"]["config"]["model_args"] = {"checkpoint_path": "nothing.txt"}
    (ticket / "ticket.json").write_text(json.dumps(manifest))
    with pytest.raises(SourceError, match=refused):
        slt_compress.load(ticket)
    with pytest.raises(SourceError, match=refused):
        slt_compress.verify(ticket, in_process=True)


def declared(name):
    return name in {"backbone", "hidden_act", "text_config", "model_type"}


@pytest.mark.parametrize("value", ["org/name", "/x", "..\\x", "hf-hub:x", "~x", ".x", 2**70])
def test_a_transformers_config_names_no_place(value):
    for found in ({"backbone": value}, {"text_config": {"anything": [value]}}):
        with pytest.raises(SourceError, match="name no file, folder or address") as caught:
            checked_config(found, "x", declared)
        assert "\n" not in str(caught.value)
    assert checked_config({"note": value, "hidden_act": "gelu"}, "x", declared) == {
        "hidden_act": "gelu"
    }


def test_keys_that_lead_elsewhere_are_dropped_at_any_depth():
    away = {"auto_map": {"a": "b.c"}, "_name_or_path": "org/x", "attn_implementation": "org/k"}
    found = {"text_config": {**away, "hidden_act": "gelu"}, **away}
    assert checked_config(found, "x", declared) == {"text_config": {"hidden_act": "gelu"}}


def test_labels_and_special_tokens_are_texts():
    found = {"id2label": {"0": "tench/fish: a"}, "eos_token": "</s>", "sep_token": "[SEP]"}
    assert checked_config(found, "x", declared) == found


def test_what_is_nested_too_deep_is_a_sentence():
    value = 1
    for _ in range(200):
        value = {"a": [value]}
    with pytest.raises(SourceError, match="nested too deep"):
        checked_config({"text_config": value}, "x", declared)


def test_a_wrapper_of_timm_cannot_hand_on_an_argument_of_a_loader(tmp_path):
    config = {"model_type": "timm_wrapper", "architecture": "resnet18", "num_labels": 3,
              "model_args": {"pretrained_strict": False}}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match="is not an argument that shapes"):
        sketch_checkpoint(str(tmp_path))
    config |= {"architecture": "local-dir", "model_args": {}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SourceError, match="no architecture"):
        sketch_checkpoint(str(tmp_path))


def test_words_and_texts():
    assert all(map(is_word, ("gelu_tanh", "3n", "")))
    assert all(map(is_no_place, ("a sentence. of words", "<|end|>")))
    assert not is_no_place("x" * 201)


def test_a_plain_config_opens_as_before(checkpoints):
    for name in ("vit", "bert", "llama", "mixtral", "resnet", "convnext"):
        module = open_checkpoint(str(checkpoints[name])).module
        assert all(torch.isfinite(weight).all() for weight in module.parameters())
