"""What a module holds: the bytes of its state, each tensor once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from slt_compress.anatomy.states import module_nbytes, tensors_nbytes


class Saved(nn.Module):
    """Tied weights, buffers of both kinds, and extra state that is no tensor."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3, device=device)
        self.second = nn.Linear(4, 3, bias=False, dtype=torch.bfloat16, device=device)
        self.again = nn.Linear(4, 3, device=device)
        self.again.weight = self.first.weight
        self.register_buffer("saved", torch.zeros(2, dtype=torch.int64, device=device))
        self.register_buffer("unsaved", torch.zeros(50, device=device), persistent=False)

    def get_extra_state(self) -> Any:
        return {"format": "of its own"}

    def set_extra_state(self, state: Any) -> None:
        pass


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_the_bytes_of_a_module_count_every_saved_tensor_once(device: str) -> None:
    weights, biases, half, buffer = 12 * 4, 2 * 3 * 4, 12 * 2, 2 * 8
    assert module_nbytes(Saved(device)) == weights + biases + half + buffer


def test_a_tensor_that_is_given_twice_counts_once() -> None:
    tensor = torch.zeros(5)
    assert tensors_nbytes([tensor, tensor, tensor.clone(), None, "text"]) == 40
    assert tensors_nbytes([]) == 0
