"""Networks of the literature that neither transformers nor timm has.

LeNet-300-100 (LeCun et al. 1998), Conv-2/4/6 (Frankle & Carbin 2019) and the CIFAR ResNets with
parameter-free shortcuts (He et al. 2016, section 4.2).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.nn import functional


class LeNet300(nn.Module):
    """784-300-100-classes, fully connected: [N, 1, 28, 28] -> logits [N, classes]."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 1, 28, 28]."""
        hidden = torch.relu(self.fc1(images.flatten(1)))
        hidden = torch.relu(self.fc2(hidden))
        logits: Tensor = self.fc3(hidden)
        return logits


class ConvNet(nn.Module):
    """Pairs of 3x3 convolutions, each pair pooled by 2, then 256-256-classes.

    [N, 3, 32, 32] -> logits [N, classes]. `widths` holds the width of each pair: (64,) is Conv-2,
    (64, 128) Conv-4, (64, 128, 256) Conv-6.
    """

    def __init__(self, widths: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        channels, layers = 3, list[nn.Module]()
        for width in widths:
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        side = 32 // 2 ** len(widths)
        self.fc1 = nn.Linear(channels * side * side, 256)
        self.fc2 = nn.Linear(256, 256)
        self.fc3 = nn.Linear(256, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 3, 32, 32]."""
        hidden = torch.relu(self.fc1(self.features(images).flatten(1)))
        hidden = torch.relu(self.fc2(hidden))
        logits: Tensor = self.fc3(hidden)
        return logits


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut without weights (option A)."""

    def __init__(self, channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.added = (width - channels) // 2

    def forward(self, hidden: Tensor) -> Tensor:
        """[N, channels, H, W] -> [N, width, H / stride, W / stride]."""
        out = torch.relu(self.bn1(self.conv1(hidden)))
        out = self.bn2(self.conv2(out))
        shortcut = hidden[:, :, :: self.stride, :: self.stride]
        if self.added:
            shortcut = functional.pad(shortcut, (0, 0, 0, 0, self.added, self.added))
        return torch.relu(out + shortcut)


class CifarResNet(nn.Module):
    """Three stages of `blocks` residual blocks, 16/32/64 wide: [N, 3, 32, 32] -> [N, classes]."""

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.linear = nn.Linear(64, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits [N, classes] of images [N, 3, 32, 32]."""
        hidden = torch.relu(self.bn1(self.conv1(images)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        logits: Tensor = self.linear(hidden.mean(dim=(2, 3)))
        return logits


def _stage(channels: int, width: int, blocks: int) -> nn.Sequential:
    first = ResidualBlock(channels, width, stride=1 if channels == width else 2)
    return nn.Sequential(first, *(ResidualBlock(width, width, 1) for _ in range(blocks - 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReferenceNet:
    """How to build one network, and what its inputs look like.

    Inputs are floats [N, *input_size], pixel values / 255, minus `mean`, over `std`.
    """

    build: Callable[[int], nn.Module]
    input_size: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def _mnist(build: Callable[[int], nn.Module]) -> ReferenceNet:
    return ReferenceNet(build=build, input_size=(1, 28, 28), mean=(0.1307,), std=(0.3081,))


def _cifar(build: Callable[[int], nn.Module]) -> ReferenceNet:
    # The ImageNet statistics: the published CIFAR ResNet weights were trained with them.
    return ReferenceNet(
        build=build,
        input_size=(3, 32, 32),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    )


REFERENCE: Mapping[str, ReferenceNet] = MappingProxyType(
    {
        "lenet-300-100": _mnist(LeNet300),
        "conv2": _cifar(lambda classes: ConvNet((64,), classes)),
        "conv4": _cifar(lambda classes: ConvNet((64, 128), classes)),
        "conv6": _cifar(lambda classes: ConvNet((64, 128, 256), classes)),
        "resnet20-cifar": _cifar(lambda classes: CifarResNet(3, classes)),
        "resnet32-cifar": _cifar(lambda classes: CifarResNet(5, classes)),
        "resnet56-cifar": _cifar(lambda classes: CifarResNet(9, classes)),
    }
)
