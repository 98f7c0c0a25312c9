"""The origin of a ticket: record where a checkpoint came from, and open it again."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, get_args

from torch import nn

from slt_compress.checkpoints import families
from slt_compress.checkpoints.checkpoint import TASKS, Checkpoint, Family, Init, Kind
from slt_compress.checkpoints.downloads import cached, fetch
from slt_compress.checkpoints.opening import locate
from slt_compress.checkpoints.reference import REFERENCE
from slt_compress.checkpoints.timm_arguments import is_name
from slt_compress.checkpoints.timm_models import hub_id
from slt_compress.checkpoints.weight_files import check_weights_path, read_tensors, weight_files
from slt_compress.errors import SltError, SourceError
from slt_compress.storage.manifests import is_count

_LIBRARIES = ("torch", "transformers", "timm", "safetensors", "slt-compress")


def origin_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """Everything needed to open `checkpoint` again, JSON-able; paths are absolute."""
    init = checkpoint.init
    folder = checkpoint.kind == "folder" and checkpoint.folder is not None
    return {
        "kind": checkpoint.kind,
        "source": str(checkpoint.folder) if folder else checkpoint.source,
        "revision": checkpoint.revision,
        "family": checkpoint.family,
        "task": checkpoint.task,
        "config": dict(checkpoint.config),
        "init": None if init is None else {"scheme": init.scheme, "seed": init.seed},
        "weights": checkpoint.weights,
        "license": checkpoint.license,
        "classes": None if checkpoint.classes is None else list(checkpoint.classes),
        "num_classes": checkpoint.num_classes,
        "versions": {name: _version(name) for name in _LIBRARIES},
        "file_keys": {name: list(keys) for name, keys in checkpoint.file_keys.items()},
        "companions": _companions(checkpoint),
    }


def _companions(checkpoint: Checkpoint) -> dict[str, str | None]:
    """The place of the tokenizer and processor files, even if the weights come from elsewhere."""
    if checkpoint.revision is None or checkpoint.folder is None:
        folder = checkpoint.folder
        return {"folder": None if folder is None else str(folder.absolute()), "repo": None}
    return {"folder": None, "repo": _repository(checkpoint.source)}


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:  # run from a source tree that is not installed
        return None


def reopen(record: Mapping[str, object], *, override: str | Path | None = None) -> Checkpoint:
    """Open the origin that `origin_record` recorded.

    A random init is built from its config and seed alone. The tensors named in its `stored` hold
    the library's values; the caller restores them. `override` is a folder, a safetensors file or
    a hub id to read the weights from instead.

    Raises:
        SourceError: a malformed record, or an origin that is gone or no longer fits.
    """
    family, task, kind, config = checked_record(record)
    init = checked_init(record.get("init"))
    folder, revision, source = None, recorded_text(record, "revision"), str(record.get("source"))
    if kind == "random":
        if init is None:
            raise SourceError("the recorded origin is a random init without a scheme and a seed")
        module, stored = families.random_module(family, task, config, init)
        keys: Mapping[str, tuple[str, ...]] = {}
    else:
        files, folder, revision = locate_weights(record, override)
        where, stored = str(override or source), ()
        module, keys = families.load_weights(family, task, config, read_tensors(files), where)
    return recorded_checkpoint(
        record, module, folder=folder, revision=revision, file_keys=keys, stored=stored
    )


def recorded_checkpoint(
    record: Mapping[str, object],
    module: nn.Module,
    *,
    folder: Path | None,
    revision: str | None,
    file_keys: Mapping[str, tuple[str, ...]],
    stored: tuple[str, ...],
) -> Checkpoint:
    """The checkpoint of a record, with the module that was built from it."""
    family, task, kind, config = checked_record(record)
    classes, count = record.get("classes"), record.get("num_classes")
    return Checkpoint(
        source=str(record.get("source")),
        kind=kind,
        revision=revision,
        family=family,
        task=task,
        module=module,
        config=config,
        folder=folder or _companion_folder(record),
        classes=tuple(map(str, classes)) if isinstance(classes, list) else None,
        num_classes=count if is_count(count, least=0) else None,
        init=checked_init(record.get("init")),
        weights=recorded_text(record, "weights"),
        license=recorded_text(record, "license"),
        file_keys=file_keys,
        stored=stored,
    )


def _companion_folder(record: Mapping[str, object]) -> Path | None:
    """The recorded folder of tokenizer and processor files, or None if it is gone.

    A model can be used without them, so their absence is not an error.
    """
    companions = record.get("companions")
    companions = companions if isinstance(companions, dict) else {}
    folder, repo = companions.get("folder"), companions.get("repo")
    revision = record.get("revision")
    if isinstance(folder, str):
        return Path(folder) if Path(folder).is_dir() else None
    if not isinstance(repo, str) or not isinstance(revision, str):
        return None
    with suppress(SourceError):
        return cached(repo, revision) or fetch(repo, revision, with_weights=False)[0]
    return None


def origin_files(record: Mapping[str, object]) -> tuple[Path, ...]:
    """The safetensors files with the weights of a recorded origin, downloaded if necessary.

    Raises:
        SourceError: they are gone, or the record is malformed.
    """
    checked_record(record)
    return locate_weights(record, None)[0]


def checked_record(record: Mapping[str, object]) -> tuple[Family, Any, Kind, dict[str, Any]]:
    """Family, task, kind and config of a recorded origin.

    Raises:
        SourceError: the record is malformed, or of a module of the user's own.
    """
    family: Any = record.get("family")
    kind: Any = record.get("kind")
    task, config = record.get("task"), record.get("config")
    if family not in get_args(Family) or task not in TASKS or kind not in get_args(Kind):
        raise SourceError(
            f"the recorded origin ({family!r}, {task!r}, {kind!r}) is unknown to this version"
        )
    if family == "module" or kind == "module":
        raise SourceError("the origin is a module of your own; pass it as model=")
    if not isinstance(config, dict):
        raise SourceError("the recorded origin has no config from which to build the architecture")
    return family, task, kind, config


def checked_init(recorded: object, error: type[SltError] = SourceError) -> Init | None:
    """The random init in a record, None if it has none.

    Raises:
        error: a malformed one.
    """
    if recorded is None:
        return None
    known = recorded if isinstance(recorded, dict) else {}
    scheme, seed = known.get("scheme"), known.get("seed")
    if not isinstance(scheme, str) or type(seed) is not int or not 0 <= seed < 2**63:
        text = " ".join(str(recorded)[:80].split())
        raise error(f"the recorded random init is {text}, not a scheme and a seed")
    return Init(scheme=scheme, seed=seed)


def recorded_text(record: Mapping[str, object], key: str) -> str | None:
    """The text under a key of a record, None if it has none.

    Raises:
        SourceError: something else is there.
    """
    value = record.get(key)
    if value is None or isinstance(value, str):
        return value
    raise SourceError(f"the {key} of the recorded origin is {str(value)[:80]}, not a text")


def locate_weights(
    record: Mapping[str, object], override: str | Path | None
) -> tuple[tuple[Path, ...], Path | None, str | None]:
    """Weight files, folder and commit: of `override` if given, else of the recorded place.

    Raises:
        SourceError: no such place, or one without weights.
    """
    place = override if override is not None else record.get("weights") or record.get("source")
    if override is None and record.get("kind") == "hub":
        # Not through `locate`: a local folder of that name is not what was recorded.
        return _from_hub(_repository(str(place)), str(place), recorded_text(record, "revision"))
    path = Path(str(place)).expanduser()
    if path.is_file():
        check_weights_path(path)
        return (path,), None, recorded_text(record, "revision")
    if path.is_dir():
        return weight_files(path), path, recorded_text(record, "revision")
    if override is None:
        raise SourceError(
            f"the origin {path} is gone; say where its weights are now with --origin PATH"
        )
    named = locate(str(place))
    return _from_hub(hub_id(named.name) if named.kind == "timm" else named.name, str(place), None)


def _repository(source: str) -> str | None:
    """The hub repository of a source that was read from the hub."""
    name = source.removeprefix("timm:")
    bare = name != source or ("/" not in source and is_name(source))
    return hub_id(name) if bare else source


def _from_hub(
    repo: str | None, place: str, revision: str | None
) -> tuple[tuple[Path, ...], Path, str]:
    if repo is None or repo in REFERENCE:
        raise SourceError(f"{place} names no weights; give a folder, a file or a hub id")
    try:
        folder, commit = fetch(repo, revision, with_weights=True)
    except SourceError as error:
        raise SourceError(f"{error}; --origin PATH reads the weights from elsewhere") from error
    return weight_files(folder), folder, commit
