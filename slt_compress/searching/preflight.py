"""What is checked and settled before the first step of a search, by what the module is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from itertools import chain
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from slt_compress.errors import SourceError
from slt_compress.searching.settings import Training

_PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def ordinary_mode() -> Iterator[None]:
    """Gradients on and autocast off, whatever the caller's mode is."""
    with (
        torch.inference_mode(False), torch.enable_grad(),
        torch.autocast("cpu", enabled=False), torch.autocast("cuda", enabled=False),
    ):  # fmt: skip
        yield


def check_module(source: object) -> None:
    """Refuse a module whose ticket could not be made, or not be opened again.

    Raises:
        SourceError: names the part that stands in the way, and says what to do.
    """
    if not isinstance(source, nn.Module):
        return
    for name, child in source.named_modules():
        if isinstance(child, torch.jit.ScriptModule):
            raise SourceError(
                f"{_named(name, child)} is scripted, and no gate can be put on that: search the "
                "module that it was made of"
            )
        for hook in child._forward_pre_hooks.values():
            if isinstance(hook, WeightNorm | SpectralNorm):
                old = "weight_norm" if isinstance(hook, WeightNorm) else "spectral_norm"
                raise SourceError(
                    f"{_named(name, child)} computes its {hook.name} by a hook, which divides by "
                    f"a norm of what a mask leaves: use torch.nn.utils.parametrizations.{old}, "
                    f"whose weight is masked as it is (torch.nn.utils.remove_{old} takes the hook "
                    "off)"
                )
    for name, tensor in chain(source.named_parameters(), source.named_buffers()):
        _check_tensor(name, tensor)
    _check_state(source)
    _check_copy(source)


def _check_tensor(name: str, tensor: Tensor) -> None:
    if is_lazy(tensor):
        raise SourceError(f"{name} has no shape yet: run one batch through the module first")
    if tensor.is_meta:
        raise SourceError(f"{name} is on the meta device, so it has no values: load them first")
    if tensor.is_inference():
        raise SourceError(
            f"{name} was made under torch.inference_mode, which no gradient can pass: make or load "
            "the module outside of it"
        )


def _check_state(module: nn.Module) -> None:
    """Refuse what an artifact could not hold: it would be lost, or stop the export."""
    for name, value in module.state_dict().items():
        if isinstance(value, Tensor) and value.layout is not torch.strided:
            raise SourceError(
                f"{name} is a sparse tensor, which no artifact can hold: register it with "
                "persistent=False, or as a dense one"
            )
        if not isinstance(value, Tensor):
            owner = name.rpartition(".")[0]
            what = "extra state" if name.endswith("_extra_state") else type(value).__name__
            raise SourceError(
                f"the state of {owner or 'the module'} holds {name} ({what}), which is no tensor, "
                "so that no ticket or artifact can hold it: search the module before it is "
                "quantized, or give that part tensors alone (buffers) as its state"
            )


def _check_copy(module: nn.Module) -> None:
    """Refuse what `load(model=)` could not copy; no tensor is copied to find out."""
    shared: dict[int, Any] = {id(t): t for t in chain(module.parameters(), module.buffers())}
    for child in module.modules():
        shared |= {id(v): v for v in vars(child).values() if isinstance(v, Tensor)}
    try:
        deepcopy(module, shared)
    except Exception as cause:  # a part refuses in whatever way it likes
        raise SourceError(
            f"this {type(module).__name__} cannot be copied ({type(cause).__name__}: {cause}), and "
            "its ticket is opened on a copy of it: take out what cannot be copied, or give it a "
            "__deepcopy__"
        ) from cause


def _named(name: str, module: nn.Module) -> str:
    return f"{name} ({type(module).__name__})" if name else f"this {type(module).__name__}"


def fit_precision_(accelerator: Accelerator, module: nn.Module, training: Training) -> None:
    """Turn the accelerator's autocast off where the weights have a half precision of their own.

    Norms of one half precision refuse activations of the other, which autocast would give them.
    """
    if _clashing(module, training):
        accelerator.native_amp, accelerator.scaler = False, None


def precision_notes(module: nn.Module, training: Training) -> tuple[str, ...]:
    """A sentence where `fit_precision_` changes something."""
    return tuple(
        f"precision {training.precision} was not used: the weights are in {dtype}, and steps ran "
        "in that"
        for dtype in _clashing(module, training)
    )


def _clashing(module: nn.Module, training: Training) -> list[str]:
    asked = _PRECISIONS.get(training.precision)
    own = {p.dtype for p in module.parameters() if p.dtype in _PRECISIONS.values()}
    return [str(d).removeprefix("torch.") for d in own - {asked}] if asked is not None else []
