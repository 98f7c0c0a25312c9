"""Gram matrices of the inputs of sites, summed up by hooks on forward passes."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from slt_compress.searching.input_norms import summed_dims
from slt_compress.sites.layouts import Grouped
from slt_compress.sites.sites import Site

# The input of one call as rows [groups, N, C], in parts: what the C weights of an output multiply.
_RowsOf = Callable[[Tensor], Iterator[Tensor]]
# Windows of a convolution are laid out for at most so many fp32 numbers at once.
_WINDOWS = 2**26


@dataclass(slots=True)
class Gram:
    """X'X of the inputs of one site, [groups, C, C] in fp32, and the number N of rows of X.

    A convolution of several groups has one matrix for each; all others have one. A `centred` one
    is that of X less the mean of its rows. `columns` says which inputs its mean has, in order.
    """

    centred: bool = False
    columns: Tensor | None = None
    product: Tensor | None = None
    sums: Tensor | None = None
    rows: int = 0

    def add(self, product: Tensor, sums: Tensor, rows: int) -> None:
        """Add X'X and the sums of the rows, [groups, C], of one call."""
        self.product = product if self.product is None else self.product + product
        self.sums = sums if self.sums is None else self.sums + sums
        self.rows += rows

    def mean(self) -> Tensor | None:
        """X'X / N; None where the site saw nothing."""
        if self.product is None or self.sums is None or not self.rows:
            return None
        mean = self.product / self.rows
        if self.centred:
            centre = self.sums / self.rows
            mean = mean - centre[:, :, None] * centre[:, None, :]
        if self.columns is None:
            return mean
        columns = self.columns.to(mean.device)
        return mean[:, columns][:, :, columns]


class _Products:
    """X'X of the last input, which several sites may share: queries, keys and values."""

    def __init__(self) -> None:
        self._input: Tensor | None = None
        self._kind: Any = None
        self._result: tuple[Tensor, Tensor, int] | None = None

    def of(self, value: Tensor, rows_of: _RowsOf, kind: Any) -> tuple[Tensor, Tensor, int]:
        """X'X, sums and number of the rows of an input; `kind` says how it is cut in windows."""
        if self._result is None or self._input is not value or self._kind != (value._version, kind):
            product, sums, count = torch.zeros(()), torch.zeros(()), 0
            for rows in rows_of(value.detach()):
                product = product.to(rows.device) + rows.transpose(1, 2) @ rows
                sums = sums.to(rows.device) + rows.sum(1)
                count += rows.shape[1]
            self._input, self._kind = value, (value._version, kind)
            self._result = product, sums, count
        return self._result


@contextmanager
def seen_grams(
    module: nn.Module, sites: Sequence[Site], centred: Container[str] = ()
) -> Iterator[Mapping[str, Gram]]:
    """Sum up the inputs of the sites over all forward passes in the block, by hooks.

    Only sites for which `has_gram` holds have an entry, in the columns of `as_matrix`. It takes
    4 C^2 bytes a site.
    """
    grams: dict[str, Gram] = {}
    products = _Products()
    with ExitStack() as hooks:
        for site in sites:
            owner = module.get_submodule(site.module)
            if has_gram(owner, site):
                grams[site.name] = Gram(centred=site.name in centred, columns=_columns(site))
                hook = owner.register_forward_pre_hook(_listener(grams[site.name], owner, products))
                hooks.callback(hook.remove)
        yield grams


