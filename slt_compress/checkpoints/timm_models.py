"""Family `timm`: describe, build and load the models of timm."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from slt_compress.checkpoints.checkpoint import Architecture, Task
from slt_compress.checkpoints.library_config import Config
from slt_compress.checkpoints.quiet import quiet
from slt_compress.checkpoints.timm_arguments import checked_arguments, is_name
from slt_compress.checkpoints.weight_files import read_json_object
from slt_compress.errors import SourceError

# Settings from which timm would fetch weights itself; it always gets them from us.
_PLACES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "custom_load")
# Arguments that timm changes when it loads weights but not when it only builds, so that the same
# weights would give different outputs.
_OF_WEIGHTS: Mapping[str, Mapping[str, Any]] = {"fbnetc_100": {"bn_eps": 1e-3}}


def describe_name(name: str) -> Architecture:
    """The architecture of the bare timm name `name` (`resnet18`, `resnet18.a1_in1k`).

    Raises:
        SourceError: timm does not know the name or its tag.
    """
    if not is_name(name):
        raise SourceError(f"timm has no model {name!r}; `timm.list_models()` lists its models")
    architecture, _, tag = name.partition(".")
    settings: dict[str, Any] = {}
    with quiet():
        import timm

        try:
            pretrained = timm.get_pretrained_cfg(name)
        except RuntimeError:  # a tag that timm does not know
            pretrained = None
    if pretrained is None and tag:
        raise SourceError(f"timm has no weights tagged {tag!r} for {architecture}")
    if pretrained is not None:
        settings = pretrained.to_dict(remove_source=True)
    return _architecture({"architecture": architecture, "pretrained_cfg": settings})


def hub_id(name: str) -> str | None:
    """The hub repository that holds the weights of a bare timm name; None if there is none."""
    with quiet():
        import timm

        try:
            pretrained = timm.get_pretrained_cfg(name)
        except RuntimeError:
            return None
    where = getattr(pretrained, "hf_hub_id", None)
    return where if isinstance(where, str) and "/" in where else None


def describe_folder(folder: Path) -> Architecture:
    """The architecture in the `config.json` of a folder in timm's hub layout.

    Raises:
        SourceError: a config that timm cannot build from.
    """
    config = read_json_object(folder / "config.json")
    name = config.get("architecture")
    if not isinstance(name, str) or not is_name(name):
        raise SourceError(
            f"{folder / 'config.json'} names the timm architecture {name!r}, "
            "which this timm does not have; a newer timm may"
        )
    return _architecture(config)


def _architecture(config: Config) -> Architecture:
    """Read timm's config, in its present form or the older one without `pretrained_cfg`."""
    nested = config.get("pretrained_cfg")
    settings = dict(nested if isinstance(nested, dict) else config)
    arguments = config.get("model_args") or {}
    if not isinstance(arguments, dict):
        raise SourceError(f"model_args in a timm config is {arguments!r}, not an object")
    count = config.get("num_classes", settings.get("num_classes", 1000))
    if not isinstance(count, int) or count < 0:
        raise SourceError(f"a timm config has {count!r} as its number of classes")
    names = config.get("label_names", settings.get("label_names"))
    described = config.get("label_descriptions", settings.get("label_descriptions"))
    settings = {k: v for k, v in settings.items() if k not in _PLACES}
    clean = {
        "architecture": config["architecture"],
        "num_classes": count,
        "model_args": {k: v for k, v in arguments.items() if k != "num_classes"},
        "pretrained_cfg": settings | {"num_classes": count},
    }
    return Architecture(
        family="timm",
        task="image-classification" if count else "features",
        config=json.loads(json.dumps(clean)),
        classes=_class_names(names, described, count),
        num_classes=count or None,
    )


def _class_names(names: Any, described: Any, count: int) -> tuple[str, ...] | None:
    """Class names; a described one ("n01440764": "tench, Tinca tinca") lists both, by commas."""
    if isinstance(names, dict):
        try:
            names = [names[str(index)] for index in range(len(names))]
        except KeyError:
            return None
    if not isinstance(names, list | tuple) or len(names) != count or not count:
        return None
    texts = described if isinstance(described, dict) else {}
    return tuple(f"{n}, {texts[n]}" if n in texts else str(n) for n in names)


def with_changes(
    known: Architecture,
    *,
    num_classes: int | None,
    classes: Sequence[str] | None,
    options: Mapping[str, Any],
) -> Architecture:
    """The architecture with another head and further arguments of `timm.create_model`."""
    config = dict(known.config)
    arguments = dict(config["model_args"]) | dict(options)
    wanted = arguments.pop("num_classes", None)
    if wanted is None:
        wanted = num_classes if num_classes is not None else (len(classes) if classes else None)
    named, count = known.classes, known.num_classes
    if wanted is not None:
        count = wanted
        named = tuple(classes) if classes and len(classes) == count else None
        settings = dict(config["pretrained_cfg"]) | {"num_classes": count}
        for key in ("label_names", "label_descriptions", "label_offset"):
            settings.pop(key, None)
        config |= {"num_classes": count, "pretrained_cfg": settings}
    config["model_args"] = arguments
    return Architecture(
        family="timm",
        task="image-classification" if count else "features",
        config=config,
        classes=named,
        num_classes=count or None,
    )


