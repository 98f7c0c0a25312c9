"""Plans: what a search would gate, need and produce, from names and shapes of weights alone."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor, nn

from slt_compress.anatomy.states import module_nbytes
from slt_compress.artifacts.formats import FORMATS, NmPattern
from slt_compress.checkpoints import Checkpoint
from slt_compress.checkpoints.timm_models import hub_id
from slt_compress.checkpoints.weight_files import weight_files
from slt_compress.errors import SourceError
from slt_compress.evidence.expectations import expectations
from slt_compress.gates import Method
from slt_compress.searching.memory_plan import memory_of
from slt_compress.searching.recipe_keys import FLAG_OF
from slt_compress.searching.recipes import Recipe
from slt_compress.searching.tuning import NO_TUNING
from slt_compress.sites.budget import Budget
from slt_compress.sites.layouts import Grouped
from slt_compress.sites.sites import Site, SitePlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """How long a search takes, from two timed steps. Its figures are None if none was timed.

    Attributes:
        seconds_per_step: at the recipe's batch size, on the device of the search.
        steps: optimizer steps of the search.
        seconds: time of all steps, without the measurements before and after them.
        note: how the time was measured, or why it was not.
    """

    seconds_per_step: float | None = None
    steps: int | None = None
    seconds: float | None = None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a search would do. The fields are the keys of the JSON.

    Attributes:
        source: the opened source: `kind`, `source`, `revision`, `family`, `task`.
        sparsity: `target`, the number of `gated` weights and of all `parameters`; where numbers are
            trained beside the mask, how many: `gains` of kept units, `tuned` others.
        sites: for each site `name`, `shape`, `kind`, in the order of the model.
        skipped: parameters that are not gated, with the reason.
        memory: bytes that the search needs besides activations, by precision and optimizer.
        sizes: bytes of the result in each format, as if every layer met the target exactly.
        forecast: how long the search takes.
        warnings: what would prevent the search.
        expectations: what this sparsity saves, and where.
        command: the shell command that runs the search.
    """

    source: Mapping[str, Any]
    sparsity: Mapping[str, Any]
    sites: tuple[Mapping[str, Any], ...]
    skipped: Mapping[str, str]
    memory: Mapping[str, Mapping[str, Mapping[str, int]]]
    sizes: Mapping[str, int]
    forecast: Forecast
    warnings: tuple[str, ...]
    expectations: tuple[str, ...]
    command: str

    def to_dict(self) -> dict[str, Any]:
        """Plain mappings and lists, ready for JSON."""
        content = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        for key in ("sites", "warnings", "expectations"):
            content[key] = list(content[key])
        return {**content, "skipped": dict(self.skipped), "forecast": asdict(self.forecast)}


def make_plan(
    checkpoint: Checkpoint,
    sites: SitePlan,
    recipe: Recipe,
    *,
    method: Method,
    warnings: Sequence[str] = (),
) -> Plan:
    """The plan of a search. It reads no weight, so the checkpoint may be on the meta device."""
    module, budget = checkpoint.module, recipe.budget()
    sizes = _sizes(module, sites, budget, permuted=recipe.permute)
    return Plan(
        source={
            "kind": checkpoint.kind, "source": checkpoint.source, "revision": checkpoint.revision,
            "family": checkpoint.family, "task": checkpoint.task,
        },
        sparsity={
            "target": round(1.0 - budget.density, 12),
            "gated": sites.gated,
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            **_tuned(module, sites, recipe, method),
        },
        sites=tuple(
            {"name": site.name, "shape": list(site.shape), "kind": site.kind}
            for site in sites.sites
        ),
        skipped=sites.skipped,
        memory=memory_of(module, sites, recipe, method),
        sizes=sizes,
        forecast=Forecast(note="not measured"),
        warnings=tuple(warnings),
        expectations=expectations(sizes, recipe.pattern, permuted=recipe.permute),
        command=search_command(checkpoint.source, _searchable(checkpoint, recipe)),
    )  # fmt: skip


