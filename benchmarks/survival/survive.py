"""One row of docs/after-the-mask.md for every step that a masked model may take next.

    python benchmarks/survival/survive.py [ROW ...]

Rows: those of the tables ROWS and ELSEWHERE below; each of ELSEWHERE has an environment of its own.
"""

from __future__ import annotations

import copy
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import elsewhere_rows
import gguf_rows
import torch
import training_rows
import transformers
from safetensors.torch import save_file

from slt_compress.evidence.audit import audit_model
from slt_compress.searching.recipes import Recipe
from slt_compress.tickets.importing import import_checkpoint

HEADS = 4
Made = Iterator[tuple[str, Path]]


def masked_llama(folder: Path) -> Any:
    """A Llama of two layers of which nine weights in ten are 0."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=256, intermediate_size=512, num_hidden_layers=2,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, max_position_embeddings=64,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if weight.dim() == 2 and "embed" not in name:
            weight.data *= torch.rand_like(weight) < 0.1
    model.save_pretrained(folder)
    return model


def quantised(base: Path, folder: Path, config: Any) -> Path:
    """A folder that transformers quantises while it loads, saved again."""
    kind = transformers.AutoModelForCausalLM
    kind.from_pretrained(base, quantization_config=config).save_pretrained(folder)
    return folder


def bitsandbytes(base: Path, out: Path, model: Any) -> Made:
    """Four and eight bits, as transformers saves them."""
    config = transformers.BitsAndBytesConfig
    for kind in ("nf4", "fp4"):
        made = config(load_in_4bit=True, bnb_4bit_quant_type=kind)
        yield f"bitsandbytes {kind}", quantised(base, out / kind, made)
    made = config(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    yield "bitsandbytes nf4, nested", quantised(base, out / "nested", made)
    yield "bitsandbytes int8", quantised(base, out / "int8", config(load_in_8bit=True))


def quanto(base: Path, out: Path, model: Any) -> Made:
    """The four kinds of weights."""
    from optimum.quanto import freeze, qfloat8, qint2, qint4, qint8, quantize

    kinds = {"qint8": qint8, "qfloat8": qfloat8, "qint4": qint4, "qint2": qint2}
    for label, kind in kinds.items():
        one = copy.deepcopy(model)
        quantize(one, weights=kind, exclude="lm_head")
        freeze(one)
        (out / label).mkdir()
        state = {name: t.contiguous().clone() for name, t in one.state_dict().items()}
        save_file(state, out / label / "model.safetensors")
        yield f"quanto {label}", out / label


def torchao(base: Path, out: Path, model: Any) -> Made:
    """What can be saved as safetensors."""
    from torchao.quantization import (
        Float8WeightOnlyConfig,
        Int8DynamicActivationInt8WeightConfig,
        Int8WeightOnlyConfig,
        IntxWeightOnlyConfig,
        PerGroup,
    )

    configs = {
        "int8": Int8WeightOnlyConfig(),
        "int8, dynamic": Int8DynamicActivationInt8WeightConfig(),
        "float8": Float8WeightOnlyConfig(),
        "int4, groups of 32": IntxWeightOnlyConfig(
            weight_dtype=torch.int4, granularity=PerGroup(32)
        ),
    }
    for label, config in configs.items():
        folder = out / label.split(",")[0].replace("int8", f"int8-{len(label)}")
        yield f"torchao {label}", quantised(base, folder, transformers.TorchAoConfig(config))


def compressed_tensors(base: Path, out: Path, model: Any) -> Made:
    """Rounded to the nearest, without data."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        QuantizationStatus,
        apply_quantization_config,
    )

    kinds = {
        "int8": ("pack-quantized", {"num_bits": 8, "type": "int", "strategy": "channel"}),
        "int4": ("pack-quantized", {"num_bits": 4, "type": "int", "strategy": "group",
                                    "group_size": 32}),
        "float8": ("float-quantized", {"num_bits": 8, "type": "float", "strategy": "channel"}),
    }  # fmt: skip
    for label, (form, facts) in kinds.items():
        one = copy.deepcopy(model)
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**facts))
        config = QuantizationConfig(
            config_groups={"group_0": scheme},
            ignore=["lm_head"],
            format=form,
            quantization_status=QuantizationStatus.FROZEN,
        )
        apply_quantization_config(one, config)
        top = 448.0 if facts["type"] == "float" else 2 ** (facts["num_bits"] - 1) - 0.5
        for module in one.modules():
            if hasattr(module, "weight_scale"):
                groups = module.weight.reshape(
                    len(module.weight), -1, facts.get("group_size", module.weight.shape[1])
                )
                module.weight_scale.data = (
                    groups.abs().amax(-1).reshape(module.weight_scale.shape) / top
                )
        compressor = ModelCompressor(quantization_config=config)
        compressor.compress_model(one)
        state = {
            n: t.contiguous().clone() for n, t in one.state_dict().items() if n != "lm_head.weight"
        }
        (out / label).mkdir()
        save_file(state, out / label / "model.safetensors")
        yield f"compressed-tensors {label}", out / label


