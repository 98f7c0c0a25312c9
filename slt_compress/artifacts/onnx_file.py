"""ONNX files: trace a torch module into one, read its weights back, and run it."""

from __future__ import annotations

import io
import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.artifacts import ONNX_DATA, ONNX_MODEL
from slt_compress.checkpoints.quiet import quiet
from slt_compress.checkpoints.tasks import Forward
from slt_compress.errors import ArtifactError

OUTPUT = "logits"
EXTERNAL_ABOVE = 1_800_000_000
"""Bytes of weights above which they go into a file beside the graph: a protobuf ends at 2 GiB."""

Axes = Mapping[str, Mapping[int, str]]
"""Names of the axes of the inputs whose size is free, by input and position."""

_LOGGERS = (
    "onnx_ir",
    "onnxscript",
    "torch.onnx",
    "torch.export",
    "torch.fx",
    "torch.fx.experimental.symbolic_shapes",
)
_INSIDE = "model"
# The first torch that can free the sizes of arguments that only `**` takes.
_NAMELESS = "2.14"


def require_onnx() -> None:
    """Check that the extra is installed, before any work.

    Raises:
        ArtifactError: it is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as cause:
        raise ArtifactError("the format onnx needs: pip install 'slt-compress[onnx]'") from cause


class _Called(nn.Module):
    """A model that takes the tensors of a batch by name and returns one tensor."""

    def __init__(self, model: nn.Module, forward: Forward) -> None:
        super().__init__()
        self.model = model
        self._call = forward

    def forward(self, **inputs: Tensor) -> Tensor:
        return self._call(self.model, inputs)

    def name_(self, names: Iterable[str]) -> None:
        """Let the signature name the arguments, which `**` does not."""

        def called(**inputs: Tensor) -> Tensor:
            return self._call(self.model, inputs)

        parameters = [Parameter(name, Parameter.KEYWORD_ONLY) for name in names]
        called.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
        self.forward = called  # type: ignore[method-assign]


def trace(module: nn.Module, forward: Forward, inputs: Mapping[str, Tensor], axes: Axes) -> Any:
    """The module as torch's `ONNXProgram`, its weights under the names of its state dict.

    Args:
        module: on the CPU in eval mode.
        forward: how it is called on a batch.
        inputs: examples, at least two of them.
        axes: the axes that may have another size than in `inputs`.

    Raises:
        ArtifactError: torch's exporter fails; the message has its reason.
    """
    named: Any = {name: dict(axes.get(name, {})) for name in inputs}
    called = _Called(module, forward).eval()
    if torch.__version__ < _NAMELESS:
        called.name_(inputs)
    else:
        named = {"inputs": named}
    with _silent(), torch.no_grad():
        try:
            program: Any = torch.onnx.export(
                called, (), kwargs=dict(inputs), dynamo=True,
                dynamic_shapes=named, output_names=[OUTPUT], optimize=False,
                verbose=False,
            )  # fmt: skip
            _simplify_(program.model)
        except Exception as cause:  # it raises whatever the model or torch raised
            raise ArtifactError(
                f"torch's exporter cannot write this model as ONNX: {_reason(cause)}"
            ) from cause
    return program


def _simplify_(model: Any) -> None:
    """Fold constants but leave every weight alone, under its name in the state dict.

    While the passes run, every weight is also an input of the graph. Its value is then not fixed,
    so that no pass folds it, fuses it into a neighbour or merges it with an equal one.
    """
    from onnx_ir.passes import common
    from onnxscript.optimizer import optimize_ir

    graph = model.graph
    weights = {
        name.removeprefix(f"{_INSIDE}."): value for name, value in graph.initializers.items()
        if name.startswith(f"{_INSIDE}.")
    }  # fmt: skip
    own_inputs = len(graph.inputs)
    graph.inputs.extend(weights.values())
    optimize_ir(model)
    del graph.inputs[own_inputs:]
    # The stack traces of the tracing would reveal where a library is installed.
    common.ClearMetadataAndDocStringPass()(model)
    taken = {value.name for node in graph.all_nodes() for value in node.outputs}
    taken |= {value.name for value in graph.inputs}
    for name, value in weights.items():
        if name not in taken and name not in graph.initializers:
            value.name = name


def weights_of(program: Any) -> dict[str, Tensor]:
    """The initializers of a traced module, by name."""
    return {
        name: _tensor(value.const_value.numpy())
        for name, value in program.model.graph.initializers.items()
    }


def store_unread_(program: Any, tensors: Mapping[str, Tensor]) -> None:
    """Add those of `tensors` that the exporter left out because nothing reads them."""
    import onnx_ir

    exported = program.exported_program
    places = {spec.arg.name: spec.target for spec in exported.graph_signature.input_specs}
    unread = {places[n.name] for n in exported.graph.nodes if n.op == "placeholder" and not n.users}
    for name, tensor in tensors.items():
        if f"{_INSIDE}.{name}" in unread and name not in program.model.graph.initializers:
            stored = onnx_ir.tensor(tensor.detach().numpy(), name=name)
            program.model.graph.register_initializer(onnx_ir.val(name, const_value=stored))


def drop_unread_(program: Any, keep: frozenset[str]) -> None:
    """Remove weights that nothing in the graph reads, except those in `keep`.

    onnxruntime warns of them whenever it opens the file.
    """
    graph = program.model.graph
    for name, value in list(graph.initializers.items()):
        if not value.uses() and name not in keep:
            del graph.initializers[name]


def write_onnx(program: Any, folder: Path) -> None:
    """Write the graph, with weights that are too large for it in a file beside it."""
    nbytes = sum(v.const_value.nbytes for v in program.model.graph.initializers.values())
    with _silent():
        program.save(folder / ONNX_MODEL, external_data=nbytes > EXTERNAL_ABOVE or None)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """All initializers of the model in a folder, by name.

    Raises:
        ArtifactError: it is not an ONNX model, or takes weights from elsewhere.
    """
    import onnx
    from onnx import numpy_helper

    path = folder / ONNX_MODEL
    try:
        model = onnx.load(str(path), load_external_data=False)
        stored = {}
        for entry in model.graph.initializer:
            places = {item.key: item.value for item in entry.external_data}
            if places and places.get("location") != ONNX_DATA:
                raise ArtifactError(f"{path} takes weights from {str(places)[:80]}: not opened")
            stored[entry.name] = _tensor(numpy_helper.to_array(entry, str(folder)))
    except ArtifactError:
        raise
    except Exception as cause:  # protobuf, onnx and the file system have errors of their own
        raise ArtifactError(f"{path} is not an intact ONNX model ({_reason(cause)})") from cause
    return stored


def open_session(folder: Path) -> Any:
    """An onnxruntime session on the CPU, with as many threads as torch uses.

    Raises:
        ArtifactError: onnxruntime cannot run the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # only errors, which are raised as well
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        return onnxruntime.InferenceSession(
            str(folder / ONNX_MODEL), options, providers=["CPUExecutionProvider"]
        )
    except Exception as cause:
        raise ArtifactError(f"onnxruntime does not open the model: {_reason(cause)}") from cause


