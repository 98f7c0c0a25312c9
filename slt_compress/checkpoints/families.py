"""The family of a folder, and how a module of any family is built or loaded."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.checkpoints import reference_models, timm_models, transformers_models
from slt_compress.checkpoints.bounds import bounded_by, bounded_count
from slt_compress.checkpoints.checkpoint import Architecture, Family, Init, Task
from slt_compress.checkpoints.configs import as_dict, read_config
from slt_compress.checkpoints.filling import initialise_
from slt_compress.checkpoints.guidance import no_checkpoint
from slt_compress.checkpoints.library_config import Config
from slt_compress.checkpoints.reference import REFERENCE
from slt_compress.checkpoints.weight_files import read_json_object
from slt_compress.errors import SourceError
from slt_compress.storage.regular import read_regular_text


def describe_folder(folder: Path, task: Task | None) -> Architecture:
    """The architecture of a checkpoint folder, by its `config.json`.

    Raises:
        SourceError: no config, one of an unknown family, or a quantized or exported checkpoint.
    """
    if (folder / "ticket.json").is_file():
        raise SourceError(f"{folder} is a ticket; open it with slt_compress.load({str(folder)!r})")
    if not (folder / "config.json").is_file():
        names = (path.name for path in folder.iterdir()) if folder.is_dir() else ()
        raise SourceError(no_checkpoint(names, str(folder)))
    config = read_json_object(folder / "config.json")
    _refuse_quantized(config, folder)
    if (folder / "adapter_config.json").is_file() and "model_type" not in config:
        raise SourceError(no_checkpoint(["adapter_config.json"], str(folder)))
    if "model_type" in config:
        return transformers_models.describe_folder(folder, task)
    name = config.get("architecture")
    if isinstance(name, str) and name in REFERENCE:
        return reference_models.describe(name, num_classes=config.get("num_classes"))
    if isinstance(name, str):
        return timm_models.describe_folder(folder)
    raise SourceError(
        f"{folder / 'config.json'} has neither model_type (transformers) nor architecture (timm)"
    )


def _refuse_quantized(config: Config, folder: Path) -> None:
    quantized = config.get("quantization_config")
    if not quantized:
        return
    method = quantized.get("quant_method") if isinstance(quantized, dict) else None
    if method == "slt-compress":
        raise SourceError(
            f"{folder} is an slt-compress artifact; open it with slt_compress.load({str(folder)!r})"
        )
    raise SourceError(
        f"{folder} is quantized ({method}); masks need the original weights: "
        "give the unquantized checkpoint"
    )


def with_changes(
    known: Architecture,
    where: str,
    *,
    num_classes: int | None,
    classes: Sequence[str] | None,
    options: Mapping[str, Any],
) -> Architecture:
    """The architecture with another head and with options for its library.

    Raises:
        SourceError: an option that the family or the config does not have.
    """
    if not options and num_classes is None and not classes:
        return known
    if known.family == "reference":
        return reference_models.describe(
            str(known.config["architecture"]),
            num_classes=num_classes if num_classes is not None or classes else known.num_classes,
            classes=classes,
            options=options,
        )
    if known.family == "timm":
        return timm_models.with_changes(
            known, num_classes=num_classes, classes=classes, options=options
        )
    return transformers_models.with_changes(
        known, num_classes=num_classes, classes=classes, options=options, where=where
    )


def normalised_config(family: Family, config: Config) -> dict[str, Any]:
    """A recorded config as the installed library understands it, to be compared with another.

    Raises:
        SourceError: the library refuses it.
    """
    if family == "transformers":
        return as_dict(read_config(config, "the recorded origin"))
    return {key: value for key, value in config.items() if key != "quantization_config"}


def build_module(family: Family, task: Task, config: Config) -> nn.Module:
    """The architecture on the CPU in eval mode, with meaningless weights.

    A `dtype` in the config of a timm model or reference net (see `dtype_of`) is respected. Nothing
    is downloaded. Buffers that are never saved have their right values.

    Raises:
        SourceError: the installed library cannot build it, or `family` is `module`.
    """
    with torch.random.fork_rng(devices=[]):  # building draws random weights: leave no trace
        if family == "reference":
            return _cast(reference_models.build(task, config), config)
        if family == "timm":
            return _cast(timm_models.build(task, config), config)
        if family == "transformers":
            return transformers_models.build(task, config)
    raise SourceError(f"a module of the family {family!r} cannot be built; pass it as model=")


def sketch_module(family: Family, task: Task, config: Config) -> nn.Module:
    """The architecture on the meta device: names, shapes, dtypes and ties, and no memory.

    Raises:
        SourceError: the installed library cannot build it, or `family` is `module`.
    """
    with torch.device("meta"), bounded_count("the architecture"):
        if family != "transformers":
            return build_module(family, task, config)
        return transformers_models.sketch(task, config)


_DTYPES = MappingProxyType(
    {str(d).removeprefix("torch."): d for d in (torch.float16, torch.bfloat16)}
)


def dtype_of(family: Family, tensors: Mapping[str, Tensor]) -> str | None:
    """The single floating dtype of `tensors`, to be recorded in the config of the family.

    None for float32 and for mixed dtypes. The configs of transformers have a `dtype` already.
    """
    kinds = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    names = [name for name, dtype in _DTYPES.items() if kinds == {dtype}]
    return names[0] if names and family in ("timm", "reference") else None


def _cast(module: nn.Module, config: Config) -> nn.Module:
    name = config.get("dtype")
    if name is None:
        return module
    if name not in _DTYPES:
        raise SourceError(f"a config has the dtype {name!r}; known: {', '.join(_DTYPES)}")
    return module.to(_DTYPES[name])


def load_weights(
    family: Family, task: Task, config: Config, tensors: Mapping[str, Tensor], where: str
) -> tuple[nn.Module, dict[str, tuple[str, ...]]]:
    """The module with the weights of `tensors`; and parameter name -> keys in `tensors`.

    Raises:
        SourceError: the weights do not fit; the message names a few keys and `where` they are.
    """
    if not tensors:
        raise SourceError(f"{where} holds no tensors")
    with torch.random.fork_rng(devices=[]), bounded_by(tensors, where):
        if family == "transformers":
            return transformers_models.load(task, config, tensors, where)
        if family in ("reference", "timm"):
            load = reference_models.load if family == "reference" else timm_models.load
            module, keys = load(task, config, tensors, where)
            # Both libraries build in float32, which holds the narrower types exactly.
            return _cast(module, config), keys
    raise SourceError(
        f"weights of the family {family!r} cannot be loaded; pass the module as model="
    )


def direct_keys(
    family: Family, config: Config, module: nn.Module, shells: Mapping[str, Tensor]
) -> dict[str, str] | None:
    """The key of every tensor of `module` in its files, if loading only copies and casts them.

    None if loading does more than that, or the library cannot tell. `module` and `shells` are on
    the meta device.
    """
    with suppress(SourceError, RuntimeError):
        return _direct_keys(family, config, module, shells)
    return None


def _direct_keys(
    family: Family, config: Config, module: nn.Module, shells: Mapping[str, Tensor]
) -> dict[str, str] | None:
    own = module.state_dict()
    if family == "transformers":
        keys = transformers_models.direct_keys(module, shells)
    elif family == "timm":
        keys = timm_models.direct_keys(config, shells)
    else:
        keys = {name: name for name in own} if own.keys() == shells.keys() else None
    if keys is None or any(shells[key].shape != own[name].shape for name, key in keys.items()):
        return None
    return keys


def random_module(
    family: Family, task: Task, config: Config, init: Init
) -> tuple[nn.Module, tuple[str, ...]]:
    """The module with random weights, and the state-dict names that the seed does not determine.

    Those tensors keep the library's initialisation, from torch's generator with the same seed.

    Raises:
        SourceError: the installed library cannot build it, or there is no such scheme.
    """
    with torch.random.fork_rng(devices=[]), bounded_count("the architecture"):
        torch.manual_seed(init.seed)
        module = initialised_module(family, task, config)
    return module, initialise_(module, init.scheme, init.seed)


def initialised_module(family: Family, task: Task, config: Config) -> nn.Module:
    """The architecture with the random weights of its library, from torch's global generator.

    Raises:
        SourceError: the installed library cannot build it, or `family` is `module`.
    """
    if family == "transformers":
        return transformers_models.build_initialised(task, config)
    if family == "timm":
        return _cast(timm_models.build(task, config), config)
    if family == "reference":
        return _cast(reference_models.build(task, config), config)
    raise SourceError("a random init needs a named architecture, not a module")


def license_of(folder: Path | None, config: Config) -> str | None:
    """The `license:` of the model card in `folder`, else of the timm settings, else None."""
    try:
        text = read_regular_text(folder / "README.md", 100_000, "replace") if folder else ""
    except (OSError, ValueError):
        text = ""
    front = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    line = re.search(r"^license:[ \t]*([\w.+-]+)", front.group(1), re.MULTILINE) if front else None
    if line:
        return line.group(1)
    settings = config.get("pretrained_cfg")
    named = settings.get("license") if isinstance(settings, dict) else None
    return str(named) if named else None
