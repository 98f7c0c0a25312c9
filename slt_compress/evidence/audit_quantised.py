"""Quantised safetensors of other libraries, by the names of their parts and nothing else.

Nothing of the libraries is imported, and no class is looked up by a name from a file: every
spelling is a row of the table below, and its arithmetic stands here.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from slt_compress.errors import SourceError
from slt_compress.evidence.audit_tensors import StoredWeight, blockwise, unpack_words

_Parts = Mapping[str, Tensor]
_JSON_LIMIT = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class _Spelling:
    """How a library writes a weight.

    Attributes:
        name: for the report.
        mark: the suffix that only this spelling has; what stands before it names the layer.
        needed: suffixes that have to be there beside the mark.
        optional: suffixes that may be.
        decode: parts by suffix (the mark among them) to a weight.
    """

    name: str
    mark: str
    needed: tuple[str, ...]
    optional: tuple[str, ...] = ()
    decode: Callable[[_Parts], Tensor]


def _nf4(mark: str) -> Callable[[_Parts], Tensor]:
    """Two codes of a table in a byte, the high one first, and a factor for every block."""

    def decode(parts: _Parts) -> Tensor:
        facts = _json_of(parts[mark])
        codes = _high_first(parts[".weight"])
        size = facts["blocksize"]
        absmax = parts[".weight.absmax"]
        if ".weight.nested_absmax" in parts:
            nested = parts[".weight.nested_quant_map"][absmax.long()]
            absmax = _blocks(nested, parts[".weight.nested_absmax"], facts["nested_blocksize"])
            absmax = absmax + float(facts["nested_offset"])
        count = math.prod(facts["shape"])
        values = parts[".weight.quant_map"].float()[codes[:count].long()]
        return _blocks(values, absmax.float(), size).reshape(facts["shape"])

    return decode


def _int8(parts: _Parts) -> Tensor:
    """Rows of int8, each times its largest magnitude over 127."""
    return blockwise(parts[".weight"], parts[".SCB"] / 127, None)


def _quanto(parts: _Parts) -> Tensor:
    return blockwise(parts[".weight._data"], parts[".weight._scale"], None)


def _quanto_packed(parts: _Parts) -> Tensor:
    """Codes of two or four bits: the first rows are the lowest bits of the bytes."""
    packed, scale = parts[".weight._data._data"], parts[".weight._scale"]
    shift = parts[".weight._shift"]
    rows = shift.numel()
    fields = 4 if rows > 2 * len(packed) else 2
    bits = 8 // fields
    codes = torch.cat([packed >> (bits * i) & (1 << bits) - 1 for i in range(fields)])[:rows]
    if not shift.dtype.is_floating_point:
        return scale * (codes.to(torch.int8) - shift.to(torch.int8))
    return scale * codes - shift


def _torchao(parts: _Parts) -> Tensor:
    zero = parts.get("._weight_zero_point")
    return blockwise(parts["._weight_qdata"], parts["._weight_scale"], zero)


def _packed(parts: _Parts) -> Tensor:
    """Signed numbers of one to eight bits in words, moved up to be unsigned."""
    rows, columns = (int(size) for size in parts[".weight_shape"].tolist())
    packed = parts[".weight_packed"]
    bits = min(8, packed.shape[1] * 32 // max(columns, 1))
    half = 1 << (bits - 1)
    values = unpack_words(packed, bits)[:rows, :columns].int() - half
    zero = parts.get(".weight_zero_point")
    if zero is not None:
        zero = unpack_words(zero.T.contiguous(), bits).T[:rows].int() - half
    return blockwise(values, parts[".weight_scale"], zero)


def _scaled(parts: _Parts) -> Tensor:
    return blockwise(parts[".weight"], parts[".weight_scale"], parts.get(".weight_zero_point"))


def _inverse(parts: _Parts) -> Tensor:
    return blockwise(parts[".weight"], parts[".weight_scale_inv"], None)


_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where the eight numbers of a word stand in it


def _words(parts: _Parts) -> Tensor:
    """GPTQ or AWQ: four or eight bits (inputs, outputs), a zero and a scale for every group."""
    packed, scales = parts[".qweight"], parts[".scales"]
    groups, outputs = scales.shape
    if packed.shape[1] == outputs:  # GPTQ: words run along the inputs
        bits = 32 * parts[".qzeros"].shape[1] // outputs
        codes = unpack_words(packed.T.contiguous(), bits).T.int()
        # one less than the zero point is stored, so that 0 is stored as the largest number
        zeros = (unpack_words(parts[".qzeros"], bits).int() + 1) & ((1 << bits) - 1)
        index = parts.get(".g_idx")
        inputs = len(codes)
        if index is None:
            index = torch.arange(inputs) // -(-inputs // groups)
    else:  # AWQ: along the outputs, in an order of its own
        bits, inputs = 4, len(packed)
        codes, zeros = (_reordered(unpack_words(parts[key], bits).int())
                        for key in (".qweight", ".qzeros"))  # fmt: skip
        index = torch.arange(inputs) // -(-inputs // groups)
    index = index.long()
    return ((codes - zeros[index]).float() * scales[index].float()).T.contiguous()


def _reordered(codes: Tensor) -> Tensor:
    return codes.reshape(len(codes), -1, 8)[:, :, list(_AWQ_ORDER)].reshape(len(codes), -1)


def _pruned(parts: _Parts) -> Tensor:
    return parts["_orig"] * parts["_mask"].to(parts["_orig"].dtype)


_NF4 = (".weight", ".weight.absmax", ".weight.quant_map")
_NESTED = (".weight.nested_absmax", ".weight.nested_quant_map")
_STATE = ".weight.quant_state.bitsandbytes__"
# The order counts where a part of one spelling is the mark of a later one.
_SPELLINGS = (
    *(
        _Spelling(name=f"bitsandbytes {kind}", mark=_STATE + kind, needed=_NF4, optional=_NESTED,
                  decode=_nf4(_STATE + kind))
        for kind in ("nf4", "fp4")
    ),
    _Spelling(name="bitsandbytes int8", mark=".SCB", needed=(".weight",),
              optional=(".weight_format",), decode=_int8),
    _Spelling(name="quanto, packed", mark=".weight._data._data",
              needed=(".weight._scale", ".weight._shift"), decode=_quanto_packed),
    _Spelling(name="quanto", mark=".weight._data", needed=(".weight._scale",), decode=_quanto),
    _Spelling(name="torchao", mark="._weight_qdata", needed=("._weight_scale",),
              optional=("._weight_zero_point",), decode=_torchao),
    _Spelling(name="compressed-tensors, packed", mark=".weight_packed",
              needed=(".weight_scale", ".weight_shape"), optional=(".weight_zero_point",),
              decode=_packed),
    _Spelling(name="compressed-tensors", mark=".weight_scale", needed=(".weight",),
              optional=(".weight_zero_point",), decode=_scaled),
    _Spelling(name="float8 in blocks", mark=".weight_scale_inv", needed=(".weight",),
              decode=_inverse),
    _Spelling(name="GPTQ or AWQ", mark=".qweight", needed=(".qzeros", ".scales"),
              optional=(".g_idx",), decode=_words),
    _Spelling(name="torch.nn.utils.prune", mark="_orig", needed=("_mask",), decode=_pruned),
)  # fmt: skip


def stored_weights(tensors: Mapping[str, Tensor], where: str) -> dict[str, StoredWeight]:
    """All weights of some safetensors files, quantised or not; `tensors` may read lazily."""
    found: dict[str, StoredWeight] = {}
    used: set[str] = set()
    for spelling in _SPELLINGS:
        for key in [k for k in tensors if k.endswith(spelling.mark) and k not in used]:
            layer = key.removesuffix(spelling.mark)
            suffixes = (spelling.mark, *spelling.needed, *spelling.optional)
            keys = {s: layer + s for s in suffixes if layer + s in tensors}
            if not set(spelling.needed) <= keys.keys():
                continue
            name = layer if spelling.mark == "_orig" else f"{layer}.weight"
            found[name] = StoredWeight(
                encoding=spelling.name, read=_reader(tensors, keys, spelling, f"{where}: {name}")
            )
            used |= set(keys.values())
    for key in tensors:
        if key not in used and key not in found:
            found[key] = StoredWeight(encoding="plain", read=_plain(tensors, key))
    return found


def _plain(tensors: Mapping[str, Tensor], key: str) -> Callable[[], Tensor]:
    return lambda: tensors[key]


def _reader(
    tensors: Mapping[str, Tensor], keys: Mapping[str, str], spelling: _Spelling, where: str
) -> Callable[[], Tensor]:
    def read() -> Tensor:
        parts = {suffix: tensors[key] for suffix, key in keys.items()}
        try:
            return spelling.decode(parts)
        except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as cause:
            reason = str(cause).partition("\n")[0][:120]
            raise SourceError(
                f"{where} is not stored as {spelling.name} stores a weight ({reason})"
            ) from cause

    return read


def _json_of(part: Tensor) -> dict[str, Any]:
    if part.dtype is not torch.uint8 or part.numel() > _JSON_LIMIT:
        raise ValueError("its description is not text")
    facts = json.loads(bytes(part.tolist()).decode())
    sizes = [*facts["shape"], facts["blocksize"], facts.get("nested_blocksize", 1)]
    if not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"sizes of {str(sizes)[:40]}")
    return dict(facts)


def _high_first(packed: Tensor) -> Tensor:
    flat = packed.contiguous().view(torch.uint8).reshape(-1)
    return torch.stack([flat >> 4, flat & 15], dim=1).reshape(-1)


def _blocks(values: Tensor, factors: Tensor, size: int) -> Tensor:
    """Every `size` values times their factor; the last block may be smaller."""
    if len(factors) != -(-len(values) // size):
        raise ValueError(f"{len(factors)} factors for {len(values)} values in blocks of {size}")
    return values * factors.repeat_interleave(size)[: len(values)]
