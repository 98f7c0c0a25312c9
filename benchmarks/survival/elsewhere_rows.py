"""Rows of packages that need an environment of their own; each docstring names its file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

Made = Iterator[tuple[str, Path]]


def tokenizer() -> Any:
    """Numbers as words: what calibration asks for."""
    import transformers
    from tokenizers import Tokenizer, models

    words = models.WordLevel({str(number): number for number in range(96)}, unk_token="0")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(words), pad_token="0", eos_token="1"
    )


def auto_round(base: Path, out: Path, model: Any) -> Made:
    """Folders in the formats of GPTQ and AWQ, by AutoRound (requirements-auto-round.txt)."""
    import transformers
    from auto_round import AutoRound

    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(0, 96, (1, 32), generator=generator) for _ in range(8)]
    for form, bits, symmetric in (
        ("auto_gptq", 4, True), ("auto_gptq", 4, False), ("auto_gptq", 8, True),
        ("auto_awq", 4, True), ("auto_awq", 4, False),
    ):  # fmt: skip
        label = f"{form}-{bits}-{symmetric}"
        scheme = {"bits": bits, "group_size": 128, "sym": symmetric, "data_type": "int",
                  "act_bits": 16}  # fmt: skip
        rounder = AutoRound(
            transformers.AutoModelForCausalLM.from_pretrained(base), tokenizer(), scheme=scheme,
            iters=0, nsamples=8, seqlen=32, batch_size=2, dataset=ids, device_map="cpu",
        )  # fmt: skip
        rounder.quantize_and_save(str(out / label), format=form)
        kind = form.removeprefix("auto_").upper()
        offset = "" if symmetric else ", with an offset"
        path = next((out / label).rglob("config.json")).parent
        yield f"{kind} format by AutoRound, {bits} bits{offset}", path


def gptq(base: Path, out: Path, model: Any) -> Made:
    """GPTQ itself, and plain rounding, by llm-compressor (requirements-llmcompressor.txt)."""
    import transformers
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, 96, (32, 32), generator=generator)
    rows = Dataset.from_dict(
        {"input_ids": ids.tolist(), "attention_mask": torch.ones_like(ids).tolist()}
    )
    kinds = {
        "GPTQ by llm-compressor, 4 bits": (GPTQModifier, "W4A16"),
        "GPTQ by llm-compressor, 8 bits": (GPTQModifier, "W8A16"),
        "llm-compressor, rounded, 4 bits": (QuantizationModifier, "W4A16"),
    }
    for label, (modifier, scheme) in kinds.items():
        one = transformers.AutoModelForCausalLM.from_pretrained(base)
        recipe = modifier(targets="Linear", scheme=scheme, ignore=["lm_head"])
        oneshot(model=one, dataset=rows, recipe=recipe, processor=tokenizer(), max_seq_length=32,
                num_calibration_samples=32)  # fmt: skip
        folder = out / label.replace(" ", "-")
        one.save_pretrained(folder, save_compressed=True)
        yield label, folder


def nncf(base: Path, out: Path, model: Any) -> Made:
    """Compressed weights of OpenVINO, as OpenVINO decompresses them (requirements-openvino.txt)."""
    import nncf as tool
    import openvino

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=ids, use_cache=False).logits

    whole = openvino.convert_model(
        torch.export.export(Logits().eval(), (torch.randint(0, 96, (2, 8)),), strict=False)
    )
    kinds = {"INT8_SYM": 0, "INT8_ASYM": 0, "INT4_SYM": 64, "INT4_ASYM": 64, "NF4": 64,
             "MXFP4": 32, "FP8_E4M3": 64}  # fmt: skip
    for label, group in kinds.items():
        more = {"ratio": 1.0, "all_layers": True, "group_size": group} if group else {}
        mode = getattr(tool.CompressWeightsMode, label)
        made = tool.compress_weights(whole.clone(), mode=mode, **more)
        folder = out / label
        folder.mkdir()
        save_file(dict(_constants(made)), folder / "model.safetensors")
        yield f"nncf {label}", folder


def _constants(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The weights of all matrix products, computed by OpenVINO itself."""
    import openvino

    for place, operation in enumerate(model.get_ordered_ops()):
        if operation.get_type_name() != "MatMul":
            continue
        weight = operation.input_value(1)
        if weight.partial_shape.is_dynamic or len(weight.shape) != 2:
            continue
        alone = openvino.compile_model(openvino.Model([weight], []), "CPU")
        yield f"product.{place}", torch.from_numpy(next(iter(alone({}).values())).copy()).float()


def hqq(base: Path, out: Path, model: Any) -> Made:
    """Half-quadratic quantisation, as it computes (requirements-hqq.txt)."""
    from hqq.core.quantize import BaseQuantizeConfig, Quantizer

    for bits in (8, 4, 2):
        facts = BaseQuantizeConfig(nbits=bits, group_size=64)["weight_quant_params"]
        state = {}
        for name, weight in model.state_dict().items():
            if weight.dim() == 2 and "proj" in name:
                coded, meta = Quantizer.quantize(weight, device="cpu", compute_dtype=torch.float32,
                                                 **facts)  # fmt: skip
                weight = Quantizer.dequantize(coded, meta).float()
            state[name] = weight.contiguous().clone()
        folder = out / str(bits)
        folder.mkdir()
        save_file(state, folder / "model.safetensors")
        yield f"hqq, {bits} bits in groups of 64", folder


def blockwise(base: Path, out: Path, model: Any) -> Made:
    """bitsandbytes' codes of eight bits by block, those of its optimizers (requirements.txt)."""
    from bitsandbytes import functional

    state = {}
    for name, weight in model.state_dict().items():
        if weight.dim() == 2 and "proj" in name:
            coded, facts = functional.quantize_blockwise(weight.contiguous())
            weight = functional.dequantize_blockwise(coded, facts).reshape(weight.shape)
        state[name] = weight.contiguous().clone()
    save_file(state, out / "model.safetensors")
    yield "bitsandbytes, 8 bits by block", out
