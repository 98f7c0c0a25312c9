"""Gating: put gates on the sites of a module for a while, and leave no trace afterwards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from slt_compress.anatomy.copies import own_class_
from slt_compress.anatomy.gradient_paths import grads_from_embeddings
from slt_compress.anatomy.memory_formats import contiguous_convolutions
from slt_compress.anatomy.remembering import (
    Remembered,
    SetAround,
    freeze_,
    remember_state,
    unchanged,
)
from slt_compress.anatomy.states import kept_buffers
from slt_compress.gates.base import Learned, Phase, Sample, sample_key
from slt_compress.masks import Masks, masked_weight
from slt_compress.sites.layouts import Layout
from slt_compress.sites.sites import Site, SitePlan

Mode = Literal["open", "sampled", "masked"]
# What is trained beside the scores: the name of a site or parameter goes behind the prefix.
GAIN, TUNED = "gain/", "tuned/"


class Gate(nn.Module, SetAround):
    """The parametrization of one site: open (the weight), sampled, or masked."""

    def __init__(
        self,
        method: Learned | None,
        score: Tensor | None,
        layout: Layout,
        *,
        rescale: bool,
        unit_gains: bool = False,
    ) -> None:
        super().__init__()
        self.score = None if score is None else nn.Parameter(score)
        self.method = method
        self.layout = layout
        self.rescale = rescale
        self.mode: Mode = "open"
        self.sample: Sample | None = None
        self.name = ""
        self.masks = Masks({})  # those of several sites: each look-up may make the tensor
        self.gain: float | Tensor = 1.0
        units = torch.ones_like(score) if unit_gains and score is not None else None
        self.unit_gain = None if units is None else nn.Parameter(units)

    def forward(self, weight: Tensor) -> Tensor:
        """The effective weight in the current mode."""
        if self.mode == "sampled" and self.method and self.sample and self.score is not None:
            product = self.method.effective(self.score, weight, self.sample)
            if self.unit_gain is None:
                return product
            return product * self.layout.expand(self.unit_gain).to(product.dtype)
        if self.mode == "masked":
            mask, flip = self.masks[self.name], self.masks.flips.get(self.name)
            return masked_weight(weight, mask, self.gain, flip)
        return weight

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The weight itself: what is stored below the gate never changes."""
        return weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """The gates that are on a module, by the name of their site."""

    by_name: Mapping[str, Gate]
    module: nn.Module
    dense: Remembered
    dense_buffers: Mapping[str, Tensor]
    tuned: Mapping[str, nn.Parameter] = field(default_factory=dict)
    own_values: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def unit_gains(self) -> dict[str, nn.Parameter]:
        """The trainable gains of units, one per unit, of the sites that have them."""
        gates = self.by_name.items()
        return {name: gate.unit_gain for name, gate in gates if gate.unit_gain is not None}

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """All that a step trains: scores, gains of units and tuned parameters."""
        return {
            **self.scores,
            **{GAIN + name: gain for name, gain in self.unit_gains.items()},
            **{TUNED + name: parameter for name, parameter in self.tuned.items()},
        }

    @contextmanager
    def holding(self, trained: Mapping[str, Tensor]) -> Iterator[None]:
        """Other values of what is trained beside the scores, for as long as the block lasts."""
        extras = {n: p for n, p in self.trained.items() if is_extra(n) and n in trained}
        before = {name: parameter.data for name, parameter in extras.items()}
        for name, parameter in extras.items():
            parameter.data = trained[name].to(parameter.device, copy=True)
        try:
            yield
        finally:
            for name, parameter in extras.items():
                parameter.data = before[name].to(parameter.device)

    @property
    def scores(self) -> dict[str, nn.Parameter]:
        """The trainable scores; empty where no method was given."""
        return {n: gate.score for n, gate in self.by_name.items() if gate.score is not None}

    def ranked_(self) -> dict[str, Tensor]:
        """The scores as they compete, detached: their size where they are signed.

        Scores of groups (N:M) are put around their boundary, in place but for signed ones. No
        choice changes by that: a group decides by the differences within it. The boundary passes
        no gradient.
        """
        ranked: dict[str, Tensor] = {}
        for name, score in self.scores.items():
            gate, live = self.by_name[name], score.detach()
            if gate.method is not None and gate.method.signed:
                ranked[name] = gate.layout.centre(live.abs())
                continue
            centred = gate.layout.centre(live)
            ranked[name] = live if centred is live else live.copy_(centred)
        return ranked

    def sample(self, phase: Phase, shifts: Mapping[str, float]) -> None:
        """From now on every forward reads this step's sample."""
        for name, gate in self.by_name.items():
            key = sample_key(phase.seed, f"{phase.step}:{name}")
            gate.sample = Sample(
                phase=phase, shift=shifts[name], key=key, rescale=gate.rescale, layout=gate.layout
            )
            gate.mode = "sampled"

    def mask(self, masks: Masks, gains: Mapping[str, float | Tensor]) -> None:
        """From now on every forward reads the masked weights of the sites that have a mask."""
        for name in masks:
            gate = self.by_name[name]
            gate.name, gate.masks = name, masks
            gate.gain, gate.mode = gains.get(name, 1.0), "masked"

    @contextmanager
    def opened(self) -> Iterator[None]:
        """The dense network, with its own buffers and values, for as long as the block lasts."""
        trained = {name: parameter.data for name, parameter in self.tuned.items()}
        modes = {name: gate.mode for name, gate in self.by_name.items()}
        for gate in self.by_name.values():
            gate.mode = "open"
        for name, parameter in self.tuned.items():
            parameter.data = self.own_values[name].to(parameter.device)
        try:
            with kept_buffers(self.module):
                self.dense.put_back_state()
                yield
        finally:
            for name, gate in self.by_name.items():
                gate.mode = modes[name]
            for name, parameter in self.tuned.items():
                parameter.data = trained[name]


