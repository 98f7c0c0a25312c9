"""Import: a ticket of a checkpoint that was pruned elsewhere, in any of three spellings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from slt_compress.anatomy.states import environment, module_nbytes, shapes_of, site_weights
from slt_compress.checkpoints import Checkpoint, origin_record, read_folder
from slt_compress.checkpoints import open_checkpoint as open_folder
from slt_compress.errors import SourceError, TicketError
from slt_compress.masks import Masks
from slt_compress.sites.budget import Budget
from slt_compress.sites.sites import find_sites
from slt_compress.storage.files import dtype_name, sha256_tensors
from slt_compress.tickets import (
    Extra,
    SiteFacts,
    Ticket,
    TicketContent,
    check_target,
    write_ticket,
)
from slt_compress.tickets.card import derived_card
from slt_compress.tickets.imported_masks import Spelled, imported_hashes, masks_of
from slt_compress.tickets.unpacked_origin import unpacked_origin

_PACKED = ("compressed", "bitmask", "row_offsets", "shape")
_CONFIG_DROPPED = ("quantization_config", "compression_config", "sparsity_config")
# What tensors beside quantized weights are called, by compressed-tensors, GPTQ, AWQ, bitsandbytes.
_QUANTIZED = (
    "weight_packed", "weight_scale", "weight_scale_inv", "weight_zero_point", "weight_g_idx",
    "input_scale", "qweight", "qzeros", "scales", "g_idx", "absmax", "quant_map", "SCB",
)  # fmt: skip


def import_checkpoint(path: str | Path, out: str | Path, *, recipe: Mapping[str, object]) -> Ticket:
    """Make a ticket of the weights of a folder that are not zero.

    Three spellings are known: plain tensors with zeros; torch's `<name>_orig` and `<name>_mask`;
    and compressed-tensors' `sparse-bitmask`, from before and after its version 0.9. For the last
    two, and where the config calls plain tensors compressed, a plain checkpoint is written beside
    the ticket as `<out>-origin`, and is its origin.

    The ticket holds every mask and every zero of the source, or nothing is written. Zeros that are
    there without pruning, in a bias that is all zero or the padding row of an embedding, are the
    origin's values and no mask.

    The ticket records `recipe` as its own, so that a later search can start from it.

    Raises:
        SourceError: the folder is not a checkpoint, or cannot be read.
        TicketError: it has no zeros, a mask cannot be carried over, or `out` is taken.
    """
    folder, target = Path(path), Path(out)
    check_target(target)
    config, tensors = read_folder(folder)
    _refuse_quantized(tensors, folder)
    plain, masks = unpacked(tensors, str(folder))
    spelled = Spelled(tensors=plain, masks=masks, where=str(folder))
    if plain is tensors and not any(key in config for key in _CONFIG_DROPPED):
        return _ticket_of(open_folder(folder), spelled, target, folder, recipe)
    kept = {key: value for key, value in config.items() if key not in _CONFIG_DROPPED}
    beside = target.parent / f"{target.name}-origin"
    with unpacked_origin(beside, target, folder, kept, plain) as origin:
        return _ticket_of(open_folder(origin), spelled, target, folder, recipe)


def _refuse_quantized(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Refuse weights that are not what their numbers say."""
    for key, tensor in tensors.items():
        narrow = tensor.is_floating_point() and tensor.element_size() < 2
        if narrow or key.rpartition(".")[2] in _QUANTIZED:
            raise SourceError(
                f"{folder} is quantized ({key}); masks need the original weights: give the "
                "unquantized checkpoint"
            )


def unpacked(
    tensors: Mapping[str, Tensor], where: str
) -> tuple[Mapping[str, Tensor], dict[str, Tensor]]:
    """The plain tensors, and the masks of those that are stored with a mask.

    Returns `tensors` itself where all of them are plain.

    Raises:
        SourceError: parts are missing or contradict each other.
    """
    packed = [key.removesuffix(".bitmask") for key in tensors if key.endswith(".bitmask")]
    masked = [key.removesuffix("_mask") for key in tensors if _is_mask(key, tensors, where)]
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
        weight = name if name.endswith((".weight", ".bias")) else f"{name}.weight"
        parts = {part: tensors[key] for part, key in keys.items() if key in tensors}
        weights[weight], masks[weight] = _from_bitmask(parts, f"{where}: {name}")
        used |= set(keys.values())
    for name in masked:
        mask = tensors[f"{name}_mask"]
        orig = f"{name}_orig" if f"{name}_orig" in tensors else name
        if mask.shape != tensors[orig].shape:
            raise SourceError(f"{where}: {name}_mask has another shape than {orig}")
        if not bool(((mask == 0) | (mask == 1)).all()):
            raise SourceError(f"{where}: {name}_mask holds more than 0 and 1, so it is no mask")
        weights[name], masks[name] = tensors[orig], mask != 0
        used |= {f"{name}_mask", f"{name}_orig", name}
    rest = {key: tensor for key, tensor in tensors.items() if key not in used}
    if rest.keys() & weights.keys():
        raise SourceError(f"{where} holds {sorted(rest.keys() & weights.keys())[0]} twice")
    return {**rest, **weights}, masks


def _is_mask(key: str, tensors: Mapping[str, Tensor], where: str) -> bool:
    """Whether a tensor is the mask of another one: of `<name>_orig`, else of the weight beside it.

    Raises:
        SourceError: it is called the mask of a weight or bias that is not there.
    """
    name = key.removesuffix("_mask")
    if not key.endswith("_mask") or f"{name}_orig" in tensors:
        return key.endswith("_mask")
    if name.rpartition(".")[2] not in ("weight", "bias"):
        return False  # a buffer of the model, such as attn_mask
    if name not in tensors:
        raise SourceError(f"{where} holds {key} and neither {name}_orig nor {name}")
    return True


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
    if values.dim() not in (1, 2) or values.numel() != int(mask.count_nonzero()):
        raise SourceError(f"{where} has {tuple(values.shape)} values for its bitmask")
    return torch.zeros(sizes, dtype=values.dtype).masked_scatter_(mask, values.reshape(-1)), mask


def _ticket_of(
    checkpoint: Checkpoint,
    spelled: Spelled,
    target: Path,
    source: Path,
    recipe: Mapping[str, object],
) -> Ticket:
    """Write the ticket of all that is masked or zero in a checkpoint."""
    module, plan = checkpoint.module, find_sites(checkpoint.module)
    masks = masks_of(checkpoint, plan, spelled)
    if not masks or not Masks(masks).kept:
        raise TicketError(f"{source} has no weight with zeros among the sites, so there is no mask")
    kinds = {site.name: site.kind for site in plan.sites}
    weights = site_weights(module, shapes_of(Masks(masks)))
    facts = {
        name: SiteFacts(index=index, kind=kinds.get(name, "other"), dtype=dtype_name(weight.dtype))
        for index, (name, weight) in enumerate((name, weights[name]) for name in masks)
    }
    skipped = {name: why for name, why in plan.skipped.items() if name not in masks}
    whole = {site.name: "nothing of it is zero" for site in plan.sites if site.name not in masks}
    content = _content(checkpoint, Masks(masks), source, recipe, sites=facts,
                       skipped={**skipped, **whole},
                       weights_hash=sha256_tensors(weights))  # fmt: skip
    imported = {"tensors": imported_hashes(spelled, checkpoint, masks)}
    extra = None if content.extra is None else replace(content.extra, imported=imported)
    return write_ticket(target, replace(content, extra=extra))


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
