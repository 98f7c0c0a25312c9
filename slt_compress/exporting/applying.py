"""Apply: the mask of a ticket on a model whose kept weights have values of their own by now."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from slt_compress.checkpoints.companions import copy_companions
from slt_compress.checkpoints.weight_files import INDEX, check_weights_path, weight_files
from slt_compress.errors import ArtifactError
from slt_compress.evidence.audit import masked_weights
from slt_compress.evidence.audit_matching import Match, match_sites
from slt_compress.evidence.audit_sources import open_stored
from slt_compress.evidence.audit_tensors import StoredModel
from slt_compress.masks import Masks, count_kept
from slt_compress.storage.files import atomic_folder, write_json
from slt_compress.tickets import Ticket, read_ticket

RECORD = "slt-derived.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """A model that a mask was put on again.

    Attributes:
        path: its folder.
        zeros: how many weights the ticket drops.
        cleared: how many of them were not 0 in the model.
    """

    path: Path
    zeros: int
    cleared: int

    @property
    def sentence(self) -> str:
        """What was done, for a user."""
        return (
            f"{self.cleared:,} of the {self.zeros:,} weights that the ticket drops were not 0 and "
            "are now; all others are the model's. The result is derived: it is not the masked "
            "origin, and `verify` proves nothing of it."
        )


def apply_ticket(ticket: str | Path, model: str | Path, out: str | Path) -> Applied:
    """Write a copy of a model in which everything is 0 that a ticket dropped.

    Names, dtypes and all other values are the model's. `slt-derived.json` beside the weights
    says what the copy is made of.

    Args:
        ticket: the folder of the ticket.
        model: a checkpoint folder or a `.safetensors` file, not quantised.
        out: a new folder.

    Raises:
        SltError: one of them cannot be used, or a site is not in the model.
    """
    found, source = read_ticket(ticket), Path(model)
    stored = open_stored(source)
    if stored.kind != "safetensors":
        raise ArtifactError(f"{source} is {stored.kind}: apply a mask to plain safetensors, and "
                            "quantise or convert afterwards")  # fmt: skip
    places = _places(Path(ticket), found, stored, source)
    files = weight_files(source) if source.is_dir() else (source,)
    check_weights_path(files[0])
    cleared = 0
    try:
        with atomic_folder(Path(out)) as folder:
            for file in files:
                cleared += _write(file, folder / file.name, places)
            if source.is_dir():
                for name in ("config.json", INDEX):
                    if (source / name).is_file():
                        shutil.copyfile(source / name, folder / name)
                copy_companions(source, folder)
            zeros = found.masks.total - found.masks.kept
            write_json(folder / RECORD, _record(found, source, zeros, cleared))
    except FileExistsError as cause:
        raise ArtifactError(f"cannot write the model: {cause}") from cause
    except (OSError, SafetensorError) as cause:
        raise ArtifactError(f"cannot write the model to {out}: {cause}") from cause
    return Applied(path=Path(out), zeros=zeros, cleared=cleared)


def _places(folder: Path, ticket: Ticket, stored: StoredModel, source: Path) -> dict[str, Tensor]:
    """By key in the files: which weights are dropped, as the weight lies there."""
    weights, _ = masked_weights(folder, ticket, None)
    known: Mapping[str, Tensor] = ticket.masks if weights is None else weights
    matches = match_sites(known, stored)
    missing = sorted(ticket.masks.keys() - matches.keys())
    if missing:
        raise ArtifactError(
            f"{source} has no weight for {missing[0]} ({len(missing)} of {len(ticket.masks)} sites "
            "are missing): it is another model than the ticket's"
        )
    return {match.key: _dropped(match, ticket.masks, name) for name, match in matches.items()}


def _dropped(match: Match, masks: Masks, name: str) -> Tensor:
    return ~masks[name].T if match.turned == "transposed" else ~masks[name]


def _write(source: Path, target: Path, places: Mapping[str, Tensor]) -> int:
    """Copy a weight file, dropped weights as +0; how many of them were something else."""
    cleared, tensors = 0, {}
    with safe_open(str(source), framework="pt") as file:
        metadata = file.metadata()
        for key in file.keys():  # noqa: SIM118 - the file is no mapping
            tensors[key] = file.get_tensor(key)
            if key in places:
                dropped = places[key].reshape(tensors[key].shape)
                cleared += count_kept(dropped & (tensors[key] != 0))
                tensors[key] = tensors[key].masked_fill(dropped, 0)
    save_file({k: torch.as_tensor(t).contiguous() for k, t in tensors.items()}, str(target),
              metadata=metadata)  # fmt: skip
    return cleared


def _record(ticket: Ticket, source: Path, zeros: int, cleared: int) -> dict[str, object]:
    return {
        "kind": "slt-derived",
        "version": 1,
        "ticket": ticket.hash,
        "origin_weights_hash": ticket.weights_hash,
        "model": source.name,
        "zeros": zeros,
        "cleared": cleared,
        "untouched": False,
        "note": "Kept weights are those of the model, which may differ from the ticket's origin.",
    }
