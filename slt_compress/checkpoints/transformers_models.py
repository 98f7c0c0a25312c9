"""Family `transformers`: describe, build and load the models of transformers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.checkpoints.checkpoint import Architecture, Task
from slt_compress.checkpoints.configs import (
    HEADS,
    as_dict,
    as_source_error,
    class_names,
    model_class,
    named_class,
    read_config,
)
from slt_compress.checkpoints.library_config import Config
from slt_compress.checkpoints.quiet import quiet
from slt_compress.checkpoints.weight_files import read_json_object
from slt_compress.errors import SourceError

_CLASSIFIERS = (
    "image-classification",
    "text-classification",
    "token-classification",
    "audio-classification",
    "visual-question-answering",
)


def describe_folder(folder: Path, task: Task | None) -> Architecture:
    """The architecture in the `config.json` of a transformers folder.

    The head follows the config's `architectures`; `task` overrides it.

    Raises:
        SourceError: a config that this transformers cannot build, or has no such head for.
    """
    return _describe(read_json_object(folder / "config.json"), task, str(folder))


def _describe(values: Mapping[str, Any], task: Task | None, where: str) -> Architecture:
    config = read_config(values, where)
    named = named_class(values)
    fitting = (t for t, _ in HEADS if named in class_names(config, t))
    head: Task = task if task is not None else next(fitting, "features")
    chosen = model_class(config, head, named, where)
    config.architectures = [chosen.__name__]
    count = int(config.num_labels) if head in _CLASSIFIERS else None
    names = [str(config.id2label.get(i, "")) for i in range(count or 0)] if count else []
    blank = all(name in ("", f"LABEL_{i}") for i, name in enumerate(names))
    return Architecture(
        family="transformers",
        task=head,
        config=as_dict(config),
        classes=None if blank else tuple(names),
        num_classes=count,
    )


def with_changes(
    architecture: Architecture,
    *,
    num_classes: int | None,
    classes: Sequence[str] | None,
    options: Mapping[str, Any],
    where: str,
) -> Architecture:
    """The architecture with another head and other config attributes (`a.b` for a nested one).

    Raises:
        SourceError: the config has no such attribute, or refuses the value.
    """
    config = json.loads(json.dumps(architecture.config))
    known = read_config(architecture.config, where)
    for key, value in options.items():
        holder, parts, owner = config, key.split("."), known
        for part in parts[:-1]:
            holder, owner = holder.get(part), getattr(owner, part, None)
        attribute = getattr(type(owner), "attribute_map", {}).get(parts[-1], parts[-1])
        if not isinstance(holder, dict) or not hasattr(owner, attribute):
            raise SourceError(
                f"the {known.model_type} config of {where} has no attribute {key!r} to set"
            )
        holder[attribute] = value
    count = num_classes if num_classes is not None else (len(classes) if classes else None)
    if count is not None and architecture.task in _CLASSIFIERS and "num_labels" not in options:
        named = list(classes) if classes and len(classes) == count else []
        labels = named or [f"LABEL_{i}" for i in range(count)]
        config["id2label"] = {str(i): name for i, name in enumerate(labels)}
        config["label2id"] = {name: i for i, name in enumerate(labels)}
        config.pop("num_labels", None)
    return _describe(config, architecture.task, where)


def build(task: Task, config: Config) -> nn.Module:
    """The model that `config` describes, with meaningless weights and the right buffers.

    Raises:
        SourceError: this transformers cannot build it.
    """
    module = _construct(task, config, initialise=False)
    # Buffers that are computed once and never saved (rotary frequencies, say) may be set by the
    # initialisation that was skipped: run it for the few modules with such buffers.
    library: Any = module
    for part in module.modules():
        if part._non_persistent_buffers_set and not list(part.children()):
            library._init_weights(part)
    return module


def sketch(task: Task, config: Config) -> nn.Module:
    """As `build`, for the meta device, where buffers have no values."""
    return _construct(task, config, initialise=False)


def build_initialised(task: Task, config: Config) -> nn.Module:
    """As `build`, with the library's own random initialisation (torch's global generator)."""
    return _construct(task, config, initialise=True)


def _construct(task: Task, values: Mapping[str, Any], *, initialise: bool) -> nn.Module:
    where = "the recorded config"
    config = read_config(values, where)
    chosen = model_class(config, task, named_class(values), where)
    with quiet(), as_source_error(f"transformers cannot build {chosen.__name__}"):
        from transformers.initialization import no_init_weights

        with contextlib.nullcontext() if initialise else no_init_weights():
            module: Any = chosen._from_config(config)
        if not initialise:
            module.tie_weights()
    built: nn.Module = module.eval()
    return built


def load(
    task: Task, config: Config, tensors: Mapping[str, Tensor], where: str
) -> tuple[nn.Module, dict[str, tuple[str, ...]]]:
    """The model with the weights of `tensors`, and the keys of each parameter among them.

    Raises:
        SourceError: a parameter has no weight in `tensors`, or one of a different shape.
    """
    opened = read_config(config, where)
    chosen = model_class(opened, task, named_class(config), where)
    with quiet(), as_source_error(f"{where} does not fit {chosen.__name__}"):
        module, info = chosen.from_pretrained(
            None,
            config=opened,
            state_dict=dict(tensors),
            dtype="auto",
            output_loading_info=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    lost = sorted(info["missing_keys"]) + sorted(str(k[0]) for k in info["mismatched_keys"])
    if lost or info["error_msgs"]:
        detail = ", ".join(lost[:3]) or str(info["error_msgs"][0])[:200]
        raise SourceError(
            f"{where} has no weights for {len(lost)} of the parameters of {chosen.__name__}, "
            f"among them {detail}; choose another task or checkpoint"
        )
    return module.eval(), _file_keys(module, tensors)


def direct_keys(module: nn.Module, shells: Mapping[str, Tensor]) -> dict[str, str] | None:
    """The key of every tensor of a model in its files, if loading changes only names.

    None if transformers fuses, splits or casts tensors, makes up a missing one, or has to choose
    between several. `module` and `shells` are on the meta device.
    """
    own = module.state_dict(keep_vars=True)
    kinds = {shell.dtype for shell in shells.values() if shell.is_floating_point()}
    wide = [getattr(module, f"_keep_in_fp32_modules{end}", None) for end in ("", "_strict")]
    if len(kinds) != 1 or (any(wide) and kinds != {torch.float32}):
        return None
    keys: dict[str, str] = {}
    with quiet():
        rename = _renamer(module, str(getattr(module, "base_model_prefix", "")), own)
        for key, shell in shells.items():
            name, only_renamed = rename(key)
            if name not in own:
                continue  # not a tensor of the model
            same = (own[name].shape, own[name].dtype) == (shell.shape, shell.dtype)
            if name in keys or not only_renamed or not same:
                return None
            keys[name] = key
    groups: dict[int, list[str]] = {}
    for name, tensor in own.items():
        groups.setdefault(id(tensor), []).append(name)
    for names in groups.values():
        stored = [keys[name] for name in names if name in keys]
        if len(stored) != 1:
            return None
        keys.update(dict.fromkeys(names, stored[0]))
    return keys


def _file_keys(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """The file keys that each parameter came from; transformers renames and fuses on load."""
    own = module.state_dict()
    prefix = str(getattr(module, "base_model_prefix", ""))
    sources: dict[str, list[str]] = {}
    with quiet():
        rename = _renamer(module, prefix, own)
        for key in sorted(tensors):
            sources.setdefault(rename(key)[0], []).append(key)
    names = [name for name, _ in module.named_parameters()]
    return {name: tuple(sources[name]) for name in names if name in sources}


def _renamer(
    module: nn.Module, prefix: str, own: Mapping[str, Tensor]
) -> Callable[[str], tuple[str, bool]]:
    """Maps a file key to the name in the model, and to whether loading only renames it."""

    def plain(key: str) -> str:
        candidates = (key, f"{prefix}.{key}", key.removeprefix(f"{prefix}."))
        return next((name for name in candidates if name in own), key)

    # The renaming of transformers is not a public interface. If it differs, only the keys that keep
    # their names are found.
    try:
        from transformers import core_model_loading as loading
        from transformers.conversion_mapping import get_model_conversion_mapping

        rules = get_model_conversion_mapping(module)
        renamings = [r for r in rules if isinstance(r, loading.WeightRenaming)]
        converters = [r for r in rules if isinstance(r, loading.WeightConverter)]

        def full(key: str) -> tuple[str, bool]:
            name, by = loading.rename_source_key(key, renamings, converters, prefix, dict(own))
            return str(name) if name in own else plain(key), by is None

        full("")
    except (ImportError, AttributeError, TypeError):
        return lambda key: (plain(key), False)
    return full
