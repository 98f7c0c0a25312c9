"""The runtimes: the same model, other kernels, and dense wherever those may not be used."""

from __future__ import annotations

import copy
import pickle
import shutil
from dataclasses import dataclass, field

import pytest
import torch
import transformers
from pipelines import RECIPE
from torch import nn
from torch.nn.utils import prune

import slt_compress
from slt_compress.checkpoints.tasks import forward_of
from slt_compress.errors import ArtifactError, SltError
from slt_compress.runtime import example_runs, kernel_choice, kernel_plan, sparse_layers
from slt_compress.runtime.kernel_choice import Candidate, choose, time_interleaved
from slt_compress.runtime.kernels import can_compile
from slt_compress.runtime.opening import open_path
from slt_compress.runtime.remembered import cache_folder
from slt_compress.runtime.sparse import run_on
from slt_compress.runtime.sparse_layers import (
    Choice,
    SparseForward,
    kernels_of,
    tokens_of,
    why_dense,
)
from slt_compress.tickets import read_probe

compiled = pytest.mark.skipif(not can_compile(), reason="needs the extra fast")


def thin_(layer: nn.Module, density: float = 0.2) -> nn.Module:
    chance = torch.Generator().manual_seed(0)
    with torch.no_grad():
        keep = torch.rand(layer.weight.shape, generator=chance) < density
        layer.weight.mul_(keep)
    return layer.requires_grad_(False)


@dataclass
class Counted:
    """A kernel that says how often it was used."""

    kernel: object
    uses: int = 0
    nbytes: int = 1

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        self.uses += 1
        return self.kernel(inputs)


def counted(layer: nn.Module, points: dict[int, str | None] | None = None) -> Counted:
    """Put a counting kernel on a layer."""
    kernel = Counted(next(iter(kernels_of(layer).values())))
    forward = SparseForward(layer, {"k": kernel}, Choice(points or {1: "k"}))
    forward.put_on()
    return kernel


def linear() -> tuple[nn.Module, Counted]:
    torch.manual_seed(0)
    layer = thin_(nn.Linear(12, 7))
    return layer, counted(layer)


def dense_of(layer: nn.Module, inputs: torch.Tensor) -> torch.Tensor:
    return type(layer).forward(layer, inputs)


@pytest.fixture(autouse=True)
def _nothing_remembered(tmp_path, monkeypatch):
    monkeypatch.setenv("SLT_COMPRESS_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def tickets(checkpoints, data_sets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runtimes")
    kinds = {"vit": "pictures", "gpt2": "prose", "resnet": "pictures"}
    return {
        kind: slt_compress.search(
            checkpoints[kind], data_sets[data], recipe=RECIPE, out=folder / kind
        ).path
        for kind, data in kinds.items()
    }


def outputs(path, module):
    ticket = slt_compress.tickets.read_ticket(path)
    probe = read_probe(path)
    run = forward_of(ticket.origin["family"], ticket.origin["task"])
    return run(module, probe.inputs), probe.logits


@pytest.mark.parametrize("runtime", ["sparse", "auto"])
@pytest.mark.parametrize("kind", ["vit", "gpt2", "resnet"])
def test_a_loaded_model_is_the_dense_one_but_for_the_order_of_sums(tickets, kind, runtime):
    path = tickets[kind]
    dense, other = slt_compress.load(path), slt_compress.load(path, runtime=runtime)
    found, wanted = outputs(path, other)
    assert not found.requires_grad  # without torch.no_grad()
    assert torch.allclose(found, wanted, rtol=1e-3, atol=1e-4)
    said = other.slt_runtime
    assert set(said) == {
        name.rpartition(".")[0] for name in slt_compress.tickets.read_ticket(path).masks
    }
    used = [name for name, what in said.items() if not what.startswith("dense")]
    if runtime == "sparse":
        assert used
        for name in used:
            assert isinstance(other.get_submodule(name).forward.__self__, SparseForward)
            assert type(other.get_submodule(name)) is type(dense.get_submodule(name))
    states = dense.state_dict(), other.state_dict()
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert "slt_runtime" not in vars(dense)


def test_artifacts_of_every_format_run_sparse(tickets, tmp_path):
    wanted, _ = outputs(tickets["vit"], slt_compress.load(tickets["vit"], runtime="sparse"))
    for format in ("dense", "auto", "mask"):
        made = slt_compress.export(tickets["vit"], format=format, out=tmp_path / format)
        module = slt_compress.load(made.path, runtime="sparse")
        assert any(not what.startswith("dense") for what in module.slt_runtime.values())
        assert torch.equal(outputs(tickets["vit"], module)[0], wanted)


