"""Open a ticket or an artifact as a ready model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from slt_compress.artifact import Proof, is_artifact, read_artifact, read_masks, read_proof
from slt_compress.checkpoints import Checkpoint, Init, reopen
from slt_compress.errors import ArtifactError, SltError, SourceError, TicketError
from slt_compress.files import sha256_tensors
from slt_compress.gating import kept_buffers, masked_weight, set_buffers
from slt_compress.masks import Masks
from slt_compress.provenance import provenance_of
from slt_compress.ticket import ORIGIN, Ticket, read_origin_tensors, read_ticket


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A ticket or artifact as a model, with what is known of it.

    Attributes:
        path: the folder.
        checkpoint: the model and what data preparation needs.
        masks: which weights survive; None for a dense export, which stores no mask.
        provenance: where the weights come from, as the folder says; not checked for an artifact,
            which can be used without it.
        entries: stored tensors of an artifact; empty for a ticket.
        ticket: None for an artifact.
        proof: of a shrunk artifact, what it is proved from; `masks` are of the model before.
        flattened: sites of a ticket whose weight the origin computes by a parametrization (weight
            norm); in this module it is a plain parameter.
    """

    path: Path
    checkpoint: Checkpoint
    masks: Masks | None
    provenance: object
    entries: Mapping[str, Mapping[str, Any]]
    ticket: Ticket | None
    proof: Proof | None = None
    flattened: tuple[str, ...] = ()

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every site."""
        if self.masks is not None:
            return shapes_of(self.masks)
        sites = {name: entry for name, entry in self.entries.items() if "kept" in entry}
        return {name: tuple(entry["shape"]) for name, entry in sites.items()}

    @property
    def module(self) -> nn.Module:
        """The masked model, on the CPU in eval mode."""
        return self.checkpoint.module


def open_path(
    path: str | Path, *, origin: str | Path | None = None, model: nn.Module | None = None
) -> Opened:
    """Open a ticket or an artifact; `origin` and `model` as in `load`.

    Raises:
        SltError: the folder is neither, or damaged, or its origin cannot be had.
    """
    folder = Path(path)
    if not folder.exists():
        raise SltError(f"there is no {folder}")
    if is_artifact(folder):
        copy = None if model is None else deepcopy(model).cpu()
        loaded = read_artifact(folder, model=copy)
        provenance, proof = loaded.manifest.get("provenance"), read_proof(loaded)
        # pictures are made for the size that a random init was built for, not its processor's
        checkpoint = replace(loaded.checkpoint, init=_recorded_init(provenance))
        return Opened(
            path=folder, checkpoint=checkpoint,
            masks=read_masks(folder) if proof is None else proof.masks,
            provenance=provenance, entries=loaded.artifact.entries, ticket=None, proof=proof,
        )  # fmt: skip
    ticket = read_ticket(folder)
    provenance = provenance_of(ticket)
    checkpoint = open_origin(ticket, origin=origin, model=model)
    weights = site_weights(checkpoint.module, shapes_of(ticket.masks))
    if sha256_tensors(weights) != provenance.weights_hash:
        raise TicketError(
            f"the weights of {origin or ticket.origin.get('source')} are not those that {folder} "
            f"was searched on{_versions_note(ticket)}"
        )
    flattened = apply_masks_(checkpoint.module, ticket.masks, ticket.gains)
    set_buffers(checkpoint.module, ticket.buffers)
    return Opened(
        path=folder, checkpoint=checkpoint, masks=ticket.masks, provenance=provenance.to_dict(),
        entries={}, ticket=ticket, flattened=flattened,
    )  # fmt: skip


def origin_of(
    opened: Opened, *, origin: str | Path | None = None, model: nn.Module | None = None
) -> Checkpoint:
    """The origin of an opened folder, its weights untouched; a ticket folder may stand in for it.

    Raises:
        SltError: it is not recorded, or cannot be had.
    """
    if opened.ticket is not None:
        return open_origin(opened.ticket, origin=origin, model=model)
    if origin is not None and (Path(origin) / "ticket.json").is_file():
        return open_origin(read_ticket(origin), model=model)
    record = opened.provenance.get("origin") if isinstance(opened.provenance, Mapping) else None
    if not isinstance(record, Mapping):
        raise ArtifactError(f"{opened.path} does not record its origin")
    if record.get("kind") == "module":
        return module_checkpoint(_own_module(opened.path, model))
    return reopen(record, override=origin)


@contextmanager
def as_origin(opened: Opened, source: Checkpoint) -> Iterator[None]:
    """The opened module with the weights and buffers of its origin, as long as the block lasts."""
    if opened.proof is not None:
        raise ArtifactError(
            f"{opened.path} is shrunk, so it cannot be compared with its origin on data that has "
            "other labels: evaluate the ticket"
        )
    dense = site_weights(source.module, opened.shapes)
    here = site_parameters(opened.module, opened.shapes)
    masked = {name: weight.data for name, weight in here.items()}
    try:
        with kept_buffers(opened.module):
            set_buffers(opened.module, dict(source.module.named_buffers()))
            for name, weight in here.items():
                weight.data = dense[name]
            yield
    finally:
        for name, weight in here.items():
            weight.data = masked[name]


def open_origin(
    ticket: Ticket, *, origin: str | Path | None = None, model: nn.Module | None = None
) -> Checkpoint:
    """The checkpoint that a ticket was searched on, its weights untouched.

    Raises:
        SourceError: it cannot be had, or the ticket is of a module of the user's own and `model`
            is missing.
    """
    if ticket.origin.get("kind") == "module":
        return module_checkpoint(_own_module(ticket.path, model))
    checkpoint = reopen(ticket.origin, override=origin)
    stored = dict(ticket.stored)
    if ORIGIN in ticket.summary["files"]:  # read_ticket checked that it is an object
        stored |= read_origin_tensors(ticket.path)
    state = checkpoint.module.state_dict()
    for name in checkpoint.stored:
        if name not in stored or name not in state or stored[name].shape != state[name].shape:
            raise TicketError(f"{ticket.path} does not hold the stored tensor {name}")
        state[name].copy_(stored[name])
    return checkpoint


def _recorded_init(provenance: object) -> Init | None:
    """The random init behind an artifact, where it says of one."""
    origin = provenance.get("origin") if isinstance(provenance, Mapping) else None
    init = origin.get("init") if isinstance(origin, Mapping) else None
    scheme, seed = (init.get("scheme"), init.get("seed")) if isinstance(init, dict) else (0, 0)
    return Init(scheme=scheme, seed=seed) if isinstance(scheme, str) and type(seed) is int else None


def _own_module(path: Path, model: nn.Module | None) -> nn.Module:
    if model is None:
        raise SourceError(
            f"{path} was searched on a module of your own: hand it over with "
            "slt_compress.load(PATH, model=module)"
        )
    return deepcopy(model).cpu().eval()


def module_checkpoint(module: nn.Module) -> Checkpoint:
    """A module of the user's own, as a checkpoint."""
    return Checkpoint(
        source=type(module).__name__, kind="module", revision=None, family="module",
        task="features", module=module, config={}, folder=None, classes=None, num_classes=None,
        trained_head=False, init=None, weights=None, license=None, file_keys={}, stored=(),
    )  # fmt: skip


