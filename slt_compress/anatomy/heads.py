"""Heads: the parameters that compute the outputs of a module."""

from __future__ import annotations

from torch import nn


def output_names(module: nn.Module) -> frozenset[str]:
    """Names of the weights that compute the outputs: the task head's, or else the last matrix."""
    names = [name for name, parameter in module.named_parameters() if parameter.dim() > 1]
    # The source of a parametrized weight stands for the weight.
    last = [n.partition(".original")[0].replace("parametrizations.", "") for n in names[-1:]]
    return head_names(module) or frozenset(last)


def head_names(module: nn.Module) -> frozenset[str]:
    """Names of the parameters of the task head.

    transformers: everything outside the base model, and the output embeddings (T5 has no separate
    base model). timm: what `get_classifier()` returns. Any other module: its last Linear.
    """
    base = getattr(module, "base_model", None)
    if isinstance(base, nn.Module):
        inside = {id(parameter) for parameter in base.parameters()}
        outputs = getattr(module, "get_output_embeddings", lambda: None)()
        if isinstance(outputs, nn.Module):
            inside -= {id(parameter) for parameter in outputs.parameters()}
        return frozenset(n for n, p in module.named_parameters() if id(p) not in inside)
    get_classifier = getattr(module, "get_classifier", None)
    if callable(get_classifier):
        classifier = get_classifier()
        members = classifier if isinstance(classifier, tuple | list) else (classifier,)
    else:
        members = [child for child in module.modules() if isinstance(child, nn.Linear)][-1:]
    head = {id(p) for m in members if isinstance(m, nn.Module) for p in m.parameters()}
    return frozenset(n for n, p in module.named_parameters() if id(p) in head)
