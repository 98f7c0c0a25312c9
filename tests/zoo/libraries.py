"""Every model of timm and every type of transformers, opened as the product opens them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from slt_compress.checkpoints import Checkpoint, sketch_checkpoint
from slt_compress.checkpoints.quiet import quiet


def timm_names() -> list[str]:
    """All architectures of timm."""
    import timm

    found: list[str] = timm.list_models()
    return found


def transformers_types() -> list[str]:
    """All types of transformers, with parts of models that have no class of their own."""
    from transformers import CONFIG_MAPPING

    return sorted(CONFIG_MAPPING.keys())


def default_config(kind: str) -> dict[str, Any]:
    """The default config of a type, as its `config.json` would hold it.

    Raises:
        Exception: whatever the library raises where it has no sound default.
    """
    from transformers import CONFIG_MAPPING

    with quiet():
        found: dict[str, Any] = json.loads(CONFIG_MAPPING[kind]().to_json_string(use_diff=False))
    return found


def has_class(kind: str) -> bool:
    """Whether some auto class of transformers opens a config of this type."""
    from transformers.models.auto import modeling_auto

    tables = (t for n, t in vars(modeling_auto).items() if n.endswith("_MAPPING_NAMES"))
    return any(kind in table for table in tables if table is not modeling_auto.CONFIG_MAPPING_NAMES)


def sketch_timm(name: str) -> Checkpoint:
    """An architecture of timm on the meta device."""
    return sketch_checkpoint(f"timm:{name}")


def sketch_type(config: Mapping[str, Any]) -> Checkpoint:
    """A model of transformers on the meta device, from its config in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        return sketch_checkpoint(folder)
