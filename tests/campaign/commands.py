"""The commands that are killed and interrupted, and what must hold of a folder afterwards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from campaign.forking import COMMON, LENET, run
from campaign.loopback import REPOSITORY, Loopback

FINAL = "new"


@dataclass(frozen=True)
class Command:
    """A command that writes the folder `new`; one that pushes it has a hub."""

    name: str
    arguments: tuple[str, ...]
    hub: Loopback | None = None


def commands(tools: Path, hub: Loopback) -> dict[str, Command]:
    """Every command by name; `tools` is made to hold what they read."""
    search = ["search", *LENET, *COMMON]
    for name, method in (("one", "magnitude"), ("two", "random")):  # masks of the same weights
        done = run(tools, [*search, "--method", method, "-o", str(tools / name)])
        if done.code:
            raise SystemExit(done.err)
    _masked(tools / "masked")
    one, two, out = str(tools / "one"), str(tools / "two"), ("-o", FINAL)
    export = ("export", one, "--format", "auto", *out)
    made = [
        Command("search", (*search, "--set", "training.selections=2", *out)),
        Command("export", export),
        Command("merge", ("tickets", "merge", one, two, "--op", "or", *out)),
        Command("compare", ("compare", *LENET, "--quiet", "--methods", "magnitude,random",
                            "--seeds", "1", "--set", "evaluation.limit=100", *out)),
        Command("import", ("import", str(tools / "masked"), *out)),
        Command("push", (*export, "--push-to-hub", REPOSITORY), hub),
    ]  # fmt: skip
    return {command.name: command for command in made}


def _masked(folder: Path) -> None:
    """A small checkpoint with masks beside its weights: importing it writes an origin, too."""
    import torch
    import transformers
    from safetensors.torch import load_file, save_file

    from slt_compress.checkpoints.quiet import quiet

    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        image_size=16, patch_size=8, num_labels=3,
    )  # fmt: skip
    with quiet():
        transformers.ViTForImageClassification(config).save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name, tensor in tensors.items() if tensor.dim() == 2]:
        tensors[f"{name}_orig"] = tensors.pop(name)
        tensors[f"{name}_mask"] = (tensors[f"{name}_orig"] > 0).float()
    save_file(tensors, folder / "model.safetensors")
    assert torch.get_num_threads() == 1


def is_whole(command: Command, folder: Path) -> bool:
    """Whether what lies under the final name is whole: it opens, and its hashes agree."""
    from slt_compress.errors import SltError
    from slt_compress.runtime.opening import open_path

    final = folder / FINAL
    try:
        if command.name == "compare":
            rows = json.loads((final / "compare.json").read_text())["rows"]
            return all((folder / row["ticket"]).is_dir() for row in rows if row["ticket"])
        open_path(final)
    except (SltError, ValueError, OSError):
        return False
    return True


def exists(command: Command, folder: Path) -> bool:
    """Whether there is anything under the final name."""
    final = folder / FINAL
    if command.name == "compare":  # its folder is made first, and its rows are what counts
        return (final / "compare.json").exists()
    return final.exists()


def pushed(command: Command, folder: Path) -> list[str]:
    """What is wrong with the repository on the hub, if there is one: it has all files or none."""
    if command.hub is None or not command.hub.repository.exists():
        return []
    wanted = {file.name for file in (folder / FINAL).iterdir()} if exists(command, folder) else None
    found = {file.name for file in command.hub.repository.iterdir()}
    if not found:
        return ["an empty repository was left"]
    if wanted is None:
        return ["pushed what is not there"]
    return [] if found == wanted - {"run.json"} else [f"pushed {sorted(found)}"]


def litter(folder: Path, *, progress: bool) -> Iterator[str]:
    """What no finished command leaves: unfinished files and folders, origins without tickets.

    With `progress` that includes the states of searches, from which an interrupted one goes on.
    """
    for path in folder.rglob("*"):
        alone = path.name == f"{FINAL}-origin" and not (folder / FINAL).exists()
        if ".part-" in path.name or alone or (progress and path.name.endswith(".search")):
            yield str(path.relative_to(folder))


def cleared(command: Command, folder: Path) -> None:
    """Remove what a run left, on the hub too."""
    shutil.rmtree(folder)
    if command.hub is not None:
        command.hub.forget()
