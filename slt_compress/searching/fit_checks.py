"""Fit checks: whether a model can read its data, seen before the first step of a search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from slt_compress.checkpoints import Checkpoint
from slt_compress.data import RawData, SearchData
from slt_compress.data.batches import generator
from slt_compress.errors import DataError, SltError

_EXAMPLES = 2
# `problem_type` of transformers, for a random init whose head follows the labels.
_SEVERAL, _NUMBERS = "multi_label_classification", "regression"


def head_options(
    checkpoint: Checkpoint, options: Mapping[str, Any], raw: RawData | None
) -> Mapping[str, Any]:
    """Options of a random init, with the `problem_type` that the labels of its data ask for."""
    if raw is None or checkpoint.init is None or checkpoint.family != "transformers":
        return options
    problem = _NUMBERS if raw.regression else _SEVERAL if raw.several else None
    if problem is None or checkpoint.num_classes is None or "problem_type" in options:
        return options
    return {**options, "problem_type": problem}


def check_fits(checkpoint: Checkpoint, data: SearchData, *, frozen: bool) -> None:
    """Run the model on a few examples, and on the longest text that it may be given.

    Args:
        checkpoint: the model, on the CPU.
        data: what it is searched on.
        frozen: whether BatchNorm keeps its statistics during the search.

    Raises:
        DataError: the model cannot read them; says what does not fit.
    """
    source: Any = data.train.source
    count = min(_EXAMPLES, len(source), data.train.batch_size)
    batch = source.batch(torch.arange(count), generator("fit"))
    _run(checkpoint, batch, f"{checkpoint.source} cannot read {data.spec}")
    length = getattr(getattr(source, "text", None), "length", None)
    if length is not None and batch["input_ids"].shape[1]:
        _run(
            checkpoint, _longest(batch, length),
            f"{checkpoint.source} cannot read {length} tokens, the most that a text is cut to (set "
            "a smaller data.max_length)",
        )  # fmt: skip
    if count == 1 and not frozen:
        with _training(checkpoint.module):
            _run(
                checkpoint, batch,
                "BatchNorm cannot learn from a batch of one example (use --batch-size 2 or more, "
                "or --set training.batchnorm=frozen)",
            )  # fmt: skip


def _longest(batch: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """One row of tokens as long as any can be, made by repeating those of the first row."""
    width = batch["input_ids"].shape[1]
    return {
        name: value[:1].repeat(1, -(-length // value.shape[1]))[:, :length]
        if value.dim() == 2 and value.shape[1] == width and not value.is_floating_point()
        else value[:1]
        for name, value in batch.items()
    }


def _run(checkpoint: Checkpoint, batch: Mapping[str, Tensor], what: str) -> None:
    module = checkpoint.module
    floats = (p.dtype for p in module.parameters() if p.is_floating_point())
    dtype = next(floats, torch.float32)
    inputs = {k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()}
    try:
        with torch.no_grad():  # a checkpoint is in eval mode as it is opened
            checkpoint.forward(module, inputs)
    except (SltError, torch.OutOfMemoryError, NotImplementedError):
        raise
    except Exception as error:  # a model raises whatever its library happens to meet first
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items())
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(f"{what}: on inputs of {shapes} it says {said!r}") from error


@contextmanager
def _training(module: nn.Module) -> Iterator[None]:
    """BatchNorm in training mode inside this block; its statistics stay as they are."""
    norms = [child for child in module.modules() if isinstance(child, _BatchNorm)]
    kept = {id(norm): {k: b.clone() for k, b in norm.named_buffers(recurse=False)}
            for norm in norms}  # fmt: skip
    try:
        for norm in norms:
            norm.train()
        yield
    finally:
        for norm in norms:
            norm.eval()
            for name, value in kept[id(norm)].items():
                norm.get_buffer(name).copy_(value)
