"""The whole path on a small instance of every family: search, export, load, equal outputs.

    python -m tests.zoo.pipeline ROWS.jsonl [timm|transformers] [NAME…]

One row for each instance is added to the file; what is there already is not run again. An instance
that ends the process (by memory or a crash below Python) is marked as such at the next start.
"""

from __future__ import annotations

import json
import re
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import slt_compress
from slt_compress import Budget, Recipe, Training
from slt_compress.anatomy.states import set_buffers, site_parameters
from slt_compress.checkpoints import TASKS, open_checkpoint, sketch_checkpoint
from slt_compress.checkpoints.quiet import quiet
from slt_compress.errors import ArtifactError
from slt_compress.gates import Relaxed
from slt_compress.masks import masked_weight
from slt_compress.searching.recording import record, target_of
from slt_compress.searching.search import Search
from slt_compress.searching.settings import with_defaults
from slt_compress.searching.workloads import own_workload
from slt_compress.sites.sites import find_sites
from tests.zoo.inputs import Inputs, candidates, pictures_for, tensors
from tests.zoo.libraries import default_config, has_class, timm_names, transformers_types
from tests.zoo.shrinking import DIVISORS, shrunk, timm_arguments

LIMIT_SECONDS = 90
LIMIT_WEIGHTS = 20_000_000
RECIPE = Recipe(
    target_sparsity=0.5,
    training=with_defaults(
        Training(steps=2, batch_size=2, selections=0, device="cpu"),
        Relaxed(),
        Budget(density=0.5),
        random_init=False,
    ),
)


class UnfitError(Exception):
    """The instance itself cannot be made or fed; says nothing about the product."""


def names_of(library: str) -> list[str]:
    """The instances of a library: a member of each family of timm, every type of transformers."""
    return families() if library == "timm" else list(filter(has_class, transformers_types()))


def families() -> list[str]:
    """The smallest architecture of each family of timm: of each file, by the first word."""
    import timm

    found: dict[tuple[str, str], list[str]] = {}
    for name in timm_names():
        word = re.match(r"[a-z]+", name)
        found.setdefault(
            (timm.model_entrypoint(name).__module__, word.group() if word else name), []
        ).append(name)
    return [min(names, key=_weights) for names in found.values()]


def _weights(name: str) -> int:
    import timm

    with torch.device("meta"), quiet():
        return sum(p.numel() for p in timm.create_model(name).parameters())


def walk_path(library: str, name: str, folder: Path) -> dict[str, Any]:
    """Search, export, load and compare one instance; facts about it.

    Raises:
        UnfitError: it cannot be made or fed.
        Exception: whatever went wrong in the product.
    """
    source, inputs = make_timm(name, folder) if library == "timm" else make_type(name, folder)
    checkpoint = open_checkpoint(source)
    module = checkpoint.module
    sites = find_sites(module, gate_head=not checkpoint.trained_head)
    result = Search(
        module=module, plan=sites, workload=own_workload(module, [inputs], loss_of),
        budget=RECIPE.budget(), method=RECIPE.method_instance(), training=RECIPE.training,
        random_init=False,
    ).run()  # fmt: skip
    target = target_of(str(source), RECIPE, folder / "ticket", folder)
    ticket = record(target, checkpoint, None, RECIPE, result=result, started=time.monotonic())
    expected = reference(source, result.masks, result.buffers, inputs)
    loaded = slt_compress.load(ticket.path)
    notes = [] if same(outputs(loaded, inputs), expected) else ["ticket: other outputs"]
    for format in ("sparse-csr", "dense"):
        try:
            made = slt_compress.export(ticket.path, format=format, out=folder / format)
        except ArtifactError as error:
            if "computed by a parametrization" not in str(error):
                raise
            continue
        if not same(outputs(slt_compress.load(made.path), inputs), expected):
            notes.append(f"{format}: other outputs")
    proof = slt_compress.verify(ticket.path, in_process=True)
    notes += [f"verify: {check.detail}" for check in proof.checks if not check.ok]
    facts = {
        "task": checkpoint.task,
        "inputs": sorted(inputs),
        "parameters": sum(p.numel() for p in module.parameters()),
        "sites": len(sites.sites),
    }
    return {**facts, "outcome": "failed" if notes else "equal", "error": "; ".join(notes)}


def reference(
    source: Path, masks: Mapping[str, Tensor], buffers: Mapping[str, Tensor], inputs: Inputs
) -> list[Tensor]:
    """Outputs of the origin with its weights masked by hand."""
    module = open_checkpoint(source).module
    shapes = {name: tuple(mask.shape) for name, mask in masks.items()}
    for name in shapes:
        path, _, param = name.rpartition(".")
        owner = module.get_submodule(path)
        if nn.utils.parametrize.is_parametrized(owner, param):
            nn.utils.parametrize.remove_parametrizations(owner, param)
    with torch.no_grad():
        for name, weight in site_parameters(module, shapes).items():
            weight.copy_(masked_weight(weight, masks[name], 1.0))
    set_buffers(module, buffers)
    return outputs(module, inputs)