def build(task: Task, config: Config) -> nn.Module:
    """The model that `config` describes, with timm's own initialisation.

    Raises:
        SourceError: timm refuses the architecture or one of its arguments.
    """
    try:
        return _create(config, None)
    # the layers of a model raise what they like where its arguments contradict each other
    except (RuntimeError, LookupError, AttributeError, ArithmeticError) as error:
        text = " ".join(str(error).split())[:300]
        raise SourceError(
            f"timm cannot build {config.get('architecture')} with the arguments of its config: "
            f"{text}"
        ) from error


def load(
    task: Task, config: Config, tensors: Mapping[str, Tensor], where: str
) -> tuple[nn.Module, dict[str, tuple[str, ...]]]:
    """The model with the weights of `tensors`, and each parameter's key among them.

    Raises:
        SourceError: the weights do not fit the architecture.
    """
    try:
        module = _create(config, dict(tensors))
    except (RuntimeError, KeyError) as error:
        text = " ".join(str(error).split())[:300]
        raise SourceError(
            f"{where} does not fit the timm model {config.get('architecture')}: {text}"
        ) from error
    names = [name for name, _ in module.named_parameters() if name in tensors]
    return module, {name: (name,) for name in names}


def direct_keys(config: Config, shells: Mapping[str, Tensor]) -> dict[str, str] | None:
    """The key of every tensor of a model in its files, if loading copies them unchanged.

    None if timm converts tensors first or makes up a missing one. Nothing is read: `shells` are on
    the meta device, and loading them is observed.
    """
    with torch.device("meta"), _Copies(shells) as copies:
        module = _create(config, dict(shells))
    keys = {name: copies.key_in(own) for name, own in module.state_dict(keep_vars=True).items()}
    copied = {name: key for name, key in keys.items() if key is not None}
    return copied if len(copied) == len(keys) else None


class _Copies(TorchFunctionMode):
    """Records which shell was last copied into each tensor."""

    def __init__(self, shells: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._known = {id(shell): (key, shell) for key, shell in shells.items()}
        self._sources: dict[int, tuple[str, Tensor] | None] = {}

    def key_in(self, tensor: Tensor) -> str | None:
        """The key of the shell that was copied into a tensor."""
        source = self._sources.get(id(tensor))
        return None if source is None else source[0]

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the function and record copies, including the deep copies that timm makes."""
        result = func(*args, **(kwargs or {}))
        if func is Tensor.copy_:
            self._sources[id(args[0])] = self._known.get(id(args[1]))
        elif func is Tensor.__deepcopy__ and id(args[0]) in self._known:
            self._known[id(result)] = (self._known[id(args[0])][0], result)
        return result


def _create(config: Config, tensors: dict[str, Tensor] | None) -> nn.Module:
    name = config.get("architecture")
    if not isinstance(name, str) or not is_name(name):
        raise SourceError(f"this timm has no architecture {name!r}; a newer one may")
    settings = dict(config.get("pretrained_cfg") or {})
    with quiet():
        import timm
        from timm.models import PretrainedCfg

        known = {field.name for field in fields(PretrainedCfg)} - set(_PLACES)
        settings = {k: _tuples(v) for k, v in settings.items() if k in known}
        if tensors is not None:
            settings["state_dict"] = tensors
        given = checked_arguments(name.partition(".")[0], config.get("model_args") or {})
        said = {**_OF_WEIGHTS.get(name, {}), **given}
        arguments = {k: _tuples(v) for k, v in said.items()}
        try:
            module: nn.Module = timm.create_model(
                name,
                pretrained=tensors is not None,
                pretrained_cfg=settings,
                num_classes=config.get("num_classes"),
                **arguments,
            )
        except (TypeError, ValueError, AssertionError) as error:
            text = " ".join(str(error).split())[:300]
            raise SourceError(
                f"timm cannot build {name} with {arguments or 'no arguments'}: {text}"
            ) from error
    # timm keeps its settings on the module, and so would keep the weights twice.
    for holder in ("pretrained_cfg", "default_cfg"):
        kept = getattr(module, holder, None)
        if isinstance(kept, dict):
            kept.pop("state_dict", None)
    return module.eval()


def _tuples(value: Any) -> Any:
    """JSON turns tuples into lists; timm compares and concatenates tuples."""
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
