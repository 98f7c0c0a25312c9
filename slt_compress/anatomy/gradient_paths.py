"""Gradients that reach scores in layers which pass them on only where their input wants some."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

# Layers that compute their own backward pass, and run it only if what they read needs a gradient.
_OWN_BACKWARD = ("ReformerEncoder",)
# … and layers of theirs that refuse to run it in eval mode.
_REFUSING = ("ReformerLayer",)


@contextmanager
def reached(module: nn.Module) -> Iterator[None]:
    """For as long as the block lasts, input embeddings ask for gradients where layers need that.

    With frozen weights nothing else before such layers does: reversible ones, and checkpointed
    ones of the re-entrant kind.
    """
    found = _embeddings(module) if any(map(_needs_input, module.modules())) else None
    if found is None:
        yield
        return
    handle = found.register_forward_hook(_asking)
    try:
        yield
    finally:
        handle.remove()


def refuses_eval(child: nn.Module) -> bool:
    """Whether a layer has no backward pass in eval mode; its own mode, not that of its parts."""
    return type(child).__name__ in _REFUSING


def _needs_input(child: nn.Module) -> bool:
    checkpointed = getattr(child, "gradient_checkpointing", False) is True
    return checkpointed or type(child).__name__ in _OWN_BACKWARD


def _embeddings(module: nn.Module) -> nn.Module | None:
    """The module that reads the inputs of a model of transformers, if it says so."""
    getter: Any = getattr(module, "get_input_embeddings", None)
    try:
        found = getter() if callable(getter) else None
    except (NotImplementedError, AttributeError):
        return None
    return found if isinstance(found, nn.Module) else None


def _asking(embeddings: nn.Module, inputs: Any, output: Any) -> Any:
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.requires_grad:
        return None
    # a clone: a model may write into its embeddings, which a leaf of the graph forbids
    return output.detach().requires_grad_().clone()