def shapes_of(masks: Masks) -> dict[str, tuple[int, ...]]:
    """Shape of every mask."""
    return {name: tuple(mask.shape) for name, mask in masks.items()}


def site_weights(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """The weights of the sites, by name.

    Raises:
        TicketError: the module has no such weight, or one of another shape.
    """
    return {name: weight.detach() for name, weight in site_parameters(module, shapes).items()}


def site_parameters(module: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """What the module itself holds at the sites: parameters, or what parametrizations compute.

    Raises:
        TicketError: the module has no such weight, or one of another shape.
    """
    weights: dict[str, Tensor] = {}
    for name, shape in shapes.items():
        path, _, param = name.rpartition(".")
        try:
            weight = getattr(module.get_submodule(path), param)
        except AttributeError:
            raise TicketError(f"the model has no weight {name}: was it made by other versions?") \
                from None  # fmt: skip
        if not isinstance(weight, Tensor) or tuple(weight.shape) != shape:
            raise TicketError(f"{name} of the model does not have the shape of its mask")
        weights[name] = weight
    return weights


def apply_masks_(module: nn.Module, masks: Masks, gains: Mapping[str, float]) -> tuple[str, ...]:
    """Turn the weights of the sites into ±fl(gain * weight) where kept and 0 elsewhere, in place.

    A weight under a parametrization becomes a plain parameter; gives the names of those.
    """
    flattened: list[str] = []
    with torch.no_grad():
        for name, mask in masks.items():
            path, _, param = name.rpartition(".")
            owner = module.get_submodule(path)
            if parametrize.is_parametrized(owner, param):
                parametrize.remove_parametrizations(owner, param, leave_parametrized=True)
                flattened.append(name)
            weight = getattr(owner, param)
            gain, flip = gains.get(name, 1.0), masks.flips.get(name)
            weight.copy_(masked_weight(weight, mask, gain, flip))
    return tuple(flattened)


def environment(module: nn.Module) -> dict[str, Any]:
    """What bit-identical outputs of a module depend on beside the module."""
    return {
        "device": next(module.parameters()).device.type,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "transformers": version("transformers"),
        "timm": version("timm"),
    }


def refuse_flattened(opened: Opened) -> None:
    """Refuse a model whose library would not write the masked weights but parts of them.

    Raises:
        ArtifactError: a site was computed by a parametrization.
    """
    if opened.flattened and opened.checkpoint.family in ("transformers", "timm"):
        raise ArtifactError(
            f"{opened.flattened[0]} is computed by a parametrization (weight norm), so the model's "
            "library cannot store it masked: use --format sparse-csr"
        )


def as_runtime(opened: Opened, runtime: str) -> nn.Module:
    """The model on a runtime; `dense` is torch's own kernels on weights with zeros.

    Raises:
        SltError: an unknown runtime.
    """
    if runtime != "dense":
        raise SltError(f"unknown runtime {runtime!r}; known: dense")
    return opened.module


def _versions_note(ticket: Ticket) -> str:
    from_versions = ticket.origin.get("versions")
    if not isinstance(from_versions, Mapping):
        return ""
    listed = ", ".join(f"{name} {value}" for name, value in sorted(from_versions.items()) if value)
    return f" (with {listed}); --origin PATH says where those are" if listed else ""