def outputs(module: nn.Module, inputs: Inputs) -> list[Tensor]:
    torch.manual_seed(0)  # some models draw what they mask
    with torch.no_grad(), quiet():
        return tensors(module.eval()(**inputs))


def same(found: list[Tensor], expected: list[Tensor]) -> bool:
    return len(found) == len(expected) and all(
        torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)
        for a, b in zip(found, expected, strict=True)
    )


def loss_of(module: nn.Module, batch: Inputs) -> Tensor:
    torch.manual_seed(0)
    found = [t.float().clamp(-1e3, 1e3).square().mean() for t in tensors(module(**batch)) if len(t)]
    learning = [value for value in found if value.requires_grad]
    return torch.stack(learning or found).sum()


def make_timm(name: str, folder: Path) -> tuple[Path, Inputs]:
    """A checkpoint folder of a small instance, and pictures that it takes."""
    import timm
    from safetensors.torch import save_file
    from timm.models._hub import save_config_for_hf

    reasons: list[str] = []
    for arguments in timm_arguments():
        size = arguments.pop("_size", None) or arguments["img_size"]
        try:
            with quiet():
                torch.manual_seed(0)
                module = timm.create_model(name, num_classes=5, **arguments).eval()
            inputs = pictures_for(size)
            outputs(module, inputs)
        except Exception as error:
            reasons.append(repr(error))
            continue
        if sum(p.numel() for p in module.parameters()) > LIMIT_WEIGHTS:
            reasons.append("too large for this test")
            continue
        source = folder / "origin"
        source.mkdir()
        # weights under several names are several times in timm's own files too
        weights = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        save_file(weights, source / "model.safetensors")
        save_config_for_hf(module, str(source / "config.json"), model_args=arguments)
        return source, inputs
    raise UnfitError(reasons[-1][:200])


def make_type(kind: str, folder: Path) -> tuple[Path, Inputs]:
    """A checkpoint folder of a shrunk config, and inputs that its model takes."""
    config, reason = default_config(kind), ""
    for divisor in DIVISORS:
        small, reasons = shrunk(config, divisor), []
        try:
            module = build(small, folder / f"config-{divisor}")
        except Exception as error:
            reason = str(error)
            continue
        for inputs in candidates(module, small):
            try:
                found = outputs(module, inputs)
            except Exception as error:
                reasons.append(repr(error))
                continue
            if found and all(bool(t.isfinite().any()) for t in found if t.numel()):
                source = folder / "origin"
                try:
                    with quiet():
                        module.save_pretrained(source)
                except Exception as error:  # a shrunk config that the library cannot write
                    reasons.insert(0, f"cannot be saved: {error!r}")
                    break
                return source, inputs
        reason = reasons[0] if reasons else "no inputs are known for its main input"
    raise UnfitError(reason[:200])


def build(config: Mapping[str, Any], folder: Path) -> nn.Module:
    """The model of a config with the library's own random weights and the first head it has."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    order = ("causal-lm", "masked-lm", "seq2seq", *TASKS)
    last: Exception | None = None
    for task in dict.fromkeys(order):
        try:
            sketch = sketch_checkpoint(folder, task=task)  # type: ignore[arg-type]
        except slt_compress.SltError as error:
            last = error
            continue
        if sum(p.numel() for p in sketch.module.parameters()) > LIMIT_WEIGHTS:
            raise UnfitError("too large for this test")
        return open_checkpoint(folder, init="default", task=task).module  # type: ignore[arg-type]
    raise UnfitError(str(last))


@contextmanager
def time_limit(seconds: int) -> Iterator[None]:
    """Of the processor's time: a machine that others use too is no reason to give up."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"more than {seconds} s of processor time")

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def row_of(library: str, name: str) -> dict[str, Any]:
    started = time.monotonic()
    row: dict[str, Any] = {"library": library, "name": name}
    try:
        with tempfile.TemporaryDirectory() as folder, time_limit(LIMIT_SECONDS):
            row |= walk_path(library, name, Path(folder))
    except UnfitError as error:
        row |= {"outcome": "unfit", "error": str(error)}
    except Exception as error:
        row |= {"outcome": "failed", "error": " ".join(repr(error).split())[:400]}
    return {**row, "seconds": round(time.monotonic() - started, 1)}


def main(arguments: list[str]) -> None:
    file, names = Path(arguments[0]), arguments[2:]
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    done = {(row["library"], row["name"]): row for row in map(json.loads, lines)}
    libraries = arguments[1:2] or ["timm", "transformers"]
    torch.set_num_threads(1)
    with file.open("a", encoding="utf-8") as out:
        for library in libraries:
            for name in names or names_of(library):
                before = done.get((library, name))
                if before is None:
                    print(json.dumps({"library": library, "name": name}), file=out, flush=True)
                    row = row_of(library, name)
                elif "outcome" not in before:
                    row = {**before, "outcome": "failed", "error": "ended the process"}
                else:
                    continue
                print(json.dumps(row), file=out, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