def sites_in_front_of_batchnorm(
    module: nn.Module, sites: Sequence[Site], run: Callable[[], Any]
) -> frozenset[str]:
    """Names of the sites whose output is the input of a BatchNorm in the forward pass `run`.

    It takes away the mean of what they miss.
    """
    outputs: dict[str, Any] = {}
    followed: set[str] = set()

    def follow(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        followed.update(name for name, output in outputs.items() if output is arguments[0])

    norms = [child for child in module.modules() if isinstance(child, _BatchNorm)]
    with ExitStack() as hooks:
        for norm in norms:
            hooks.callback(norm.register_forward_pre_hook(follow).remove)
        for site in sites if norms else ():
            hooks.callback(
                module.get_submodule(site.module)
                .register_forward_hook(
                    lambda _, __, output, name=site.name: outputs.__setitem__(name, output)
                )
                .remove
            )
        if norms:
            run()
    return frozenset(followed)


def has_gram(owner: nn.Module, site: Site) -> bool:
    """Whether the outputs of a site are sums over its module's one input: linear or convolution."""
    if site.param != "weight" or isinstance(owner, _ConvTransposeNd):
        return False
    if isinstance(owner, nn.Linear | _ConvNd):
        return True
    return site.kind == "linear" and site.input_dim == 0  # transformers' Conv1D


def _columns(site: Site) -> Tensor | None:
    """Where the columns of `as_matrix` are if the groups of N:M are not neighbours; else None."""
    layout = site.layout
    if not isinstance(layout, Grouped) or layout.order is None:
        return None
    channels = len(layout.order)
    offsets = torch.arange(0, matrix_shape(site)[1], channels)
    return (offsets[:, None] + torch.tensor(layout.order)[None, :]).flatten()


def as_matrix(site: Site, weight: Tensor) -> Tensor:
    """A weight as rows of outputs over inputs, [R, C]; of a kernel the channels vary fastest.

    Channels are in the order of the site's layout, so that every group of N:M is neighbours.
    """
    matrix, columns = weight.permute(_order(site)).reshape(matrix_shape(site)), _columns(site)
    return matrix if columns is None else matrix[:, columns]


def from_matrix(site: Site, matrix: Tensor) -> Tensor:
    """The inverse of `as_matrix`."""
    order, columns = _order(site), _columns(site)
    if columns is not None:
        matrix = matrix[:, columns.argsort()]
    back = sorted(range(len(order)), key=order.__getitem__)
    return matrix.reshape([site.shape[dim] for dim in order]).permute(back).contiguous()


def matrix_shape(site: Site) -> tuple[int, int]:
    """Rows and columns of a weight as a matrix."""
    columns = prod(site.shape[dim] for dim in summed_dims(site))
    return site.numel // columns, columns


def _order(site: Site) -> tuple[int, ...]:
    """The dimensions of a weight: outputs, then a kernel, then inputs."""
    summed = summed_dims(site)
    others = (dim for dim in range(len(site.shape)) if dim not in summed)
    return (*others, *summed[1:], summed[0])


def _listener(
    gram: Gram, owner: nn.Module, products: _Products
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    kind = None
    if isinstance(owner, _ConvNd):
        kind = (owner.kernel_size, owner.stride, owner.padding, owner.dilation, owner.groups,
                owner.padding_mode)  # fmt: skip

    def rows_of(value: Tensor) -> Iterator[Tensor]:
        if isinstance(owner, _ConvNd):
            return _windows(value, owner)
        return iter([value.reshape(1, -1, value.shape[-1]).float()])

    def listen(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments and isinstance(arguments[0], Tensor):
            gram.add(*products.of(arguments[0], rows_of, kind))

    return listen


def _windows(value: Tensor, conv: _ConvNd) -> Iterator[Tensor]:
    """The windows that a convolution sees, [groups, N, kernel * channels], some examples a time."""
    spatial = len(conv.kernel_size)
    batch = value if value.dim() == spatial + 2 else value[None]
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    taps = prod(conv.kernel_size)
    size = max(1, _WINDOWS // max(1, batch[0].numel() * taps))
    for part in torch.split(batch.float(), size):
        padded = F.pad(part, conv._reversed_padding_repeated_twice, mode=mode)
        for axis, (width, stride, dilation) in enumerate(
            zip(conv.kernel_size, conv.stride, conv.dilation, strict=True), start=2
        ):
            reach = (width - 1) * dilation + 1
            missing = reach - padded.shape[axis]
            if missing > 0:  # a layer that pads in a forward of its own
                behind = 2 * (spatial + 1 - axis)
                padded = F.pad(padded, (*(0,) * behind, 0, missing))
            padded = padded.unfold(axis, reach, stride)[..., ::dilation]
        # [N, C, *positions, *kernel] -> [groups, N * positions, kernel * channels of a group]
        grouped = padded.reshape(len(padded), conv.groups, -1, *padded.shape[2:])
        places = tuple(range(3, 3 + spatial))
        kernel = tuple(range(3 + spatial, 3 + 2 * spatial))
        moved = grouped.permute(1, 0, *places, *kernel, 2)
        yield moved.reshape(conv.groups, -1, taps * grouped.shape[2])
