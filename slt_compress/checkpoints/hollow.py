"""Hollow checkpoints: modules whose matrices are read one at a time, when they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.nn.utils import parametrize

from slt_compress.checkpoints import families
from slt_compress.checkpoints.bounds import bounded_by, bounded_count
from slt_compress.checkpoints.checkpoint import Architecture, Checkpoint, Family, Init, Task
from slt_compress.checkpoints.filling import seeded_filler, unfilled
from slt_compress.checkpoints.library_config import Config
from slt_compress.checkpoints.opening import Draft, draft_of, parse_init
from slt_compress.errors import SourceError
from slt_compress.storage.lazy import LazyMapping, LazyTensors


def open_hollow(
    source: str | Path,
    *,
    revision: str | None = None,
    weights: str | Path | None = None,
    init: str | None = None,
    seed: int = 0,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Checkpoint | None:
    """As `open_checkpoint`, for a model larger than memory: its matrices stay in their files.

    Each matrix is a placeholder on the CPU of the right shape and dtype, whose elements are one NaN
    in memory. `Checkpoint.streamed` has the values. Vectors and buffers are there.

    None where all tensors are needed at once: the library does more than copy them from the files,
    the seed of a random init does not determine all of them, or weights are parametrized.

    Raises:
        SourceError: as for `open_checkpoint`, except for damage in tensors that are not read.
    """
    draft = draft_of(
        source, revision, weights, parse_init(init, seed), None, num_classes=num_classes,
        classes=classes, options=options or {}, with_weights=True,
    )  # fmt: skip
    return _from_files(draft) if draft.init is None else _from_seed(draft, draft.init)


def _from_files(draft: Draft) -> Checkpoint | None:
    lazy = LazyTensors(draft.files(), SourceError)
    shells = lazy.shells()
    if not shells:
        return None
    known = draft.fitted(shells)
    with bounded_by(shells, str(draft.file or draft.source)):
        module = _hollow_module(known, families.build_module)
    if module is None:
        return None
    own = module.state_dict(keep_vars=True)
    places = families.direct_keys(known.family, known.config, module, shells)
    if places is None or not own.keys() <= places.keys():
        return None
    streamed = LazyMapping(own, lambda name: lazy[places[name]].to(own[name].dtype))
    _fill_vectors_(own, streamed)
    named = {name: (places[name],) for name, _ in module.named_parameters()}
    return draft.checkpoint(known, module, keys=named, streamed=streamed)


def _from_seed(draft: Draft, init: Init) -> Checkpoint | None:
    known = draft.architecture
    with bounded_count("the architecture"):
        module = _hollow_module(known, families.initialised_module)
    if module is None or unfilled(module, init.scheme):
        return None
    own = module.state_dict(keep_vars=True)
    # of a module that nobody freezes or puts gates on
    shells = families.sketch_module(known.family, known.task, known.config)
    streamed = LazyMapping(own, seeded_filler(shells, init.scheme, init.seed))
    _fill_vectors_(own, streamed)
    return draft.checkpoint(known, module, streamed=streamed)


@torch.no_grad()
def _fill_vectors_(own: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, tensor in own.items():
        if not is_placeholder(tensor):
            tensor.copy_(values[name])


def _hollow_module(
    known: Architecture, build: Callable[[Family, Task, Config], nn.Module]
) -> nn.Module | None:
    """The architecture with placeholders for its matrices; None where it cannot be built so."""
    try:
        with _matrices_on_meta(), torch.random.fork_rng(devices=[]):
            module = build(known.family, known.task, known.config)
    except (SourceError, RuntimeError, NotImplementedError):
        return None  # some architectures need values while they are built
    if any(parametrize.is_parametrized(child) for child in module.modules()):
        return None
    if not all(isinstance(tensor, Tensor) for tensor in module.state_dict().values()):
        return None
    placeholders: dict[int, nn.Parameter] = {}
    for child in module.modules():
        for name, parameter in list(child._parameters.items()):
            if parameter is not None and parameter.is_meta:
                if id(parameter) not in placeholders:  # which keeps what is shared shared
                    placeholders[id(parameter)] = _placeholder(parameter)
                setattr(child, name, placeholders[id(parameter)])
    return module


@contextmanager
def _matrices_on_meta() -> Iterator[None]:
    """Parameters of two or more dimensions go to the meta device as modules take them.

    Buffers and vectors keep their values, which nothing but the building of a module gives.
    """

    def take(_: nn.Module, name: str, param: nn.Parameter | None) -> nn.Parameter | None:
        if type(param) is nn.Parameter and param.dim() > 1 and not param.is_meta:
            return nn.Parameter(param.to("meta"), requires_grad=param.requires_grad)
        return None  # as it is

    handle = register_module_parameter_registration_hook(take)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def _placeholder(parameter: nn.Parameter) -> nn.Parameter:
    value = torch.nan if parameter.is_floating_point() else 0
    element = torch.full((1,), value, dtype=parameter.dtype)
    # strides of 0 in every dimension, by which `is_placeholder` knows it
    blank = element.as_strided(parameter.shape, (0,) * parameter.dim())
    return nn.Parameter(blank, requires_grad=parameter.requires_grad)


def is_placeholder(tensor: Tensor) -> bool:
    """Whether a tensor stands for a matrix that is not in memory."""
    return tensor.dim() > 1 and tensor.numel() > 1 and not any(tensor.stride())
