"""Layers that can compute with their kept weights alone, and when they do."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, MutableMapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slt_compress.anatomy.parameters import is_conv1d
from slt_compress.runtime.kernels import (
    Convolution,
    CsrLinear,
    Geometry,
    Linear,
    can_compile,
    sparse_rows,
)
from slt_compress.runtime.packed import PACKED, Once, PackedParameters, held_of, leaves_alone

# Above this share of kept weights dense kernels win.
DENSEST = 0.5
# Rows and places are int32.
_TOO_LARGE = 1 << 31


class Kernel(Protocol):
    """Computes the outputs of a layer from its inputs."""

    @property
    def nbytes(self) -> int:
        """Bytes that it holds beside the layer's own weights."""

    def dense(self) -> Tensor:
        """The matrix [outputs, inputs] that it multiplies with, before any rounding."""

    def __call__(self, inputs: Tensor, /) -> Tensor:
        """The layer's outputs."""


class Choice:
    """Which kernel a layer uses for how many tokens, from timings at some token counts.

    Between two counts a kernel is used if kernels won at both; below or above all counts, if it won
    at the nearest. A token is a row of the inputs of a linear layer, or a position in the outputs
    of a convolution.
    """

    def __init__(self, points: Mapping[int, str | None]) -> None:
        self.points = dict(sorted(points.items()))
        self._counts = list(self.points)

    def kernel(self, tokens: int) -> str | None:
        """The name of a kernel; None for the layer's own computation."""
        if tokens < 1 or not self._counts:
            return None
        place = bisect_left(self._counts, tokens)
        above = self._counts[min(place, len(self._counts) - 1)]
        below = above if above == tokens or place == 0 else self._counts[place - 1]
        return self.points[above] if self.points[below] else None

    @property
    def least(self) -> int:
        """The smallest token count for which a kernel is used."""
        won = [count for count in self._counts if self.points[count]]
        return 1 if not won or won[0] == self._counts[0] else won[0]

    @property
    def always(self) -> bool:
        """Whether a kernel is used for every token count."""
        return bool(self.points) and all(self.points.values())

    @property
    def used(self) -> list[str]:
        """The names of the kernels that it can choose."""
        return sorted({name for name in self.points.values() if name})


