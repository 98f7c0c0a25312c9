"""What `find_sites` makes of one model of a library, as a row of the coverage table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from torch import nn
from torch.nn.utils import parametrize

from slt_compress.checkpoints import Checkpoint
from slt_compress.sites.sites import SitePlan, find_sites
from tests.zoo.libraries import default_config, has_class, sketch_timm, sketch_type

Outcome = Literal["planned", "no class", "not built", "failed"]


@dataclass(frozen=True, kw_only=True)
class Row:
    """One model.

    Attributes:
        library: `timm` or `transformers`.
        name: its architecture or type.
        outcome: `no class` and `not built` are the library's own doing.
        error: what was raised.
        parameters, gated: weights of the model and how many would be gated.
        matrices: weights of two or more dimensions that are no embedding, each once.
        sites: how many.
        ungated: of the matrices, how many are not gated, by reason.
    """

    library: str
    name: str
    outcome: Outcome
    error: str = ""
    parameters: int = 0
    gated: int = 0
    matrices: int = 0
    sites: int = 0
    ungated: Mapping[str, int] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """Gated share of the matrices, embeddings aside.

        A table of positions is an embedding whether it is an `nn.Embedding`, which `matrices`
        leaves out, or a bare parameter, which only its name tells from a matrix.
        """
        tables = sum(n for why, n in self.ungated.items() if why.startswith("position"))
        return self.gated / (self.matrices - tables) if self.matrices > tables else 1.0

    @property
    def strict_share(self) -> float:
        """The same with tables that are bare parameters among the matrices."""
        return self.gated / self.matrices if self.matrices else 1.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def row_of(library: str, name: str) -> Row:
    """Build a model on the meta device and plan it."""
    if library == "transformers" and not has_class(name):
        return Row(library=library, name=name, outcome="no class")
    try:
        found = sketch_timm(name) if library == "timm" else sketch_type(default_config(name))
    # libraries raise anything for a default that does not stand on its own
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        return Row(library=library, name=name, outcome="not built", error=text)
    try:
        return planned_row(library, name, found)
    except Exception as error:
        return Row(library=library, name=name, outcome="failed", error=repr(error)[:300])


def planned_row(library: str, name: str, checkpoint: Checkpoint) -> Row:
    """The row of a model that could be built; its plan has to be complete."""
    module = checkpoint.module
    plan = find_sites(module)
    check_complete(module, plan)
    matrices, reasons = _matrices(module, plan)
    return Row(
        library=library,
        name=name,
        outcome="planned",
        parameters=sum(parameter.numel() for parameter in module.parameters()),
        gated=plan.gated,
        matrices=matrices,
        sites=len(plan.sites),
        ungated=reasons,
    )


def check_complete(module: nn.Module, plan: SitePlan) -> None:
    """Every parameter is a site or skipped, exactly once, under each of its names."""
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    names |= {
        f"{path}.{param}".lstrip(".")
        for path, child in module.named_modules(remove_duplicate=False)
        if parametrize.is_parametrized(child)
        for param in child.parametrizations
    }
    sites = [site.name for site in plan.sites]
    assert len(sites) == len(set(sites)), "a site is there twice"
    assert not set(sites) & set(plan.skipped), "a site is skipped too"
    assert set(sites) | set(plan.skipped) == names, "a parameter is missing"
    assert all(plan.skipped.values()), "a reason is missing"


def _matrices(module: nn.Module, plan: SitePlan) -> tuple[int, dict[str, int]]:
    """Weights of two or more dimensions, embeddings and what is tied to them aside.

    Counted without a look at the plan; of those that it does not gate, how many by reason.
    """
    embedded = {
        id(parameter)
        for child in module.modules()
        if isinstance(child, nn.Embedding | nn.EmbeddingBag)
        or type(child).__name__.endswith("Embedding")
        for name, parameter in child.named_parameters(recurse=False)
        if name == "weight"
    }
    reasons: Counter[str] = Counter()
    total = plan.gated
    for name, parameter in module.named_parameters():
        reason = plan.skipped.get(name)
        if reason is None or reason.startswith("source of the parametrized weight"):
            continue
        flat = sum(size > 1 for size in parameter.shape) < 2
        if id(parameter) not in embedded and not flat:
            reasons[reason.partition(": the same")[0]] += parameter.numel()
            total += parameter.numel()
    return total, dict(reasons)
