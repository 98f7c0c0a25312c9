"""Changed, removed and added files, and changed manifests: `verify` fails, or nothing changed."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from campaign.commands import commands
from campaign.forking import run
from campaign.loopback import Loopback

Record = dict[str, Any]
ROOTS = ("ticket.json", "slt.json")
SPARED = ("README.md", "run.json")  # the user's to edit, and not part of the evidence
FORMATS = ("dense", "auto", "mask", "sparse-csr", "coded")


def digest(folder: Path) -> str:
    """A hash of the model in a folder: every tensor, and what it gives for fixed inputs."""
    from slt_compress.runtime.opening import open_path
    from slt_compress.storage.files import sha256_tensors

    checkpoint = open_path(folder).checkpoint
    image = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        outputs = checkpoint.module(image)
    return sha256_tensors({**checkpoint.module.state_dict(), "outputs": outputs})


def passes(folder: Path, whole: str) -> bool:
    """Whether `verify` says that a folder is right, and the folder is of another model."""
    from slt_compress import SltError, verify

    try:
        return verify(folder, in_process=True).ok and digest(folder) != whole
    except SltError:
        return False


def tampering(root: Path, chance: random.Random, hub: Loopback) -> Iterator[Record]:
    """A changed, removed or added config, companion, probe or argument: `verify` must fail.

    A flip in a manifest, which no hash covers, may also leave the model exactly what it was.
    """
    tools = root / "tools"
    commands(tools, hub)
    folders = {"ticket": tools / "one"}
    for format in FORMATS:
        folders[format] = tools / format
        run(tools, ["export", str(tools / "one"), "--format", format, "-o", str(tools / format)])
    digests = {format: digest(folder) for format, folder in folders.items()}
    while True:
        for format, whole in folders.items():
            folder = root / "tampered"
            shutil.copytree(whole, folder)
            file = chance.choice([file for file in sorted(folder.iterdir())
                                  if file.name not in SPARED and file.stat().st_size])  # fmt: skip
            what, strict = _tampered(file, chance)
            bad = passes(folder, "" if strict else digests[format])
            shutil.rmtree(folder)
            yield {"format": format, "file": file.name, "what": what,
                   "bad": ["verify passed"] * bad}  # fmt: skip


def _tampered(file: Path, chance: random.Random) -> tuple[str, bool]:
    """Change a file; what was done, and whether `verify` has to notice it in any case."""
    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little") if file.suffix == ".safetensors" else len(data)
    # the quotes around the word are escaped in the header of a file
    is_root = file.name in ROOTS or b"slt-artifact" in data[:start]
    match chance.randrange(5):
        case 0 if file.name in ROOTS:
            return _argument(file, json.loads(data), chance), True
        case 0:
            file.unlink()
            return "removed", True
        case 1 if file.suffix == ".json" and not is_root:
            content = json.loads(data)
            content[chance.choice(sorted(content))] = "changed"
            file.write_text(json.dumps(content))
            return "another value", True
        case 2 if not is_root:
            (file.parent / "preprocessor_config.json").write_text("{}")
            file.write_bytes(data[: len(data) // 2])
            return "cut, and a file added", True
        case 3 if is_root:
            return _number(file, data, start, chance), False
        case _:
            at = chance.randrange(len(data))
            file.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            # what a manifest says may be flipped without a change of the model
            return f"bit 0 of byte {at}", not is_root or at >= start


def _argument(file: Path, content: dict[str, Any], chance: random.Random) -> str:
    """Change what builds the model, or take its proof away, in a manifest in JSON."""
    origin = content["origin"] if "origin" in content else content["provenance"]["origin"]
    what = chance.choice(("classes", "architecture", "seed", "probe"))
    if what == "classes":
        origin["config"]["num_classes"] = 11
    elif what == "architecture":
        origin["config"]["architecture"] = "conv-2"
    elif what == "seed":
        origin["init"]["seed"] += 1
    else:
        (file.parent / "probe.safetensors").unlink()
        content["probe"] = None
        content["files"].pop("probe.safetensors", None)
    file.write_text(json.dumps(content))
    return f"another {what}"


def _number(file: Path, data: bytes, start: int, chance: random.Random) -> str:
    """Change one digit of a manifest, which is in the header where the file has one."""
    digits = [at for at in range(min(start, len(data))) if data[at : at + 1].isdigit()]
    at = chance.choice(digits)
    other = chance.choice([digit for digit in b"0123456789" if digit != data[at]])
    file.write_bytes(data[:at] + bytes([other]) + data[at + 1 :])
    return f"digit {at} is {chr(other)}"