class SparseForward:
    """The forward of a layer: a kernel where one can be used, otherwise that of the class.

    The layer computes densely for everything but plain float32 tensors on the CPU, when gradients
    are required, under autocast, torch.compile and tracing, and once its weight or bias are not
    those that the kernels were made from (moved, loaded, edited in place; edits through `.data`
    cannot be detected).
    """

    def __init__(self, layer: nn.Module, kernels: Mapping[str, Kernel], choice: Choice) -> None:
        self.layer = layer
        self.kernels = {name: kernels[name] for name in choice.used}
        self.choice = choice
        self._parameters: MutableMapping[str, Any] = layer._parameters
        self._columns = 0 if isinstance(layer, nn.Conv2d) else _columns(layer)
        # Below this many elements no kernel is used. A linear layer checks that first: a small one
        # takes no longer than all the other checks.
        self._least = choice.least * self._columns if type(layer) is nn.Linear else 0
        # Aliases keep the memory from being reused, and share the count of edits.
        self._seen = {
            name: (value.detach(), value._version) for name, value in _tensors(layer).items()
        }
        self._shape = tuple(_tensors(layer)["weight"].shape)
        self._once = Once()

    @property
    def nbytes(self) -> int:
        """Bytes of the kernels."""
        return sum(kernel.nbytes for kernel in self.kernels.values())

    def put_on(self) -> None:
        """Make the layer use it; hooks, state and class of the layer stay as they are."""
        vars(self.layer)["forward"] = self.forward

    def pack(self, once: Once) -> None:
        """Let go of the dense weight, if the layer never computes with it; it must be put on."""
        if not self.choice.always:
            return
        self._once = once
        self._parameters = PackedParameters(self._parameters, self._rebuilt)
        vars(self.layer)["_parameters"] = self._parameters
        vars(self.layer)["_apply"] = self.apply
        del self._seen["weight"]

    def _rebuilt(self) -> nn.Parameter:
        """The dense weight from the kernel; from now on its edits are seen."""
        with torch.inference_mode(False):  # edits of a tensor made in it cannot be seen
            matrix = next(iter(self.kernels.values())).dense()
            matrix = matrix.t().contiguous() if is_conv1d(self.layer) else matrix
            weight = nn.Parameter(matrix.reshape(self._shape), requires_grad=False)
            self._seen["weight"] = (weight.detach(), weight._version)
        self._once.say(weight)
        return weight

    def apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        """`nn.Module._apply`, which needs no dense weight where it changes nothing."""
        if held_of(self._parameters).get("weight") is not PACKED or not leaves_alone(fn):
            apply: Any = type(self.layer)._apply
            apply(self.layer, fn, recurse)
        return self.layer

    def take_off(self) -> None:
        """Give the layer its own forward back."""
        vars(self.layer).pop("forward", None)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute the outputs of the layer."""
        if len(args) == 1 and not kwargs and isinstance(args[0], Tensor):
            inputs = args[0]
            if inputs.numel() < self._least:
                weight = self._parameters.get("weight")
                if weight is not None:
                    return F.linear(inputs, weight, self._parameters["bias"])
            name = self.choice.kernel(self._tokens(inputs))
            if name is not None and self._suits(inputs):
                return self.kernels[name](inputs)
        return type(self.layer).forward(self.layer, *args, **kwargs)

    def _tokens(self, inputs: Tensor) -> int:
        if not self._columns:
            return tokens_of(self.layer, inputs)
        return _rows(inputs, self._columns)

    def _suits(self, inputs: Tensor) -> bool:
        plain = type(inputs) in (Tensor, nn.Parameter) and inputs.layout == torch.strided
        if not plain or inputs.dtype != torch.float32 or not inputs.is_cpu:
            return False
        now = {name: value for name, value in held_of(self._parameters).items()
               if value is not None and value is not PACKED}  # fmt: skip
        trained = inputs.requires_grad or any(value.requires_grad for value in now.values())
        if (trained and torch.is_grad_enabled()) or torch.is_autocast_enabled("cpu"):
            return False
        if torch.compiler.is_compiling() or torch._C._get_tracing_state() or inputs.is_neg():
            return False
        return now.keys() == self._seen.keys() and all(
            now[name].data_ptr() == seen.data_ptr() and seen._version == version
            for name, (seen, version) in self._seen.items()
        )


def _tensors(layer: nn.Module) -> dict[str, Tensor]:
    tensors = {name: layer._parameters.get(name) for name in ("weight", "bias")}
    return {name: value for name, value in tensors.items() if value is not None}


def _columns(layer: nn.Module) -> int:
    """Inputs of a linear layer."""
    weight = _tensors(layer)["weight"]
    return weight.shape[0 if is_conv1d(layer) else 1]


def _rows(inputs: Tensor, columns: int) -> int:
    """How many rows of this many columns; 0 where the inputs do not have them."""
    fits = columns > 0 and inputs.dim() > 0 and inputs.shape[-1] == columns
    return inputs.numel() // columns if fits else 0


def why_dense(layer: nn.Module) -> str | None:
    """Why a layer has no sparse kernel; None where it has one."""
    weight = layer._parameters.get("weight")
    if type(layer) not in (nn.Linear, nn.Conv2d) and not is_conv1d(layer):
        return f"{type(layer).__name__} has no sparse kernel"
    if weight is None or weight.dtype != torch.float32 or weight.device.type != "cpu":
        return "sparse kernels are for float32 weights on the CPU"
    if weight.is_inference():
        return "its weight was made in inference mode, so that edits cannot be seen"
    if "forward" in vars(layer):
        return "its forward was replaced already"
    if weight.numel() >= _TOO_LARGE:
        return "it is too large"
    density = int(weight.count_nonzero()) / max(1, weight.numel())
    if density > DENSEST:
        return f"{density:.0%} of its weights are kept, sparse kernels pay below {DENSEST:.0%}"
    if isinstance(layer, nn.Conv2d):
        return _why_dense_convolution(layer)
    return None


def _why_dense_convolution(layer: nn.Conv2d) -> str | None:
    if not can_compile():
        return "convolutions need: pip install 'slt-compress[fast]'"
    if layer.groups != 1:
        return "it has groups"
    if layer.padding_mode != "zeros" or isinstance(layer.padding, str):
        return "its padding is not a number of zeros"
    if layer.stride[0] != layer.stride[1]:
        return "its strides differ"
    return None


def kernels_of(layer: nn.Module, precision: str = "fp32") -> dict[str, Kernel]:
    """The kernels of a layer without a `why_dense`: ours, or torch's where ours cannot be.

    Only linear layers on our kernel have lower precisions.
    """
    values = {name: value.detach() for name, value in _tensors(layer).items()}
    weight, bias = values["weight"], values.get("bias")
    if isinstance(layer, nn.Conv2d):
        rows = sparse_rows(weight.flatten(1), bias)
        return {"compiled": Convolution(rows, _geometry(layer))}
    matrix = weight.t() if is_conv1d(layer) else weight
    if can_compile():
        name = "compiled" if precision == "fp32" else precision
        rows = sparse_rows(matrix, bias, filled=precision != "fp32")
        return {name: Linear(rows, precision)}
    return {"csr": CsrLinear(matrix, bias)}


def _geometry(layer: nn.Conv2d) -> Geometry:
    kernel, stride, padding, dilation = (
        (int(pair[0]), int(pair[1]))
        for pair in (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    )
    return Geometry(kernel=kernel, stride=stride, padding=padding, dilation=dilation)


def tokens_of(layer: nn.Module, inputs: Tensor) -> int:
    """How many tokens the inputs have; 0 where the layer would refuse them."""
    if not isinstance(layer, nn.Conv2d):
        return _rows(inputs, _columns(layer))
    if inputs.dim() != 4 or inputs.shape[1] != layer.in_channels:
        return 0
    geometry = _geometry(layer)
    height, width = geometry.outputs(*inputs.shape[-2:])
    stride, (down, right) = geometry.stride[0], geometry.padding
    padded = (inputs.shape[-2] + 2 * down + stride) * (inputs.shape[-1] + 2 * right + stride)
    if height < 1 or width < 1 or padded * layer.in_channels >= _TOO_LARGE:
        return 0
    return inputs.shape[0] * height * width
