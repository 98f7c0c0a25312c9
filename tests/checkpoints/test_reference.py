"""The reference nets: sizes of the papers, published keys, and the shortcut without weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from slt_compress.checkpoints.reference import REFERENCE, ResidualBlock

# LeCun et al. 1998; Frankle & Carbin 2019, figure 2 (weights and biases); He et al. 2016, table 6
# (0.27, 0.46, 0.85 million), to the unit as in the published checkpoints.
PARAMETERS = {
    "lenet-300-100": 266_610,
    "conv2": 4_301_642,
    "conv4": 2_425_930,
    "conv6": 2_262_602,
    "resnet20-cifar": 269_722,
    "resnet32-cifar": 464_154,
    "resnet56-cifar": 853_018,
}


def test_every_net_is_measured_here() -> None:
    assert set(PARAMETERS) == set(REFERENCE)


@pytest.mark.parametrize("name", PARAMETERS)
def test_size_and_shapes(name: str) -> None:
    net = REFERENCE[name]
    module = net.build(10).eval()
    assert sum(p.numel() for p in module.parameters()) == PARAMETERS[name]
    assert len(net.mean) == len(net.std) == net.input_size[0]
    with torch.no_grad():
        assert module(torch.rand(2, *net.input_size)).shape == (2, 10)
        assert REFERENCE[name].build(3)(torch.rand(2, *net.input_size)).shape == (2, 3)


def test_keys_of_the_published_resnets() -> None:
    keys = set(REFERENCE["resnet32-cifar"].build(10).state_dict())
    assert {"conv1.weight", "bn1.running_var", "linear.weight", "linear.bias"} <= keys
    assert "layer3.4.conv2.weight" in keys
    assert not any("shortcut" in key or "downsample" in key for key in keys)


def test_shortcut_takes_every_second_pixel_and_pads_both_sides() -> None:
    block = ResidualBlock(4, 8, 2).eval()
    torch.nn.init.zeros_(block.conv2.weight)  # the branch gives 0: what is left is the shortcut
    images = torch.rand(1, 4, 6, 6)
    expected = torch.zeros(1, 8, 3, 3)
    expected[:, 2:6] = images[:, :, ::2, ::2]
    assert torch.equal(block(images), expected)


def test_resnet_forward_is_the_composition_of_its_layers() -> None:
    torch.manual_seed(0)
    module = REFERENCE["resnet20-cifar"].build(5).eval()
    weights = module.state_dict()
    images = torch.rand(2, 3, 32, 32)

    def norm(x: torch.Tensor, name: str) -> torch.Tensor:
        parts = [weights[f"{name}.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        return functional.batch_norm(x, *parts)

    x = functional.conv2d(images, weights["conv1.weight"], padding=1)
    x = norm(x, "bn1").relu()
    for stage in (1, 2, 3):
        for index in range(3):
            name, stride = f"layer{stage}.{index}", 2 if stage > 1 and index == 0 else 1
            y = functional.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = norm(y, f"{name}.bn1").relu()
            y = norm(
                functional.conv2d(y, weights[f"{name}.conv2.weight"], padding=1), f"{name}.bn2"
            )
            x, added = x[..., ::stride, ::stride], y.shape[1] - x.shape[1]
            zeros = torch.zeros(x.shape[0], added // 2, *x.shape[2:])
            x = (y + torch.cat([zeros, x, zeros], dim=1)).relu()
    expected = functional.adaptive_avg_pool2d(x, 1).flatten(1) @ weights["linear.weight"].T
    torch.testing.assert_close(module(images), expected + weights["linear.bias"])
