"""Opening, rebuilding and reopening real checkpoint folders; every refusal in one sentence."""

from __future__ import annotations

import json
import logging
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import Tensor, nn

from slt_compress.checkpoints import (
    Checkpoint,
    build_module,
    open_checkpoint,
    origin_record,
    reopen,
    sketch_checkpoint,
)
from slt_compress.errors import SourceError

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TEXT = SIZES | {"vocab_size": 50}
GROUPED = TEXT | {"num_key_value_heads": 1, "bos_token_id": 1, "eos_token_id": 2}
CAT_DOG = {"id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}

MAKERS: dict[str, Callable[[], Any]] = {
    "vit": lambda: hf.ViTForImageClassification(
        hf.ViTConfig(**SIZES, image_size=16, patch_size=8, **CAT_DOG)
    ),
    "bert": lambda: hf.BertForSequenceClassification(hf.BertConfig(**TEXT)),
    "bert-tokens": lambda: hf.BertForTokenClassification(hf.BertConfig(**TEXT)),
    "bert-masked": lambda: hf.BertForMaskedLM(hf.BertConfig(**TEXT)),
    "bert-bare": lambda: hf.BertModel(hf.BertConfig(**TEXT)),
    "gpt2": lambda: hf.GPT2LMHeadModel(
        hf.GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0)
    ),
    "llama": lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED)).to(torch.bfloat16),
    "mixtral": lambda: hf.MixtralForCausalLM(hf.MixtralConfig(**GROUPED, num_local_experts=3)),
    "gemma": lambda: hf.GemmaForCausalLM(hf.GemmaConfig(**GROUPED, head_dim=8)),
    "t5": lambda: hf.T5ForConditionalGeneration(
        hf.T5Config(d_model=16, d_ff=32, num_layers=1, num_heads=2, d_kv=8, vocab_size=50)
    ),
    "wav2vec2": lambda: hf.Wav2Vec2ForSequenceClassification(
        hf.Wav2Vec2Config(
            **SIZES,
            num_feat_extract_layers=2,
            conv_dim=(8, 8),
            conv_stride=(5, 2),
            conv_kernel=(10, 3),
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
        )
    ),
    "timm-resnet": lambda: timm.create_model("resnet10t", num_classes=3),
    "timm-convnext": lambda: timm.create_model("test_convnext", num_classes=2),
    "timm-vit": lambda: timm.create_model("test_vit", num_classes=2, img_size=64),
    "timm-features": lambda: timm.create_model("test_vit", num_classes=0),
}
TASKS = {
    "vit": "image-classification",
    "bert": "text-classification",
    "bert-tokens": "token-classification",
    "bert-masked": "masked-lm",
    "bert-bare": "features",
    "gpt2": "causal-lm",
    "llama": "causal-lm",
    "mixtral": "causal-lm",
    "gemma": "causal-lm",
    "t5": "seq2seq",
    "wav2vec2": "audio-classification",
    "timm-resnet": "image-classification",
    "timm-convnext": "image-classification",
    "timm-vit": "image-classification",
    "timm-features": "features",
}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, nn.Module]]:
    root, found = tmp_path_factory.mktemp("saved"), {}
    for name, maker in MAKERS.items():
        torch.manual_seed(1)
        module = maker().eval()
        if name.startswith("timm"):
            # timm before 1.0.31 does not note the arguments of create_model by itself
            arguments = {"img_size": 64} if name == "timm-vit" else None
            save_for_hf(module, str(root / name), model_args=arguments, safe_serialization=True)
        else:
            module.save_pretrained(root / name)
        found[name] = (root / name, module)
    return found