def test_runtimes_that_cannot_be_are_refused(tickets):
    with pytest.raises(SltError, match="unknown runtime 'fast'; known: dense, sparse, auto"):
        slt_compress.load(tickets["vit"], runtime="fast")
    with pytest.raises(SltError, match="for the CPU and not for cuda"):
        slt_compress.load(tickets["vit"], runtime="sparse", device="cuda")


def test_auto_on_another_device_is_dense(tickets):
    module = slt_compress.load(tickets["vit"], runtime="auto", device="meta")
    assert next(module.parameters()).is_meta
    assert not any("forward" in vars(layer) for layer in module.modules())


def test_gradients_other_types_and_autocast_are_dense():
    layer, kernel = linear()
    inputs = torch.randn(3, 12)
    assert torch.allclose(layer(inputs), dense_of(layer, inputs), atol=1e-6)
    assert kernel.uses == 1
    wants = inputs.clone().requires_grad_()
    layer(wants).sum().backward()
    assert torch.allclose(wants.grad, layer.weight.sum(0).expand(3, 12))
    layer.requires_grad_(True)
    layer(inputs).sum().backward()
    assert torch.allclose(layer.weight.grad, inputs.sum(0).expand(7, 12))
    assert kernel.uses == 1
    with torch.no_grad():
        layer(wants)
    assert kernel.uses == 2
    layer.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(inputs).dtype == torch.bfloat16
    with pytest.raises(RuntimeError):
        layer(inputs.double())
    assert kernel.uses == 2
    assert layer.double()(inputs.double()).dtype == torch.float64
    assert layer.bfloat16()(inputs.bfloat16()).dtype == torch.bfloat16
    assert kernel.uses == 2


def test_tracing_and_torch_functions_are_dense():
    layer, kernel = linear()
    inputs = torch.randn(3, 12)
    program = torch.export.export(layer, (inputs,))
    assert torch.allclose(program.module()(inputs), dense_of(layer, inputs), atol=1e-6)

    class Mine(torch.Tensor):
        pass

    assert type(layer(inputs.as_subclass(Mine))) is Mine
    assert layer(inputs.to("meta")).is_meta if layer.to("meta") else None
    assert kernel.uses == 0


@pytest.mark.parametrize(
    "edit",
    [
        lambda layer: layer.weight.add_(1),
        lambda layer: layer.bias.add_(1),
        lambda layer: layer.load_state_dict({n: v + 1 for n, v in layer.state_dict().items()}),
        lambda layer: setattr(layer, "weight", nn.Parameter(layer.weight + 1)),
        lambda layer: setattr(layer.weight, "data", layer.weight.data + 1),
        lambda layer: setattr(layer, "bias", None),
        lambda layer: torch.nn.utils.parametrizations.weight_norm(layer),
        lambda layer: prune.l1_unstructured(layer, "weight", 3),
        lambda layer: layer.to("meta").to_empty(device="cpu"),
    ],
    ids=["weight", "bias", "load", "parameter", "data", "no-bias", "norm", "prune", "moved"],
)
def test_changed_weights_are_dense_and_right(edit):
    layer, kernel = linear()
    with torch.no_grad():
        edit(layer)
        found, wanted = layer(torch.ones(2, 12)), dense_of(layer, torch.ones(2, 12))
    assert torch.equal(found.nan_to_num(), wanted.nan_to_num())
    assert kernel.uses == 0


def test_moving_to_where_it_is_changes_nothing_and_hooks_are_called():
    layer, kernel = linear()
    seen = []
    layer.register_forward_pre_hook(lambda module, args: seen.append("before"))
    layer.register_forward_hook(lambda module, args, output: seen.append(tuple(output.shape)))
    layer.to("cpu").float().eval()(torch.randn(2, 12))
    assert seen == ["before", (2, 7)]
    assert kernel.uses == 1


def test_copies_compute_with_their_own_weights():
    layer, _ = linear()
    inputs = torch.randn(3, 12)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        with torch.no_grad():
            other.weight.zero_()
        assert torch.equal(other(inputs), layer.bias.expand(3, 7))
    assert torch.allclose(layer(inputs), dense_of(layer, inputs), atol=1e-6)


def test_inputs_that_a_layer_refuses_are_refused():
    layer, _ = linear()
    for inputs in (torch.randn(3, 11), torch.tensor(1.0), torch.ones(3, 12, dtype=torch.long)):
        with pytest.raises((RuntimeError, IndexError)):
            layer(inputs)
    assert layer(torch.randn(0, 12)).shape == (0, 7)
    assert layer(input=torch.ones(2, 12)).shape == (2, 7)


def test_conv1d_of_transformers():
    torch.manual_seed(0)
    layer = thin_(transformers.pytorch_utils.Conv1D(7, 12))
    kernel, inputs = counted(layer), torch.randn(2, 5, 12)
    assert torch.allclose(layer(inputs), dense_of(layer, inputs), atol=1e-5)
    assert kernel.uses == 1


