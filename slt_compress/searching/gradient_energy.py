"""Energy of the loss gradient at the outputs of sites: how much an error there costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from slt_compress.sites.sites import Site


def gradient_energy(
    module: nn.Module,
    sites: Sequence[Site],
    batches: Iterable[Any],
    forward: Callable[[nn.Module, Any], Any],
    seed: int,
) -> dict[str, Tensor]:
    """Sum of squares of the loss gradient at each output of each site, [R] in fp64.

    The loss is that of labels drawn from the network's own predictions, so that its energy is the
    diagonal of the Fisher matrix: to second order an output error e costs e^2 energy / 2 (Martens
    2020, "New Insights and Perspectives on the Natural Gradient Method", section 9). A forward pass
    that gives a scalar is taken for a loss; a single output is a regression of unit variance.

    The gradient is that of activations alone; the activations of one batch are in memory. Outputs
    of sites that a pass does not reach are missing. Eval mode is the caller's part.
    """
    sums: dict[str, Tensor] = {}
    generator = torch.Generator().manual_seed(seed)
    with ExitStack() as hooks, torch.enable_grad():
        for site in sites:
            owner = module.get_submodule(site.module)
            hook = owner.register_forward_hook(_listener(site, isinstance(owner, _ConvNd), sums))
            hooks.callback(hook.remove)
        for batch in batches:
            loss = _drawn_loss(forward(module, batch), generator)
            if loss.requires_grad:
                torch.autograd.backward(loss)
    return sums


def _listener(
    site: Site, channels_first: bool, sums: dict[str, Tensor]
) -> Callable[[nn.Module, Any, Any], Any]:
    def listen(_: nn.Module, __: Any, output: Any) -> Any:
        if not isinstance(output, Tensor):
            return None
        if not output.requires_grad:  # the first site of a pass: weights have no gradient here
            output = output.detach().requires_grad_()
        kernel = len(site.shape) - 2
        dim = output.dim() - 1 - kernel if channels_first else output.dim() - 1
        others = tuple(axis for axis in range(output.dim()) if axis != dim)

        def add(gradient: Tensor) -> None:
            energy = gradient.double().square().sum(others).cpu()
            sums[site.name] = sums[site.name] + energy if site.name in sums else energy

        output.register_hook(add)
        return output

    return listen


def _drawn_loss(output: Tensor, generator: torch.Generator) -> Tensor:
    """Minus the log likelihood of labels that are drawn from the outputs, summed over all rows."""
    if output.dim() == 0:
        return output
    rows = output.reshape(-1, output.shape[-1]).float()
    if rows.shape[1] == 1:
        noise = torch.randn(rows.shape, generator=generator)
        return (rows * noise.to(rows.device)).sum()
    chances = rows.log_softmax(-1)
    drawn = torch.multinomial(chances.detach().exp().cpu(), 1, generator=generator)
    return -chances.gather(1, drawn.to(rows.device)).sum()
