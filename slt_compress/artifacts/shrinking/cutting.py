"""Decide which units of a masked model can be cut, and show on inputs that outputs stay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slt_compress.anatomy.copies import copy_of
from slt_compress.artifacts.shrinking.cuts import Shrunk, resize_
from slt_compress.artifacts.shrinking.decision import Decision, LayerNote
from slt_compress.artifacts.shrinking.tracing import Forward, walk
from slt_compress.errors import ArtifactError

# The largest difference of logits, relative to the largest logit, for the same model.
TOLERANCE = 1e-4


def tolerance_of(module: nn.Module) -> float:
    """`TOLERANCE`, or the rounding of sums in another order in the narrowest dtype, if larger."""
    floating = [
        p.dtype for p in module.parameters() if p.is_floating_point() and p.element_size() > 1
    ]
    return max(TOLERANCE, 2 * max((torch.finfo(dtype).eps for dtype in floating), default=0.0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Shrinking:
    """A masked model without the units that it does not need.

    Attributes:
        module: the smaller copy.
        shrunk: what was cut.
        layers: what became of each gated weight.
        difference: the largest from the masked model's outputs, relative to its largest output.
    """

    module: nn.Module
    shrunk: Shrunk
    layers: Mapping[str, LayerNote]
    difference: float


def shrink(module: nn.Module, forward: Forward, masks: Mapping[str, Tensor]) -> Shrinking:
    """Cut the units of a masked module that are constant or that nothing reads.

    Args:
        module: in eval mode with the masks applied; it is not changed.
        forward: `forward(module)` returns the outputs that must stay the same.
        masks: which weights count, by name.

    Raises:
        ArtifactError: it cannot be traced, nothing can be cut, or the outputs would change.
    """
    ledger = walk(module, forward, masks)
    with torch.no_grad():
        wanted = forward(module)
    whole = Decision(ledger, module, masks)
    try:
        return _shrunk_by(whole, module, forward, wanted)
    except ArtifactError:
        if not any(whole.cuts(entry.queries) for entry in ledger.heads):
            raise
    # Some attentions keep their number of heads where it cannot be updated: leave them whole.
    for entry in ledger.heads:
        ledger.pin(entry.queries, "has a number of heads that the model does not run without")
    return _shrunk_by(Decision(ledger, module, masks), module, forward, wanted)


def _shrunk_by(
    decision: Decision, module: nn.Module, forward: Forward, wanted: Tensor
) -> Shrinking:
    """Cut, and compare the outputs.

    Raises:
        ArtifactError: there is nothing to cut, or the outputs differ.
    """
    shrunk, layers = decision.shrunk(), decision.notes()
    if not shrunk.tensors:
        raise ArtifactError(f"nothing can be shrunk: {_summary(layers)}")
    smaller = shrunken(module, shrunk)
    difference = _difference(smaller, forward, wanted)
    return Shrinking(module=smaller, shrunk=shrunk, layers=layers, difference=difference)


def _summary(layers: Mapping[str, LayerNote]) -> str:
    """Why nothing was cut, from the first layer with something to cut."""
    for name, note in layers.items():
        if note.left:
            return f"{note.left} empty rows or columns of {name} stay, as {note.reason}"
    return "no layer has a row or column without a kept weight; search with a structured pattern"


def shrunken(module: nn.Module, shrunk: Shrunk) -> nn.Module:
    """A smaller copy of a masked module."""
    smaller = copy_of(module)
    with torch.no_grad():
        for name, fold in shrunk.folds.items():
            bias = smaller.get_parameter(name)
            bias.copy_(fold.of(bias, smaller.get_parameter(fold.weight)))
    resize_(smaller, shrunk)
    return smaller


def _difference(module: nn.Module, forward: Forward, wanted: Tensor) -> float:
    """How far a shrunk module's outputs are off, relative to the largest of the masked one.

    Raises:
        ArtifactError: it does not run, or they are too far off.
    """
    way_out = "export without --shrink"
    try:
        with torch.no_grad():
            outputs = forward(module)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        text = " ".join(str(error).split())[:120]
        raise ArtifactError(f"the shrunk model does not run ({text}); {way_out}") from error
    if outputs.shape != wanted.shape:
        raise ArtifactError(f"the shrunk model has outputs of another shape; {way_out}")
    largest = float(wanted.double().abs().max())
    difference = float((outputs.double() - wanted.double()).abs().max()) / (largest or 1.0)
    if not difference <= tolerance_of(module):
        raise ArtifactError(
            f"the outputs of the shrunk model differ by {difference:.1e} of the largest; {way_out}"
        )
    return difference