def is_extra(name: str) -> bool:
    """Whether the name of something trained is not that of a score."""
    return name.startswith((GAIN, TUNED))


def scores_of(trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The scores among all that is trained."""
    return {name: tensor for name, tensor in trained.items() if not is_extra(name)}


@contextmanager
def read_once(module: nn.Module, plan: SitePlan) -> Iterator[None]:
    """Compute every effective weight once, up front, and let all readers in the block see it.

    A weight may be read several times in a forward, or again when a checkpointed block is
    recomputed in backward: each of them gets the same tensor. Backward belongs in the block.
    """
    with parametrize.cached():
        for site in plan.sites:
            for owner, param in _owners(module, site):
                getattr(owner, param)
        yield


@contextmanager
def gated(
    module: nn.Module,
    plan: SitePlan,
    *,
    method: Learned | None = None,
    scores: Mapping[str, Tensor] | None = None,
    rescale: bool = False,
    unit_gains: bool = False,
    tuned: Sequence[str] = (),
) -> Iterator[Gates]:
    """Put a gate on every site and freeze the weights; restore everything on exit.

    On exit the module is what it was, also after an exception: values, buffers, modes,
    `requires_grad` flags, ties, classes, hooks and the order of its parameters, with the same
    tensor objects. Gates start open. With `unit_gains` every unit has a trainable gain, which
    starts at 1; the parameters named in `tuned` are trainable for as long as the block lasts.
    """
    gates: dict[str, Gate] = {}
    with unchanged(module):
        freeze_(module)
        for site in plan.sites:
            score = None if scores is None else scores[site.name]
            gate = Gate(method, score, site.layout, rescale=rescale, unit_gains=unit_gains)
            gates[site.name] = gate
            for owner, param in _owners(module, site):
                own_class_(owner)
                # unsafe: a gate keeps shape and dtype, so torch's trial forward per site is saved
                parametrize.register_parametrization(owner, param, gate, unsafe=True)
        with (
            contiguous_convolutions(module),
            grads_from_embeddings(module),
            _trainable(module, tuned) as (parameters, own),
        ):
            buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
            dense = remember_state(module)
            yield Gates(
                by_name=gates, module=module, dense=dense, dense_buffers=buffers,
                tuned=parameters, own_values=own,
            )  # fmt: skip


@contextmanager
def _trainable(
    module: nn.Module, names: Sequence[str]
) -> Iterator[tuple[dict[str, nn.Parameter], dict[str, Tensor]]]:
    """Parameters with a copy of their values to train, and these values themselves.

    What lies in the module's own memory is not touched; the parameters get it back.
    """
    every = dict(module.named_parameters())
    parameters = {name: every[name] for name in names}
    own = {name: parameter.data for name, parameter in parameters.items()}
    try:
        for parameter in parameters.values():
            parameter.data = parameter.data.clone()
            parameter.requires_grad_(True)
        yield parameters, own
    finally:
        for name, parameter in parameters.items():
            parameter.data = own[name]


def _owners(module: nn.Module, site: Site) -> Iterator[tuple[nn.Module, str]]:
    """The modules that read a site, each once, with its name there."""
    seen: set[int] = set()
    for path, param in site.places:
        owner = module.get_submodule(path)
        if id(owner) not in seen:
            seen.add(id(owner))
            yield owner, param
