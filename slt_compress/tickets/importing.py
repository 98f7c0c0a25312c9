"""Import: a ticket of a checkpoint that was pruned elsewhere, in any of three spellings."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from slt_compress.anatomy.states import environment, module_nbytes
from slt_compress.checkpoints import Checkpoint, origin_record, read_folder
from slt_compress.checkpoints import open_checkpoint as open_folder
from slt_compress.checkpoints.companions import copy_companions
from slt_compress.errors import SourceError, TicketError
from slt_compress.masks import Masks
from slt_compress.sites.budget import Budget
from slt_compress.sites.sites import find_sites
from slt_compress.storage.files import atomic_folder, dtype_name, sha256_tensors, write_safetensors
from slt_compress.tickets import (
    Extra,
    SiteFacts,
    Ticket,
    TicketContent,
    check_target,
    write_ticket,
)
from slt_compress.tickets.card import derived_card

_PACKED = ("compressed", "bitmask", "row_offsets", "shape")
_CONFIG_DROPPED = ("quantization_config", "compression_config", "sparsity_config")


def import_checkpoint(path: str | Path, out: str | Path, *, recipe: Mapping[str, object]) -> Ticket:
    """Make a ticket of the weights of a folder that are not zero.

    Three spellings are known: plain tensors with zeros; torch's `<name>_orig` and `<name>_mask`;
    and compressed-tensors' `sparse-bitmask`, from before and after its version 0.9. For the last
    two, a plain checkpoint is written beside the ticket as `<out>-origin`, and is its origin.

    The ticket records `recipe` as its own, so that a later search can start from it.

    Raises:
        SourceError: the folder is not a checkpoint, or cannot be read.
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
    """The plain tensors, and the masks of those that are stored with a mask.

    Returns `tensors` itself where all of them are plain.

    Raises:
        SourceError: parts are missing or contradict each other.
    """
    packed = [key.removesuffix(".bitmask") for key in tensors if key.endswith(".bitmask")]
    masked = [key.removesuffix("_mask") for key in tensors if _is_masked(key, tensors)]
    if not packed and not masked:
        return tensors, {}
    used: set[str] = set()
    weights: dict[str, Tensor] = {}
    masks: dict[str, Tensor] = {}
    for name in packed:
        keys = {part: f"{name}.{part}" for part in _PACKED}
        absent = sorted(keys[part] for part in ("compressed", "bitmask", "shape")
                        if keys[part] not in tensors)  # fmt: skip
        if absent:
            raise SourceError(f"{where} lacks {absent[0]}, a part of a sparse-bitmask tensor")
        weight = name if name.endswith(".weight") else f"{name}.weight"
        parts = {part: tensors[key] for part, key in keys.items() if key in tensors}
        weights[weight], masks[weight] = _from_bitmask(parts, f"{where}: {name}")
        used |= set(keys.values())
    for name in masked:
        mask = tensors[f"{name}_mask"] != 0
        if mask.shape != tensors[f"{name}_orig"].shape:
            raise SourceError(f"{where}: {name}_mask has another shape than {name}_orig")
        weights[name], masks[name] = tensors[f"{name}_orig"], mask
        used |= {f"{name}_mask", f"{name}_orig", name}
    rest = {key: tensor for key, tensor in tensors.items() if key not in used}
    if rest.keys() & weights.keys():
        raise SourceError(f"{where} holds {sorted(rest.keys() & weights.keys())[0]} twice")
    return {**rest, **weights}, masks


def _is_masked(key: str, tensors: Mapping[str, Tensor]) -> bool:
    return key.endswith("_mask") and f"{key.removesuffix('_mask')}_orig" in tensors


def _from_bitmask(parts: Mapping[str, Tensor], where: str) -> tuple[Tensor, Tensor]:
    """A weight and its mask from rows of bits, each row padded to bytes, lowest bit first."""
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
    target: Path, source: Path, config: Mapping[str, object], tensors: Mapping[str, Tensor]
) -> None:
    """Write a plain checkpoint folder of the unpacked tensors."""
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
    recipe: Mapping[str, object],
) -> Ticket:
    """Write the ticket of a checkpoint: masks given by file key, or else whatever is not zero."""
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
    whole = {site.name: "nothing of it is zero" for site in plan.sites if site.name not in masks}
    facts = {
        name: SiteFacts(index=index, kind=kinds[name], dtype=dtype_name(weight.dtype))
        for index, (name, weight) in enumerate(weights.items())
    }
    content = _content(checkpoint, Masks(masks), source, recipe, sites=facts,
                       skipped={**plan.skipped, **whole},
                       weights_hash=sha256_tensors(weights))  # fmt: skip
    return write_ticket(target, content)


def _content(
    checkpoint: Checkpoint,
    masks: Masks,
    source: Path,
    recipe: Mapping[str, object],
    *,
    sites: Mapping[str, SiteFacts],
    skipped: Mapping[str, str],
    weights_hash: str,
) -> TicketContent:
    module, origin = checkpoint.module, origin_record(checkpoint)
    note = f"imported from {source.name}, as its zeros are; nothing was measured"
    return TicketContent(
        origin=origin,
        masks=masks,
        gains={},
        buffers={},
        stored={},
        budget=asdict(Budget(density=masks.density)),
        recipe={**recipe, "target_sparsity": 1.0 - masks.density},
        metrics={"dense": None, "hard": None, "soft": None},
        controls={},
        skipped=skipped,
        weights_hash=weights_hash,
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        sites=sites,
        extra=Extra(
            environment=environment(module), dense_nbytes=module_nbytes(module), notes=(note,)
        ),
        card=derived_card(origin, masks, note),
    )
