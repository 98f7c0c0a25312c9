"""The values that a config of transformers may hold before transformers reads it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from slt_compress.checkpoints.plain_values import DEPTH, is_no_place, is_number, shown
from slt_compress.errors import SourceError

# Keys that would send transformers to other files, other code or other kernels; at any depth.
_DROPPED = re.compile(
    r"auto_map|transformers_weights|fusion_config|kernel_config|_commit_hash|use_kernels"
    r"|_?(attn|experts)_implementation(_internal)?|(.*_)?name_or_path|custom_pipelines"
)
_TOKEN = re.compile(r"</?[\w|]{1,40}>")  # of a vocabulary, such as </s>
# Keys whose values are texts for people: class names, prompts, notes.
_TEXTS = frozenset(("id2label", "label2id", "task_specific_params"))
# Arguments of the loaders of transformers, timm and torch: never part of an architecture.
_LOADERS = re.compile(
    r"(.*_)?(path|paths|file|files|filename|folder|url|urls|cache_dir|state_dict|checkpoint)"
    r"|pretrained|pretrained_cfg(_overlay)?|pretrained_model_args|custom_load|trust_remote_code"
)


def leads_elsewhere(key: str) -> bool:
    """Whether a key of a config would send transformers to other files, code or kernels."""
    return _DROPPED.fullmatch(key) is not None


def checked_config(
    found: Mapping[str, Any], where: str, is_declared: Callable[[str], bool]
) -> dict[str, Any]:
    """A config without the keys that lead elsewhere, all its values plain; `where` is whose it is.

    Numbers, booleans, short texts that name no place, and lists and objects of these may stay. A
    value of another kind under a name that its config does not declare (a note that somebody
    added) is left out.

    Raises:
        SourceError: such a value under a declared name, or one for a loader's argument.
    """
    checked: dict[str, Any] = {}
    for name, value in found.items():
        if leads_elsewhere(name):
            continue
        try:
            checked[name] = _entry(name, value, where, name, DEPTH)
        except SourceError:
            if is_declared(name) or _LOADERS.fullmatch(name):
                raise
    return checked


def _checked(value: Any, where: str, key: str, depth: int) -> Any:
    if depth < 0:
        raise SourceError(f"the config of {where} is nested too deep at {shown(key)}")
    if isinstance(value, Mapping):
        kept = {str(k): v for k, v in value.items() if not leads_elsewhere(str(k))}
        return {k: _entry(k, v, where, f"{key}.{k}", depth) for k, v in kept.items()}
    if isinstance(value, list | tuple):
        return [_checked(item, where, key, depth - 1) for item in value]
    if not (_is_text(value) if isinstance(value, str) else is_number(value)):
        raise SourceError(
            f"the config of {where} sets {shown(key)} to {shown(value)}; a config may hold numbers "
            "of 64 bits and short texts that name no file, folder or address"
        )
    return value


def _is_text(text: str) -> bool:
    return is_no_place(text) or _TOKEN.fullmatch(text) is not None


def _entry(name: str, value: Any, where: str, key: str, depth: int) -> Any:
    if name in _TEXTS:
        return value
    if _LOADERS.fullmatch(name) and isinstance(value, str) and value:
        raise SourceError(
            f"the config of {where} sets {shown(key)}, an argument of a loader, to {shown(value)}: "
            "remove it; weights are read from safetensors files only"
        )
    return _checked(value, where, key, depth - 1)
