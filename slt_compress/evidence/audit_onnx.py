"""The weights of any ONNX model: dense, in QDQ form or dynamically quantised, by initializer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slt_compress.artifacts.onnx_file import require_onnx
from slt_compress.errors import ArtifactError, SourceError
from slt_compress.evidence.audit_onnx_notes import onnx_notes
from slt_compress.evidence.audit_tensors import StoredModel, StoredWeight, unpack_words
from slt_compress.storage.manifests import is_file_name

# Where the nodes that take quantised weights have the weight, its scale and its zero point.
_PLACES: Mapping[str, tuple[tuple[int, int | None, int | None], ...]] = {
    "DequantizeLinear": ((0, 1, 2),),
    "QLinearConv": ((3, 4, 5),),
    "QGemm": ((3, 4, 5),),
    "QLinearMatMul": ((0, 1, 2), (3, 4, 5)),
    "MatMulIntegerToFloat": ((1, 3, 5),),
    "DynamicQuantizeMatMul": ((1, 2, 3),),
    "MatMulInteger": ((1, None, 3),),
    "ConvInteger": ((1, None, 3),),
    "MatMulNBits": ((1, 2, 3),),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Quantised:
    """Names of the scale and the zero point of an initializer, and how it is laid out.

    Attributes:
        scale: an initializer: one, or one for each place of `axis` or for each block along it.
        zero: of the zero points; None where they are 0, or the middle of packed codes.
        axis: of several scales.
        block: weights to a scale; 0 where there is one for a place of the axis.
        bits: of packed codes, in rows of (outputs, blocks, bytes); 0 where they are not packed.
        inputs: how many codes of a row count, where they are packed.
    """

    scale: str
    zero: str | None
    axis: int
    block: int
    bits: int = 0
    inputs: int = 0


def read_onnx(path: Path) -> StoredModel:
    """The initializers of an ONNX file, dequantised where a node says how.

    Raises:
        SourceError: it is no ONNX model, takes weights from elsewhere, or the extra is missing.
    """
    try:
        require_onnx()
    except ArtifactError as cause:
        raise SourceError(str(cause).replace("the format onnx needs", f"{path} needs")) from cause
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as cause:  # protobuf and the file system have errors of their own
        raise SourceError(f"{path} is not a sound ONNX model ({type(cause).__name__})") from cause
    graphs = list(_graphs(model.graph))
    entries = {entry.name: entry for graph in graphs for entry in graph.initializer}
    nodes = [node for graph in graphs for node in graph.node]
    quantised = dict(_quantised(nodes, entries))
    parts = {name for known in quantised.values() for name in (known.scale, known.zero)}
    weights = {}
    for name, entry in entries.items():
        if name in parts or len(entry.dims) < 2:
            continue
        known = quantised.get(name)
        label = _dtype_name(entry) if known is None else f"{_dtype_name(entry)}, quantised"
        read: Callable[[], Tensor] = partial(_read, path, entry, entries, known)
        weights[name] = StoredWeight(encoding=label, read=read)
    notes = onnx_notes(nodes, entries, partial(_tensor, path))
    return StoredModel(kind="ONNX", weights=weights, notes=notes)


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and those inside its nodes (branches and bodies of loops)."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.g.node or attribute.g.initializer:
                yield from _graphs(attribute.g)


def _quantised(nodes: list[Any], entries: Mapping[str, Any]) -> Iterator[tuple[str, _Quantised]]:
    for node in nodes:
        facts = {attribute.name: attribute.i for attribute in node.attribute}
        names = list(node.input)
        for weight, scale, zero in _PLACES.get(node.op_type, ()):
            name = names[weight] if weight < len(names) else ""
            if name not in entries:
                continue
            # onnxruntime multiplies by the scale of a dynamic weight elsewhere, under this name
            told = names[scale] if scale is not None else name.removesuffix("_quantized") + "_scale"
            point = names[zero] if zero is not None and zero < len(names) else None
            if told in entries:
                axis = facts.get("axis", 1 if node.op_type == "DequantizeLinear" else -1)
                yield name, _Quantised(scale=told, zero=point if point in entries else None,
                                       axis=axis, block=facts.get("block_size", 0),
                                       bits=facts.get("bits", 4) if "N" in facts else 0,
                                       inputs=facts.get("K", 0))  # fmt: skip


def _read(path: Path, entry: Any, entries: Mapping[str, Any], known: _Quantised | None) -> Tensor:
    values = _tensor(path, entry)
    if known is None:
        return values
    scale = _tensor(path, entries[known.scale]).float()
    zero = None if known.zero is None else _tensor(path, entries[known.zero])
    try:
        if known.bits:
            return _unpacked(values, scale, zero, known)
        scale, zero = (_placed(part, values, known) for part in (scale, zero))
        whole = values.float() if zero is None else values.float() - zero
        dequantised: Tensor = whole * scale
    except (RuntimeError, IndexError, ValueError) as cause:
        raise SourceError(f"{path}: the scales of {entry.name} do not fit it ({cause})") from cause
    return dequantised


def _unpacked(values: Tensor, scale: Tensor, zero: Tensor | None, known: _Quantised) -> Tensor:
    """Codes of a few bits in bytes, the lowest first, with a scale for every block of a row."""
    rows = len(values)
    codes = unpack_words(values.reshape(rows, -1), known.bits)
    scale = scale.reshape(rows, -1)
    if zero is None:
        middle = torch.full_like(scale, 1 << (known.bits - 1))
    elif zero.dtype is torch.uint8:
        middle = unpack_words(zero.reshape(rows, -1), known.bits)[:, : scale.shape[1]].float()
    else:
        middle = zero.reshape(rows, -1)
    centred = codes.reshape(rows, scale.shape[1], -1) - middle[:, :, None]
    return (centred * scale[:, :, None]).reshape(rows, -1)[:, : known.inputs]


def _placed(part: Tensor | None, values: Tensor, known: _Quantised) -> Any:
    """Scales in a shape that broadcasts over the values."""
    if part is None or part.numel() == 1:
        return part if part is None else part.float().reshape(())
    part = part.float()
    if known.block:
        repeated = part.repeat_interleave(known.block, dim=known.axis)
        return repeated.narrow(known.axis, 0, values.shape[known.axis])
    shape = [1] * values.dim()
    shape[known.axis] = -1
    return part.reshape(shape)


def _tensor(path: Path, entry: Any) -> Tensor:
    from onnx import numpy_helper

    places = {item.key: item.value for item in entry.external_data}
    location = places.get("location", "x")
    if not is_file_name(location) or (path.parent / location).is_symlink():
        raise SourceError(f"{path} takes {entry.name} from {location[:80]!r}, which is not opened")
    try:
        array = numpy_helper.to_array(entry, str(path.parent))
        if array.dtype.kind not in "fiub":  # four bits, eight-bit floats and bfloat16
            array = array.astype("float32")
        return torch.from_numpy(array.copy())
    except Exception as cause:  # of onnx, numpy or the file system
        raise SourceError(f"{path}: {entry.name} cannot be read ({str(cause)[:120]})") from cause


def _dtype_name(entry: Any) -> str:
    import onnx

    return str(onnx.TensorProto.DataType.Name(entry.data_type)).lower()
