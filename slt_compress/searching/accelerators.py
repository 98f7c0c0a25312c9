"""accelerate: devices, precision and processes of a search. No other module knows its state."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import (
    DistributedDataParallelKwargs,
    GradientAccumulationPlugin,
    broadcast_object_list,
)
from torch import Tensor, nn

from slt_compress import errors
from slt_compress.errors import RecipeError, SltError
from slt_compress.searching.settings import Training

T = TypeVar("T")
_CONTAINERS = (Tensor, Mapping, list, tuple)
# What `accelerate launch` sets for engines that cut weights into shards, and how it says yes.
_SHARDING = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}
_TRUE = ("1", "true", "yes", "y", "t", "on")
# What accelerate sets on a module that it prepares: the caller's module keeps none of it.
_ACCELERATES_OWN = ("forward", "_original_forward", "_is_accelerate_prepared")


@contextmanager
def accelerator_for(training: Training) -> Iterator[Accelerator]:
    """A fresh accelerator for one search.

    accelerate keeps one state for the whole process. That of the host program is set aside for
    the block and put back after it, so that its own `Accelerator` never notices.

    Raises:
        RecipeError: the precision or device is not to be had on this machine, or the launcher asks
            for sharded weights.
    """
    _refuse_sharding()
    with _own_state():
        yield _accelerator(training)


def accelerator_or(
    given: Accelerator | None, training: Training
) -> AbstractContextManager[Accelerator]:
    """The accelerator that is given, or one of `accelerator_for`."""
    return accelerator_for(training) if given is None else nullcontext(given)


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


def in_main(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """What `work` returns in the main process, in every process.

    Raises:
        SltError: `work` raised it in the main process.
    """
    if accelerator.num_processes == 1:
        return work()
    answer: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            answer[0] = work()
        except SltError as error:
            answer[1] = (type(error).__name__, str(error))
    broadcast_object_list(answer)
    if answer[1] is not None:
        name, message = answer[1]
        kind = getattr(errors, name, SltError)
        raise kind(message)
    result: T = answer[0]
    return result


def mean_over_processes(accelerator: Accelerator, value: float) -> float:
    """The mean of a number over all processes."""
    if accelerator.num_processes == 1:
        return value
    total: Tensor = accelerator.reduce(
        torch.tensor(value, device=accelerator.device, dtype=torch.float64), reduction="mean"
    )
    return float(total)


def shard_of(batch: Any, rank: int, world: int) -> tuple[Any, float]:
    """The part of a batch for one of `world` processes, and its weight in their mean.

    Tensors and plain lists with one entry per example are cut, in batches nested in any way. The
    weight makes the mean over processes that of the whole batch where shards differ in size.

    Raises:
        DataError: there are fewer examples than processes.
    """
    size = _examples(batch)
    if world == 1 or size is None:
        return batch, 1.0
    if size < world:
        raise errors.DataError(
            f"a batch of {size} examples cannot be split over {world} processes: raise --batch-size"
        )
    return _cut(batch, size, rank, world), len(range(rank, size, world)) * world / size


def _examples(batch: Any) -> int | None:
    """The length of the first tensor in a nested batch; None if it has none."""
    if isinstance(batch, Tensor):
        return len(batch) if batch.dim() else None
    entries: Any = batch.values() if isinstance(batch, Mapping) else batch
    if isinstance(batch, Mapping | list | tuple):
        return next((n for entry in entries if (n := _examples(entry)) is not None), None)
    return None


def _cut(value: Any, size: int, rank: int, world: int) -> Any:
    if isinstance(value, Tensor):
        return value[rank::world] if value.dim() and len(value) == size else value
    if isinstance(value, Mapping):
        return {key: _cut(entry, size, rank, world) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        if len(value) == size and not any(isinstance(entry, _CONTAINERS) for entry in value):
            return value[rank::world]
        parts = [_cut(entry, size, rank, world) for entry in value]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return value


def _refuse_sharding() -> None:
    """Refuse the engines that cut weights into shards, which gates are not made for.

    Raises:
        RecipeError: names the engine, and what to do for a model that does not fit.
    """
    for variable, engine in _SHARDING.items():
        if os.environ.get(variable, "").lower() in _TRUE:
            raise RecipeError(
                f"{variable} asks for {engine}, and a search runs in whole copies of the network: "
                "launch it with torchrun, or accelerate launch without that engine; if the network "
                "does not fit, --objective reconstruct works on one block at a time"
            )


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
            # an expert that no token of a shard is routed to has no gradient there; buffers are
            # those of the dense network in every process
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=True, broadcast_buffers=False)
            ],
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
