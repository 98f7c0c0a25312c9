"""Import: a ticket of a checkpoint that was pruned elsewhere, whatever its zeros are written as."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from slt_compress.anatomy.states import environment
from slt_compress.checkpoints import Checkpoint, origin_record, read_folder
from slt_compress.checkpoints import open_checkpoint as open_folder
from slt_compress.checkpoints.companions import copy_companions
from slt_compress.errors import SourceError, TicketError
from slt_compress.masks import Masks
from slt_compress.sites.budget import Budget
from slt_compress.sites.sites import find_sites
from slt_compress.storage.files import atomic_folder, dtype_name, sha256_tensors, write_safetensors
from slt_compress.tickets import Ticket, check_target, write_ticket
from slt_compress.tickets.card import derived_card

_PACKED = ("compressed", "bitmask", "row_offsets", "shape")
_CONFIG_DROPPED = ("quantization_config", "compression_config", "sparsity_config")


def import_checkpoint(path: str | Path, out: str | Path, *, recipe: Mapping[str, Any]) -> Ticket:
    """Make a ticket of the weights of a folder that are not zero.

    Three spellings are known: plain tensors with zeros; torch's `<name>_orig` and `<name>_mask`;
    and compressed-tensors' `sparse-bitmask`, of before and after its version 0.9. For the last two
    a plain checkpoint is written beside the ticket, `<out>-origin`, which is then its origin.

    `recipe` is what the ticket records as its own: a later search can start from it.

    Raises:
        SourceError: no checkpoint, or one that cannot be read.
        TicketError: it has no zeros, or `out` is taken.
    """
    folder, target = Path(path), Path(out)
    check_target(target)
    config, tensors = read_folder(folder)
    plain, masks = unpacked(tensors, str(folder))
    origin = folder
    if plain is not tensors:
        origin = target.parent / f"{target.name}-origin"
        _write_origin(origin, folder, config, plain)
    return _ticket_of(open_folder(origin), masks, target, folder, recipe)


def unpacked(
    tensors: Mapping[str, Tensor], where: str
) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
    """Plain tensors, and masks of those whose spelling says more than their zeros.

    `tensors` themselves come back where they are plain.

    Raises:
        SourceError: parts are missing or contradict each other.
    """
    packed = [key.removesuffix(".bitmask") for key in tensors if key.endswith(".bitmask")]
    masked = [key.removesuffix("_mask") for key in tensors if _is_masked(key, tensors)]
    if not packed and not masked:
        return tensors, {}
    used: set[str] = set()
    found: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for name in packed:
        keys = {part: f"{name}.{part}" for part in _PACKED}
        absent = sorted(keys[part] for part in ("compressed", "bitmask", "shape")
                        if keys[part] not in tensors)  # fmt: skip
        if absent:
            raise SourceError(f"{where} lacks {absent[0]}, a part of a sparse-bitmask tensor")
        weight = name if name.endswith(".weight") else f"{name}.weight"
        parts = {part: tensors[key] for part, key in keys.items() if key in tensors}
        found[weight], masks[weight] = _from_bitmask(parts, f"{where}: {name}")
        used |= set(keys.values())
    for name in masked:
        mask = tensors[f"{name}_mask"] != 0
        if mask.shape != tensors[f"{name}_orig"].shape:
            raise SourceError(f"{where}: {name}_mask has another shape than {name}_orig")
        found[name], masks[name] = tensors[f"{name}_orig"], mask
        used |= {f"{name}_mask", f"{name}_orig", name}
    rest = {key: tensor for key, tensor in tensors.items() if key not in used}
    if rest.keys() & found.keys():
        raise SourceError(f"{where} holds {sorted(rest.keys() & found.keys())[0]} twice")
    return {**rest, **found}, masks


def _is_masked(key: str, tensors: Mapping[str, Tensor]) -> bool:
    return key.endswith("_mask") and f"{key.removesuffix('_mask')}_orig" in tensors


def _from_bitmask(parts: Mapping[str, Tensor], where: str) -> tuple[Tensor, Tensor]:
    """A weight and its mask out of rows of bits, each row padded to bytes, lowest bit first."""
    values, bitmask = parts["compressed"], parts["bitmask"]
    sizes = tuple(int(size) for size in parts["shape"].reshape(-1).tolist())
    rows, columns = math.prod(sizes[:-1]), sizes[-1] if sizes else 1
    fits = bitmask.dtype is torch.uint8 and bitmask.numel() == rows * ((columns + 7) // 8) > 0
    if not fits or min(sizes, default=1) < 1:
        raise SourceError(
            f"{where} has a bitmask of {tuple(bitmask.shape)} for a weight of {sizes}"
        )
    bits = np.unpackbits(bitmask.reshape(rows, -1).numpy(), axis=1, bitorder="little")
    mask = torch.from_numpy(bits[:, :columns].astype(bool)).reshape(sizes)
    if values.dim() != 1 or len(values) != int(mask.count_nonzero()):
        raise SourceError(f"{where} has {tuple(values.shape)} values for its bitmask")
    return torch.zeros(sizes, dtype=values.dtype).masked_scatter_(mask, values), mask


def _write_origin(
    target: Path, source: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """A plain checkpoint folder of the unpacked tensors."""
    kept = {key: value for key, value in config.items() if key not in _CONFIG_DROPPED}
    try:
        with atomic_folder(target) as folder:
            write_safetensors(folder / "model.safetensors", tensors)
            (folder / "config.json").write_text(json.dumps(kept, indent=2, sort_keys=True) + "\n")
            copy_companions(source, folder)
    except (OSError, SafetensorError) as cause:
        raise TicketError(f"cannot write the unpacked weights to {target}: {cause}") from cause


def _ticket_of(
    checkpoint: Checkpoint,
    given: Mapping[str, Tensor],
    target: Path,
    source: Path,
    recipe: Mapping[str, Any],
) -> Ticket:
    """A ticket of a checkpoint's zeros, or of masks by the key of its file where they are given."""
    plan = find_sites(checkpoint.module)
    weights: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    kinds: dict[str, str] = {}
    for site in plan.sites:
        weight = getattr(checkpoint.module.get_submodule(site.module), site.param).detach()
        keys = [key for key in checkpoint.file_keys.get(site.name, ()) if key in given]
        mask = given[keys[0]] if len(keys) == 1 else weight != 0
        mask = mask if mask.shape == weight.shape else weight != 0
        if not bool(mask.all()):
            weights[site.name], masks[site.name], kinds[site.name] = weight, mask, site.kind
    if not masks or not Masks(masks).kept:
        raise TicketError(f"{source} has no weight with zeros among the sites, so there is no mask")
    found = Masks(masks)
    whole = dict(plan.skipped) | {
        site.name: "nothing of it is zero" for site in plan.sites if site.name not in masks
    }
    note = f"imported from {source.name}, as its zeros are; nothing was measured"
    facts = {
        name: {"index": i, "kind": kinds[name], "dtype": dtype_name(weights[name].dtype)}
        for i, name in enumerate(weights)
    }
    origin, budget = origin_record(checkpoint), Budget(density=found.density)
    state = {t.data_ptr() or id(t): t.nbytes for t in checkpoint.module.state_dict().values()}
    return write_ticket(
        target, origin=origin, masks=found, gains={}, buffers={}, stored={}, budget=asdict(budget),
        recipe={**recipe, "target_sparsity": 1.0 - found.density},
        metrics={"dense": None, "hard": None, "soft": None}, controls={}, skipped=whole,
        weights_hash=sha256_tensors(weights),
        parameters=sum(parameter.numel() for parameter in checkpoint.module.parameters()),
        probe={}, history=[], run={}, sites=facts, card=derived_card(origin, found, note),
        extra={"environment": environment(checkpoint.module), "notes": [note], "data": None,
               "dense_nbytes": sum(state.values())},
    )  # fmt: skip
