"""Golden values of every scheme, their distributions, and which tensors the rule covers."""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from slt_compress.checkpoints.filling import fan_in, initialise_
from slt_compress.checkpoints.initial import SCHEMES, initial_tensor, normal_quantile, parse_scheme
from slt_compress.errors import SourceError

SEEDED = ("signed-constant", "kaiming-normal", "kaiming-uniform", "uniform:0.25")
GOLDEN: dict[str, tuple[list[float], str]] = {
    "signed-constant": (
        [-0.1414213627576828, 0.1414213627576828, -0.1414213627576828, 0.1414213627576828],
        "2ae27389ba5cdc78",
    ),
    "kaiming-normal": (
        [-0.2270697057247162, 0.1814776062965393, -0.05916999280452728, 0.08912617713212967],
        "e78e27f1d00822d4",
    ),
    "kaiming-uniform": (
        [-0.21840721368789673, 0.1961042284965515, -0.07944716513156891, 0.11548058688640594],
        "d2f720744c014993",
    ),
    "uniform:0.25": (
        [-0.22291094064712524, 0.20014803111553192, -0.08108542114496231, 0.11786188185214996],
        "f615f217f5e698e5",
    ),
}


def make(scheme: str, *, name: str = "fc.weight", seed: int = 7, rows: int = 300) -> torch.Tensor:
    return initial_tensor(name, (rows, 100), scheme=scheme, seed=seed, fan_in=100)


@pytest.mark.parametrize("scheme", SEEDED)
def test_golden_bits(scheme: str) -> None:
    values = make(scheme)
    first, digest = GOLDEN[scheme]
    assert values.dtype is torch.float32
    assert values.flatten()[:4].tolist() == first
    assert hashlib.sha256(values.numpy().astype("<f4").tobytes()).hexdigest()[:16] == digest


@pytest.mark.parametrize("scheme", SEEDED)
def test_bits_depend_on_seed_and_name_alone(scheme: str) -> None:
    assert torch.equal(make(scheme), make(scheme))
    torch.manual_seed(99)
    assert torch.equal(make(scheme)[:20], make(scheme, rows=20))  # a prefix of one stream
    for other in (make(scheme, seed=8), make(scheme, name="fc2.weight")):
        assert (other != make(scheme)).float().mean() > 0.4


def test_long_tensors_continue_the_same_stream() -> None:
    long = initial_tensor("w", (1100, 1000), scheme="kaiming-normal", seed=0, fan_in=10)
    short = initial_tensor("w", (1048570,), scheme="kaiming-normal", seed=0, fan_in=10)
    assert torch.equal(long.flatten()[: short.numel()], short)
    assert len(set(long.flatten()[1 << 20 :].tolist())) > 50_000


def test_distributions() -> None:
    std = math.sqrt(2 / 100)
    signed = make("signed-constant")
    assert set(signed.abs().flatten().tolist()) == {torch.tensor(std).item()}
    assert abs(signed.sign().mean().item()) < 4 / math.sqrt(signed.numel())
    normal = make("kaiming-normal")
    assert normal.std().item() == pytest.approx(std, rel=0.02)
    assert (normal.abs() < std).float().mean().item() == pytest.approx(0.6827, abs=0.012)
    for scheme, bound in (("kaiming-uniform", math.sqrt(6 / 100)), ("uniform:0.25", 0.25)):
        flat = make(scheme)
        assert bound * 0.999 < flat.abs().max().item() <= bound
        assert flat.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_normal_quantile_agrees_with_the_standard_library() -> None:
    lower = np.concatenate([2.0 ** -np.arange(1, 53), np.linspace(0.001, 0.5, 400)])
    p = np.concatenate([lower, 1 - lower])
    expected = np.array([NormalDist().inv_cdf(float(x)) for x in p])
    assert np.abs(normal_quantile(p) - expected).max() < 5e-15


@pytest.mark.parametrize(
    "scheme", ["", "kaiming", "uniform", "uniform:A", "uniform:-1", "uniform:x"]
)
def test_unknown_schemes_are_refused(scheme: str) -> None:
    with pytest.raises(SourceError, match=r"uniform:A|initialisation"):
        parse_scheme(scheme)


def test_default_has_no_seeded_bits() -> None:
    assert "default" in SCHEMES
    with pytest.raises(SourceError, match="library's own"):
        make("default")


class Experts(nn.Module):
    def __init__(self, transposed: bool) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(4, 6, 10))
        if transposed:
            self.is_transposed = True