@compiled
def test_convolutions():
    torch.manual_seed(0)
    layer = thin_(nn.Conv2d(3, 6, 3, stride=2, padding=1))
    kernel, pictures = counted(layer), torch.randn(2, 3, 9, 8)
    assert torch.allclose(layer(pictures), dense_of(layer, pictures), atol=1e-5)
    assert kernel.uses == 1
    assert tokens_of(layer, pictures) == 2 * 5 * 4
    assert layer(pictures[0]).shape == (6, 5, 4)  # without a batch: dense
    for wrong in (torch.randn(2, 4, 9, 8), torch.randn(2, 9)):
        with pytest.raises(RuntimeError):
            layer(wrong)
    narrow = thin_(nn.Conv2d(3, 6, 3))
    kernel = counted(narrow)
    with pytest.raises(RuntimeError, match="ernel size"):
        narrow(torch.randn(1, 3, 2, 2))
    assert kernel.uses == 0


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (thin_(nn.Embedding(9, 4)), "Embedding has no sparse kernel"),
        (thin_(nn.Conv1d(2, 3, 3)), "Conv1d has no sparse kernel"),
        (thin_(nn.Linear(30, 40).double()), "float32"),
        (thin_(nn.Linear(30, 40), 0.9), "of its weights are kept"),
        pytest.param(thin_(nn.Conv2d(4, 4, 3, groups=2)), "groups", marks=compiled),
        pytest.param(thin_(nn.Conv2d(4, 4, 3, stride=(1, 2))), "strides", marks=compiled),
        pytest.param(thin_(nn.Conv2d(4, 4, 3, padding="same")), "padding", marks=compiled),
        pytest.param(
            thin_(nn.Conv2d(4, 4, 3, padding=1, padding_mode="circular")), "padding", marks=compiled
        ),
    ],
)
def test_what_has_no_kernel_says_so(layer, reason):
    assert reason in why_dense(layer)


def test_without_the_extra_linear_layers_take_the_kernel_of_torch(monkeypatch, tickets):
    monkeypatch.setattr(sparse_layers, "can_compile", lambda: False)
    assert list(kernels_of(thin_(nn.Linear(12, 7)))) == ["csr"]
    assert "slt-compress[fast]" in why_dense(thin_(nn.Conv2d(3, 4, 1)))
    module = slt_compress.load(tickets["vit"], runtime="sparse")
    assert set(module.slt_runtime.values()) & {"csr"}
    found, wanted = outputs(tickets["vit"], module)
    assert torch.allclose(found, wanted, atol=1e-4)


def test_a_choice_needs_a_winner_on_both_sides():
    choice = Choice({64: "b", 1: None, 8: "a", 512: None})
    found = [choice.kernel(tokens) for tokens in (0, 1, 2, 8, 9, 64, 65, 512, 9999)]
    assert found == [None, None, None, "a", "b", "b", None, None, None]
    assert (choice.least, choice.used) == (8, ["a", "b"])
    always = Choice({4: "a", 9: "a"})
    assert (always.least, always.kernel(1), always.kernel(100)) == (1, "a", "a")
    assert Choice({}).kernel(3) is None


def test_a_layer_uses_its_kernel_only_for_the_counts_where_it_won():
    layer, _ = linear()
    kernel = counted(layer, {1: None, 8: None, 64: "k"})
    for tokens, uses in ((1, 0), (8, 0), (63, 0), (64, 1), (500, 2)):
        inputs = torch.randn(tokens, 12)
        assert torch.allclose(layer(inputs), dense_of(layer, inputs), atol=1e-5)
        assert kernel.uses == uses


@dataclass
class Clock:
    """Time that passes only where something is said to take it."""

    now: float = 0.0
    costs: dict[str, float] = field(default_factory=dict)

    def perf_counter(self) -> float:
        return self.now

    def taking(self, seconds: float, kernel):
        def run(inputs):
            self.now += seconds
            return kernel(inputs)

        return run