def onnxruntime(base: Path, out: Path, model: Any) -> Made:
    """Dynamic quantisation, and blocks of four bits."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=ids, use_cache=False).logits

    ids = torch.randint(0, 96, (2, 8))
    torch.onnx.export(Logits().eval(), (ids,), str(out / "m.onnx"), dynamo=True)
    yield "ONNX, dense", out / "m.onnx"
    for label, how in {
        "int8": {"weight_type": QuantType.QInt8},
        "uint8": {"weight_type": QuantType.QUInt8},
        "int8, per channel": {"weight_type": QuantType.QInt8, "per_channel": True},
        "int8, reduced range": {"weight_type": QuantType.QInt8, "reduce_range": True},
    }.items():
        path = out / f"{label.replace(', ', '-').replace(' ', '-')}.onnx"
        quantize_dynamic(str(out / "m.onnx"), str(path), **how)
        yield f"onnxruntime dynamic {label}", path
    for symmetric in (True, False):
        path = out / f"n4-{symmetric}.onnx"
        made = MatMulNBitsQuantizer(
            onnx.load(out / "m.onnx"), block_size=32, is_symmetric=symmetric
        )
        made.process()
        made.model.save_model_to_file(str(path))
        yield f"onnxruntime 4 bits, {'symmetric' if symmetric else 'with an offset'}", path


ROWS: Mapping[str, Callable[[Path, Path, Any], Made]] = {
    "gguf": gguf_rows.gguf, "bitsandbytes": bitsandbytes, "blockwise": elsewhere_rows.blockwise,
    "quanto": quanto, "torchao": torchao, "compressed-tensors": compressed_tensors,
    "onnxruntime": onnxruntime, "optimizers": training_rows.optimizers,
    "eight-bits": training_rows.eight_bits, "past": training_rows.past,
    "trainer": training_rows.trainer, "lora": training_rows.lora,
    "adapters": training_rows.adapters, "ema": training_rows.ema,
}  # fmt: skip
# Each in an environment of its own, by the file that its docstring names.
ELSEWHERE: Mapping[str, Callable[[Path, Path, Any], Made]] = {
    "k-quants": gguf_rows.k_quants, "auto-round": elsewhere_rows.auto_round,
    "gptq": elsewhere_rows.gptq, "nncf": elsewhere_rows.nncf, "hqq": elsewhere_rows.hqq,
}  # fmt: skip


def main(rows: list[str]) -> None:
    """Run rows and print a table, and JSON for those who want the figures."""
    lines = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model = masked_llama(folder / "base")
        import_checkpoint(folder / "base", folder / "t", recipe=Recipe().to_dict())
        for row in rows or ROWS:
            (folder / row).mkdir()
            for label, path in {**ROWS, **ELSEWHERE}[row](
                folder / "base", folder / row, copy.deepcopy(model)
            ):
                totals = audit_model(path, folder / "t").totals()
                if totals["layers_found"] != totals["layers"]:
                    print(f"{label}: not all layers were found", file=sys.stderr)
                if not totals["layers_found"]:
                    continue
                kept = 1 - (totals["zeros_lost"] or 0) / (totals["zeros"] or 1)
                became = (totals["kept_zeroed"] or 0) / (totals["kept"] or 1)
                changed = (totals["kept_changed"] or 0) / (totals["kept"] or 1)
                print(f"| {label} | {kept:.1%} | {became:.2%} | {changed:.1%} |", flush=True)
                lines.append({"step": label, **totals})
    print(json.dumps(lines), file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
