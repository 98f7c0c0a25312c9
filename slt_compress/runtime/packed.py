"""Layers that hold only what their kernel needs, and rebuild the dense weight on demand."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor, nn

_LOGGER = logging.getLogger("slt_compress")


class _Absent:
    """What stands in the place of a weight that is not held."""

    def __repr__(self) -> str:
        return "PACKED"


PACKED: Any = _Absent()


class PackedParameters(MutableMapping[str, Any]):
    """The parameters of a layer, of which `weight` is made again by whatever reads it.

    `.weight`, `state_dict()`, `parameters()`, gradients and `to(dtype)` all come here. Once made,
    the weight stays. A copy or a pickle is an ordinary dictionary with the dense weight.

    Args:
        parameters: of the layer.
        rebuild: makes the dense weight.
    """

    def __init__(
        self, parameters: MutableMapping[str, Any], rebuild: Callable[[], nn.Parameter]
    ) -> None:
        self._held = {**parameters, "weight": PACKED}
        self._rebuild = rebuild

    def held(self) -> Mapping[str, Any]:
        """The values as they are: parameters, None, or `PACKED`."""
        return self._held

    def __getitem__(self, key: str) -> Any:
        value = self._held[key]
        if value is PACKED:
            value = self._held[key] = self._rebuild()
        return value

    def __setitem__(self, key: str, value: Any) -> None:
        self._held[key] = value

    def __delitem__(self, key: str) -> None:
        del self._held[key]

    def __contains__(self, key: object) -> bool:
        return key in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._held))

    def __len__(self) -> int:
        return len(self._held)

    def copy(self) -> dict[str, Any]:
        """An ordinary dictionary, with the dense weight."""
        return dict(self.items())

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (self.copy(),)


def held_of(parameters: Mapping[str, Any]) -> Mapping[str, Any]:
    """The parameters of a layer as they are held, without making any."""
    return parameters.held() if isinstance(parameters, PackedParameters) else parameters


class Once:
    """Says the first time that a dense weight of a model was rebuilt."""

    def __init__(self) -> None:
        self.said = False

    def say(self, weight: Tensor) -> None:
        """Log it, the first time."""
        if not self.said:
            self.said = True
            _LOGGER.warning(
                "the dense weight of a sparse layer was rebuilt (%s, %.1f MB), as something read "
                "or moved it; it stays in memory, and so will others. This is said once",
                "x".join(map(str, weight.shape)), weight.nbytes / 1e6,
            )  # fmt: skip


def leaves_alone(function: Callable[[Tensor], Tensor]) -> bool:
    """Whether what `nn.Module._apply` applies gives a float32 tensor on the CPU back as it is.

    This is so for `to("cpu")` and `float()`, which then need no dense weight.
    """
    trial = torch.ones(1)
    return function(trial) is trial and trial._version == 0 and float(trial) == 1.0
