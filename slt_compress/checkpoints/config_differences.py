"""Two configurations of one network, compared setting by setting."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from slt_compress.checkpoints.checkpoint import Family, Task
from slt_compress.checkpoints.families import describe_folder, normalised_config, with_changes
from slt_compress.checkpoints.library_config import Config

# What says by which version or in which dtype a config was written, and changes no output.
_NO_MATTER = frozenset(("transformers_version", "dtype", "torch_dtype", "architectures"))
# What the head of a random init takes from its data and not from its source.
HEAD = frozenset(("num_classes", "num_labels", "id2label", "label2id", "problem_type",
                  "finetuning_task", "pretrained_cfg"))  # fmt: skip
# What of timm's `pretrained_cfg` changes the inputs of the network; it rewrites the rest at will.
_INPUTS = frozenset(("input_size", "mean", "std", "interpolation", "crop_pct", "crop_mode",
                     "num_classes"))  # fmt: skip
_ABSENT = "nothing"


def config_difference(
    family: Family,
    here: Config,
    there: Config,
    ignored: frozenset[str] = frozenset(),
) -> str | None:
    """The first setting in which two configs differ, as a clause; None where they agree.

    Both are read by the installed library first, which adds what an older one did not write.

    Raises:
        SourceError: the library refuses one of them.
    """
    left_out = ignored | _NO_MATTER
    first, second = (
        dict(_settings(normalised_config(family, config), left_out)) for config in (here, there)
    )
    for key in sorted(first.keys() | second.keys()):
        own, wanted = (_text(config.get(key, _ABSENT)) for config in (first, second))
        if own != wanted:
            return f"its configuration has {key} {own[:60]} where the origin has {wanted[:60]}"
    return None


def own_config(folder: Path, task: Task, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config in a checkpoint folder, with the changes that a search asked for.

    Raises:
        SourceError: the folder is no checkpoint for that task.
    """
    found = describe_folder(folder, task)
    return with_changes(found, str(folder), num_classes=None, classes=None, options=options).config


def without_defaults(config: Config, recorded: Config, module: nn.Module) -> Config:
    """A timm config as it is before timm writes it.

    timm adds arguments that the network has anyway: input size, channels and pooling. One with
    another value stays, and so differs from the record.
    """
    settings = getattr(module, "pretrained_cfg", None) or {}
    channels, *size = settings.get("input_size") or (None,)
    own: dict[str, Any] = {"in_chans": channels, "img_size": size,
           "global_pool": getattr(module, "global_pool", None)}  # fmt: skip
    asked = recorded.get("model_args") or {}
    arguments = {
        key: value
        for key, value in (config.get("model_args") or {}).items()
        if key in asked or key not in own or value != own[key]
    }
    before = recorded.get("pretrained_cfg") or {}
    written = {
        key: value for key, value in (config.get("pretrained_cfg") or {}).items() if key in _INPUTS
    }
    return {**config, "model_args": arguments, "pretrained_cfg": {**before, **written}}


def _settings(
    config: Config, left_out: frozenset[str], path: str = ""
) -> Iterator[tuple[str, Any]]:
    """The settings by dotted name, those of nested configs (`text_config`) among them."""
    for key, value in config.items():
        if key in left_out:
            continue
        if isinstance(value, Mapping) and value:
            yield from _settings(value, left_out, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _text(value: Any) -> str:
    """A value as text that is equal for equal values; JSON has no tuples."""
    return json.dumps(value, sort_keys=True, default=str)
