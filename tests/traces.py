"""What a module looks like from outside, bit for bit: no verb may leave a trace on it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def traces(module: nn.Module) -> dict[str, Any]:
    """Everything about a module that gating might change, in order."""
    return {
        "state": {name: value.clone() for name, value in module.state_dict().items()},
        "state order": list(module.state_dict()),
        "buffers": {name: value.clone() for name, value in module.named_buffers()},
        "parameters": [
            (name, id(value), value.requires_grad, type(value), value.data_ptr())
            for name, value in module.named_parameters(remove_duplicate=False)
        ],
        "modules": [
            (name, id(child), type(child), child.training, getattr(child, "momentum", None))
            for name, child in module.named_modules(remove_duplicate=False)
        ],
        "attributes": {name: sorted(vars(child)) for name, child in module.named_modules()},
        "grads": [value.grad for value in module.parameters()],
    }


def assert_same(before: Mapping[str, Any], after: Mapping[str, Any]) -> None:
    for name in ("state", "buffers"):
        assert before[name].keys() == after[name].keys()
        for key, value in before[name].items():
            assert torch.equal(value, after[name][key]), key
    for name in ("state order", "parameters", "modules", "attributes", "grads"):
        assert before[name] == after[name], name
