"""Small modules of every kind that gates are put on, with inputs that they take."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import timm
import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils import parametrizations


@dataclass(frozen=True, slots=True, kw_only=True)
class Pico:
    """A module in eval mode, its inputs, and how its output is read."""

    module: nn.Module
    inputs: Mapping[str, Any]

    def __call__(self) -> Tensor:
        return self.read(self.module(**self.inputs))

    def read(self, output: Any) -> Tensor:
        while not isinstance(output, Tensor):
            output = output[0]
        return output


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.first(images)))
        return self.head(self.up(self.depthwise(hidden)).mean((2, 3)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, sequence: Tensor) -> Tensor:
        mixed, _ = self.attention(sequence, sequence, sequence, need_weights=False)
        return self.head(mixed.mean(1))


class Shared(nn.Module):
    """A module under two names, a weight in two modules, and a computed weight read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.again = self.body
        self.mirror = nn.Linear(6, 6)
        self.mirror.weight = self.body.weight
        self.normed = parametrizations.weight_norm(nn.Linear(6, 6))
        self.normed_again = self.normed
        self.head = nn.Linear(6, 3)

    def forward(self, input: Tensor) -> Tensor:
        hidden = torch.tanh(self.again(torch.tanh(self.body(input))))
        hidden = self.normed(hidden) + self.normed_again(torch.tanh(self.mirror(hidden)))
        return self.head(hidden)


def shared() -> Pico:
    torch.manual_seed(0)
    return Pico(module=Shared().eval(), inputs={"input": torch.randn(5, 6)})


def mlp() -> Pico:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(0.5), nn.Linear(16, 3))
    return Pico(module=module.eval(), inputs={"input": torch.randn(5, 6)})


def conv_net() -> Pico:
    torch.manual_seed(0)
    module = ConvNet()
    nn.init.uniform_(module.norm.running_mean)  # statistics that are somebody's
    return Pico(module=module.eval(), inputs={"images": torch.randn(4, 3, 6, 6)})


def lstm() -> Pico:
    torch.manual_seed(0)
    module = nn.LSTM(4, 6, num_layers=2, batch_first=True, bidirectional=True)
    return Pico(module=module.eval(), inputs={"input": torch.randn(2, 5, 4)})


def attention() -> Pico:
    torch.manual_seed(0)
    return Pico(module=Attention().eval(), inputs={"sequence": torch.randn(2, 4, 8)})


def weight_norm() -> Pico:
    torch.manual_seed(0)
    module = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 8)), nn.Linear(8, 2))
    return Pico(module=module.eval(), inputs={"input": torch.randn(5, 6)})


def gpt2() -> Pico:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=20, n_embd=8, n_layer=2, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    return Pico(
        module=transformers.GPT2LMHeadModel(config).eval(),
        inputs={"input_ids": torch.randint(0, 20, (2, 7))},
    )


def resnet() -> Pico:
    torch.manual_seed(0)
    module = timm.create_model(
        "resnet10t", num_classes=5, stem_width=4, channels=(8, 8, 16, 16), zero_init_last=False
    )
    return Pico(module=module.eval(), inputs={"x": torch.randn(2, 3, 32, 32)})


def mixtral() -> Pico:
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=4, num_local_experts=3,
        num_experts_per_tok=2,
    )  # fmt: skip
    return Pico(
        module=transformers.MixtralForCausalLM(config).eval(),
        inputs={"input_ids": torch.randint(0, 20, (2, 7)), "use_cache": False},
    )


PICOS: Mapping[str, Callable[[], Pico]] = MappingProxyType(
    {
        "mlp": mlp,
        "conv-net": conv_net,
        "lstm": lstm,
        "attention": attention,
        "weight-norm": weight_norm,
        "shared": shared,
        "gpt2": gpt2,
        "resnet": resnet,
        "mixtral": mixtral,
    }
)