def _tuned(module: nn.Module, sites: SitePlan, recipe: Recipe, method: Method) -> dict[str, int]:
    """How many real numbers are trained beside the masks, where any are."""
    tuning = recipe.tuning
    tuning.check(method, recipe.budget())
    units = sum(site.units for site in sites.sites) if tuning.gains == "unit" else 0
    gains = max(1, round(recipe.budget().density * units)) if units else 0
    counts = {"gains": gains, "tuned": tuning.count(module, sites)}
    return {key: count for key, count in counts.items() if count}


def _sizes(module: nn.Module, sites: SitePlan, budget: Budget, *, permuted: bool) -> dict[str, int]:
    shapes = [
        (site.shape, round(budget.density * site.numel), weight.dtype,
         _grouping(site, permuted=permuted))
        for site, weight in zip(sites.sites, _weights(module, sites).values(), strict=True)
    ]  # fmt: skip
    dense = module_nbytes(module)
    return {name: format.model_nbytes(dense, shapes) for name, format in FORMATS.items()}


def _grouping(site: Site, *, permuted: bool) -> NmPattern | None:
    """The N:M pattern of a site, as the formats describe it; any order of inputs is as large."""
    layout = site.layout
    if not isinstance(layout, Grouped):
        return None
    order = tuple(range(site.shape[layout.dim])) if permuted else None
    return NmPattern(kept=layout.kept, group=layout.size, axis=layout.dim, order=order)


def _weights(module: nn.Module, sites: SitePlan) -> dict[str, Tensor]:
    return {
        site.name: getattr(module.get_submodule(site.module), site.param) for site in sites.sites
    }


def _searchable(checkpoint: Checkpoint, recipe: Recipe) -> Recipe:
    """The recipe, with a random init for an architecture that has no weights to search."""
    bare = checkpoint.folder is None and bool(missing_weights(checkpoint))
    return replace(recipe, init="random") if bare and recipe.init is None else recipe


def search_command(source: str | Path, recipe: Recipe) -> str:
    """The shell command that searches `source` by `recipe`; defaults are left out."""
    words = ["slt-compress", "search", str(source)]
    default = dict(_flat({**Recipe().to_dict(), "tuning": asdict(NO_TUNING)}))
    given = dict(_flat(recipe.to_dict()))
    if given.get("training.steps") is not None:  # steps override epochs
        given.pop("training.epochs")
    always = {"target_sparsity", *(["method.name"] if len(recipe.method) > 1 else [])}
    for key, value in given.items():
        if (key in always and value is not None) or value != default.get(key):
            flag = FLAG_OF.get(key)
            text = ",".join(value) if isinstance(value, tuple) else str(value)
            if flag and value is True:
                words += [flag]
            else:
                words += [flag, text] if flag else ["--set", f"{key}={_yaml(value)}"]
    return shlex.join(words)


def _flat(content: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and their values; a mapping whose own keys have dots stays whole."""
    for key, value in content.items():
        if not isinstance(value, Mapping) or any("." in str(below) for below in value):
            yield f"{path}{key}", value
        else:
            yield from _flat(value, f"{path}{key}.")


def _yaml(value: Any) -> str:
    """A value as `--set` reads it: YAML on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=float("inf"))
    return text.removesuffix("\n").removesuffix("\n...")


def missing_weights(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Why a search could not start from this source; empty where no reason is known."""
    if checkpoint.kind not in ("folder", "hub", "file") or checkpoint.weights is not None:
        return ()
    if checkpoint.folder is not None:
        if checkpoint.kind == "hub":
            return ()
        try:
            weight_files(checkpoint.folder)
        except SourceError as error:
            return (f"{error}; or search a random network with --init random",)
        return ()
    if checkpoint.family == "timm" and hub_id(checkpoint.source.removeprefix("timm:")):
        return ()
    return (
        f"{checkpoint.source} is an architecture without weights: add --init random or "
        "--weights FILE.safetensors",
    )
