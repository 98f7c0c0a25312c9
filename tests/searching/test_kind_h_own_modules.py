"""Modules of the user's own: refused before the first step, or searched, exported and loaded."""

from __future__ import annotations

import subprocess
import sys
import threading
import warnings
from collections import OrderedDict, UserDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import transformers
from parts import OLD
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.rnn import PackedSequence, pack_sequence

import slt_compress
from slt_compress import Budget, Training
from slt_compress.checkpoints.moving import to_device
from slt_compress.cli.app import main
from slt_compress.errors import SourceError

SIZE = 6


class Extra(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"scale": 3}

    def set_extra_state(self, state: object) -> None:
        """Nothing: what the state is does not matter here."""


class TensorExtra(nn.Linear):
    """Extra state that is a tensor, which an artifact can hold."""

    def get_extra_state(self) -> Tensor:
        return torch.ones(2)

    def set_extra_state(self, state: object) -> None:
        """Nothing: what the state is does not matter here."""


def linear() -> nn.Linear:
    return nn.Linear(SIZE, SIZE)


def locked() -> nn.Module:
    layer = linear()
    layer.lock = threading.Lock()  # type: ignore[assignment]
    return layer


def unsaved() -> nn.Module:
    layer = linear()
    layer.register_buffer("table", torch.eye(3).to_sparse())
    return layer


def inference() -> nn.Module:
    with torch.inference_mode():
        return linear()


def quantized() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated in torch, and still in people's models
        return torch.ao.quantization.quantize_dynamic(nn.Sequential(linear()), {nn.Linear})


def scripted() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(linear())


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "extra state": (lambda: Extra(SIZE, SIZE), r"0\._extra_state \(extra state\)"),
    "dynamically quantized": (quantized, r"0\.0\._packed_params.* search the module before it is"),
    "lazy": (lambda: nn.LazyLinear(SIZE), r"0\.weight has no shape yet: run one batch"),
    "lazy norm": (lambda: nn.LazyBatchNorm1d(), r"0\.weight has no shape yet"),
    "scripted": (scripted, r"0 \(RecursiveScriptModule\) is scripted"),
    "meta": (lambda: linear().to("meta"), r"0\.weight is on the meta device"),
    "inference": (inference, r"0\.weight was made under torch\.inference_mode"),
    "not to be copied": (locked, r"cannot be copied \(TypeError: .*lock"),
    "sparse": (unsaved, r"0\.table is a sparse tensor"),
    "old weight norm": (OLD["weight_norm"], r"0 \(Linear\) .*parametrizations\.weight_norm"),
    "old spectral norm": (OLD["spectral_norm"], r"0 \(Linear\) .*parametrizations\.spectral_norm"),
}


def loss_fn(module: nn.Module, batch: Any) -> Tensor:
    loss: Tensor = module(batch).square().mean()
    return loss


def batches() -> list[Tensor]:
    return [torch.ones(3, SIZE), torch.zeros(3, SIZE) - 1]


def searched(module: nn.Module, out: Path, **options: Any) -> slt_compress.Ticket:
    content = {"data": batches(), "loss_fn": loss_fn, "training": Training(steps=2), **options}
    return slt_compress.search(module, budget=Budget(density=0.5), out=out, **content)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_brought_to_an_end_is_refused_before_the_first_step(
    name: str, tmp_path: Path
) -> None:
    make, words = REFUSED[name]
    module = nn.Sequential(make(), linear())

    def never(module: nn.Module, batch: Any) -> Tensor:
        raise AssertionError("a step was taken")

    with pytest.raises(SourceError, match=words):
        searched(module, tmp_path / "ticket", loss_fn=never)
    assert list(tmp_path.iterdir()) == []


def pruned() -> nn.Module:
    layer = linear()
    prune.l1_unstructured(layer, "weight", 0.5)
    prune.random_unstructured(layer, "bias", 0.5)
    layer(torch.ones(1, SIZE))  # its weight is now what autograd computed
    return layer


