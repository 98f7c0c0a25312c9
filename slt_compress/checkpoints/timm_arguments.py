"""The arguments of timm models that a config, a manifest or a ticket may set."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any

from torch import nn

from slt_compress.checkpoints.plain_values import is_plain, shown
from slt_compress.checkpoints.quiet import quiet
from slt_compress.errors import SourceError

# Arguments of the network that timm's builders take out before its class sees them.
_BUILDERS_OWN = frozenset((
    "bn_eps", "bn_momentum", "channel_multiplier", "depth_multiplier", "drop_path_rate",
    "drop_rate", "features_only", "global_pool", "group_size", "head_conv", "img_size",
    "in_chans", "num_classes", "out_indices", "output_stride", "pad_type",
))  # fmt: skip
# Names in those classes that say where something runs or comes from, or take more than a value.
_NEVER = frozenset((
    "self", "args", "kwargs", "cfg", "cfgs", "module", "fn", "device", "dtype", "pretrained",
    "pretrained_cfg", "checkpoint_path", "pretrained_cfg_overlay", "pretrained_model_args",
    "pretrained_strict", "pretrained_filter_fn", "pretrained_loc", "feature_cfg", "model_cfg",
    "cache_dir", "kwargs_filter", "pruned", "file", "url", "state_dict", "source",
    "custom_load", "scriptable", "exportable", "no_jit", "weights",
))  # fmt: skip


def is_name(name: str) -> bool:
    """Whether timm knows a model called `name`, with or without the tag of its weights."""
    with quiet():
        import timm

        known = timm.is_model(name.partition(".")[0])
    return bool(known)


@lru_cache(maxsize=256)
def argument_names(architecture: str) -> frozenset[str]:
    """The names of the arguments that shape a timm model; never one of timm's loaders.

    They are read off the constructors in the module of timm that holds the architecture.
    """
    with quiet():
        import timm

        home = sys.modules[timm.model_entrypoint(architecture).__module__]
    names = set(_BUILDERS_OWN)
    for value in vars(home).values():
        if not inspect.isclass(value) or not value.__module__.startswith("timm.models"):
            continue
        if issubclass(value, nn.Module):
            names |= set(inspect.signature(value.__init__).parameters)
        elif is_dataclass(value):
            names |= {field.name for field in fields(value)}
    return frozenset(names - _NEVER)


def checked_arguments(architecture: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments, each one known to shape the network and plain.

    Raises:
        SourceError: an argument that the architecture does not have, or one whose value is no
            number, word or list of these.
    """
    known = argument_names(architecture)
    for name, value in arguments.items():
        if name not in known:
            raise SourceError(
                f"{shown(name)} is not an argument that shapes the timm model {architecture}, so "
                "no config may set it: remove it from model_args"
            )
        if not is_plain(value):
            raise SourceError(
                f"the argument {name} of the timm model {architecture} is {shown(value)}; a config "
                "may give numbers, booleans, short words and lists of these only"
            )
    return dict(arguments)
