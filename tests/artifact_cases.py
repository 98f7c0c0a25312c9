"""Pico models and a tiny module with a tie, exported as artifacts."""

from __future__ import annotations

from dataclasses import fields

import torch
import transformers
from torch import nn

from slt_compress.artifacts import ArtifactContent, Evidence, write_artifact
from slt_compress.checkpoints import Checkpoint
from slt_compress.masks import Masks

SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


TEXT = {"vocab_size": 50, "intermediate_size": 32, "bos_token_id": 0, "eos_token_id": 0}


def vit():
    config = transformers.ViTConfig(
        **SMALL, intermediate_size=32, image_size=16, patch_size=8, num_labels=3
    )
    return transformers.ViTForImageClassification(config)


def gpt2():
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def llama():
    config = transformers.LlamaConfig(**SMALL, **TEXT, num_key_value_heads=1)
    return transformers.LlamaForCausalLM(config).to(torch.bfloat16)


def mixtral():
    config = transformers.MixtralConfig(**SMALL, **TEXT, num_key_value_heads=1, num_local_experts=3)
    return transformers.MixtralForCausalLM(config)


PICO = {"vit": vit, "gpt2": gpt2, "llama": llama, "mixtral": mixtral}


def mask_(checkpoint, density=0.3):
    """Mask every matrix of the module in place, but no embedding."""
    generator = torch.Generator().manual_seed(1)
    masks = {}
    for name, weight in checkpoint.module.named_parameters():
        if weight.dim() > 1 and not any(word in name for word in ("embed", "wte", "wpe", "token")):
            masks[name] = torch.rand(weight.shape, generator=generator) < density
            with torch.no_grad():
                weight.masked_fill_(~masks[name], 0)
    return Masks(masks)


def export(path, checkpoint, masks, format="sparse-csr", **changes):
    """Export a checkpoint; `changes` are of the evidence, the content or the arguments."""
    evidence = {"report": {"sparsity": 0.7}, "card": "# card\n", "ticket_hash": "0" * 64}
    evidence |= {"provenance": {"gains": {}}} | _taken(changes, Evidence)
    content = {"checkpoint": checkpoint, "module": checkpoint.module, "masks": masks}
    content |= {"evidence": Evidence(**evidence)} | _taken(changes, ArtifactContent)
    return write_artifact(path, ArtifactContent(**content), format=format, **changes)


def _taken(changes, record):
    """The values for the fields of a dataclass, taken out of `changes`."""
    return {f.name: changes.pop(f.name) for f in fields(record) if f.name in changes}


def own(module):
    """A checkpoint of a user's own module."""
    return Checkpoint.of_module(module.eval())


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 2)
        self.norm = nn.BatchNorm1d(2)
        self.tied = nn.Linear(3, 2, bias=False)
        self.tied.weight = self.first.weight


def tiny():
    """A module with a tie, statistics, a kept zero and a kept -0; and its masks."""
    module = Tiny()
    with torch.no_grad():
        module.first.weight.copy_(torch.tensor([[0.0, 1.5, 0.0], [-0.0, 0.0, 2.0]]))
        module.first.bias.copy_(torch.tensor([0.25, -1.0]))
    mask = torch.tensor([[True, True, False], [True, False, True]])
    return own(module), Masks({"first.weight": mask})
