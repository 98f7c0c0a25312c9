"""The commands that are killed and interrupted, and what must hold of a folder afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from campaign.forking import COMMON, LENET, run

NAMES = ("search", "export", "merge", "compare", "import")


@dataclass(frozen=True)
class Command:
    """A command that writes `final` in a folder."""

    name: str
    arguments: tuple[str, ...]
    final: str


def commands(tools: Path) -> dict[str, Command]:
    """Every command by name; `tools` is made to hold what they read."""
    search = ["search", *LENET, *COMMON]
    for name, seed in (("one", "0"), ("two", "1")):
        # merge takes two masks of the same weights
        done = run(tools, [*search, "--method", "magnitude" if seed == "0" else "random",
                           "-o", str(tools / name)])  # fmt: skip
        if done.code:
            raise SystemExit(done.err)
    _pruned(tools / "pruned")
    made = {
        "search": (*search, "-o", "new"),
        "export": ("export", str(tools / "one"), "--format", "auto", "-o", "new"),
        "merge": ("tickets", "merge", str(tools / "one"), str(tools / "two"), "--op", "or",
                  "-o", "new"),
        "compare": ("compare", *LENET, "--quiet", "--methods", "magnitude,random", "--seeds", "1",
                    "--set", "evaluation.limit=100", "-o", "new"),
        "import": ("import", str(tools / "pruned"), "-o", "new"),
    }  # fmt: skip
    return {name: Command(name, arguments, "new") for name, arguments in made.items()}


def _pruned(folder: Path) -> None:
    """A small checkpoint with zeros."""
    import torch
    import transformers

    from slt_compress.checkpoints.quiet import quiet

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=8, num_labels=3,
    )  # fmt: skip
    module = transformers.ViTForImageClassification(config)
    with torch.no_grad(), quiet():
        for parameter in module.parameters():
            if parameter.dim() == 2:
                parameter.masked_fill_(parameter < 0, 0)
        module.save_pretrained(folder)


def is_whole(command: Command, folder: Path) -> bool:
    """Whether what lies under the final name is whole: it opens, and its hashes agree."""
    from slt_compress.errors import SltError
    from slt_compress.runtime.opening import open_path

    final = folder / command.final
    try:
        if command.name == "compare":
            rows = json.loads((final / "compare.json").read_text())["rows"]
            return all((Path(folder) / row["ticket"]).is_dir() for row in rows if row["ticket"])
        open_path(final)
    except (SltError, ValueError, OSError):
        return False
    return True


def exists(command: Command, folder: Path) -> bool:
    """Whether there is anything under the final name."""
    final = folder / command.final
    if command.name == "compare":  # its folder is made first, and its rows are what counts
        return (final / "compare.json").exists()
    return final.exists()


def litter(folder: Path) -> Iterator[str]:
    """What no finished command leaves: unfinished files and folders, and states of searches."""
    for path in folder.rglob("*"):
        if ".part-" in path.name or path.name.endswith(".search"):
            yield str(path.relative_to(folder))
