"""Copies of modules that can be changed without touching the original."""

from __future__ import annotations

from copy import deepcopy

from torch import nn
from torch.nn.utils import parametrize

# What Python makes itself for every class.
_OWN = ("__dict__", "__weakref__")


def copy_of(module: nn.Module) -> nn.Module:
    """A deep copy of a module, with classes of its own where it is parametrized.

    A parametrization gives a submodule a class with a property for the weight. A plain deep copy
    shares that class, so that removing the parametrization from the copy (as a mask does) takes
    the weight away from the original.

    Raises:
        RuntimeError: the module holds a tensor that an operation made (old weight norm).
    """
    copy = deepcopy(module)
    for child in copy.modules():
        if parametrize.is_parametrized(child):
            shared = type(child)
            members = {name: value for name, value in vars(shared).items() if name not in _OWN}
            child.__class__ = type(shared.__name__, shared.__bases__, members)
    return copy
