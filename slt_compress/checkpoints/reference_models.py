"""Family `reference`: build the networks of `reference.py` and load weights into them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.checkpoints.checkpoint import Architecture, Task
from slt_compress.checkpoints.library_config import Config
from slt_compress.checkpoints.reference import REFERENCE
from slt_compress.errors import SourceError

_CLASSES = 10  # of MNIST and CIFAR-10, the data sets these networks were made for


def describe(
    name: str,
    *,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Architecture:
    """The architecture of the reference net `name` with a head of `num_classes` (else 10).

    Raises:
        SourceError: an option other than `num_classes`, or a number of classes below 1.
    """
    options = dict(options or {})
    count = options.pop("num_classes", num_classes)
    if options:
        raise SourceError(
            f"{name} has no option model.{sorted(options)[0]}, only model.num_classes"
        )
    if count is None:
        count = len(classes) if classes else _CLASSES
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise SourceError(f"{name} needs a positive number of classes, not {count!r}")
    named = tuple(classes) if classes and len(classes) == count else None
    return Architecture(
        family="reference",
        task="image-classification",
        config={"architecture": name, "num_classes": count},
        classes=named,
        num_classes=count,
    )


def build(task: Task, config: Config) -> nn.Module:
    """The network that `config` describes.

    Raises:
        SourceError: an unknown network, or an invalid number of classes.
    """
    name, count = str(config.get("architecture")), config.get("num_classes")
    if name not in REFERENCE:
        raise SourceError(f"unknown reference net {name!r}; known: {', '.join(sorted(REFERENCE))}")
    if task != "image-classification" or not isinstance(count, int) or count < 1:
        raise SourceError(f"{name} cannot be built for {task} with {count!r} classes")
    return REFERENCE[name].build(count).eval()


def head_classes(name: str, tensors: Mapping[str, Tensor]) -> int | None:
    """The number of classes of the weights in `tensors` of the net `name`; None if unknown.

    The head is the last linear layer of each of these networks.
    """
    with torch.device("meta"):
        module = REFERENCE[name].build(_CLASSES)
    linear = [path for path, part in module.named_modules() if isinstance(part, nn.Linear)]
    bias = tensors.get(f"{linear[-1]}.bias")
    return bias.numel() if bias is not None and bias.dim() == 1 and bias.numel() else None


def load(
    task: Task, config: Config, tensors: Mapping[str, Tensor], where: str
) -> tuple[nn.Module, dict[str, tuple[str, ...]]]:
    """The network with the weights of `tensors`, and the key of each parameter among them.

    Raises:
        SourceError: a missing or unknown key, or a different shape.
    """
    module = build(task, config)
    own = module.state_dict()
    wrong = [k for k in own if k not in tensors and not k.endswith("num_batches_tracked")]
    wrong += [k for k in tensors if k not in own]
    wrong += [k for k in own if k in tensors and tensors[k].shape != own[k].shape]
    if wrong:
        raise SourceError(
            f"{where} does not fit {config['architecture']}: {len(wrong)} keys are missing, "
            f"unknown or of a different shape, among them {', '.join(wrong[:3])}"
        )
    module.load_state_dict(dict(tensors), strict=False)
    return module, {name: (name,) for name, _ in module.named_parameters()}