TAKEN: dict[str, Callable[[], nn.Module]] = {
    "live prune hooks": pruned,
    "extra state of tensors": lambda: TensorExtra(SIZE, SIZE),
    "traced": lambda: torch.fx.symbolic_trace(nn.Sequential(linear(), nn.ReLU())),
    "data parallel": lambda: nn.DataParallel(linear()),
    "parameter list": lambda: Listed(),
}


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.matrices = nn.ParameterList([nn.Parameter(torch.eye(SIZE)) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.matrices[0] @ self.matrices[1]


@pytest.mark.parametrize("name", TAKEN)
def test_what_is_searched_is_exported_and_loaded(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = nn.Sequential(TAKEN[name](), linear()).eval()
    ticket = searched(module, tmp_path / "ticket")
    assert slt_compress.verify(ticket.path, model=module).ok
    with torch.no_grad():
        masked = slt_compress.load(ticket.path, model=module)(batches()[0])
        assert not torch.equal(masked, module(batches()[0]))
    for format in ("bitmask", "dense", "mask", "auto"):
        out = tmp_path / format
        slt_compress.export(ticket.path, format=format, model=module, out=out)
        assert slt_compress.verify(out, model=module).ok
        with torch.no_grad():
            assert torch.equal(slt_compress.load(out, model=module)(batches()[0]), masked)


Pair = namedtuple("Pair", ["x", "weight"])


class Typed(NamedTuple):
    x: Tensor
    weight: Tensor


@dataclass(frozen=True)
class Frozen:
    x: Tensor
    weight: Tensor
    name: str = "n"


class Moving:
    """A batch of somebody's own, which knows how to move."""

    def __init__(self, x: Tensor, weight: Tensor) -> None:
        self.x, self.weight = x, weight

    def to(self, device: torch.device) -> Moving:
        return Moving(self.x.to(device), self.weight.to(device))


KINDS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "named tuple": Pair,
    "typed named tuple": Typed,
    "dataclass": Frozen,
    "own": Moving,
    "encoding": lambda x, w: transformers.BatchEncoding({"x": x, "weight": w}),
    "output": lambda x, w: transformers.modeling_outputs.ModelOutput(x=x, weight=w),
    "dict": lambda x, w: {"x": x, "weight": w},
    "ordered": lambda x, w: OrderedDict(x=x, weight=w),
    "user": lambda x, w: UserDict(x=x, weight=w),
    "tuple": lambda x, w: (x, w),
    "list": lambda x, w: [x, w],
    "nested": lambda x, w: {"x": x, "weight": w, "more": (Pair(x, w), [None, "s", 1])},
}


def weighted(module: nn.Module, batch: Any) -> Tensor:
    try:
        x, weight = batch.x, batch.weight
    except AttributeError:
        x, weight = (batch["x"], batch["weight"]) if hasattr(batch, "keys") else batch
    loss: Tensor = (module(x).square().mean(1) * weight).mean()
    return loss


@pytest.mark.parametrize("kind", KINDS)
def test_batches_are_of_any_kind(kind: str, tmp_path: Path) -> None:
    made = [KINDS[kind](x, torch.ones(len(x))) for x in batches()]
    ticket = searched(linear(), tmp_path / "ticket", data=made, loss_fn=weighted)
    assert len(ticket.masks) == 1
    moved = to_device(made[0], torch.device("meta"))
    assert type(moved) is type(made[0])
    assert made[0] is not moved
    still = to_device(made[0], torch.device("cpu"))
    assert float(weighted(nn.Identity(), still)) == float(weighted(nn.Identity(), made[0])) == 1.0


def test_packed_sequences_are_moved() -> None:
    packed = pack_sequence([torch.ones(3, 2), torch.ones(1, 2)])
    moved = to_device([packed], torch.device("cpu"))[0]
    assert isinstance(moved, PackedSequence)
    assert torch.equal(moved.data, packed.data)


@pytest.fixture(scope="module")
def tickets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ticket and an artifact of a module that the script below makes again."""
    folder = tmp_path_factory.mktemp("own")
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(SIZE, SIZE))
    searched(module, folder / "t'icket")
    slt_compress.export(folder / "t'icket", format="bitmask", model=module, out=folder / "x")
    return folder


COMMANDS = {
    "verify": ("verify {ticket}", "slt_compress.verify({ticket!r}, model=module)"),
    "verify an artifact": ("verify {artifact}", "slt_compress.verify({artifact!r}, model=module)"),
    "export": (
        "export {ticket} --format coded -o {out}",
        "slt_compress.export({ticket!r}, format='coded', out={out!r}, model=module)",
    ),
    "export shards": (
        "export {ticket} --format bitmask --values-dtype bf16 -o {out}",
        "slt_compress.export({ticket!r}, format='bitmask', out={out!r}, values_dtype='bf16', "
        "model=module)",
    ),
    "evaluate": ("evaluate {ticket}", "slt_compress.load({ticket!r}, model=module)"),
    "evaluate an artifact": (
        "evaluate {artifact}", "slt_compress.load({artifact!r}, model=module)"
    ),
    "bench": ("bench {ticket}", "slt_compress.load({ticket!r}, model=module)"),
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_the_command_line_gives_the_lines_of_python(
    command: str, tickets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {"ticket": str(tickets / "t'icket"), "artifact": str(tickets / "x"),
             "out": str(tmp_path / "new")}  # fmt: skip
    words, call = COMMANDS[command]
    with pytest.raises(SystemExit) as caught:
        main([part.format(**names) for part in words.split()])
    assert caught.value.code == 1
    seen = capsys.readouterr()
    assert seen.out == ""
    said, *lines = seen.err.splitlines()
    assert said.startswith("error: ")
    assert "a module of your own" in said
    assert lines[0] == "    import slt_compress"
    assert lines[1].endswith(call.format(**names))
    if "bench" in command or "evaluate" in command:
        return
    script = "\n".join([
        "import torch", "torch.manual_seed(0)",
        "module = torch.nn.Sequential(torch.nn.Linear(6, 6))",
        *(line.strip() for line in lines),
    ])  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_missing_module_is_asked_for_in_python_too(tickets: Path) -> None:
    for folder in (tickets / "t'icket", tickets / "x"):
        for verb in (slt_compress.load, slt_compress.verify):
            with pytest.raises(SourceError, match=r"pass that module, as in slt_compress\.load"):
                verb(folder, **({"in_process": True} if verb is slt_compress.verify else {}))
