"""Configs of transformers: read without running any code of theirs, and their model classes."""

from __future__ import annotations

import contextlib
import inspect
import json
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from slt_compress.checkpoints.checkpoint import Task
from slt_compress.checkpoints.config_values import checked_config, leads_elsewhere
from slt_compress.checkpoints.library_config import Config
from slt_compress.checkpoints.quiet import quiet
from slt_compress.checkpoints.timm_arguments import checked_arguments, is_name
from slt_compress.errors import SourceError
from slt_compress.storage.memory import is_low_memory

# For each task the public table of transformers with the classes of such a head, by type of config.
# A class in two tables belongs to the first.
HEADS: tuple[tuple[Task, str], ...] = (
    ("image-classification", "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING"),
    ("audio-classification", "MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING"),
    ("text-classification", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING"),
    ("token-classification", "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING"),
    ("masked-lm", "MODEL_FOR_MASKED_LM_MAPPING"),
    ("seq2seq", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING"),
    ("causal-lm", "MODEL_FOR_CAUSAL_LM_MAPPING"),
    ("visual-question-answering", "MODEL_FOR_VISUAL_QUESTION_ANSWERING_MAPPING"),
    ("zero-shot-image-classification", "MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING"),
    ("image-text-to-text", "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING"),
    ("features", "MODEL_MAPPING"),
)


def read_config(values: Mapping[str, Any], where: str) -> Any:
    """The config object for the values of a `config.json`; `where` names their owner.

    Raises:
        SourceError: a type that this transformers does not have, or invalid values.
    """
    kind = values.get("model_type")
    with quiet():
        from transformers import CONFIG_MAPPING

        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            own_code = " (it comes with code of its own, which is never run)"
            raise SourceError(
                f"{where} is a {kind!r} model, which this transformers does not have"
                f"{own_code if 'auto_map' in values else '; a newer one may'}"
            )
        with as_source_error(f"the config of {where} is not a valid {kind} config"):
            kept = checked_config(values, where, partial(_declares, CONFIG_MAPPING[kind]))
            plain = json.loads(json.dumps(kept), object_hook=_special_float)
            _check_timm_arguments(plain)
            return CONFIG_MAPPING[kind].from_dict(plain)


def _declares(kind: Any, name: str) -> bool:
    """Whether a type of config has an attribute of that name, or takes an argument of it."""
    return hasattr(kind, name) or name in inspect.signature(kind.__init__).parameters


def _check_timm_arguments(config: Config) -> None:
    """Check what transformers' wrapper of timm hands on to timm; nested ones too."""
    arguments = config.get("model_args")
    if isinstance(arguments, dict):
        name = str(config.get("architecture"))
        if not is_name(name):
            raise SourceError(f"this timm has no architecture {name!r}; a newer timm may")
        checked_arguments(name.partition(".")[0], arguments)
    for value in config.values():
        if isinstance(value, dict):
            _check_timm_arguments(value)


def _special_float(value: dict[str, Any]) -> Any:
    """Infinity, for which JSON has no number, as transformers writes it."""
    text = value.get("__float__")
    return float(text) if len(value) == 1 and isinstance(text, str) else value


def as_dict(config: Any) -> dict[str, Any]:
    """A config as plain mappings, for JSON and for `read_config`."""
    values: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    return {k: v for k, v in sorted(values.items()) if not leads_elsewhere(k)}


def _classes(config: Any, task: Task) -> tuple[type[Any], ...]:
    """The model classes of a type of config for a task.

    For a type without a base model (a depth estimator, say) the features are the first output of
    any head that it has.
    """
    from transformers.models.auto import modeling_auto

    usual = _listed(modeling_auto, dict(HEADS)[task], config)
    if usual or task != "features":
        return usual
    others = sorted(n for n in vars(modeling_auto) if re.fullmatch("MODEL_FOR_.*_MAPPING", n))
    listed = (cls for name in others for cls in _listed(modeling_auto, name, config))
    return tuple(dict.fromkeys(listed))


def _listed(tables: Any, name: str, config: Any) -> tuple[type[Any], ...]:
    table = getattr(tables, name)
    if type(config) not in table:
        return ()
    classes = table[type(config)]
    return tuple(classes) if isinstance(classes, list | tuple) else (classes,)


def class_names(config: Any, task: Task) -> tuple[str, ...]:
    """The names of the model classes of a type of config for a task."""
    with quiet():
        return tuple(cls.__name__ for cls in _classes(config, task))


def named_class(values: Mapping[str, Any]) -> str | None:
    """The first class under `architectures` in the values of a config; None where there is none."""
    named = values.get("architectures")
    first = named[0] if isinstance(named, list) and named else None
    return first if isinstance(first, str) else None


def model_class(config: Any, task: Task, named: str | None, where: str) -> Any:
    """The model class for a task: `named` if it is among them, else the first.

    Raises:
        SourceError: transformers has none.
    """
    with quiet():
        classes = _classes(config, task)
    if not classes:
        raise SourceError(f"transformers has no {task} head for {config.model_type} ({where})")
    return next((cls for cls in classes if cls.__name__ == named), classes[0])


@contextlib.contextmanager
def as_source_error(what: str) -> Any:
    """Turn any error of transformers about configs and weights into a sentence."""
    try:
        yield
    except SourceError:
        raise
    # transformers and huggingface_hub raise many types here, some of them private
    except (Exception, torch.OutOfMemoryError) as error:
        if is_low_memory(error):
            raise SourceError(f"{what}: there is not enough memory for it") from error
        text = " ".join(str(error).split())[:300] or type(error).__name__
        raise SourceError(f"{what}: {text}") from error
