"""Sites: walk a module and decide for every parameter whether it gets a gate."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

from torch import nn

from slt_compress.anatomy.heads import head_names
from slt_compress.anatomy.parameters import Parameter, joined, walk_parameters
from slt_compress.anatomy.roles import role, unsuitable
from slt_compress.errors import TargetError
from slt_compress.sites.layouts import ELEMENTWISE, Inside, Layout
from slt_compress.sites.names import matcher


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Which parameters to gate, by patterns of names.

    A pattern is a shell glob for the whole name (`*.mlp.*`), or `re:` and a regular expression
    that is searched for in the name. `include`, if given, replaces the default choice; `exclude`
    removes from either. A pattern that matches no parameter is an error.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One weight that is gated.

    `input_dim` is the dimension along which the weight sums over its inputs. `layout` maps its
    scores to its weights. `tied` are the other names of the same parameter, whose modules share
    the gate.
    """

    module: str
    param: str
    shape: tuple[int, ...]
    kind: str
    input_dim: int = 1
    layout: Layout = ELEMENTWISE
    tied: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The key of the weight in the opened module."""
        return joined(self.module, self.param)

    @property
    def places(self) -> tuple[tuple[str, str], ...]:
        """Module and parameter for each of its names; a shared module has several paths."""
        others = (name.rpartition(".") for name in self.tied)
        return (self.module, self.param), *((module, param) for module, _, param in others)

    @property
    def numel(self) -> int:
        """How many weights."""
        return prod(self.shape)

    @property
    def units(self) -> int:
        """How many units it has, and so how many scores."""
        return prod(self.layout.grid(self.shape))

    @property
    def room(self) -> int:
        """How many units may be kept."""
        return self.layout.room if isinstance(self.layout, Inside) else self.units


@dataclass(frozen=True, slots=True, kw_only=True)
class SitePlan:
    """Every parameter of a module: gated, or skipped with the reason."""

    sites: tuple[Site, ...]
    skipped: Mapping[str, str]

    @property
    def gated(self) -> int:
        """How many weights are gated."""
        return sum(site.numel for site in self.sites)

    @property
    def layouts(self) -> dict[str, Layout]:
        """The layout of each site, by name."""
        return {site.name: site.layout for site in self.sites}


def find_sites(
    module: nn.Module, targets: Targets | None = None, *, gate_head: bool = True
) -> SitePlan:
    """Walk `module` and choose its sites.

    By default every parameter of two or more dimensions that multiplies activations is a site. A
    shared parameter is one site. Embeddings and parameters tied to them, positions, tokens, norms,
    biases and routers of experts are not sites. Nor is the task head if `gate_head` is false: a
    pretrained head is small and has a large effect.

    Raises:
        TargetError: a pattern matches no parameter, or no parameter is left to gate.
    """
    targets = targets or Targets()
    parameters = tuple(walk_parameters(module))
    included = _matching(targets.include, parameters)
    excluded = _matching(targets.exclude, parameters)
    heads = frozenset() if gate_head else head_names(module)
    reasons: dict[str, str | None] = {}
    for entry in parameters:
        reason = _impossible(entry)
        if reason is None and targets.include:
            reason = None if included & set(entry.names) else "not matched by targets.include"
        elif reason is None:
            head = "task head of a pretrained checkpoint" if entry.name in heads else None
            reason = head or unsuitable(entry)
        if reason is None and entry.name in excluded:
            reason = "matched by targets.exclude"
        reasons[entry.name] = reason
    sites: list[Site] = []
    skipped: dict[str, str] = {}
    for entry in parameters:
        reason = _tied(entry, reasons) if len(entry.names) > 1 else reasons[entry.name]
        if reason is None:
            sites.append(_site(entry))
        else:
            skipped[entry.name] = reason
    if not sites:
        listed = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:5])
        raise TargetError(f"no parameter is left to gate ({listed or 'the module has none'})")
    return SitePlan(sites=tuple(sites), skipped=MappingProxyType(skipped))


def _tied(entry: Parameter, reasons: Mapping[str, str | None]) -> str | None:
    """Why a shared parameter is not a site under this name; None if it is.

    It is gated once, under its first name, and only if all its names may be gated: an output head
    that is tied to an embedding is left alone.
    """
    distinct = {reasons[name] for name in entry.names}
    first = entry.names[0]
    if distinct == {None}:
        return None if entry.name == first else f"tied: gated as {first}"
    if len(distinct) == 1:
        return reasons[entry.name]
    others = ", ".join(name for name in entry.names if name != entry.name)
    return f"tied: the same tensor as {others}"


def _matching(patterns: Sequence[str], parameters: Sequence[Parameter]) -> frozenset[str]:
    matched: set[str] = set()
    for pattern in patterns:
        matches = matcher(pattern)
        hits = {entry.name for entry in parameters if matches(entry.name)}
        if not hits:
            known = ", ".join(entry.name for entry in parameters[:4])
            raise TargetError(
                f"the pattern {pattern!r} matches no parameter (names look like {known})"
            )
        matched |= hits
    return frozenset(matched)


def _impossible(entry: Parameter) -> str | None:
    """Why this parameter cannot have a gate, whatever the user asks for; None if it can."""
    if entry.source_of is not None:
        return f"source of the parametrized weight {entry.source_of}"
    if entry.tensor.dim() < 2:
        return "bias" if "bias" in entry.param else "one-dimensional"
    if not entry.tensor.is_floating_point():
        return f"not floating point ({entry.tensor.dtype})"
    if entry.tensor.element_size() < 2:
        return f"nothing can be computed in {str(entry.tensor.dtype).removeprefix('torch.')}"
    return "empty" if entry.tensor.numel() == 0 else None


def _site(entry: Parameter) -> Site:
    kind, input_dim = role(entry)
    return Site(
        module=entry.module,
        param=entry.param,
        shape=tuple(entry.tensor.shape),
        kind=kind,
        input_dim=input_dim,
        tied=entry.names[1:],
    )
