"""Rows of training: masked gradients alone and `hold_zeros`, adapters, and averages of weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from slt_compress import hold_zeros

Made = Iterator[tuple[str, Path]]
STEPS = 200


def batch(step: int, rows: int = 2) -> dict[str, torch.Tensor]:
    """Random tokens that are their own labels."""
    ids = torch.randint(0, 96, (rows, 8), generator=torch.Generator().manual_seed(step))
    return {"input_ids": ids, "labels": ids}


def trained(
    model: Any, optimizer: Any, after: Callable[[], None] = lambda: None, steps: int = STEPS
) -> None:
    """Train with gradients of dropped weights at 0, as many recipes have it; adapters freely."""
    named = [(n, p) for n, p in model.named_parameters() if p.dim() == 2 and p.requires_grad]
    adapted = any("lora_" in name or "oft_" in name or "vera_" in name for name, _ in named)
    masks = {} if adapted else {p: p.detach() != 0 for _, p in named}
    for step in range(steps):
        model(**batch(step)).loss.backward()
        for parameter, mask in masks.items():
            if parameter.grad is not None:
                parameter.grad *= mask
        optimizer.step()
        optimizer.zero_grad()
        after()


def eight_bit_adam(model: Any) -> Any:
    """Of bitsandbytes, whose moments are codes; it runs on CPUs as well."""
    import bitsandbytes

    return bitsandbytes.optim.AdamW8bit(model.parameters(), lr=1e-3, min_8bit_size=0)


OPTIMIZERS: Mapping[str, Callable[[Any], Any]] = {
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=1e-3),
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=1e-2, momentum=0.9),
    "Muon": lambda m: torch.optim.Muon([p for p in m.parameters() if p.dim() == 2], lr=1e-3),
    "Adafactor": lambda m: torch.optim.Adafactor(m.parameters(), lr=1e-3),
}
EIGHT_BITS: Mapping[str, Callable[[Any], Any]] = {"8-bit AdamW of bitsandbytes": eight_bit_adam}


def optimizers(base: Path, out: Path, model: Any) -> Made:
    """Those of torch: masked gradients alone, and `hold_zeros`."""
    yield from _with_and_without(OPTIMIZERS, out, model)


def eight_bits(base: Path, out: Path, model: Any) -> Made:
    """As `optimizers`, with moments of eight bits."""
    yield from _with_and_without(EIGHT_BITS, out, model)


def _with_and_without(makers: Mapping[str, Callable[[Any], Any]], out: Path, model: Any) -> Made:
    for label, make in makers.items():
        for held in (False, True):
            one = copy.deepcopy(model)
            optimizer = make(one)
            if held:
                hold_zeros(one, out.parent / "t", optimizer)
            trained(one, optimizer)
            folder = out / f"{label.split()[0]}-{held}"
            one.save_pretrained(folder)
            yield f"{label}, {'hold_zeros' if held else 'masked gradients'}", folder


def past(base: Path, out: Path, model: Any) -> Made:
    """An optimizer that trained before the pruning, with and without `hold_zeros`."""
    for held in (False, True):
        one = copy.deepcopy(model)
        for weight in one.parameters():
            weight.data += 0.01
        optimizer = torch.optim.AdamW(one.parameters(), lr=1e-3)
        trained(one, optimizer, steps=5)
        for weight, masked in zip(one.parameters(), model.parameters(), strict=True):
            weight.data *= masked != 0
        if held:
            hold_zeros(one, out.parent / "t", optimizer)
        trained(one, optimizer)
        one.save_pretrained(out / f"{held}")
        yield f"AdamW with a past, {'hold_zeros' if held else 'masked gradients'}", out / f"{held}"


def trainer(base: Path, out: Path, model: Any) -> Made:
    """The Trainer of transformers, with an optimizer of its own making and with a held one."""
    import transformers

    rows = [{key: value[0] for key, value in batch(step, 1).items()} for step in range(16)]
    for held in (False, True):
        one = copy.deepcopy(model)
        optimizer = torch.optim.AdamW(one.parameters(), lr=1e-3)
        if held:
            hold_zeros(one, out.parent / "t", optimizer)
        arguments = transformers.TrainingArguments(
            output_dir=str(out / "log"), max_steps=STEPS, per_device_train_batch_size=2,
            use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True,
        )  # fmt: skip
        optimizers = (optimizer if held else None, None)
        transformers.Trainer(one, arguments, train_dataset=rows, optimizers=optimizers).train()
        one.save_pretrained(out / f"{held}")
        yield f"Trainer{', hold_zeros' if held else ''}", out / f"{held}"


def lora(base: Path, out: Path, model: Any) -> Made:
    """Merged, merged and unmerged, and trained with the zeros held."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False)
    adapted = get_peft_model(copy.deepcopy(model), config)
    adapted.merge_adapter()
    adapted.unmerge_adapter()
    adapted.unload().save_pretrained(out / "unmerged")
    yield "LoRA, merged and unmerged", out / "unmerged"
    adapted = get_peft_model(copy.deepcopy(model), config)
    trained(adapted, torch.optim.AdamW(adapted.parameters(), lr=1e-3))
    merged = adapted.merge_and_unload()
    merged.save_pretrained(out / "merged")
    yield "LoRA, merged", out / "merged"
    held = hold_zeros(merged, out.parent / "t", torch.optim.SGD(merged.parameters(), lr=0.0))
    held.put_on_(merged)
    merged.save_pretrained(out / "held")
    yield "LoRA, merged, zeros held", out / "held"


def adapters(base: Path, out: Path, model: Any) -> Made:
    """Adapters of other kinds, merged."""
    import peft

    kinds = {
        "DoRA": peft.LoraConfig(r=8, target_modules="all-linear", use_dora=True),
        "IA3": peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"],
                              feedforward_modules=["down_proj"]),
        "OFT": peft.OFTConfig(oft_block_size=32, target_modules="all-linear"),
        "VeRA": peft.VeraConfig(r=8, target_modules=["q_proj", "o_proj"]),
    }  # fmt: skip
    for label, config in kinds.items():
        adapted = peft.get_peft_model(copy.deepcopy(model), config)
        trained(adapted, torch.optim.AdamW(adapted.parameters(), lr=1e-2), steps=20)
        adapted.merge_and_unload().save_pretrained(out / label)
        yield f"{label}, merged", out / label


def ema(base: Path, out: Path, model: Any) -> Made:
    """An average that was built before the pruning, and one that `hold_zeros` was told of."""
    from timm.utils import ModelEmaV3

    for held in (False, True):
        dense, one = copy.deepcopy(model), copy.deepcopy(model)
        for weight in dense.parameters():
            weight.data += 0.02 * torch.randn_like(weight)
        average = ModelEmaV3(dense, decay=0.999)
        optimizer = torch.optim.AdamW(one.parameters(), lr=1e-3)
        if held:
            hold_zeros(one, out.parent / "t", optimizer).put_on_(average.module)
        trained(one, optimizer, after=lambda one=one, average=average: average.update(one))
        average.module.save_pretrained(out / f"{held}")
        yield f"ModelEmaV3 from before the pruning{', put_on_' if held else ''}", out / f"{held}"
