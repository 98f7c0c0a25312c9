"""Decide which units are cut: those that are constant, or that nothing reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile

import torch
from torch import Tensor, nn

from slt_compress.artifacts.shrinking.cuts import (
    KEY_HEADS,
    QUERY_HEADS,
    WIDTHS,
    Fold,
    Shrunk,
    Sliced,
)
from slt_compress.artifacts.shrinking.flows import Consumer, Heads, Ledger


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNote:
    """What became of a gated layer: its shape before and after, and the empty lines that stay.

    `left` counts the empty rows and columns that were not cut, and `reason` says why.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]
    left: int
    reason: str | None


class Decision:
    """Which classes of units are cut: those that every reader can do without."""

    def __init__(self, ledger: Ledger, module: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self.ledger, self.module, self.masks = ledger, module, masks
        self.tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
        self.roots = ledger.roots()
        self.reasons: dict[int, str] = {}
        for units, reason in ledger.pins:
            for root in self.roots[units].tolist():
                self.reasons.setdefault(root, f"its output {reason}")
        read = {root for c in ledger.consumers for root in self.roots[c.units].tolist()}
        self.candidates = read - self.reasons.keys()
        self.gone: set[int] = set()
        self._settle()

    def _settle(self) -> None:
        """Add classes to cut until none is left to add, but leave every layer one unit."""
        while True:
            gone, reasons = self._spared()
            if gone != self.gone:
                self.gone = gone
                continue
            emptied = [u for u in self.ledger.uses if bool(self.cut(u.units).all())]
            if not emptied:
                self.reasons |= {k: v for k, v in reasons.items() if k not in self.reasons}
                return
            for use in emptied:
                first = int(self.roots[use.units[0]])
                self.candidates.discard(first)
                self.reasons.setdefault(first, "a layer keeps one unit")
            self.gone = set()

    def _spared(self) -> tuple[set[int], dict[int, str]]:
        """The candidates that no consumer needs, given what is cut already; and why others stay."""
        needed: dict[int, str] = {}
        for consumer in self.ledger.consumers:
            zero, known = consumer.constant == 0, ~consumer.constant.isnan()
            movable = known if consumer.exact and consumer.bias is not None else zero
            fine = movable | self._silent(consumer)
            for label, constant, ok in zip(
                self.roots[consumer.units].tolist(), known.tolist(), fine.tolist(), strict=True
            ):
                if not ok:
                    place = consumer.weight
                    lacks = "no bias" if consumer.bias is None else "padding around its inputs"
                    needed.setdefault(
                        label,
                        f"its constant output cannot move into {place}, which has {lacks}"
                        if constant
                        else f"its output is not constant where it gets to {place}",
                    )
        return self.candidates - needed.keys(), needed

    def _silent(self, consumer: Consumer) -> Tensor:
        """Columns of a consumer of which no weight is kept in a row that stays."""
        mask = self.masks.get(consumer.weight)
        if mask is None:
            return torch.zeros(len(consumer.units), dtype=torch.bool)
        seen = mask.transpose(0, 1 - consumer.dim)  # [outputs, inputs, …]
        seen = seen.flatten(2).any(2) if seen.dim() > 2 else seen
        return ~seen[~self.cut(self.ledger.rows[consumer.weight].units)].any(0)

    def cut(self, units: Tensor) -> Tensor:
        """Which of these units are cut."""
        gone = [root in self.gone for root in self.roots[units].tolist()]
        return torch.tensor(gone, dtype=torch.bool)

    def cuts(self, units: Tensor) -> bool:
        """Whether any of these units is cut."""
        return bool(self.cut(units).any())

    def shrunk(self) -> Shrunk:
        """The cut, by the names of the tensors."""
        kept: dict[str, dict[int, tuple[int, ...]]] = {}
        for use in self.ledger.uses:
            cut = self.cut(use.units)
            if bool(cut.any()):
                left = (~cut).nonzero().reshape(-1).tolist()
                kept.setdefault(use.name, {})[use.dim] = tuple(left)
        tensors = {
            name: Sliced(shape=tuple(self.tensors[name].shape), kept=dict(sorted(dims.items())))
            for name, dims in sorted(kept.items())
        }
        return Shrunk(
            tensors=tensors,
            folds=dict(self._folds()),
            attributes=dict(entry for heads in self.ledger.heads for entry in self._fewer(heads)),
        )

    def _folds(self) -> Iterator[tuple[str, Fold]]:
        for consumer in self.ledger.consumers:
            moved = self.cut(consumer.units) & ~self._silent(consumer) & (consumer.constant != 0)
            if consumer.bias is not None and bool(moved.any()):
                columns = moved.nonzero().reshape(-1)
                yield (
                    consumer.bias,
                    Fold(
                        weight=consumer.weight,
                        dim=consumer.dim,
                        columns=tuple(columns.tolist()),
                        constants=tuple(consumer.constant[columns].tolist()),
                    ),
                )

    def _fewer(self, heads: Heads) -> Iterator[tuple[str, dict[str, tuple[int, int]]]]:
        """The numbers of heads that the module around a cut attention keeps as attributes."""
        if not self.cuts(heads.queries):
            return
        mine = set(self.roots[torch.cat([heads.queries, heads.keys])].tolist())
        rows = self.ledger.rows.items()
        names = [name for name, use in rows if mine & set(self.roots[use.units].tolist())]
        levels = zip(*(name.split(".")[:-2] for name in names), strict=False)
        parent = ".".join(parts[0] for parts in takewhile(lambda p: len(set(p)) == 1, levels))
        queries, keys = (
            (len(units), int((~self.cut(units)).sum())) for units in (heads.queries, heads.keys)
        )
        width = (queries[0] * heads.width, queries[1] * heads.width)
        counts = dict.fromkeys(QUERY_HEADS, queries) | dict.fromkeys(KEY_HEADS, keys)
        counts |= dict.fromkeys(WIDTHS, width)
        attributes = vars(self.module.get_submodule(parent))
        fewer = {key: pair for key, pair in counts.items() if attributes.get(key) == pair[0]}
        if fewer:
            yield parent, fewer

    def notes(self) -> dict[str, LayerNote]:
        """What becomes of every gated layer."""
        tensors = self.shrunk().tensors
        notes = {}
        for name, mask in self.masks.items():
            shape = tuple(mask.shape)
            reasons = Counter(self._left(name, mask))
            notes[name] = LayerNote(
                before=shape,
                after=tensors[name].after if name in tensors else shape,
                left=reasons.total(),
                reason=reasons.most_common(1)[0][0] if reasons else None,
            )
        return notes

    def _left(self, name: str, mask: Tensor) -> Iterator[str]:
        """The reason for every empty row and column that stays."""
        rows = self.ledger.rows.get(name)
        if rows is None:
            empty = int((~mask.flatten(1).any(1)).sum())
            yield from ["its rows are not units that can be followed"] * empty
            return
        seen = mask.transpose(0, rows.dim).flatten(1).any(1)
        yield from self._why(rows.units[~seen])
        for consumer in self.ledger.consumers:
            if consumer.weight == name:
                yield from self._why(consumer.units[self._silent(consumer)])

    def _why(self, units: Tensor) -> Iterator[str]:
        for root in self.roots[units[~self.cut(units)]].tolist():
            yield self.reasons.get(root, "nothing reads its output")
