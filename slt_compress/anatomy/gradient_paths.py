"""Layers whose backward pass runs only if their input requires a gradient, and how to make it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

# Layers with a backward pass of their own, which runs only if their input requires a gradient.
_OWN_BACKWARD = ("ReformerEncoder",)
# What says of a layer of transformers or timm that it is checkpointed.
_SAYS_SO = ("gradient_checkpointing", "grad_checkpointing")
# … and those of their layers that refuse to run it in eval mode.
_NEEDS_TRAIN_MODE = ("ReformerLayer",)


@contextmanager
def grads_from_embeddings(module: nn.Module) -> Iterator[None]:
    """Inside this block the input embeddings require gradients, if a layer depends on it.

    Reversible layers and re-entrant checkpointed layers do. With frozen weights nothing else in
    front of them requires a gradient.
    """
    embeddings = _embeddings(module) if any(map(runs_again, module.modules())) else None
    if embeddings is None:
        yield
        return
    handle = embeddings.register_forward_hook(_require_grad)
    try:
        yield
    finally:
        handle.remove()


def needs_train_mode(child: nn.Module) -> bool:
    """Whether a layer has a backward pass in train mode only (its own mode, not its parts')."""
    return type(child).__name__ in _NEEDS_TRAIN_MODE


def runs_again(child: nn.Module) -> bool:
    """Whether a layer of a library runs its forward pass again in the backward pass."""
    checkpointed = any(getattr(child, name, False) is True for name in _SAYS_SO)
    return checkpointed or type(child).__name__ in _OWN_BACKWARD


def _embeddings(module: nn.Module) -> nn.Module | None:
    """The input embeddings of a transformers model, if it has any."""
    getter: Any = getattr(module, "get_input_embeddings", None)
    try:
        embeddings = getter() if callable(getter) else None
    except (NotImplementedError, AttributeError):
        return None
    return embeddings if isinstance(embeddings, nn.Module) else None


def _require_grad(embeddings: nn.Module, inputs: Any, output: Any) -> Any:
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.requires_grad:
        return None
    # A clone, because a model may write into its embeddings, which a leaf of the graph forbids.
    return output.detach().requires_grad_().clone()
