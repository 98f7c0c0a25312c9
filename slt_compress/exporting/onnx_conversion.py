"""Convert a masked model to ONNX with as many free axes as possible, and compare the two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slt_compress.anatomy.states import shapes_of
from slt_compress.artifacts import state_of
from slt_compress.artifacts.onnx_file import (
    Axes,
    OnnxInput,
    answer,
    difference_of,
    drop_unread_,
    inputs_of,
    open_session,
    store_unread_,
    trace,
    weights_of,
    write_onnx,
)
from slt_compress.artifacts.shrinking import tolerance_of
from slt_compress.errors import ArtifactError
from slt_compress.masks import Masks
from slt_compress.runtime.opening import Opened
from slt_compress.storage.bits import bits, same_bits
from slt_compress.storage.probe import Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """A model that was written, and what was seen of it.

    Attributes:
        probe: inputs, and the logits of the masked model.
        placed: the initializer that holds a tensor of the model, by the name of the tensor.
        inputs: of the ONNX model.
        difference: the largest between logits of onnxruntime and of torch.
        tolerance: the largest allowed, relative to the largest logit.
        runs: how many batches were compared, of other sizes where an axis is free.
    """

    probe: Probe
    placed: Mapping[str, str]
    inputs: tuple[OnnxInput, ...]
    difference: float
    tolerance: float
    runs: int


def convert(folder: Path, opened: Opened, masks: Masks, probe: Probe) -> Converted:
    """Write the model with as many free axes as the exporter can give it, and run it.

    Raises:
        ArtifactError: it cannot be written; the message has the reason of the first attempt.
    """
    forward, inputs = opened.checkpoint.forward, probe.inputs
    examples = {k: torch.cat((v, v)) if len(v) == 1 else v for k, v in inputs.items()}
    failed: list[ArtifactError] = []
    for axes in _choices(inputs):
        try:
            program = trace(opened.module, forward, examples, axes)
            state = state_of(opened.module, shapes_of(masks)).tensors
            store_unread_(program, {name: state[name] for name in masks})
            placed = _placed(weights_of(program), state, masks)
            drop_unread_(program, frozenset(placed[name] for name in masks))
            write_onnx(program, folder)
            session = open_session(folder)
            wanted, difference, runs = _compared(session, opened, inputs, axes)
        except ArtifactError as error:
            failed.append(error)
            continue
        left = program.model.graph.initializers
        return Converted(
            probe=probe.answered(wanted), inputs=tuple(inputs_of(session)),
            difference=difference,
            tolerance=tolerance_of(opened.module), runs=runs,
            placed={name: where for name, where in placed.items() if where in left},
        )  # fmt: skip
    raise failed[0]


def _choices(inputs: Mapping[str, Tensor]) -> Iterator[Axes]:
    """The axes that may be free, most first: batch and sequence, batch alone, none."""
    batch = {name: {0: "batch"} for name in inputs}
    sequences = {
        name: {1: "target_sequence" if name == "labels" else "sequence"}
        for name, value in inputs.items()
        if value.dim() == 2
    }
    if sequences:
        yield {name: {**axes, **sequences.get(name, {})} for name, axes in batch.items()}
    yield batch
    yield {}


def _compared(
    session: Any, opened: Opened, inputs: Mapping[str, Tensor], axes: Axes
) -> tuple[Tensor, float, int]:
    """Logits of the masked model on the probe, largest difference to them, and how many runs.

    Raises:
        ArtifactError: onnxruntime does not give what torch gives.
    """
    forward = opened.checkpoint.forward
    share, largest, first, runs = tolerance_of(opened.module), 0.0, torch.empty(0), 0
    for batch in _batches(inputs, axes):
        try:
            with torch.inference_mode():
                wanted = forward(opened.module, batch).clone()
        except Exception as cause:  # a model raises whatever it likes on inputs of another size
            raise ArtifactError(f"the model does not take such inputs: {cause}") from cause
        worst = difference_of(answer(session, batch), wanted)
        if not worst <= share * float(wanted.double().abs().max()):
            raise ArtifactError(
                f"onnxruntime gives other outputs than torch: they differ by up to {worst:.2e}, "
                f"more than {share:.0e} of the largest logit"
            )
        first, largest, runs = wanted if runs == 0 else first, max(largest, worst), runs + 1
    return first, largest, runs


def _batches(inputs: Mapping[str, Tensor], axes: Axes) -> Iterator[Mapping[str, Tensor]]:
    """The inputs, and others of another size along every free axis."""
    yield inputs
    if axes:
        yield {k: v[:1] if len(v) > 1 else torch.cat((v, v)) for k, v in inputs.items()}
    longer = [name for name, open_axes in axes.items() if 1 in open_axes]
    if longer and all(inputs[name].shape[1] > 1 for name in longer):
        yield {k: v[:, :-1].contiguous() if k in longer else v for k, v in inputs.items()}


def _placed(
    stored: Mapping[str, Tensor], state: Mapping[str, Tensor], masks: Masks
) -> dict[str, str]:
    """The name under which the ONNX model holds each tensor of the module, bit for bit.

    Raises:
        ArtifactError: a gated weight is missing, or is not masked.
    """
    placed: dict[str, str] = {}
    for name, tensor in state.items():
        likely = [key for key in (name, f"model.{name}") if key in stored]
        where = next((k for k in (*likely, *stored) if same_bits(stored[k], tensor)), None)
        if where is not None:
            placed[name] = where
        if name in masks and (where is None or bool(bits(stored[where])[~masks[name]].any())):
            raise ArtifactError(
                f"torch's exporter did not keep {name} as it is, so nothing could prove its zeros"
            )
    return placed
