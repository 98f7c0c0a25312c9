"""Convolutions on the compiled kernel, without a copy of the inputs for each weight."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from slt_compress.runtime.kernels.linear import on_planes, on_tiles
from slt_compress.runtime.kernels.rows import SparseRows

# Tokens of the narrowest tile.
_LEAST = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Geometry:
    """Kernel size, stride, padding and dilation of a convolution, each as (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    def outputs(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output for such an image; below 1 if the image is too small."""
        sizes = [
            (size + 2 * pad - dilation * (kernel - 1) - 1) // stride + 1
            for size, pad, dilation, kernel, stride in zip(
                (height, width), self.padding, self.dilation, self.kernel, self.stride, strict=True
            )
        ]
        return sizes[0], sizes[1]

    @property
    def is_pointwise(self) -> bool:
        """Whether each output reads one position."""
        return self.kernel == (1, 1) and self.padding == (0, 0)


class Convolution:
    """The convolution of images [N, channels, height, width] by a matrix [outputs, inputs].

    A column of the matrix is a channel and a position in the kernel, in the order of torch's
    weight. Images are float32, on the CPU, and large enough for an output.
    """

    def __init__(self, rows: SparseRows, geometry: Geometry) -> None:
        self.rows = rows
        self.geometry = geometry
        self._planes: tuple[tuple[int, int], SparseRows] | None = None  # of the last size

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors, including those for the last image size."""
        extra = 0 if self._planes is None else self._planes[1].places.nbytes
        return self.rows.nbytes + extra

    def dense(self) -> Tensor:
        """The matrix [outputs, inputs], bit for bit."""
        return self.rows.dense()

    def __call__(self, images: Tensor) -> Tensor:
        """The output, [N, outputs, height, width]."""
        geometry = self.geometry
        height, width = geometry.outputs(*images.shape[-2:])
        if geometry.is_pointwise:
            images = images[:, :, :: geometry.stride[0], :: geometry.stride[1]]
            if _channels_last(images) or height * width < _LEAST:
                return self._on_tokens(images.permute(0, 2, 3, 1), height, width)
            return self._on_planes(images, 1, height, width)
        if height * width < _LEAST:
            windows = F.unfold(
                images, geometry.kernel, geometry.dilation, geometry.padding, geometry.stride
            )
            return self._on_tokens(windows.transpose(1, 2), height, width)
        return self._on_planes(images, geometry.stride[0], height, width)

    def _on_tokens(self, inputs: Tensor, height: int, width: int) -> Tensor:
        """Each output position as a token [..., columns]; the output is channels last in memory."""
        outputs = on_tiles(self.rows, inputs.reshape(-1, self.rows.columns).contiguous())
        return outputs.view(-1, height, width, self.rows.rows).permute(0, 3, 1, 2)

    def _on_planes(self, images: Tensor, stride: int, height: int, width: int) -> Tensor:
        """A convolution with a stride is one without a stride on the phases of the padded image."""
        down, right = self.geometry.padding
        below, beside = (-(side + 2 * pad) % stride for side, pad in
                         zip(images.shape[-2:], (down, right), strict=True))  # fmt: skip
        if down or right or below or beside:
            images = F.pad(images, (right, right + beside, down, down + below))
        planes = F.pixel_unshuffle(images, stride) if stride > 1 else images
        planes = planes.contiguous()
        tall, wide = planes.shape[-2:]
        outputs = torch.empty(planes.shape[0], self.rows.rows, height, wide)
        tokens = (height - 1) * wide + width
        on_planes(self._placed(tall, wide, stride), planes.flatten(1), tokens, outputs.flatten(2))
        return outputs if wide == width else outputs[..., :width].contiguous()

    def _placed(self, height: int, width: int, stride: int) -> SparseRows:
        """The matrix with places in a sample of phases [channels * stride^2, height, width]."""
        last = self._planes  # read once, as another thread may replace it
        if last is not None and last[0] == (height, width):
            return last[1]
        tall, wide = self.geometry.kernel
        columns = self.rows.columns_of_weights()
        down = columns // wide % tall * self.geometry.dilation[0]
        right = columns % wide * self.geometry.dilation[1]
        channel = columns // (tall * wide)
        phase = (channel * stride + down % stride) * stride + right % stride
        places = (phase * height + down // stride) * width + right // stride
        rows = replace(self.rows, places=places.int())
        self._planes = (height, width), rows
        return rows


def _channels_last(images: Tensor) -> bool:
    last = images.is_contiguous(memory_format=torch.channels_last)
    return last and not images.is_contiguous()
