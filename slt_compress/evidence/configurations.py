"""Whether a folder would build the network that its origin is: the configurations, compared."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from slt_compress.checkpoints import Checkpoint
from slt_compress.checkpoints.config_differences import (
    HEAD,
    config_difference,
    own_config,
    without_defaults,
)
from slt_compress.errors import SourceError
from slt_compress.runtime.opening import Opened
from slt_compress.storage.files import read_json


def other_configuration(
    opened: Opened, record: Mapping[str, Any], source: Checkpoint
) -> str | None:
    """The first setting in which a folder differs from its origin, as a clause; None for none.

    Compared are the configuration that the folder's model is built from, the one that its record of
    the origin has, and the `config.json` of the origin itself where that can be had.
    """
    recorded = record.get("config")
    if source.family == "module" or not isinstance(recorded, dict):
        return None
    if opened.recorded is None and opened.checkpoint.family == source.family:
        own = opened.checkpoint.config
        if source.family == "timm":
            own = without_defaults(own, recorded, source.module)
        found = config_difference(source.family, own, recorded)
        if found is not None:
            return found
    if source.folder is not None:
        with suppress(SourceError):  # a folder that only holds weights, or is none of the kind
            own = own_config(source.folder, source.task, _options(opened))
            ignored = HEAD if source.init is not None else frozenset[str]()
            return config_difference(source.family, recorded, own, ignored)
    return None


def _options(opened: Opened) -> Mapping[str, Any]:
    """The attributes of the config that the search was asked to change."""
    recipe: Any = None
    if opened.ticket is not None:
        recipe = opened.ticket.recipe
    elif (opened.path / "report.json").is_file():
        recipe = read_json(opened.path / "report.json", SourceError).get("recipe")
    options = recipe.get("model") if isinstance(recipe, Mapping) else None
    return options if isinstance(options, Mapping) else {}
