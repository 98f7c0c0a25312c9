"""Residence: which matrices of a hollow module are in memory, and for how long."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.anatomy.blocks import block_names
from slt_compress.storage.freeing import release


@dataclass(slots=True)
class _Matrix:
    """A parameter, what stands for it while it is not in memory, and how many want it there."""

    parameter: nn.Parameter
    key: str
    blank: Tensor
    wanted: int = 0


@dataclass(slots=True, kw_only=True)
class Residence:
    """The matrices of a module, read from `tensors` where a block of the program wants them.

    Only data moves: the parameters stay the same objects, under gates too. Nothing happens to a
    module that holds its own weights, whose `tensors` are None.
    """

    module: nn.Module
    tensors: Mapping[str, Tensor] | None
    blocks: tuple[str, ...]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    _matrices: dict[str, list[_Matrix]] = field(default_factory=dict)

    @classmethod
    def of(cls, module: nn.Module, tensors: Mapping[str, Tensor] | None) -> Residence:
        """The residence of a module that has no gates yet."""
        made = cls(module=module, tensors=tensors, blocks=block_names(module))
        known: dict[int, _Matrix] = {}
        for name, parameter in module.named_parameters(remove_duplicate=False):
            if tensors is not None and parameter.dim() > 1:
                matrix = known.setdefault(id(parameter), _Matrix(parameter, name, parameter.data))
                made._matrices.setdefault(made._block_of(name), []).append(matrix)
        return made

    def _block_of(self, name: str) -> str:
        """The block that a name is in; empty outside of all blocks."""
        return next((block for block in self.blocks if f"{name}.".startswith(f"{block}.")), "")

    def to_(self, device: torch.device) -> None:
        """Move the module; matrices follow when they are read again, if they are not in memory."""
        if self.tensors is None:
            self.module.to(device)
            return
        self.device = device
        for matrix in chain.from_iterable(self._matrices.values()):
            blank = matrix.blank
            matrix.blank = (
                blank.as_strided((1,), (1,)).to(device).as_strided(blank.shape, (0,) * blank.dim())
            )
            data = matrix.parameter.data
            matrix.parameter.data = data.to(device) if matrix.wanted else matrix.blank
        matrices = {id(m.parameter) for m in chain.from_iterable(self._matrices.values())}
        for tensor in (*self.module.parameters(), *self.module.buffers()):
            if id(tensor) not in matrices:
                tensor.data = tensor.data.to(device)

    @contextmanager
    def held(self, name: str) -> Iterator[None]:
        """The matrices of the block that a module is in, in memory as long as the block lasts."""
        if self.tensors is None:
            yield
            return
        matrices = self._matrices.get(self._block_of(name), [])
        with ExitStack() as undo:
            if any(not matrix.wanted for matrix in matrices):
                undo.callback(release)
            for matrix in matrices:
                undo.callback(_let_go, matrix)
                matrix.wanted += 1
                if matrix.wanted == 1:
                    matrix.parameter.data = self.tensors[matrix.key].to(self.device)
            yield

    @contextmanager
    def running(self) -> Iterator[None]:
        """The module can run: a block is in memory while its own pass lasts, the rest always."""
        if self.tensors is None:
            yield
            return
        with ExitStack() as undo:
            undo.enter_context(self.held(""))
            for name in self.blocks:
                owner = self.module.get_submodule(name)
                undo.callback(_put_forward, owner, vars(owner).get("forward"))
                owner.forward = self._loading(name, owner.forward)
            yield

    def _loading(self, name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def load(*args: Any, **kwargs: Any) -> Any:
            with self.held(name):
                return forward(*args, **kwargs)

        return load


def _let_go(matrix: _Matrix) -> None:
    matrix.wanted -= 1
    if not matrix.wanted:
        matrix.parameter.data = matrix.blank


def _put_forward(owner: nn.Module, own: Callable[..., Any] | None) -> None:
    del owner.forward
    if own is not None:
        owner.forward = own
