"""Roles: what a parameter does to activations, judged by its module and its name."""

from __future__ import annotations

import re
from itertools import pairwise

from torch import nn

from slt_compress.anatomy.parameters import Parameter, is_conv1d

# Bare parameters that are added to activations or looked up. Libraries give them no type of their
# own, so they are recognised by name.
_ADDED = re.compile(
    r"(^|_)(pos|position|positional|ape|tokens?|embed|embeds|embeddings?|relative|rel|table|query"
    r"|queries|latents?|prompts?|pad|bias(es)?|mask|scale|gamma|beta|temperature|registers?"
    r"|anchors?|decay|log)(_|\d|$)|^d$"
)
# … and the names of those that multiply activations all the same.
_MULTIPLIED = re.compile(r"(^|_)(proj|projection|kernel)$")
# One number per output channel beside a weight, as in weight norm and standardised convolutions.
_GAIN = re.compile(r"(^|_)(g|gain|scale)$")
_NORM = re.compile(r"norm", re.IGNORECASE)
_ROUTER = re.compile(r"router", re.IGNORECASE)
_LOOKED_UP = re.compile(r"embeddings?$", re.IGNORECASE)
_MATRIX_TYPES = (nn.Linear, nn.Bilinear, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
_CONV_TYPES = nn.modules.conv._ConvNd
_LISTS = (nn.ParameterList, nn.ParameterDict)
_EMBEDDING = "embedding: looked up, not multiplied"
_TABLE = "position, token or table: added or looked up, not multiplied"
# The dimension over which a bare parameter sums, where it is not the usual one, by the class of its
# owner and its name. As of transformers 5.24, whose einsums and matmuls put the inputs first.
_INPUT_DIMS: tuple[tuple[re.Pattern[str], int], ...] = tuple(
    (re.compile(pattern), dim)
    for pattern, dim in (
        (r"XLNetRelativeAttention\.[qkvr]", 0),
        (r"XLNetRelativeAttention\.o", 2),
        (r"FunnelRelMultiheadAttention\.r_kernel", 0),
        (r"\w+(RelativePositionBias|RelativeLogits)\.proj", 0),
        (r"\w+MultiModalProjector\.mm_input_projection_weight", 0),
        (r"OmDetTurboLanguageBackbone\.text_projection", 0),
        (r"XCLIP\w+\.prompts_visual_projection", 0),
        (r"Inkling\w+ShortConvolution\.static_weight", 0),
        (r"RecurrentGemmaRglru\.\w+_weight", 1),
        (r"CsmCodebooksHead\.weight", 1),
        (r"Llama4TextExperts\.\w+", 1),
        (r"ZambaMambaMixer\.\w+_weight", 2),
    )
)


def unsuitable(entry: Parameter) -> str | None:
    """Why this parameter gets no gate by default; None if it gets one."""
    owner, kind = _holder(entry)
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag):
        return _EMBEDDING
    if _is_router(entry):
        return "router of experts"
    if isinstance(owner, (*_MATRIX_TYPES, _CONV_TYPES)):
        if entry.param.startswith("bias"):
            return "bias"
        return "gain of the output channels" if _GAIN.search(entry.param) else None
    if _NORM.search(kind):
        return "normalisation"
    if _LOOKED_UP.search(kind) and entry.param == "weight":
        return _EMBEDDING
    added = _ADDED.search(entry.param.lower()) and not _MULTIPLIED.search(entry.param)
    if added or ("Embed" in kind and entry.param != "weight"):
        return _TABLE
    if sum(size > 1 for size in entry.tensor.shape) < 2:
        return "one-dimensional"
    return None


def is_table(entry: Parameter) -> bool:
    """Whether this parameter is looked up or added to activations, rather than multiplied."""
    return unsuitable(entry) in (_EMBEDDING, _TABLE)


def _holder(entry: Parameter) -> tuple[nn.Module, str]:
    """The module whose code reads the parameter, and its class; never a mere list of parameters."""
    owner = entry.owner
    if isinstance(owner, _LISTS) and entry.parent is not None:
        owner = entry.parent
    return owner, type(owner).__name__


def _is_router(entry: Parameter) -> bool:
    """Whether a parameter belongs to a router of experts, and not to an expert.

    A router is recognised among the modules above it by class, by name, or as `gate` beside
    `experts`.
    """
    in_router = False
    for (_, above), (name, module) in pairwise(entry.lineage):
        beside_experts = name == "gate" and hasattr(above, "experts")
        named = _ROUTER.search(name) or _ROUTER.search(type(module).__name__)
        in_router = "expert" not in name and (in_router or beside_experts or bool(named))
    return in_router


def role(entry: Parameter) -> tuple[str, int]:
    """The kind of a weight, and the dimension along which it sums over its inputs."""
    owner, param = entry.owner, entry.param
    if isinstance(owner, nn.modules.conv._ConvTransposeNd):
        return "transposed-conv", 0
    if isinstance(owner, _CONV_TYPES):
        return "conv", 1
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return "recurrent", 1
    if is_conv1d(owner):
        return "linear", 0
    known = f"{type(owner).__name__}.{param}"
    special = next((dim for pattern, dim in _INPUT_DIMS if pattern.fullmatch(known)), None)
    if entry.tensor.dim() == 3 and "expert" in (entry.module + type(owner).__name__).lower():
        # transformers marks experts that are stored as [experts, in, out]
        usual = 1 if getattr(owner, "is_transposed", False) is True else 2
        return "experts", usual if special is None else special
    return "linear", 1 if special is None else special
