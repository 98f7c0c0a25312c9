"""Copies of a module that share nothing with it, classes of parametrized parts included."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode

from slt_compress.errors import SourceError


def copy_of(module: nn.Module) -> nn.Module:
    """A deep copy that can be changed in any way without a trace in `module`.

    torch gives a parametrized module a class of its own, which a plain deep copy shares: to take
    the parametrization off the copy would take the weight away from the original. Tensors that are
    attributes and were computed (by hook-based weight norm, say) are copied by their values.

    Raises:
        SourceError: a part of it cannot be copied.
    """
    try:
        with _Detached():
            copied = deepcopy(module)
    except Exception as cause:  # a part refuses in whatever way it likes
        raise SourceError(
            f"this {type(module).__name__} cannot be copied ({type(cause).__name__}: {cause}), and "
            "the masks go on a copy: take out or define __deepcopy__ for what cannot be copied"
        ) from cause
    for child in copied.modules():
        own_class_(child)
    return copied


def own_class_(module: nn.Module) -> None:
    """Give a parametrized module a class that no other module has; no other is changed.

    Layers that were copied from one another share theirs.
    """
    if not parametrize.is_parametrized(module):
        return
    kind = type(module)
    content = {k: v for k, v in vars(kind).items() if k not in ("__dict__", "__weakref__")}
    make: Any = type(kind)
    module.__class__ = make(kind.__name__, kind.__bases__, content)


def flatten_(owner: nn.Module, param: str) -> bool:
    """Turn a weight that a parametrization computes into a plain parameter with its value.

    Gives whether it was computed. Changes nothing in modules that share the class of `owner`.
    """
    if not parametrize.is_parametrized(owner, param):
        return False
    own_class_(owner)
    parametrize.remove_parametrizations(owner, param, leave_parametrized=True)
    return True


class _Detached(TorchFunctionMode):
    """Copies a computed tensor as one that nothing computes: torch refuses to copy such a one."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and args[0].grad_fn is not None:
            tensor, memo = args[0], args[1]
            if id(tensor) not in memo:
                with torch.no_grad():
                    memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))
