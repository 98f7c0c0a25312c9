"""What an opened checkpoint is: plain records shared by the families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from slt_compress.checkpoints.library_config import Config
from slt_compress.checkpoints.tasks import (
    TASKS,
    Family,
    Forward,
    Head,
    Task,
    declared_head,
    forward_of,
)

__all__ = ["TASKS", "Architecture", "Checkpoint", "Family", "Init", "Kind", "Task"]

Kind = Literal["hub", "folder", "file", "random", "module"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Init:
    """A random initialisation: the name of its scheme (see `initial.SCHEMES`) and its seed."""

    scheme: str
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """Everything but the weights: enough to build the module, and what is known of its classes."""

    family: Family
    task: Task
    config: Config
    classes: tuple[str, ...] | None
    num_classes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model as it came, on the CPU in eval mode.

    Attributes:
        source: as the user typed it.
        kind: where the weights come from; `random` whenever `init` is given, `file` with `weights`.
        family: the library that builds the module.
        task: what its head answers.
        module: the model.
        config: JSON-able; with family and task enough to build the architecture again.
        revision: the commit hash of a hub source.
        folder: local folder of config, tokenizer and processor files; None where there is none.
        classes: names of the head's classes, None where unknown.
        num_classes: how many outputs the head has, None where it has no classes.
        init: the random initialisation, None for trained weights.
        weights: path of the file that was given for the weights.
        license: identifier from the origin's own model card.
        file_keys: parameter name -> its key(s) in the checkpoint's files; empty for a random init.
        stored: state-dict names of a random init that no seed determines.
        streamed: where the matrices of a hollow module are read from or made, one at a time, by
            state-dict name; None where the module holds them (see `hollow`).
    """

    source: str
    kind: Kind
    family: Family
    task: Task
    module: nn.Module
    config: Config = field(default_factory=dict)
    revision: str | None = None
    folder: Path | None = None
    classes: tuple[str, ...] | None = None
    num_classes: int | None = None
    init: Init | None = None
    weights: str | None = None
    license: str | None = None
    file_keys: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    stored: tuple[str, ...] = ()
    streamed: Mapping[str, Tensor] | None = None

    @classmethod
    def of_module(cls, module: nn.Module) -> Checkpoint:
        """A module of the user's own, as a checkpoint."""
        return cls(
            source=type(module).__name__, kind="module", family="module", task="features",
            module=module,
        )  # fmt: skip

    @classmethod
    def built(cls, architecture: Architecture, module: nn.Module, **origin: Any) -> Checkpoint:
        """The checkpoint of a module that was built by its architecture; `origin` is the rest."""
        known = {name: getattr(architecture, name) for name in Architecture.__slots__}
        return cls(module=module, **known, **origin)

    @property
    def trained_head(self) -> bool:
        """False for a random init and for the task `features`."""
        return self.init is None and self.task != "features"

    @property
    def head(self) -> Head | None:
        """What its outputs are, if its config says so; see `tasks.declared_head`."""
        return declared_head(self.task, self.config, self.num_classes)

    @property
    def forward(self) -> Forward:
        """How the module, or a copy of it, is called on a batch; see `tasks.forward_of`."""
        return forward_of(self.family, self.task)
