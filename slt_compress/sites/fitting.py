"""Lay a pattern out on the sites of a module; a site that cannot hold it is skipped."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable
from dataclasses import replace
from math import prod
from types import MappingProxyType

from torch import nn

from slt_compress.anatomy.attentions import attention_of, head_count
from slt_compress.anatomy.heads import output_names
from slt_compress.errors import TargetError
from slt_compress.sites.budget import Budget, pools
from slt_compress.sites.layouts import Blocks, Grouped, Layout
from slt_compress.sites.patterns import Pattern
from slt_compress.sites.sites import Site, SitePlan, Targets, find_sites

# Gives the layout of a site, or the reason why it has none.
_LayOut = Callable[[Site], Layout | str]


def plan_sites(
    module: nn.Module, targets: Targets | None, budget: Budget, *, gate_head: bool = True
) -> SitePlan:
    """The sites of `module`, with the budget's pattern laid out on them.

    Raises:
        TargetError: no parameter is left to gate.
        BudgetError: the budget cannot be met on these sites.
    """
    plan = lay_out(find_sites(module, targets, gate_head=gate_head), budget.shape, module)
    pools({site.name: site.units for site in plan.sites}, budget, budget.density)
    return plan


def lay_out_again(names: Iterable[str], pattern: Pattern, module: nn.Module) -> SitePlan:
    """The sites of these names, with `pattern` laid out as it was for their search.

    Raises:
        TargetError: the module lacks one of the names, or no site is left.
    """
    include = tuple(glob.escape(name) for name in names)
    return lay_out(find_sites(module, Targets(include=include)), pattern, module)


def largest_density(plan: SitePlan, budget: Budget) -> float:
    """The largest density that these sites have room for, given the budget's scope and floor."""
    sites = {site.name: site for site in plan.sites}
    shares = [1.0]
    for names, _ in pools({name: site.units for name, site in sites.items()}, budget, 1.0):
        pool = [sites[name] for name in names]
        shares.append(sum(site.room for site in pool) / sum(site.units for site in pool))
        if len(pool) > 1 and budget.floor > 0.0:
            shares += [site.room / (budget.floor * site.units) for site in pool]
    return min(shares)


def lay_out(plan: SitePlan, pattern: Pattern, module: nn.Module) -> SitePlan:
    """The plan with `pattern` laid out on its sites; sites that cannot hold it move to `skipped`.

    Raises:
        TargetError: no site is left.
    """
    if pattern.kind == "unstructured":
        return plan
    layout_of = _layouts(pattern, module)
    sites: list[Site] = []
    skipped: dict[str, str] = {}
    for site in plan.sites:
        layout = layout_of(site)
        if isinstance(layout, str):
            skipped[site.name] = layout
        else:
            sites.append(replace(site, layout=layout))
    if not sites:
        listed = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:5])
        raise TargetError(f"no site can hold the pattern {pattern.text} ({listed})")
    return SitePlan(sites=tuple(sites), skipped=MappingProxyType({**plan.skipped, **skipped}))


def _layouts(pattern: Pattern, module: nn.Module) -> _LayOut:
    if pattern.kind == "n:m":
        return lambda site: _grouped(site, pattern)
    if pattern.kind == "block":
        return lambda site: _blocks(site, pattern)
    if pattern.kind == "head":
        return lambda site: _heads(site, module)
    outputs = output_names(module)
    return lambda site: _outputs_of(site, pattern, module, outputs)


def _grouped(site: Site, pattern: Pattern) -> Layout | str:
    inputs = site.shape[site.input_dim]
    if inputs % pattern.second:
        return f"{pattern.text}: {pattern.second} does not divide its input dimension of {inputs}"
    return Grouped(kept=pattern.first, size=pattern.second, dim=site.input_dim)


def _blocks(site: Site, pattern: Pattern) -> Layout:
    rows = site.shape[0]
    columns = prod(site.shape[1:])
    block = min(pattern.first, rows), min(pattern.second, columns)
    return Blocks(weight=site.shape, matrix=(rows, columns), block=block)


def _heads(site: Site, module: nn.Module) -> Layout | str:
    """One unit per head: the columns of the output projection that read the head."""
    attention = attention_of(module, site.module) if len(site.shape) == 2 else None
    if attention is None:
        return "head: it is not the output projection of an attention"
    heads = head_count(module, attention, site.shape[site.input_dim])
    if isinstance(heads, str):
        return f"head: {heads}"
    width = site.shape[site.input_dim] // heads
    block = (site.shape[0], width) if site.input_dim == 1 else (width, site.shape[1])
    return Blocks(weight=site.shape, matrix=(site.shape[0], site.shape[1]), block=block)


def _outputs_of(
    site: Site, pattern: Pattern, module: nn.Module, outputs: frozenset[str]
) -> Layout | str:
    """One unit per output of a linear layer (`neuron`) or convolution (`channel`)."""
    convolution = site.kind in ("conv", "transposed-conv")
    if site.kind == "recurrent":
        return f"{pattern.text}: a row of a recurrent layer is one gate of a cell"
    if convolution != (pattern.kind == "channel"):
        return f"{pattern.text}: it is {'' if convolution else 'not '}a convolution"
    if site.name in outputs:
        return "output layer: its rows are the model's outputs"
    groups = getattr(module.get_submodule(site.module), "groups", 1)
    if site.kind == "transposed-conv" and groups != 1:
        return f"{pattern.text}: the outputs of a grouped transposed convolution share columns"
    return output_units(site)


def output_units(site: Site) -> Blocks:
    """One unit per output: all weights, over inputs and kernel positions, that compute it.

    The output dimension comes before the input dimension, or after it (Conv1D, transposed
    convolutions). Experts have a leading dimension of their own.
    """
    shape, inputs = site.shape, site.input_dim
    if site.kind == "experts":
        front = inputs == 2
        matrix = prod(shape[:2]), shape[2]
    else:
        front = inputs == 1
        matrix = shape[0], prod(shape[1:])
    block = (1, matrix[1]) if front else (shape[inputs], prod(shape[inputs + 2 :]))
    return Blocks(weight=shape, matrix=matrix, block=block)
