"""Sites: walk a module graph and decide, for every parameter, whether a gate is put on it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from types import MappingProxyType

from torch import Tensor, nn
from torch.nn.utils import parametrize

from slt_compress.errors import TargetError
from slt_compress.layouts import ELEMENTWISE, Layout
from slt_compress.names import matcher
from slt_compress.outputs import head_names

# Parameters that modules other than the known matrix types add to, or look up from, activations.
# They are told apart by name: libraries keep them as bare parameters without a type of their own.
_ADDED = re.compile(
    r"(^|_)(pos|position|positional|tokens?|embed|embeds|embeddings?|relative|rel|table|query"
    r"|queries|latents?|prompts?|bias(es)?|mask|scale|gamma|beta|temperature|registers?|anchors?|decay"
    r"|log)(_|\d|$)"
)
# One number for each output channel beside a weight: of weight norm, of standardised convolutions.
_GAIN = re.compile(r"(^|_)(g|gain|scale)$")
_NORM = re.compile(r"norm", re.IGNORECASE)
_ROUTER = re.compile(r"router", re.IGNORECASE)
_MATRIX_TYPES = (nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_CONV_TYPES = nn.modules.conv._ConvNd


@dataclass(frozen=True, slots=True, kw_only=True)
class Targets:
    """Which parameters to gate, by patterns of names.

    A pattern is a shell glob on the whole name (`*.mlp.*`), or a regular expression after `re:`
    that is searched in the name. `include`, where given, replaces the default choice; `exclude`
    takes away from either. A pattern that matches no parameter is an error.
    """

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """One weight that is gated.

    `input_dim` is the dimension along which the weight sums over its inputs; `layout` says how
    its scores lie on it.
    """

    module: str
    param: str
    shape: tuple[int, ...]
    kind: str
    input_dim: int = 1
    layout: Layout = ELEMENTWISE

    @property
    def name(self) -> str:
        """The key of the weight in the opened module."""
        return f"{self.module}.{self.param}" if self.module else self.param

    @property
    def numel(self) -> int:
        """How many weights."""
        return prod(self.shape)

    @property
    def units(self) -> int:
        """How many units, hence scores."""
        return prod(self.layout.grid(self.shape))


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
        """Name of a site -> how its scores lie on it."""
        return {site.name: site.layout for site in self.sites}


def find_sites(
    module: nn.Module, targets: Targets | None = None, *, gate_head: bool = True
) -> SitePlan:
    """Walk `module` and choose its sites.

    By default every parameter of two or more dimensions that multiplies activations is a site;
    embeddings, positions, tokens, norms, biases, tied weights and routers of experts are not, nor
    is the task head where `gate_head` is false (a pretrained head is small and decides much).

    Raises:
        TargetError: a pattern matches no parameter, or no parameter is left to gate.
    """
    targets = targets or Targets()
    parameters = tuple(_parameters(module))
    included = _matching(targets.include, parameters)
    excluded = _matching(targets.exclude, parameters)
    heads = frozenset() if gate_head else head_names(module)
    sites: list[Site] = []
    skipped: dict[str, str] = {}
    for entry in parameters:
        reason = _impossible(entry)
        if reason is None and targets.include:
            reason = None if entry.name in included else "not matched by targets.include"
        elif reason is None:
            reason = _unsuitable(entry, heads)
        if reason is None and entry.name in excluded:
            reason = "matched by targets.exclude"
        if reason is None:
            sites.append(_site(entry))
        else:
            skipped[entry.name] = reason
    if not sites:
        listed = "; ".join(f"{name}: {why}" for name, why in list(skipped.items())[:5])
        raise TargetError(f"no parameter is left to gate ({listed or 'the module has none'})")
    return SitePlan(sites=tuple(sites), skipped=MappingProxyType(skipped))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parameter:
    """A parameter with the module that owns it; `shared` names its first user where tied."""

    module: str
    param: str
    owner: nn.Module
    parent: nn.Module | None
    tensor: Tensor
    shared: tuple[str, ...] = ()
    source_of: str | None = None

    @property
    def name(self) -> str:
        return f"{self.module}.{self.param}" if self.module else self.param


def _parameters(module: nn.Module) -> Iterator[_Parameter]:
    """Yield every parameter once per name; a parametrized weight comes before its sources."""
    users: dict[int, list[str]] = {}
    for name, tensor in module.named_parameters(remove_duplicate=False):
        users.setdefault(id(tensor), []).append(name)
    modules = dict(module.named_modules(remove_duplicate=False))
    for path, owner in modules.items():
        parent = modules.get(path.rpartition(".")[0]) if path else None
        if isinstance(owner, parametrize.ParametrizationList):
            weight = path.replace(".parametrizations.", ".").removeprefix("parametrizations.")
            for param, source in owner.named_parameters(recurse=False):
                yield _Parameter(
                    module=path, param=param, owner=owner, parent=parent, tensor=source,
                    source_of=weight,
                )  # fmt: skip
            continue
        own: list[tuple[str, Tensor]] = list(
            owner.named_parameters(recurse=False, remove_duplicate=False)
        )
        if parametrize.is_parametrized(owner):
            own += [(param, _parametrized(owner, param)) for param in owner.parametrizations]
        for param, value in own:
            yield _Parameter(
                module=path, param=param, owner=owner, parent=parent, tensor=value,
                shared=tuple(users.get(id(value), ())),
            )  # fmt: skip


def _parametrized(owner: nn.Module, param: str) -> Tensor:
    """A parametrized weight, read in eval mode: spectral norm changes its buffers otherwise."""
    chain = owner.get_submodule(f"parametrizations.{param}")
    modes = {child: child.training for child in chain.modules()}
    chain.eval()
    value: Tensor = getattr(owner, param)
    for child, mode in modes.items():
        child.training = mode
    return value


def _matching(patterns: Sequence[str], parameters: Sequence[_Parameter]) -> frozenset[str]:
    found: set[str] = set()
    for pattern in patterns:
        matches = matcher(pattern)
        hits = {entry.name for entry in parameters if matches(entry.name)}
        if not hits:
            known = ", ".join(entry.name for entry in parameters[:4])
            raise TargetError(
                f"the pattern {pattern!r} matches no parameter (names look like {known})"
            )
        found |= hits
    return frozenset(found)


def _impossible(entry: _Parameter) -> str | None:
    """Why no gate can be put on this parameter, whatever the user asks for."""
    if entry.source_of is not None:
        return f"source of the parametrized weight {entry.source_of}"
    if len(entry.shared) > 1:
        others = ", ".join(name for name in entry.shared if name != entry.name)
        return f"tied: the same tensor as {others}"
    if entry.tensor.dim() < 2:
        return "bias" if "bias" in entry.param else "one-dimensional"
    if not entry.tensor.is_floating_point():
        return f"not floating point ({entry.tensor.dtype})"
    return "empty" if entry.tensor.numel() == 0 else None


def _unsuitable(entry: _Parameter, heads: frozenset[str]) -> str | None:
    """Why no gate is put on this parameter by default."""
    owner, kind = entry.owner, type(entry.owner).__name__
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return "embedding: looked up, not multiplied"
    if entry.name in heads:
        return "task head of a pretrained checkpoint"
    if _is_router(entry):
        return "router of experts"
    if isinstance(owner, (*_MATRIX_TYPES, _CONV_TYPES)):
        if entry.param.startswith("bias"):
            return "bias"
        return "gain of the output channels" if _GAIN.search(entry.param) else None
    if _NORM.search(kind):
        return "normalisation"
    if _ADDED.search(entry.param.lower()) or ("Embed" in kind and entry.param != "weight"):
        return "position, token or table: added or looked up, not multiplied"
    if sum(size > 1 for size in entry.tensor.shape) < 2:
        return "one-dimensional"
    return None


def _is_router(entry: _Parameter) -> bool:
    """Whether a parameter chooses among experts: by class, by name, or as `gate` beside them."""
    leaf = entry.module.rpartition(".")[2]
    beside_experts = entry.parent is not None and hasattr(entry.parent, "experts")
    named = bool(_ROUTER.search(leaf)) or bool(_ROUTER.search(type(entry.owner).__name__))
    return named or (leaf == "gate" and beside_experts)


def _site(entry: _Parameter) -> Site:
    kind, input_dim = _kind(entry)
    return Site(
        module=entry.module,
        param=entry.param,
        shape=tuple(entry.tensor.shape),
        kind=kind,
        input_dim=input_dim,
    )


def _kind(entry: _Parameter) -> tuple[str, int]:
    owner = entry.owner
    if isinstance(owner, nn.modules.conv._ConvTransposeNd):
        return "transposed-conv", 0
    if isinstance(owner, _CONV_TYPES):
        return "conv", 1
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return "recurrent", 1
    # transformers' Conv1D keeps its matrix as [in, out]; told by name: the import costs seconds
    if type(owner).__name__ == "Conv1D" and entry.tensor.dim() == 2:
        return "linear", 0
    if entry.tensor.dim() == 3 and "expert" in (entry.module + type(owner).__name__).lower():
        # transformers marks the experts that are kept as [experts, in, out]
        return "experts", 1 if getattr(owner, "is_transposed", False) is True else 2
    return "linear", 1