@pytest.fixture
def vit(saved: dict[str, tuple[Path, nn.Module]], tmp_path: Path) -> Path:
    """A copy of the ViT's folder to be damaged."""
    folder = tmp_path / "vit"
    folder.mkdir()
    for path in saved["vit"][0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def same(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(
        a[key].dtype is b[key].dtype and torch.equal(a[key], b[key]) for key in a
    )


def unsaved(module: nn.Module) -> dict[str, Tensor]:
    """Buffers that no file holds: the architecture has to make them."""
    kept = module.state_dict()
    return {name: value for name, value in module.named_buffers() if name not in kept}


def ties(module: nn.Module) -> set[frozenset[str]]:
    names: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name)
    return {frozenset(group) for group in names.values() if len(group) > 1}


@pytest.mark.parametrize("name", MAKERS)
def test_folder_opens_bit_identical_and_rebuilds(
    name: str, saved: dict[str, tuple[Path, nn.Module]]
) -> None:
    folder, module = saved[name]
    opened = open_checkpoint(folder)
    assert (opened.kind, opened.task) == ("folder", TASKS[name])
    assert opened.trained_head is (opened.task != "features")
    assert same(module, opened.module)
    assert not opened.module.training
    assert ties(opened.module) == ties(module)
    assert opened.stored == ()
    file_keys = set(load_file(folder / "model.safetensors"))
    assert set(opened.file_keys) == {key for key, _ in module.named_parameters()}
    assert {key for keys in opened.file_keys.values() for key in keys} <= file_keys
    record = json.loads(json.dumps(origin_record(opened)))
    assert same(module, reopen(record).module)
    built = build_module(record["family"], record["task"], record["config"])
    shapes = {key: (v.shape, v.dtype) for key, v in module.state_dict().items()}
    assert {key: (v.shape, v.dtype) for key, v in built.state_dict().items()} == shapes
    assert ties(built) == ties(module)
    expected, got = unsaved(opened.module), unsaved(built)
    assert expected.keys() == got.keys()
    assert all(torch.equal(value, got[key]) for key, value in expected.items())


def test_fused_weights_name_all_their_file_keys(
    saved: dict[str, tuple[Path, nn.Module]],
) -> None:
    keys = open_checkpoint(saved["mixtral"][0]).file_keys
    fused = next(name for name in keys if "0" in name and name.endswith("gate_up_proj"))
    assert len(keys[fused]) == 6  # three experts, gate and up each
    assert len({key for found in keys.values() for key in found}) == sum(map(len, keys.values()))


@pytest.mark.parametrize("name", MAKERS)
def test_random_init_needs_config_alone(
    name: str, saved: dict[str, tuple[Path, nn.Module]], tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_bytes((saved[name][0] / "config.json").read_bytes())
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = open_checkpoint(tmp_path, init="random", seed=3, classes=["a", "b", "c", "d"])
    assert torch.equal(before, torch.random.get_rng_state())
    assert (first.kind, first.trained_head, first.file_keys) == ("random", False, {})
    assert first.init is not None
    assert (first.init.scheme, first.init.seed) == ("signed-constant", 3)
    if first.num_classes:
        assert (first.num_classes, first.classes) == (4, ("a", "b", "c", "d"))
    record = json.loads(json.dumps(origin_record(first)))
    (tmp_path / "config.json").unlink()
    again = reopen(record)  # neither the folder nor the config file is needed
    assert same(first.module, again.module)
    assert (again.classes, again.stored) == (first.classes, first.stored)
    weights = [p for p in first.module.parameters() if p.dim() >= 2 and p.requires_grad]
    for weight in weights[:2]:
        assert len(set(weight.detach().float().abs().flatten().tolist())) == 1


@pytest.mark.parametrize("init", ["kaiming-normal", "kaiming-uniform", "uniform:0.5", "default"])
def test_schemes(init: str) -> None:
    one, two = (open_checkpoint("lenet-300-100", init=init, seed=s) for s in (0, 1))
    assert not same(one.module, two.module)
    assert same(one.module, open_checkpoint("lenet-300-100", init=init, seed=0).module)
    assert set(one.stored) == (set(one.module.state_dict()) if init == "default" else set())


def test_options_change_the_architecture(saved: dict[str, tuple[Path, nn.Module]]) -> None:
    deeper = open_checkpoint(
        saved["vit"][0], init="random", options={"num_hidden_layers": 3, "image_size": 32}
    )
    assert deeper.config["num_hidden_layers"] == 3
    assert deeper.module(torch.rand(1, 3, 32, 32)).logits.shape == (1, 2)
    aliased = open_checkpoint(saved["gpt2"][0], init="random", options={"num_hidden_layers": 2})
    assert aliased.config["n_layer"] == 2
    assert same(aliased.module, reopen(origin_record(aliased)).module)
    small = open_checkpoint(
        "timm:test_vit", init="random", num_classes=7, options={"img_size": 32, "patch_size": 8}
    )
    assert small.module(torch.rand(1, 3, 32, 32)).shape == (1, 7)
    assert open_checkpoint("test_vit", init="random").family == "timm"  # a bare name
    assert open_checkpoint("conv2", init="random", options={"num_classes": 4}).num_classes == 4


def test_task_chooses_another_head(saved: dict[str, tuple[Path, nn.Module]]) -> None:
    found = open_checkpoint(saved["bert-masked"][0], init="random", task="causal-lm")
    assert type(found.module).__name__ == "BertLMHeadModel"
    with pytest.raises(SourceError, match=r"no weights for .* classifier"):
        open_checkpoint(saved["bert-masked"][0], task="text-classification")


def test_weights_of_a_reference_net(tmp_path: Path) -> None:
    source = open_checkpoint("resnet20-cifar", init="kaiming-normal", num_classes=5)
    path = tmp_path / "net.safetensors"
    save_file(source.module.state_dict(), path)
    opened = open_checkpoint("resnet20-cifar", weights=path)
    assert (opened.kind, opened.weights, opened.num_classes) == ("file", str(path), 5)
    assert same(source.module, opened.module)
    record = origin_record(opened)
    assert same(source.module, reopen(record).module)
    path.rename(tmp_path / "moved.safetensors")
    with pytest.raises(SourceError, match="--origin"):
        reopen(record)
    assert same(source.module, reopen(record, override=tmp_path / "moved.safetensors").module)
    with pytest.raises(SourceError, match=r"does not fit conv2"):
        open_checkpoint("conv2", weights=tmp_path / "moved.safetensors")


def test_dtype_of_the_file_is_kept(
    saved: dict[str, tuple[Path, nn.Module]], tmp_path: Path
) -> None:
    assert open_checkpoint(saved["llama"][0]).module.lm_head.weight.dtype is torch.bfloat16  # type: ignore[union-attr]
    folder, module = saved["timm-vit"]
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    half = {key: value.to(torch.float16) for key, value in module.state_dict().items()}
    save_file(half, tmp_path / "model.safetensors")
    opened = open_checkpoint(tmp_path)
    assert {p.dtype for p in opened.module.parameters()} == {torch.float16}
    assert all(torch.equal(half[key], v) for key, v in opened.module.state_dict().items())
    built = build_module(opened.family, opened.task, opened.config)
    assert {p.dtype for p in built.parameters()} == {torch.float16}


def test_class_names_and_licences(vit: Path, saved: dict[str, tuple[Path, nn.Module]]) -> None:
    assert open_checkpoint(vit).classes == ("cat", "dog")
    assert open_checkpoint(saved["bert"][0]).classes is None  # LABEL_0, LABEL_1 name nothing
    (vit / "README.md").write_text("---\ntags:\n- a\nlicense: apache-2.0\n---\nlicense: gpl\n")
    assert open_checkpoint(vit).license == "apache-2.0"
    (vit / "README.md").write_text("license: gpl\n")
    assert open_checkpoint(vit).license is None
    folder = vit.parent / "named"
    folder.mkdir()
    config = json.loads((saved["timm-vit"][0] / "config.json").read_text())
    config |= {"label_names": ["n01", "n02"], "label_descriptions": {"n01": "tench, Tinca tinca"}}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(saved["timm-vit"][1].state_dict(), folder / "model.safetensors")
    assert open_checkpoint(folder).classes == ("n01, tench, Tinca tinca", "n02")


def test_nothing_is_printed_and_no_setting_stays(
    saved: dict[str, tuple[Path, nn.Module]], capfd: pytest.CaptureFixture[str]
) -> None:
    logger = logging.getLogger("transformers")
    before = (logger.level, hf.utils.logging.is_progress_bar_enabled())
    open_checkpoint(saved["mixtral"][0])
    with pytest.raises(SourceError):
        open_checkpoint(saved["bert-masked"][0], task="text-classification")
    assert capfd.readouterr() == ("", "")
    assert before == (logger.level, hf.utils.logging.is_progress_bar_enabled())


# refusals ---------------------------------------------------------------------------------------


def shard(folder: Path, mapping: dict[str, str]) -> None:
    (folder / "model.safetensors").unlink()
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": mapping}))


def lie(folder: Path, header: bytes, claimed: int | None = None) -> None:
    size = struct.pack("<Q", len(header) if claimed is None else claimed)
    (folder / "model.safetensors").write_bytes(size + header)


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def truncate(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def without(folder: Path, part: str) -> None:
    path = folder / "model.safetensors"
    save_file({key: v for key, v in load_file(path).items() if part not in key}, path)


def reshape(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file(tensors | {"classifier.weight": torch.zeros(9, 16)}, path)


HUGE = json.dumps({"w": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}})
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda f: (f / "config.json").unlink(), "has no config.json"),
    "config is no JSON": (lambda f: (f / "config.json").write_text("{"), "as JSON"),
    "config is a list": (lambda f: (f / "config.json").write_text("[]"), "not an object"),
    "deep config": (lambda f: (f / "config.json").write_text("[" * 99999), "as JSON"),
    "no family": (lambda f: (f / "config.json").write_text("{}"), "neither model_type"),
    "unknown model": (lambda f: edit(f, model_type="zzz"), "'zzz' model"),
    "own code": (lambda f: edit(f, model_type="zzz", auto_map={"A": "b.C"}), "never run"),
    "bad config value": (lambda f: edit(f, hidden_size="wide"), "not a valid vit config"),
    "quantized": (lambda f: edit(f, quantization_config={"quant_method": "gptq"}), "gptq"),
    "artifact": (
        lambda f: edit(f, quantization_config={"quant_method": "slt-compress"}),
        r"slt_compress\.load",
    ),
    "ticket": (lambda f: (f / "ticket.json").write_text("{}"), r"ticket.*slt_compress\.load"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "has no weights"),
    "only a pickle": (pickled, r"pytorch_model\.bin.*save_pretrained"),
    "truncated": (truncate, "not a valid safetensors file"),
    "empty": (lambda f: (f / "model.safetensors").write_bytes(b""), "not a valid"),
    "header longer than file": (lambda f: lie(f, b"{}", 1 << 62), "not a valid"),
    "tensor longer than file": (lambda f: lie(f, HUGE.encode()), "not a valid"),
    "no tensors": (lambda f: lie(f, b"{}"), "holds no tensors"),
    "missing key": (lambda f: without(f, "classifier.weight"), r"classifier\.weight"),
    "all keys missing": (lambda f: without(f, "vit"), "no weights for"),
    "other shape": (reshape, r"classifier\.weight|size"),
    "missing shard": (lambda f: shard(f, {"a": "model-1.safetensors"}), r"lacks the shard model-1"),
    "shard above": (lambda f: shard(f, {"a": "../x.safetensors"}), "plain"),
    "shard elsewhere": (lambda f: shard(f, {"a": "/etc/x.safetensors"}), "plain"),
    "shard is a pickle": (lambda f: shard(f, {"a": "model.bin"}), "plain"),
    "empty index": (lambda f: shard(f, {}), "no weight_map"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_folder_is_refused(case: str, vit: Path) -> None:
    damage, sentence = DAMAGE[case]
    damage(vit)
    with pytest.raises(SourceError, match=sentence) as caught:
        open_checkpoint(vit)
    assert "\n" not in str(caught.value)
    assert str(vit) in str(caught.value)


def refusal(**arguments: Any) -> str:
    with pytest.raises(SourceError) as caught:
        open_checkpoint(**arguments)
    return str(caught.value)


def test_wrong_requests_are_refused(saved: dict[str, tuple[Path, nn.Module]], vit: Path) -> None:
    bert, net = saved["bert"][0], saved["timm-vit"][0]
    file = vit / "model.safetensors"
    (vit / "x.pt").write_bytes(b"\x80\x04")
    assert "--init random or --weights" in refusal(source="lenet-300-100")
    assert "no initialisation" in refusal(source="lenet-300-100", init="zeros")
    assert "either from a file" in refusal(source="conv2", init="random", weights=file)
    assert "do not fit" in refusal(source="conv2", weights=file)
    assert "no weights file" in refusal(source="conv2", weights=vit / "absent.safetensors")
    assert "can run code" in refusal(source="conv2", weights=vit / "x.pt")
    assert "can run code" in refusal(source=vit / "x.pt")
    assert "--weights model.safetensors" in refusal(source=file)
    assert "no file or folder" in refusal(source="./absent")
    assert "no file or folder" in refusal(source="a/b/c")
    assert "no file or folder" in refusal(source="")
    assert "no model 'zzz'" in refusal(source="timm:zzz")
    assert "tagged 'zzz'" in refusal(source="timm:test_vit.zzz", init="random")
    assert "unknown task 'zzz'" in refusal(source=bert, task="zzz")
    assert "not one for causal-lm" in refusal(source=net, task="causal-lm")
    assert "no seq2seq head" in refusal(source=bert, task="seq2seq", init="random")
    assert "'colour'" in refusal(source=bert, init="random", options={"colour": 1})
    assert "colour" in refusal(source=net, init="random", options={"colour": 1})
    assert "model.colour" in refusal(source="conv2", init="random", options={"colour": 1})
    assert "a positive number of classes" in refusal(source="conv2", init="random", num_classes=0)
    assert "revision" in refusal(source="conv2", revision="main")


def test_records_of_others_are_refused(vit: Path) -> None:
    record = origin_record(open_checkpoint("conv2", init="random"))
    for change in (
        {"family": "zzz"},
        {"family": "module"},
        {"config": None},
        {"config": {"architecture": "os.system"}},
        {"init": None},
        {"init": {"scheme": 1}},
        {"init": {"scheme": "zzz", "seed": 0}},
    ):
        with pytest.raises(SourceError):
            reopen(record | change)
    gone = origin_record(open_checkpoint(vit))
    (vit / "model.safetensors").unlink()
    with pytest.raises(SourceError, match="has no weights"):
        reopen(gone)


def test_a_checkpoint_cannot_be_changed() -> None:
    found = open_checkpoint("conv2", init="random")
    assert isinstance(found, Checkpoint)
    with pytest.raises(AttributeError):
        found.source = "conv4"  # type: ignore[misc]


def test_a_config_with_an_infinite_number_opens(tmp_path: Path) -> None:
    config = hf.Mamba2Config(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_heads=4, head_dim=8, state_size=4
    )
    assert float("inf") in config.time_step_limit
    config.save_pretrained(tmp_path)
    assert "Infinity" in (tmp_path / "config.json").read_text()
    opened = open_checkpoint(tmp_path, init="random", options={"num_hidden_layers": 2})
    assert len(opened.module.layers) == 2
    assert json.loads(json.dumps(origin_record(opened), allow_nan=False))["config"]


def test_a_type_without_a_base_model_has_the_features_of_its_head(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "superpoint"}')
    sketch = sketch_checkpoint(tmp_path)
    assert (sketch.task, type(sketch.module).__name__) == (
        "features", "SuperPointForKeypointDetection"
    )  # fmt: skip


def test_arguments_that_timm_changes_with_weights_are_the_same_without() -> None:
    """An artifact is built without weights: its normalisation must be that of its origin."""
    with torch.device("meta"):
        settings = {"state_dict": timm.create_model("fbnetc_100").state_dict()}
        loaded = timm.create_model("fbnetc_100", pretrained=True, pretrained_cfg_overlay=settings)
    built = sketch_checkpoint("timm:fbnetc_100").module
    found, wanted = (
        {child.eps for child in module.modules() if isinstance(child, nn.BatchNorm2d)}
        for module in (built, loaded)
    )
    assert found == wanted == {1e-3}
