"""What an opened checkpoint is: plain records shared by the families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from torch import nn

Family = Literal["transformers", "timm", "reference", "module"]
Kind = Literal["hub", "folder", "file", "random", "module"]
Task = Literal[
    "image-classification",
    "text-classification",
    "causal-lm",
    "masked-lm",
    "seq2seq",
    "token-classification",
    "audio-classification",
    "visual-question-answering",
    "zero-shot-image-classification",
    "image-text-to-text",
    "features",
]
TASKS: tuple[Task, ...] = get_args(Task)


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
    config: Mapping[str, Any]
    classes: tuple[str, ...] | None
    num_classes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model as it came, on the CPU in eval mode.

    Attributes:
        source: as the user typed it.
        kind: where the weights come from; `random` whenever `init` is given, `file` with `weights`.
        revision: the commit hash of a hub source.
        family: the library that builds the module.
        task: what its head answers.
        module: the model.
        config: JSON-able; with family and task enough to build the architecture again.
        folder: local folder of config, tokenizer and processor files; None where there is none.
        classes: names of the head's classes, None where unknown.
        num_classes: how many outputs the head has, None where it has no classes.
        trained_head: False for a random init and for the task `features`.
        init: the random initialisation, None for trained weights.
        weights: path of the file that was given for the weights.
        license: identifier from the origin's own model card.
        file_keys: parameter name -> its key(s) in the checkpoint's files; empty for a random init.
        stored: state-dict names of a random init that no seed determines.
    """

    source: str
    kind: Kind
    revision: str | None
    family: Family
    task: Task
    module: nn.Module
    config: Mapping[str, Any]
    folder: Path | None
    classes: tuple[str, ...] | None
    num_classes: int | None
    trained_head: bool
    init: Init | None
    weights: str | None
    license: str | None
    file_keys: Mapping[str, tuple[str, ...]]
    stored: tuple[str, ...]
