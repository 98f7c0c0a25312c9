"""Write a dense artifact: the layout of the model's own library, and a manifest beside it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from slt_compress.artifacts.draft import Draft
from slt_compress.artifacts.entries import entry_dicts
from slt_compress.artifacts.manifest import CONFIG, DENSE_MANIFEST, DENSE_WEIGHTS
from slt_compress.artifacts.weight_files import weight_files
from slt_compress.checkpoints import Checkpoint
from slt_compress.checkpoints.quiet import quiet
from slt_compress.storage.files import sha256_file, write_json, write_safetensors

# Writes all other files of an artifact; gives what the manifest says of them.
Beside = Callable[[], dict[str, dict[str, str]]]


def write_dense(folder: Path, manifest: Mapping[str, object], draft: Draft, beside: Beside) -> None:
    """Let the model's library write its own layout, and slt.json, the manifest, beside it."""
    checkpoint, tensors = draft.content.checkpoint, draft.state.tensors
    if checkpoint.family == "transformers":
        _save_transformers(folder, draft)
    elif checkpoint.family == "timm":
        _save_timm(folder, checkpoint, draft.content.module)
    else:
        write_safetensors(folder / DENSE_WEIGHTS, tensors)
        write_json(folder / CONFIG, checkpoint.config)
    files = {file.name: sha256_file(file) for file in weight_files(folder)}
    entries = entry_dicts({name: draft.entry(name) for name in tensors})
    whole = {**manifest, "entries": entries, "files": files, **beside()}
    write_json(folder / DENSE_MANIFEST, whole)


def _save_transformers(folder: Path, draft: Draft) -> None:
    """Write what `save_pretrained` writes, also where tensors are computed one at a time."""
    from huggingface_hub import split_torch_state_dict_into_shards

    module: Any = draft.content.module
    if draft.state.shells is None:
        with quiet():
            module.save_pretrained(folder, max_shard_size=draft.max_shard_size)
        return
    with quiet():
        module.save_pretrained(folder, state_dict={})  # the configs, and a file without a tensor
    # Of tied tensors, the library keeps the one that it looks for when it loads.
    tied = {**draft.state.ties, **{key: alias for alias, key in draft.state.ties.items()}}
    left_out = {name for name in tied if name in module.all_tied_weights_keys}
    names = [name for name in module.state_dict() if name not in left_out]
    if draft.content.checkpoint.init is None:  # the library sorts what it loaded in its own way
        from transformers.core_model_loading import dot_natural_key

        names.sort(key=dot_natural_key)
    split = split_torch_state_dict_into_shards(
        {name: draft.state.shell(draft.state.ties.get(name, name)) for name in names},
        max_shard_size=draft.max_shard_size,
    )
    (folder / DENSE_WEIGHTS).unlink(missing_ok=True)
    for file, held in split.filename_to_tensors.items():
        tensors = {name: draft.state.tensors[draft.state.ties.get(name, name)] for name in held}
        save_file(tensors, folder / file, metadata={"format": "pt"})
    if split.is_sharded:
        metadata = {"total_parameters": module.num_parameters(), **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / f"{DENSE_WEIGHTS}.index.json").write_text(text, encoding="utf-8")


def streams_dense(module: nn.Module, ties: Mapping[str, str]) -> bool:
    """Whether `write_dense` can write a model of transformers tensor by tensor.

    It cannot where the library renames tensors as it saves them, leaves some of them out, or does
    not say which of two tied ones it keeps.
    """
    tied = getattr(module, "all_tied_weights_keys", None)
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping

        rules = get_model_conversion_mapping(module, add_legacy=False)
    except (ImportError, TypeError):
        return False
    groups: dict[str, set[str]] = {}
    for alias, key in ties.items():
        groups.setdefault(key, {key}).add(alias)
    return (
        isinstance(tied, Mapping)
        and not rules
        and not getattr(module, "_keys_to_ignore_on_save", None)
        and all(len(names - tied.keys()) == 1 for names in groups.values())
    )


def _save_timm(folder: Path, checkpoint: Checkpoint, module: nn.Module) -> None:
    settings = checkpoint.config.get("pretrained_cfg") or {}
    labels = {}
    if checkpoint.classes is not None and "label_names" not in settings:
        labels = {"label_names": list(checkpoint.classes)}
    with quiet():
        # Not `save_for_hf`, which refuses weights that modules share, such as those of CoaT.
        from timm.models._hub import save_config_for_hf

        write_safetensors(folder / DENSE_WEIGHTS, module.state_dict())
        save_config_for_hf(
            module,
            folder / CONFIG,
            model_config=labels,
            model_args=dict(checkpoint.config.get("model_args") or {}),
        )