def test_the_faster_one_is_chosen_with_a_margin(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(kernel_choice, "time", clock)
    layer = thin_(nn.Linear(12, 7))
    own = nn.Linear.forward

    def dense(self, inputs):
        clock.now += 0.010 if len(inputs) < 64 else 0.1
        return own(self, inputs)

    monkeypatch.setattr(nn.Linear, "forward", dense)
    kernel = next(iter(kernels_of(layer).values()))
    kernels = {"slow": clock.taking(0.009, kernel), "slower": clock.taking(0.05, kernel)}
    found = choose({"layer": Candidate(layer=layer, kernels=kernels, seen=((3, 12),))})["layer"]
    # 0.009 of 0.010 is no clear win, and 0.009 of 0.1 is one at first sight
    assert found.points == {1: None, 3: None, 8: None, 64: "slow", 512: "slow"}


def test_layers_that_are_not_timed_do_as_denser_ones_and_else_stay_dense(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(kernel_choice, "time", clock)
    own = nn.Linear.forward

    def dense(self, inputs):
        clock.now += 1.0
        return own(self, inputs)

    monkeypatch.setattr(nn.Linear, "forward", dense)

    def candidate(inputs, outputs, density):
        layer = thin_(nn.Linear(inputs, outputs), density)
        kernel = next(iter(kernels_of(layer).values()))
        return Candidate(layer=layer, kernels={"k": clock.taking(0.1, kernel)}, seen=())

    candidates = {
        "large": candidate(100, 100, 0.2), "sparser": candidate(60, 60, 0.1),
        "denser": candidate(60, 60, 0.4), "tiny": candidate(10, 10, 0.1),
    }  # fmt: skip
    found = choose(candidates, 0.5)
    assert found["large"].used == found["sparser"].used == ["k"]
    assert not found["denser"].used  # more is kept than in what was timed
    assert not found["tiny"].used  # too small to go by the large one
    assert found["denser"].points
    assert all(choice.used for choice in choose(candidates).values())


def test_runs_time_interleaved_go_to_and_fro():
    order = []
    runs = {name: (lambda: None, lambda name=name: order.append(name)) for name in "ab"}
    runs["a"] = (lambda: order.append("prepared"), runs["a"][1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_choice, "_MOST", 1)
        taken = time_interleaved(runs, 3, 100.0)
    one, other = ["prepared", "a"], ["b"]
    assert order == [*one, *other, *other, *one, *one, *other, *other, *one]
    assert {name: len(times) for name, times in taken.items()} == {"a": 3, "b": 3}


def test_a_model_that_is_not_faster_as_a_whole_stays_dense(monkeypatch, tickets):
    monkeypatch.setattr(kernel_choice, "MARGIN", 1000.0)  # every layer takes a kernel
    monkeypatch.setattr(kernel_choice, "CLEAR", 1000.0)
    monkeypatch.setattr(example_runs, "SLOWER", 1000.0)
    module = slt_compress.load(tickets["vit"], runtime="auto")
    assert any("forward" in vars(layer) for layer in module.modules())
    monkeypatch.setattr(example_runs, "SLOWER", 0.0)
    shutil.rmtree(cache_folder())
    module = slt_compress.load(tickets["vit"], runtime="auto")
    assert not any("forward" in vars(layer) for layer in module.modules())
    assert any("as a whole" in what for what in module.slt_runtime.values())


def test_a_module_of_ones_own_without_a_probe(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 3))
    ticket = slt_compress.search(
        module, [torch.ones(2, 20)], recipe=RECIPE, out=tmp_path / "t",
        loss_fn=lambda model, batch: model(batch).square().mean(),
    )  # fmt: skip
    dense = slt_compress.load(ticket.path, model=module)
    inputs = torch.randn(9, 20)
    every = slt_compress.load(ticket.path, model=module, runtime="sparse")
    assert "" not in every.slt_runtime
    with pytest.warns(RuntimeWarning, match="did not compare the model as a whole: no probe"):
        auto = slt_compress.load(ticket.path, model=module, runtime="auto")
    assert "no probe was stored" in auto.slt_runtime[""]
    for other in (every, auto):
        assert torch.allclose(other(inputs), dense(inputs), atol=1e-5)
    assert next(module.parameters()).requires_grad


def test_a_model_that_refuses_its_probe_is_said_to_be_uncompared(tickets, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("not such inputs")

    opened = open_path(tickets["vit"])
    monkeypatch.setattr(opened.module, "forward", refuse)
    with pytest.warns(RuntimeWarning, match=r"does not run on its probe \(ValueError: not such"):
        module = run_on(opened, "auto")
    assert "ValueError: not such inputs" in module.slt_runtime[""]


def test_a_damaged_probe_is_no_reason_to_go_on(tickets, tmp_path):
    out = slt_compress.export(tickets["vit"], format="auto", out=tmp_path / "x").path
    opened = open_path(out)
    (out / "probe.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ArtifactError, match="not an intact safetensors file"):
        run_on(opened, "auto")


def test_a_kernel_on_one_thread_is_said_to_be(monkeypatch):
    layer = nn.Sequential(thin_(nn.Linear(40, 30)))
    monkeypatch.setattr(kernel_plan, "has_team", lambda: False)
    plan = kernel_plan.fit(layer, {"0.weight": (30, 40)}, "sparse", {})
    alone = "on one thread" in plan.reasons["0"]
    assert alone == plan.reasons["0"].startswith("compiled")
