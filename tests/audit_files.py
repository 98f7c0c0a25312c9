"""Files as other libraries write them, made by hand: what they hold is known to the last bit."""

from __future__ import annotations

import json
import struct

import numpy as np
import torch
from safetensors.torch import save_file

HEADS = 4
NF4 = torch.linspace(-1, 1, 17)[1:]  # any table with a 0 in it
NF4 = NF4 - NF4[7]


def rows_of(weight, levels):
    """Symmetric codes for every row, and the scales."""
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-9) / levels
    return torch.round(weight / scale), scale


def nf4(name, weight):
    blocks = weight.reshape(-1, 64)
    absmax = blocks.abs().amax(1)
    codes = (blocks[..., None] / absmax.clamp(min=1e-9)[:, None, None] - NF4).abs().argmin(-1)
    flat = codes.reshape(-1, 2).to(torch.uint8)
    facts = {"shape": list(weight.shape), "blocksize": 64, "quant_type": "nf4", "dtype": "float32"}
    text = torch.tensor(list(json.dumps(facts).encode()), dtype=torch.uint8)
    value = (NF4[codes] * absmax[:, None]).reshape(weight.shape)
    layer = name.removesuffix(".weight")
    return value, {
        f"{layer}.weight": (flat[:, 0] << 4 | flat[:, 1])[:, None],
        f"{layer}.weight.absmax": absmax,
        f"{layer}.weight.quant_map": NF4,
        f"{layer}.weight.quant_state.bitsandbytes__nf4": text,
    }


def int8(name, weight):
    codes, scale = rows_of(weight, 127)
    layer = name.removesuffix(".weight")
    parts = {f"{layer}.weight": codes.to(torch.int8), f"{layer}.SCB": (scale * 127).squeeze(1)}
    return codes * (scale * 127 / 127), parts


def quanto8(name, weight):
    codes, scale = rows_of(weight, 127)
    return codes * scale, {f"{name}._data": codes.to(torch.int8), f"{name}._scale": scale}


def quanto4(name, weight):
    """Codes without a zero in groups of 32: what is 0 is so no longer."""
    groups = weight.reshape(-1, 32)
    low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
    scale = (high - low).clamp(min=1e-9) / 15
    codes = torch.clamp(torch.round((groups - low) / scale), 0, 15).to(torch.uint8)
    half = len(codes) // 2
    parts = {
        f"{name}._data._data": codes[:half] | codes[half:] << 4,
        f"{name}._scale": scale,
        f"{name}._shift": -low,
    }
    return (scale * codes + low).reshape(weight.shape), parts


def torchao(name, weight):
    codes, scale = rows_of(weight.reshape(-1, 32), 7)
    layer, rows = name.removesuffix(".weight"), len(weight)
    parts = {
        f"{layer}._weight_qdata": codes.to(torch.int8).reshape(weight.shape),
        f"{layer}._weight_scale": scale.reshape(rows, -1),
        f"{layer}._weight_zero_point": torch.zeros(rows, weight.shape[1] // 32, dtype=torch.int8),
    }
    return (codes * scale).reshape(weight.shape), parts


def in_words(codes):
    """Numbers of four bits along the last dimension in int32 words, the lowest first."""
    eights = codes.long().reshape(*codes.shape[:-1], -1, 8)
    words = (eights << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).to(torch.int32)


def packed4(name, weight):
    codes, scale = rows_of(weight.reshape(-1, 32), 7)
    whole = codes.reshape(weight.shape)
    parts = {
        f"{name}_packed": in_words(whole + 8),
        f"{name}_scale": scale.reshape(len(weight), -1),
        f"{name}_shape": torch.tensor(weight.shape),
    }
    return (codes * scale).reshape(weight.shape), parts


def float8(name, weight):
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-9) / 448
    codes = (weight / scale).to(torch.float8_e4m3fn)
    return codes.float() * scale, {name: codes, f"{name}_scale": scale}


def gptq(name, weight):
    """Four bits along the inputs, with a zero point that is stored less one."""
    codes, scale = rows_of(weight.reshape(len(weight), -1), 7)
    layer = name.removesuffix(".weight")
    parts = {
        f"{layer}.qweight": in_words(codes + 8).T.contiguous(),
        f"{layer}.qzeros": in_words(torch.full((1, len(weight)), 7)),
        f"{layer}.scales": scale.T.contiguous(),
        f"{layer}.g_idx": torch.zeros(weight.shape[1], dtype=torch.int32),
    }
    return codes * scale, parts


