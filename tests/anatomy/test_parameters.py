"""Parameters: the layer of transformers that keeps its weight the other way round."""

from __future__ import annotations

import pytest
from torch import nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from slt_compress.anatomy.parameters import is_conv1d


def parametrized(layer: nn.Module) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", nn.Identity())
    return layer


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (Conv1D(3, 2), True),
        (parametrized(Conv1D(3, 2)), True),
        (nn.Linear(2, 3), False),
        (nn.Conv1d(2, 3, 1), False),
        (type("Conv1D", (nn.Linear,), {})(2, 3), False),
    ],
    ids=["plain", "parametrized", "linear", "convolution", "namesake"],
)
def test_conv1d_is_recognised_also_under_a_parametrization(
    layer: nn.Module, expected: bool
) -> None:
    assert is_conv1d(layer) is expected
