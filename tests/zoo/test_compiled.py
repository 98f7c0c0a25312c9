"""A transformer under torch.compile's code generator, which takes a C++ compiler and time."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
import transformers
from torch import Tensor

from slt_compress.gates import Phase, Relaxed
from slt_compress.gates.base import sample_key
from slt_compress.gates.gating import Gates, gated, read_once
from slt_compress.masks import Masks
from slt_compress.sites.sites import SitePlan, find_sites
from tests.models import Pico


def small_llama() -> Pico:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=20, hidden_size=8, intermediate_size=12, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1,
    )  # fmt: skip
    inputs = {"input_ids": torch.randint(0, 20, (2, 6)), "use_cache": False}
    return Pico(module=transformers.LlamaForCausalLM(config).eval(), inputs=inputs)


def step(pico: Pico, gates: Gates, plan: SitePlan) -> tuple[Tensor, dict[str, Tensor | None]]:
    with read_once(gates.module, plan):
        output = pico()
        output.square().sum().backward()
    found = {name: score.grad for name, score in gates.scores.items()}
    gates.module.zero_grad(set_to_none=True)
    return output, found


@pytest.mark.zoo
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_a_transformer_under_inductor_reads_every_new_sample_and_mask() -> None:
    pico = small_llama()
    plan, method = find_sites(pico.module), Relaxed()
    scores = {
        site.name: method.start(torch.zeros(site.shape), None, sample_key(0, site.name))
        for site in plan.sites
    }
    compiled = replace(pico, module=torch.compile(pico.module))
    outputs = []
    with gated(pico.module, plan, method=method, scores=scores) as gates:
        for number in range(2):
            gates.sample(Phase(step=number, seed=3), dict.fromkeys(gates.by_name, 0.1))
            output, gradients = step(pico, gates, plan)
            output_compiled, gradients_compiled = step(compiled, gates, plan)
            assert torch.allclose(output_compiled, output, atol=1e-5)
            for site, gradient in gradients.items():
                found = gradients_compiled[site]
                assert gradient is not None
                assert found is not None
                assert torch.allclose(found, gradient, atol=1e-4), site
            outputs.append(output)
        assert not torch.allclose(*outputs, atol=1e-3)
        gates.mask(Masks({n: torch.rand(s.shape) < 0.5 for n, s in gates.scores.items()}), {})
        with torch.no_grad():
            assert torch.allclose(compiled(), pico(), atol=1e-5)
            assert not torch.allclose(compiled(), output, atol=1e-3)
    torch.compiler.reset()
