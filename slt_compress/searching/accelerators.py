"""accelerate: the devices and the precision of a search. No other module knows its state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import GradientAccumulationPlugin
from torch import nn

from slt_compress.errors import RecipeError
from slt_compress.searching.settings import Training

# What accelerate sets on a module that it prepares: the caller's module keeps none of it.
_ACCELERATES_OWN = ("forward", "_original_forward", "_is_accelerate_prepared")


@contextmanager
def accelerator_for(training: Training) -> Iterator[Accelerator]:
    """A fresh accelerator for one search.

    accelerate keeps one state for the whole process. That of the host program is set aside for
    the block and put back after it, so that its own `Accelerator` never notices.

    Raises:
        RecipeError: the precision or device is not to be had on this machine.
    """
    with _own_state():
        yield _accelerator(training)


@contextmanager
def prepared(
    accelerator: Accelerator, module: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[tuple[nn.Module, torch.optim.Optimizer]]:
    """Module and optimizer as accelerate prepares them; the module is left as it was."""
    own = dict(vars(module))
    try:
        yield accelerator.prepare(module, optimizer)
    finally:
        for key in _ACCELERATES_OWN:
            vars(module).pop(key, None)
            if key in own:
                vars(module)[key] = own[key]


@contextmanager
def _own_state() -> Iterator[None]:
    shared = [AcceleratorState._shared_state, GradientState._shared_state]
    if PartialState._shared_state.get("backend") is None:  # else it holds a process group
        shared.append(PartialState._shared_state)
    kept = [dict(state) for state in shared]
    for state in shared:
        state.clear()
    try:
        yield
    finally:
        for state, content in zip(shared, kept, strict=True):
            state.clear()
            state.update(content)


def _accelerator(training: Training) -> Accelerator:
    try:
        accelerator = Accelerator(
            mixed_precision=training.precision,
            cpu=training.device == "cpu",
            # said explicitly: an environment variable would divide the loss
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
        if training.device not in (None, "cpu"):
            torch.empty(0, device=training.device)
            wanted, given = torch.device(training.device), accelerator.device
            if wanted.type != given.type or (wanted.index or 0) != (given.index or 0):
                raise ValueError(f"accelerate chose {given} (CUDA_VISIBLE_DEVICES picks a GPU)")
    except (ValueError, RuntimeError, AssertionError, NotImplementedError) as error:
        raise RecipeError(
            f"training.device={training.device}, training.precision={training.precision}: {error}"
        ) from None
    return accelerator
