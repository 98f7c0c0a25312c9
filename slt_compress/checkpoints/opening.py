"""Open a checkpoint from what the user typed: a folder, a name or a hub id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from slt_compress.checkpoints import families, reference_models, timm_models
from slt_compress.checkpoints.checkpoint import TASKS, Architecture, Checkpoint, Init, Kind, Task
from slt_compress.checkpoints.downloads import fetch
from slt_compress.checkpoints.guidance import GGUF
from slt_compress.checkpoints.initial import parse_scheme
from slt_compress.checkpoints.reference import REFERENCE
from slt_compress.checkpoints.timm_arguments import is_name
from slt_compress.checkpoints.weight_files import (
    CONVERT,
    PICKLES,
    check_weights_path,
    read_tensors,
    weight_files,
)
from slt_compress.errors import SourceError


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a source string names: the kind of place, and the name, path or id there."""

    kind: Literal["folder", "reference", "timm", "hub"]
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Located:
    """An architecture, and the place of its files and weights."""

    architecture: Architecture
    kind: Kind
    folder: Path | None = None
    revision: str | None = None


def open_checkpoint(
    source: str | Path,
    *,
    revision: str | None = None,
    weights: str | Path | None = None,
    init: str | None = None,
    seed: int = 0,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    task: Task | None = None,
    options: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Open a model of transformers, timm or the literature, trained or randomly initialised.

    Args:
        source: an existing folder, a reference net, `timm:NAME`, a bare timm name or a hub id,
            tried in this order.
        revision: branch, tag or commit of a hub id.
        weights: a safetensors file to read the weights from instead.
        init: `random` (signed-constant) or a scheme of `initial.SCHEMES`; needs no trained weights.
        seed: of the random init.
        num_classes: size of the head of a random init; a trained head keeps its size.
        classes: names of the classes of the head, for a random init.
        task: a head other than the config's own; transformers only.
        options: config attributes (transformers) or arguments of `timm.create_model`.

    Raises:
        SourceError: the source cannot be found, reached or trusted, or its parts do not fit.
    """
    draft = draft_of(
        source, revision, weights, parse_init(init, seed), task, num_classes=num_classes,
        classes=classes, options=options, with_weights=True,
    )  # fmt: skip
    return draft.finish()


def sketch_checkpoint(
    source: str | Path,
    *,
    revision: str | None = None,
    weights: str | Path | None = None,
    init: str | None = None,
    seed: int = 0,
    num_classes: int | None = None,
    classes: Sequence[str] | None = None,
    task: Task | None = None,
    options: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """As `open_checkpoint`, but on the meta device: no weight is read or downloaded.

    A folder needs only its `config.json`; a timm name needs no network.

    Raises:
        SourceError: the source cannot be found, reached, trusted or built.
    """
    draft = draft_of(
        source, revision, weights, parse_init(init, seed), task, num_classes=num_classes,
        classes=classes, options=options, with_weights=False,
    )  # fmt: skip
    return draft.sketched()


def draft_of(
    source: str | Path,
    revision: str | None,
    weights: str | Path | None,
    init: Init | None,
    task: Task | None,
    *,
    num_classes: int | None,
    classes: Sequence[str] | None,
    options: Mapping[str, Any] | None,
    with_weights: bool,
) -> Draft:
    """Find the source and determine its architecture."""
    if task is not None and task not in TASKS:
        raise SourceError(f"unknown task {task!r}; known: {', '.join(TASKS)}")
    if init is not None and weights is not None:
        raise SourceError(
            "weights come either from a file (--weights) or from a random init (--init)"
        )
    place = locate(source)
    if revision is not None and place.kind != "hub" and not str(source).startswith("timm/"):
        raise SourceError(f"a revision needs a hub id, and {source} is not one")
    file = None if weights is None else Path(weights).expanduser().resolve()
    if file is not None:
        check_weights_path(file)
    wanted = with_weights and init is None and file is None
    located = _find(place, revision, task, with_weights=wanted)
    _check_task(located.architecture, task, str(source))
    architecture = families.with_changes(
        located.architecture, str(source), num_classes=num_classes if init else None,
        classes=classes if init else None, options=options or {},
    )  # fmt: skip
    return Draft(
        source=str(source), located=located, architecture=architecture, init=init, file=file
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A checkpoint whose module is not built yet."""

    source: str
    located: _Located
    architecture: Architecture
    init: Init | None
    file: Path | None

    def finish(self) -> Checkpoint:
        """Build the module and give it its weights."""
        architecture, family = self.architecture, self.architecture.family
        task, config = architecture.task, architecture.config
        if self.init is not None:
            module, stored = families.random_module(family, task, config, self.init)
            return self.checkpoint(architecture, module, stored=stored)
        tensors = read_tensors(self.files())
        where, fitted = str(self.file or self.source), self.fitted(tensors)
        module, keys = families.load_weights(family, task, fitted.config, tensors, where)
        return self.checkpoint(fitted, module, keys=keys)

    def fitted(self, tensors: Mapping[str, Tensor]) -> Architecture:
        """The architecture with the classes and the dtype of the weights, which may be on meta."""
        known = self.architecture
        if known.family == "reference" and self.file:
            known = _fit_head(known, reference_models.head_classes, tensors)
        dtype = families.dtype_of(known.family, tensors)
        return known if dtype is None else replace(known, config={**known.config, "dtype": dtype})

    def sketched(self) -> Checkpoint:
        """Build the module on the meta device."""
        known = self.architecture
        module = families.sketch_module(known.family, known.task, known.config)
        return self.checkpoint(known, module)

    def checkpoint(
        self,
        architecture: Architecture,
        module: nn.Module,
        *,
        keys: Mapping[str, tuple[str, ...]] | None = None,
        stored: tuple[str, ...] = (),
        streamed: Mapping[str, Tensor] | None = None,
    ) -> Checkpoint:
        """The checkpoint of a module that was built by this draft."""
        return Checkpoint.built(
            architecture,
            module,
            source=self.source,
            kind="random" if self.init else "file" if self.file else self.located.kind,
            revision=self.located.revision,
            folder=self.located.folder,
            init=self.init,
            weights=str(self.file) if self.file else None,
            license=families.license_of(self.located.folder, architecture.config),
            file_keys=keys or {},
            stored=stored,
            streamed=streamed,
        )

    def files(self) -> tuple[Path, ...]:
        """The files of the weights.

        Raises:
            SourceError: there are none.
        """
        if self.file is not None:
            return (self.file,)
        if self.located.folder is None:
            raise SourceError(
                f"{self.source} is an architecture without weights; "
                "add --init random or --weights FILE.safetensors"
            )
        return weight_files(self.located.folder)


def _fit_head(architecture: Architecture, measure: Any, tensors: Mapping[str, Any]) -> Architecture:
    """The reference net with the number of classes of its weights."""
    name = str(architecture.config["architecture"])
    count = measure(name, tensors)
    if count is None or count == architecture.num_classes:
        return architecture
    return reference_models.describe(name, num_classes=count)


def parse_init(init: str | None, seed: int) -> Init | None:
    """The random init of this name and seed."""
    if init is None:
        return None
    scheme = "signed-constant" if init == "random" else init
    parse_scheme(scheme)
    return Init(scheme=scheme, seed=seed)


def _check_task(known: Architecture, task: Task | None, source: str) -> None:
    if task is not None and known.task != task:
        raise SourceError(f"{source} is a {known.task} model of {known.family}, not one for {task}")


def locate(source: str | Path) -> Place:
    """Decide what `source` names: a path, a reference net, a timm name or a hub id.

    Raises:
        SourceError: a file instead of a folder, a path that does not exist, or an empty name.
    """
    text = str(source)
    path = Path(text).expanduser()
    if text and path.is_dir():
        return Place(kind="folder", name=str(path.resolve()))
    if text and path.is_file():
        raise SourceError(_refuse_file(path))
    if text in REFERENCE:
        return Place(kind="reference", name=text)
    if text.startswith("timm:"):
        return Place(kind="timm", name=text.removeprefix("timm:"))
    looks_like_path = isinstance(source, Path) or text.startswith((".", "/", "~")) or "\\" in text
    if not text.strip() or looks_like_path or text.count("/") > 1:
        raise SourceError(f"there is no file or folder {text!r}")
    if "/" not in text and is_name(text):
        return Place(kind="timm", name=text)
    return Place(kind="hub", name=text)


def _refuse_file(path: Path) -> str:
    if path.suffix in PICKLES:
        return f"{path} is in a format that can run code when opened; {CONVERT}"
    if path.suffix == ".safetensors":
        return (
            f"{path} holds weights but no architecture: give the architecture as the source "
            f"and the file as --weights {path.name}"
        )
    said = "is a file; a source is a folder, a name or a hub id"
    return f"{path} {GGUF if path.suffix.lower() == '.gguf' else said}"


def _find(place: Place, revision: str | None, task: Task | None, *, with_weights: bool) -> _Located:
    if place.kind == "reference":
        return _Located(architecture=reference_models.describe(place.name), kind="file")
    if place.kind == "folder":
        folder = Path(place.name)
        architecture = families.describe_folder(folder, task)
        return _Located(architecture=architecture, kind="folder", folder=folder)
    repo = place.name
    if place.kind == "timm":
        described = timm_models.describe_name(place.name)
        if not with_weights:
            return _Located(architecture=described, kind="hub")
        named = timm_models.hub_id(place.name)
        if named is None:
            raise SourceError(f"timm has no weights on the hub for {place.name}: add --init random")
        repo = named
    folder, commit = fetch(repo, revision, with_weights=with_weights)
    architecture = families.describe_folder(folder, task)
    return _Located(architecture=architecture, kind="hub", folder=folder, revision=commit)
