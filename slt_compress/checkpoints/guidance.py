"""Guidance: what a folder or repository is that is no checkpoint, and what to give instead."""

from __future__ import annotations

import re
from collections.abc import Iterable

_OWN = "slt_compress.search(module, batches, loss_fn=loss_fn)"
_TRAINED = re.compile(r"checkpoint-(\d+)")


def no_checkpoint(names: Iterable[str], where: str) -> str:
    """A sentence on a place without a `config.json`, by the names of its files and folders.

    Args:
        names: as they lie there; those of a repository may have folders in front.
        where: the place, as the user gave it.
    """
    paths = list(names)
    known = set(paths) | {path.partition("/")[0] for path in paths}
    if "adapter_config.json" in known:
        return (
            f"{where} holds a PEFT adapter, not a model: merge it into its base model and give the "
            f"result: PeftModel.from_pretrained(base, {where!r}).merge_and_unload()"
            '.save_pretrained("merged")'
        )
    if "model_index.json" in known:
        return (
            f"{where} is a pipeline of diffusers, made of several models: load one of them in "
            'Python, as with from_pretrained(…, subfolder="unet"), and search it with batches and '
            f"a loss of your own: {_OWN}"
        )
    if "modules.json" in known:
        inner = sorted(name for name in known if name.endswith("_Transformer"))
        part = f"{where}/{inner[0]}" if inner else "the folder of its transformer"
        return f"{where} is a model of sentence-transformers, whose weights lie deeper: give {part}"
    if any(path.lower().endswith(".gguf") for path in paths):
        return f"{where} {GGUF}"
    steps = sorted(int(m[1]) for m in map(_TRAINED.fullmatch, known) if m)
    if steps:
        return (
            f"{where} is the output folder of a Trainer: give one of its checkpoints, such as "
            f"{where}/checkpoint-{steps[-1]}"
        )
    return f"{where} has no config.json, so it cannot be opened as a checkpoint"


GGUF = (
    "holds GGUF, which llama.cpp reads and which is quantised mostly: masks need the original "
    "weights; give the checkpoint that it was made from, in safetensors"
)