def answer(session: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """The output of a session on inputs by name.

    Raises:
        ArtifactError: the model cannot be run on them.
    """
    try:
        outputs = session.run([OUTPUT], {name: value.numpy() for name, value in inputs.items()})
    except Exception as cause:
        raise ArtifactError(f"onnxruntime does not run the model: {_reason(cause)}") from cause
    return _tensor(outputs[0])


def difference_of(one: Tensor, other: Tensor) -> float:
    """Largest difference of two outputs; infinite where the shapes differ."""
    if one.shape != other.shape:
        return float("inf")
    return float((one.double() - other.double()).abs().max())


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxInput:
    """An input of an ONNX model; an axis that may have any size has a name."""

    name: str
    dtype: str
    shape: list[int | str]


def inputs_of(session: Any) -> list[OnnxInput]:
    """The inputs of a session, in order."""
    return [
        OnnxInput(name=value.name, dtype=value.type[len("tensor(") : -1], shape=list(value.shape))
        for value in session.get_inputs()
    ]


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _reason(error: BaseException) -> str:
    """The first line of the error that caused an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    first = re.sub(r":\n\s*", ": ", text).partition("\n")[0]  # a colon continues on the next line
    return f"{type(error).__name__}: {first.strip()[:250]}" if first else type(error).__name__


@contextmanager
def _silent() -> Iterator[None]:
    """Keep the exporter from writing to the user's terminal."""
    levels = {logger: logger.level for logger in map(logging.getLogger, _LOGGERS)}
    try:
        for logger in levels:
            logger.setLevel(logging.CRITICAL)
        # When it fails, it prints the graph so far.
        with quiet(), redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in levels.items():
            logger.setLevel(level)