class Conv1D(nn.Module):
    """The shape convention of transformers' layer of this name: weight [in, out]."""

    def __init__(self) -> None:
        super().__init__()
        self.nf = 5
        self.weight = nn.Parameter(torch.zeros(3, 5))


@pytest.mark.parametrize(
    ("owner", "name", "expected"),
    [
        (nn.Linear(7, 3), "weight", 7),
        (nn.Conv2d(8, 6, (3, 5), groups=2), "weight", 4 * 15),
        (nn.ConvTranspose1d(8, 6, 3, groups=2), "weight", 4 * 3),
        (nn.Embedding(11, 5), "weight", 5),
        (nn.MultiheadAttention(6, 2), "in_proj_weight", 6),
        (nn.LSTM(9, 4), "weight_ih_l0", 9),
        (Conv1D(), "weight", 3),
        (Experts(False), "up", 10),
        (Experts(True), "up", 6),
    ],
)
def test_fan_in(owner: nn.Module, name: str, expected: int) -> None:
    assert fan_in(owner, getattr(owner, name)) == expected


class OffsetNorm(nn.Module):
    """A norm that multiplies by 1 + weight, as Gemma's does."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.conv = nn.Conv1d(4, 4, 3)
        self.bn = nn.BatchNorm1d(4)
        self.ln = nn.LayerNorm(4)
        self.offset = OffsetNorm()
        self.lstm = nn.LSTM(4, 4)
        self.head = nn.Linear(4, 10).to(torch.bfloat16)
        self.tied = nn.Linear(4, 10, bias=False)
        self.tied.weight = self.embed.weight
        self.old = weight_norm(nn.Linear(4, 4))
        self.scale = nn.Parameter(torch.full((4,), 0.5))
        self.fixed = nn.Parameter(torch.ones(4, 4), requires_grad=False)
        self.register_buffer("table", torch.arange(4.0))
        self.register_buffer("unsaved", torch.arange(4.0), persistent=False)
        nn.init.zeros_(self.bn.weight)
        nn.init.constant_(self.bn.running_mean, 5)  # type: ignore[arg-type]


def test_initialise_fills_by_the_rule_and_names_the_rest() -> None:
    torch.manual_seed(0)
    module = Mixed()
    left = initialise_(module, "kaiming-normal", 3)
    assert set(left) == {
        "scale",
        "fixed",
        "table",
        "offset.weight",
        "old.parametrizations.weight.original0",
        "old.parametrizations.weight.original1",
    }
    expected = initial_tensor("embed.weight", (10, 4), scheme="kaiming-normal", seed=3, fan_in=4)
    assert torch.equal(module.embed.weight, expected)
    assert module.tied.weight is module.embed.weight
    assert module.head.weight.dtype is torch.bfloat16
    head = initial_tensor("head.weight", (10, 4), scheme="kaiming-normal", seed=3, fan_in=4)
    assert torch.equal(module.head.weight, head.to(torch.bfloat16))
    zero = (module.conv.bias, module.bn.bias, module.old.bias, module.lstm.bias_ih_l0)
    assert all(isinstance(bias, torch.Tensor) and not bias.any() for bias in zero)
    assert module.bn.weight.tolist() == module.ln.weight.tolist() == [1.0] * 4
    assert not module.bn.running_mean.any()  # type: ignore[union-attr]
    assert module.scale.tolist() == [0.5] * 4


class Tables(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 8))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.head = nn.Linear(8, 10, bias=False)


@pytest.mark.parametrize("tied", [False, True])
def test_the_fan_in_of_a_table_is_one_unless_it_is_the_head_too(tied: bool) -> None:
    module = Tables()
    if tied:
        module.head.weight = module.embed.weight
    initialise_(module, "signed-constant", 0)
    tables = (module.embed.weight, module.pos_embed, module.cls_token)
    size = math.sqrt(2 / 8) if tied else math.sqrt(2)
    assert [float(table.detach().abs().max()) for table in tables] == pytest.approx([size] * 3)
    assert float(module.head.weight.detach().abs().max()) == pytest.approx(math.sqrt(2 / 8))


def test_what_is_named_and_what_is_filled_is_everything() -> None:
    """Two different library initialisations agree once the named tensors are copied over."""
    modules = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        modules.append(Mixed())
        left = initialise_(modules[-1], "signed-constant", 5)
    first, second = (module.state_dict() for module in modules)
    assert set(left) < set(first)
    second |= {name: first[name] for name in left}
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert len(set(first["embed.weight"].abs().flatten().tolist())) == 1


def test_default_leaves_everything() -> None:
    module = Mixed()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    assert set(initialise_(module, "default", 0)) == set(before)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