def awq(name, weight):
    codes, scale = rows_of(weight, 7)
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    layer = name.removesuffix(".weight")

    def words(numbers):
        return in_words(numbers.reshape(len(numbers), -1, 8)[..., order].reshape(numbers.shape))

    parts = {
        f"{layer}.qweight": words((codes + 8).T.contiguous()),
        f"{layer}.qzeros": words(torch.full((1, len(weight)), 8)),
        f"{layer}.scales": scale.T.contiguous(),
    }
    return codes * scale, parts


def prune_names(name, weight):
    kept = weight != 0
    return weight, {f"{name}_orig": torch.where(kept, weight, 7.0), f"{name}_mask": kept.float()}


SPELLINGS = {
    "bitsandbytes nf4": nf4, "bitsandbytes int8": int8, "quanto": quanto8,
    "quanto, packed": quanto4, "torchao": torchao, "compressed-tensors, packed": packed4,
    "compressed-tensors": float8, "GPTQ or AWQ": gptq, "AWQ": awq,
    "torch.nn.utils.prune": prune_names,
}  # fmt: skip


def save_spelled(folder, tensors, sites, spell):
    """A folder with its sites in a spelling; the values that whoever runs it computes with."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    values, stored = {}, {n: t for n, t in tensors.items() if n not in sites}
    for name in sites:
        values[name], parts = spell(name, tensors[name])
        stored |= parts
    save_file({name: tensor.contiguous().clone() for name, tensor in stored.items()},
              folder / "model.safetensors")  # fmt: skip
    return values


def q8_0(weight):
    blocks = weight.reshape(-1, 32).numpy()
    scale = (np.abs(blocks).max(1, keepdims=True) / 127).astype(np.float16)
    safe = np.where(scale == 0, 1, scale).astype(np.float32)
    codes = np.clip(np.round(blocks / safe), -127, 127).astype(np.int8)
    data = np.concatenate([scale.view(np.uint8), codes.view(np.uint8)], axis=1)
    return data.tobytes(), scale.astype(np.float32) * codes


def q4_1(weight):
    blocks = weight.reshape(-1, 32).numpy()
    low = blocks.min(1, keepdims=True)
    scale = ((blocks.max(1, keepdims=True) - low) / 15).astype(np.float16)
    least = low.astype(np.float16)
    safe = np.where(scale == 0, 1, scale).astype(np.float32)
    codes = np.clip(np.round((blocks - low) / safe), 0, 15).astype(np.uint8)
    packed = codes[:, :16] | codes[:, 16:] << 4
    data = np.concatenate([scale.view(np.uint8), least.view(np.uint8), packed], axis=1)
    return data.tobytes(), scale.astype(np.float32) * codes + least.astype(np.float32)


def f32(weight):
    return weight.numpy().tobytes(), weight.numpy()


GGUF = {"Q8_0": (8, q8_0), "Q4_1": (3, q4_1), "F32": (0, f32)}


def interleaved(weight, heads):
    """As the converter of llama.cpp orders the rows of queries and keys."""
    rows = weight.reshape(heads, 2, len(weight) // heads // 2, weight.shape[1])
    return rows.swapaxes(1, 2).reshape(weight.shape)


def text(value):
    return struct.pack("<Q", len(value)) + value.encode()


def save_gguf(path, tensors, kind):
    """A GGUF file with its own names; the values of every tensor, by our names."""
    number, encode = GGUF[kind]
    entries, body, values = b"", b"", {}
    for place, (name, tensor) in enumerate(tensors.items()):
        query = "q_proj" in name or "k_proj" in name
        data, value = encode(interleaved(tensor, HEADS) if query else tensor)
        entries += text(f"blk.{place}.weight") + struct.pack("<I", 2)
        entries += struct.pack("<QQIQ", *reversed(tensor.shape), number, len(body))
        body += data + b"\0" * (-len(data) % 32)
        value = torch.from_numpy(np.array(value, dtype=np.float32)).reshape(tensor.shape)
        if query:
            rows = value.reshape(HEADS, len(value) // HEADS // 2, 2, -1)
            value = rows.swapaxes(1, 2).reshape(value.shape)
        values[name] = value
    facts = text("general.architecture") + struct.pack("<I", 8) + text("llama")
    facts += text("llama.attention.head_count") + struct.pack("<II", 4, HEADS)
    facts += text("a.list") + struct.pack("<IIQ", 9, 8, 2) + text("one") + text("two")
    facts += text("numbers") + struct.pack("<IIQ3f", 9, 6, 3, 1.0, 2.0, 3.0)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), 4) + facts + entries
    path.write_bytes(head + b"\0" * (-len(head) % 32) + body)
    return values
