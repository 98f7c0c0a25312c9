"""Calibration: norms of the inputs of every site, collected by forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from slt_compress.anatomy.parameters import is_conv1d
from slt_compress.anatomy.states import evaluating
from slt_compress.checkpoints.tasks import to_device
from slt_compress.gates import Inputs
from slt_compress.searching.events import OnEvent, Watched, unheard
from slt_compress.sites.sites import Site, SitePlan

# How many training batches the dense network sees if a method needs its inputs.
_BATCHES = 16
# Energy of one call: the sum of squares of every input, and the number of rows summed over.
_Energy = tuple[Tensor, int]


@dataclass(slots=True)
class _Sum:
    """The running total over the calls of one module."""

    energy: Tensor | None = None
    rows: int = 0

    def add(self, energy: Tensor, rows: int) -> None:
        energy = energy.cpu().double()
        self.energy = energy if self.energy is None else self.energy + energy
        self.rows += rows


@dataclass(frozen=True, slots=True)
class Seen:
    """The inputs of the sites of a module, as far as hooks could see them."""

    module: nn.Module
    plan: SitePlan
    sums: Mapping[str, _Sum]

    def inputs(self) -> dict[str, Inputs]:
        """The inputs of every site, on the CPU; norms are None where they were not seen."""
        return {
            site.name: Inputs(dims=summed_dims(site), norms=self._norms(site))
            for site in self.plan.sites
        }

    def unseen(self) -> dict[str, str]:
        """The reason for every site whose inputs were not seen."""
        reasons: dict[str, str] = {}
        for site in self.plan.sites:
            owner = self.module.get_submodule(site.module)
            if site.name not in self.sums:
                reasons[site.name] = (
                    f"{type(owner).__name__} has no single input that its weight multiplies"
                )
            elif not self.sums[site.name].rows:
                reasons[site.name] = "the forward pass does not call its module"
        return reasons

    def _norms(self, site: Site) -> Tensor | None:
        total = self.sums.get(site.name)
        if total is None or total.energy is None or not total.rows:
            return None
        owner = self.module.get_submodule(site.module)
        return _placed((total.energy / total.rows).sqrt(), owner, site)


@contextmanager
def seen_inputs(module: nn.Module, plan: SitePlan) -> Iterator[Seen]:
    """Sum up the inputs of every site over all forward passes in the block, by hooks.

    A row is one position of one example that a weight is applied to. Padding tokens count like any
    other position.
    """
    sums: dict[str, _Sum] = {}
    with ExitStack() as hooks:
        for site in plan.sites:
            owner = module.get_submodule(site.module)
            measure = _measure_of(owner, site)
            if measure is not None:
                sums[site.name] = _Sum()
                hook = owner.register_forward_pre_hook(_listener(sums[site.name], measure))
                hooks.callback(hook.remove)
        yield Seen(module, plan, sums)


def observed(
    module: nn.Module,
    plan: SitePlan,
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any],
    tell: OnEvent = unheard,
) -> Seen:
    """What the sites multiply in the dense network, on the first training batches."""
    device = next(module.parameters()).device
    with evaluating(module), torch.no_grad(), seen_inputs(module, plan) as seen:
        for batch in Watched(islice(batches, _BATCHES), tell):
            forward(module, to_device(batch, device))
    return seen


def summed_dims(site: Site) -> tuple[int, ...]:
    """The dimensions of a weight over which one output sums.

    In a grouped transposed convolution they also hold the groups, which are compared together.
    """
    kernel = range(2, len(site.shape)) if site.kind in ("conv", "transposed-conv") else ()
    return (site.input_dim, *kernel)


def unseen_note(method: str, unseen: Mapping[str, str]) -> str:
    """A sentence about the sites whose inputs were not seen."""
    listed = "; ".join(f"{name}: {reason}" for name, reason in list(unseen.items())[:3])
    more = f"; and {len(unseen) - 3} more" if len(unseen) > 3 else ""
    return f"{method} ranks {len(unseen)} sites by magnitude alone ({listed}{more})"


def _listener(
    total: _Sum, measure: Callable[[Tensor], _Energy]
) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def listen(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        if arguments and isinstance(arguments[0], Tensor):
            total.add(*measure(arguments[0].detach()))

    return listen


def _measure_of(owner: nn.Module, site: Site) -> Callable[[Tensor], _Energy] | None:
    """How to sum up the input of a module; None if the weight does not multiply that input."""
    if site.param != "weight":
        return None
    if isinstance(owner, _ConvTransposeNd):
        return lambda value: _channels(value, owner.weight.dim() - 2)
    if isinstance(owner, _ConvNd):
        return lambda value: _windows(value, owner)
    if isinstance(owner, nn.Linear) or is_conv1d(owner):
        return _features
    return None


def _features(value: Tensor) -> _Energy:
    """Energy of each feature, of [..., features]."""
    rows = value.reshape(-1, value.shape[-1])
    return rows.float().square().sum(0), len(rows)


def _channels(value: Tensor, spatial: int) -> _Energy:
    """Energy of each channel, of [N, C, ...] or [C, ...]."""
    batch = value if value.dim() == spatial + 2 else value[None]
    others = (0, *range(2, batch.dim()))
    return batch.float().square().sum(others), batch.numel() // batch.shape[1]


def _windows(value: Tensor, conv: _ConvNd) -> _Energy:
    """Energy of each channel at each offset of the kernel, [C, *kernel], padded as by the layer.

    Squares are summed over the batch first, so a batch costs no more than one example.
    """
    spatial = len(conv.kernel_size)
    batch = value if value.dim() == spatial + 2 else value[None]
    energy = batch.float().square().sum(0)
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    energy = F.pad(energy[None], conv._reversed_padding_repeated_twice, mode=mode)[0]
    rows = len(batch)
    for axis, (size, stride, dilation) in enumerate(
        zip(conv.kernel_size, conv.stride, conv.dilation, strict=True), start=1
    ):
        reach = (size - 1) * dilation + 1
        missing = reach - energy.shape[axis]
        if missing > 0:  # the layer pads in its own forward
            behind = 2 * (energy.dim() - 1 - axis)
            energy = F.pad(energy, (*(0,) * behind, 0, missing))
        energy = energy.unfold(axis, reach, stride)[..., ::dilation]
        rows *= energy.shape[axis]
    return energy.sum(tuple(range(1, spatial + 1))), rows


def _placed(norms: Tensor, owner: nn.Module, site: Site) -> Tensor:
    """Norms of [C] or [C, *kernel] in a shape that broadcasts to the site's."""
    if isinstance(owner, _ConvNd) and not isinstance(owner, _ConvTransposeNd):
        out, inputs = site.shape[:2]
        grouped = norms.reshape(owner.groups, inputs, *norms.shape[1:])
        return grouped.repeat_interleave(out // owner.groups, 0) if owner.groups > 1 else grouped
    return norms.reshape([-1 if dim == site.input_dim else 1 for dim in range(len(site.shape))])
