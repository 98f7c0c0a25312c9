"""Recording: write the result of a search as a ticket."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from slt_compress.anatomy.states import environment, module_nbytes
from slt_compress.checkpoints import Checkpoint, origin_record
from slt_compress.data import SearchData
from slt_compress.errors import TicketError
from slt_compress.searching.conclusion import SearchResult
from slt_compress.searching.recipes import Recipe
from slt_compress.searching.rescuing import rescue
from slt_compress.sites.dead_weights import dead_weights
from slt_compress.sites.layouts import Grouped, kept_units
from slt_compress.sites.unit_gains import count_gains
from slt_compress.storage.files import dtype_name, sha256_tensors
from slt_compress.tickets import (
    Extra,
    SiteFacts,
    Ticket,
    TicketContent,
    Units,
    check_target,
    free_path,
    write_ticket,
)
from slt_compress.tickets.card import ticket_card


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The folder that a ticket is written to: `parent/stem`.

    With `free`, a number is appended if that folder exists. Two searches may run at once, so the
    name is chosen when the ticket is written.
    """

    parent: Path
    stem: str
    free: bool

    def check(self) -> None:
        """Refuse a folder that cannot be written, before the search instead of after it.

        Raises:
            TicketError: the folder exists, or it cannot be written.
        """
        check_target(self.path())

    def path(self) -> Path:
        """The folder that would be written now."""
        return free_path(self.parent, self.stem) if self.free else self.parent / self.stem


def target_of(
    source: str | Path | nn.Module, recipe: Recipe, out: str | Path | None, parent: Path
) -> Target:
    """`out`, else a free `parent/<model>-<method>-<sparsity>`."""
    if out is not None:
        return Target(parent=Path(out).parent, stem=Path(out).name, free=False)
    stem = f"{model_name(source)}-{recipe.method['name']}-{recipe.sparsity}"
    return Target(parent=parent, stem=stem, free=True)


def model_name(source: str | Path | nn.Module) -> str:
    """What a source adds to a folder name: the last part of a path, or a hub id with dashes."""
    if isinstance(source, nn.Module):
        name = type(source).__name__
    else:
        folder = Path(source).expanduser()
        name = folder.resolve().name if folder.is_dir() else str(source)
    return name.strip("/.").replace("/", "-").replace(":", "-") or "model"


def record(
    target: Target,
    checkpoint: Checkpoint,
    prepared: SearchData | None,
    recipe: Recipe,
    *,
    result: SearchResult,
    started: float,
) -> Ticket:
    """Write the ticket of a search that began at `started` (monotonic seconds).

    Raises:
        TicketError: the target exists or cannot be written; the ticket is then in a fallback
            folder, which the message names.
    """
    content = _content(checkpoint, prepared, recipe, result)

    def write(path: Path) -> Ticket:
        return write_ticket(path, content, run=_run_facts(started, path))

    while True:
        path = target.path()
        try:
            return write(path)
        except TicketError as error:
            taken = target.free and isinstance(error.__cause__, OSError) and path.exists()
            if not taken:  # else another search took the name in the meantime
                raise rescue(write, path.name, error) from error


def _content(
    checkpoint: Checkpoint, prepared: SearchData | None, recipe: Recipe, result: SearchResult
) -> TicketContent:
    """The parts of a ticket that are equal for equal runs."""
    module, origin = checkpoint.module, origin_record(checkpoint)
    state = module.state_dict()
    stored = {name: state[name].detach().cpu().clone() for name in checkpoint.stored}
    all_stored = checkpoint.init is not None and checkpoint.init.scheme == "default"
    return TicketContent(
        origin=origin,
        masks=result.masks,
        gains=result.gains,
        unit_gains=result.unit_gains,
        tuned=result.tuned,
        buffers=result.buffers,
        stored={} if all_stored else stored,
        origin_tensors=stored if all_stored else None,
        budget=asdict(recipe.budget()),
        recipe=recipe.to_dict(),
        metrics=result.metrics,
        controls=result.controls,
        skipped=result.plan.skipped,
        weights_hash=sha256_tensors(result.weights),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        units=_unit_counts(result) if recipe.budget().shape.counts_units else None,
        probe=result.probe,
        history=result.history,
        sites=_site_facts(result),
        scores=result.scores if recipe.save_scores else None,
        extra=_extra(module, prepared, recipe, result),
        card=ticket_card(
            origin,
            result.masks,
            result.metrics,
            method=str(recipe.method["name"]),
            pattern=recipe.pattern,
            permuted=recipe.permute,
            gains=count_gains(result.unit_gains),
            tuned=sum(tensor.numel() for tensor in result.tuned.values()),
            data=_data_facts(prepared),
        ),
    )


def _site_facts(result: SearchResult) -> dict[str, SiteFacts]:
    dtypes = {name: dtype_name(weight.dtype) for name, weight in result.weights.items()}
    return {
        site.name: SiteFacts(
            index=index, kind=site.kind, dtype=dtypes[site.name],
            order=site.layout.order if isinstance(site.layout, Grouped) else None,
        )
        for index, site in enumerate(result.plan.sites)
    }  # fmt: skip


def _unit_counts(result: SearchResult) -> dict[str, Units]:
    """Numbers of kept and of gated units of each site."""
    return {
        site.name: Units(
            kept=int(kept_units(site.layout, result.masks[site.name]).sum()), gated=site.units
        )
        for site in result.plan.sites
    }


def _extra(
    module: nn.Module, prepared: SearchData | None, recipe: Recipe, result: SearchResult
) -> Extra:
    dead, unknown = _dead_weights(module, recipe, result)
    return Extra(
        environment=environment(module),
        dense_nbytes=module_nbytes(module),
        data=_data_facts(prepared),
        notes=(*_notes(prepared), *result.notes),
        silenced=dead,
        neighbours_unknown=unknown,
    )


def _dead_weights(
    module: nn.Module, recipe: Recipe, result: SearchResult
) -> tuple[Mapping[str, int] | None, tuple[str, ...] | None]:
    """Kept weights without effect, for patterns that remove whole outputs or heads."""
    pattern = recipe.budget().shape
    if not pattern.silences:
        return None, None
    dead, unknown = dead_weights(module, result.plan, result.masks, heads=pattern.kind == "head")
    return dead, tuple(unknown)


def _data_facts(prepared: SearchData | None) -> dict[str, Any] | None:
    if prepared is None:
        return None
    return {
        "spec": prepared.spec,
        "splits": dict(prepared.splits),
        "test": prepared.test_split,
        "labels_match": prepared.labels_match,
    }


def _notes(prepared: SearchData | None) -> list[str]:
    notes = (prepared.label_note, *prepared.notes) if prepared is not None else ()
    return [note for note in notes if note]


def _run_facts(started: float, path: Path) -> dict[str, Any]:
    """Facts that may differ between equal runs."""
    return {
        "seconds": round(time.monotonic() - started, 3),
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "path": str(path.absolute()),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
