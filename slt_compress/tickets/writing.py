"""Write a ticket folder, whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from slt_compress.errors import TicketError
from slt_compress.masks import Masks, pack_bits
from slt_compress.storage.files import (
    atomic_folder,
    json_text,
    sha256_file,
    write_json,
    write_safetensors,
)
from slt_compress.tickets.places import (
    BUFFER_PREFIX,
    FLIP_SUFFIX,
    HISTORY,
    KIND,
    MANIFEST,
    MASKS,
    ORIGIN,
    PROBE,
    SCORES,
    STORED_PREFIX,
)
from slt_compress.tickets.reading import Ticket, read_ticket


def write_ticket(
    path: Path,
    *,
    origin: Mapping[str, Any],
    masks: Masks,
    gains: Mapping[str, float],
    buffers: Mapping[str, Tensor],
    stored: Mapping[str, Tensor],
    budget: Mapping[str, Any],
    recipe: Mapping[str, Any],
    metrics: Mapping[str, Any],
    controls: Mapping[str, Any],
    skipped: Mapping[str, str],
    weights_hash: str,
    parameters: int,
    probe: Mapping[str, Tensor],
    history: Sequence[Mapping[str, Any]],
    run: Mapping[str, Any],
    card: str,
    sites: Mapping[str, Mapping[str, Any]] | None = None,
    units: Mapping[str, tuple[int, int]] | None = None,
    scores: Mapping[str, Tensor] | None = None,
    origin_tensors: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, Any] | None = None,
) -> Ticket:
    """Write a ticket folder, whole or not at all, and read it back.

    Args:
        path: the folder to make; it must not exist, or be empty.
        origin: JSON-able record of the checkpoint.
        masks: the final masks.
        gains: factor per site, empty where there is none.
        buffers: changed buffers by name.
        stored: tensors by name that the origin's seed does not give.
        budget: JSON-able budget.
        recipe: JSON-able resolved recipe.
        metrics: JSON-able metrics.
        controls: JSON-able metrics of the controls.
        skipped: reason per parameter that is no site.
        weights_hash: `sha256_tensors` of the frozen weights of all sites.
        parameters: number of parameters of the model.
        probe: the model's inputs by argument name, and `logits`.
        history: one JSON-able record per step, without a clock in it.
        run: seconds, dates, paths, machine: whatever may differ between equal runs.
        card: Markdown text of README.md.
        sites: more facts per site, such as `dtype` and `kind`.
        units: kept and gated units of each site, where a unit is larger than a weight.
        scores: the scores behind the masks.
        origin_tensors: the origin's own weights, where they cannot be had again.
        extra: further JSON-able facts, such as the thread count.

    Raises:
        TicketError: the path is taken, or the parts contradict each other.
    """
    manifest = {
        "kind": KIND[0],
        "version": _version(masks),
        "origin": origin,
        "gains": gains,
        "budget": budget,
        "recipe": recipe,
        "metrics": metrics,
        "controls": controls,
        "skipped": skipped,
        "weights_hash": weights_hash,
        "extra": extra or {},
        **_mask_records(masks, sites or {}, parameters, units),
        "buffers": sorted(buffers),
        "stored": sorted(stored),
    }
    groups = {PROBE: probe, SCORES: scores, ORIGIN: origin_tensors}
    with _new_folder(path) as folder:
        _write_masks(folder / MASKS, masks, buffers, stored)
        files = _write_groups(folder, groups, history)
        (folder / "README.md").write_bytes(card.encode())
        write_json(folder / "run.json", run)
        write_json(folder / MANIFEST, {**manifest, "files": files})
    return read_ticket(path)


def _version(masks: Masks) -> int:
    """The oldest version whose readers understand these masks."""
    return KIND[1] if masks.flips else 1


@contextmanager
def _new_folder(path: Path) -> Iterator[Path]:
    try:
        with atomic_folder(path) as folder:
            yield folder
    except FileExistsError as cause:
        raise TicketError(f"cannot write a ticket: {cause}") from cause
    except (OSError, SafetensorError) as cause:
        raise TicketError(f"cannot write a ticket to {path}: {cause}") from cause


def _mask_records(
    masks: Masks,
    sites: Mapping[str, Mapping[str, Any]],
    parameters: int,
    units: Mapping[str, tuple[int, int]] | None,
) -> dict[str, Any]:
    """Make the entries `counts` and `sites` of the manifest."""
    if not sites.keys() <= masks.keys():
        raise TicketError(f"no mask was given for the sites {sorted(sites.keys() - masks.keys())}")
    records = {
        name: {
            **sites.get(name, {}),
            "shape": list(mask.shape),
            "kept": int(mask.count_nonzero()),
            "total": mask.numel(),
        }
        for name, mask in masks.items()
    }
    counts: dict[str, Any] = {
        "kept": masks.kept, "gated": masks.total, "parameters": parameters
    }  # fmt: skip
    for name, flip in masks.flips.items():
        records[name]["flips"] = int(flip.count_nonzero())
    if masks.flips:
        counts["flips"] = masks.flipped
    if units is not None:
        for name, (kept, gated) in units.items():
            records[name]["units"] = {"kept": kept, "gated": gated}
        kept, gated = (sum(part) for part in zip(*units.values(), strict=True))
        counts["units"] = {"kept": kept, "gated": gated}
    return {"counts": counts, "sites": records}


def _write_masks(
    path: Path, masks: Masks, buffers: Mapping[str, Tensor], stored: Mapping[str, Tensor]
) -> None:
    tensors = {
        **{name: pack_bits(mask) for name, mask in masks.items()},
        **{name + FLIP_SUFFIX: pack_bits(flip) for name, flip in masks.flips.items()},
        **{BUFFER_PREFIX + name: tensor for name, tensor in buffers.items()},
        **{STORED_PREFIX + name: tensor for name, tensor in stored.items()},
    }
    if len(tensors) != len(masks) + len(masks.flips) + len(buffers) + len(stored):
        raise TicketError("a site has the name of another stored tensor; rename it")
    shapes = {name: list(mask.shape) for name, mask in masks.items()}
    facts = {"kind": KIND[0], "version": _version(masks), "shapes": shapes}
    write_safetensors(path, tensors, facts)


def _write_groups(
    folder: Path,
    groups: Mapping[str, Mapping[str, Tensor] | None],
    history: Sequence[Mapping[str, Any]],
) -> dict[str, str]:
    """Write what carries the result and hash it; not README.md, which a user may edit."""
    for name, tensors in groups.items():
        if tensors is not None:
            write_safetensors(folder / name, tensors)
    lines = "".join(json_text(record) + "\n" for record in history)
    (folder / HISTORY).write_bytes(lines.encode())
    return {file.name: sha256_file(file) for file in sorted(folder.iterdir())}
