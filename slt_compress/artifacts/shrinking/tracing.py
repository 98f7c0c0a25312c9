"""Walk the graph of a model and record where the units of every layer go."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, fx, nn

from slt_compress.artifacts.shrinking import layer_rules, operation_rules
from slt_compress.artifacts.shrinking.flows import Ledger, Value
from slt_compress.artifacts.shrinking.operation_rules import operation, pinned, plain, values_in
from slt_compress.errors import ArtifactError

Rule = Callable[[Ledger, fx.Node, Any, Any], Any]
Forward = Callable[[nn.Module], Tensor]

# Operations of ATen by what they do to units. One that is not here pins the units that reach it.
_KINDS: tuple[tuple[Rule, str], ...] = (
    (
        operation_rules.elementwise,
        "add sub rsub mul div pow neg abs exp sqrt rsqrt square erf reciprocal maximum minimum "
        "clamp clamp_min clamp_max relu relu6 gelu silu sigmoid tanh hardswish hardsigmoid "
        "hardtanh leaky_relu elu celu selu mish softplus log_sigmoid dropout clone alias detach "
        "lift_fresh_copy to _to_copy contiguous",
    ),
    (
        operation_rules.moving,
        "view reshape flatten unflatten permute transpose t unsqueeze squeeze expand slice select "
        "split split_with_sizes chunk unbind cat stack movedim flip _unsafe_view",
    ),
    (
        operation_rules.pooling,
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d",
    ),
    (operation_rules.padding, "constant_pad_nd pad"),
    (operation_rules.mean, "mean"),
    (operation_rules.along_last, "softmax _softmax layer_norm"),
    (layer_rules.linear, "linear"),
    (layer_rules.addmm, "addmm"),
    (layer_rules.convolution, "conv1d conv2d conv3d"),
    (layer_rules.batch_norm, "_native_batch_norm_legit_no_training"),
    (layer_rules.attention, "scaled_dot_product_attention"),
    (layer_rules.product, "matmul bmm"),
    (operation_rules.getitem, "getitem"),
)
RULES: Mapping[str, Rule] = MappingProxyType(
    {name: rule for rule, names in _KINDS for name in names.split()}
)
# Checks of sizes in the graph, which do not affect units.
_IGNORED = ("_assert_tensor_metadata", "sym_size")
# Rules that apply even if no unit comes in: layers begin units.
_BEGIN = (layer_rules.linear, layer_rules.addmm, layer_rules.convolution, operation_rules.getitem)
# Rules that take values with units or without.
_ANY: tuple[Rule, ...] = (
    operation_rules.elementwise,
    operation_rules.moving,
    layer_rules.product,
    layer_rules.attention,
)


class _Called(nn.Module):
    """A module under the name that prefixes the parameters of the graph."""

    def __init__(self, module: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model = module
        self.call = forward

    def forward(self) -> Tensor:
        """Call `forward` on the module."""
        return self.call(self.model)


def walk(module: nn.Module, forward: Forward, masks: Mapping[str, Tensor]) -> Ledger:
    """Follow the units of every layer of a masked module through `forward(module)`.

    Raises:
        ArtifactError: the model cannot be traced.
    """
    program = _exported(module, forward)
    stored = _stored(program, module)
    ledger = Ledger()
    env: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in stored:
            name, tensor = stored[node.name]
            env[node] = Value(
                shape=tuple(tensor.shape), weight=name, content=tensor, mask=masks.get(name)
            )
        elif node.op == "call_function":
            args, kwargs = (fx.node.map_arg(part, env.__getitem__) for part in _parts(node))
            env[node] = _apply(ledger, node, args, kwargs)
        elif node.op == "output":
            for value in values_in(fx.node.map_arg(node.args, env.__getitem__)):
                if value.flow is not None:
                    ledger.pin(value.flow.units, "is that of the model")
        else:
            env[node] = plain(node.meta.get("val"))
    _pin_shared(ledger, program, module, stored)
    return ledger


def _parts(node: fx.Node) -> tuple[Any, Any]:
    return node.args, node.kwargs


def _apply(ledger: Ledger, node: fx.Node, args: Any, kwargs: Any) -> Any:
    if operation(node) in _IGNORED:
        return plain(node.meta.get("val"))
    rule = RULES.get(operation(node))
    moving = [value for value in values_in((args, kwargs)) if value.flow is not None]
    if rule is None or (not moving and rule not in _BEGIN):
        return pinned(ledger, node, moving, f"goes through {operation(node)}")
    if rule not in (*_BEGIN, *_ANY) and args[0].flow is None:
        return pinned(ledger, node, moving, f"goes through {operation(node)}")
    return rule(ledger, node, args, kwargs)


def _exported(module: nn.Module, forward: Forward) -> torch.export.ExportedProgram:
    """The graph in functional form, in which nothing is changed in place."""
    try:
        with _silent(), torch.no_grad():
            program = torch.export.export(_Called(module, forward).eval(), (), strict=False)
            functional: torch.export.ExportedProgram = program.run_decompositions({})
            return functional
    except Exception as error:  # tracing raises whatever the model's own code raises
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise ArtifactError(
            f"the model cannot be shrunk, as torch.export cannot trace it ({text}); export it "
            "without --shrink"
        ) from error


@contextmanager
def _silent() -> Iterator[None]:
    """Silence what tracing says about running its graph, which is only read here."""
    logger = logging.getLogger("torch")
    level = logger.level
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            logger.setLevel(logging.ERROR)
            yield
    finally:
        logger.setLevel(level)


def _stored(
    program: torch.export.ExportedProgram, module: nn.Module
) -> dict[str, tuple[str, Tensor]]:
    """Parameters and buffers of the placeholders of a graph, with their names in `module`."""
    signature = program.graph_signature
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    tensors: dict[str, Tensor] = dict(module.named_parameters(remove_duplicate=False))
    tensors |= dict(module.named_buffers(remove_duplicate=False))
    names = {place: target.removeprefix("model.") for place, target in targets.items()}
    return {
        place: (name, tensors[name].detach()) for place, name in names.items() if name in tensors
    }


def _pin_shared(
    ledger: Ledger,
    program: torch.export.ExportedProgram,
    module: nn.Module,
    stored: Mapping[str, tuple[str, Tensor]],
) -> None:
    """Pin stored tensors that are read more than once, tied, or read where no rule applies."""
    owners: dict[int, int] = {}
    for _, tensor in module.named_parameters(remove_duplicate=False):
        owners[id(tensor)] = owners.get(id(tensor), 0) + 1
    tied = {n for n, p in module.named_parameters(remove_duplicate=False) if owners[id(p)] > 1}
    readers: dict[str, int] = {}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in stored:
            name = stored[node.name][0]
            readers[name] = readers.get(name, 0) + len(node.users)
    for use in ledger.uses:
        if readers.get(use.name, 0) != 1 or use.name in tied:
            ledger.pin(use.units, f"shares {use.name} with another place")
