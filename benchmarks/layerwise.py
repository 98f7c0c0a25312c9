"""Layer errors and perplexity of `swaps` beside Wanda's, on windows of a text.

    python benchmarks/layerwise.py errors --source MODEL --calibration FILE.parquet --out FILE.json
    python benchmarks/layerwise.py perplexity --source MODEL --calibration FILE.parquet \\
        --test FILE.parquet --out FILE.json

`errors` goes through the dense network block by block. Each site gets a mask by either method from
the same calibration windows, and the error of its output on those windows and on others behind
them. `perplexity` masks the whole network by either method in turn and measures the first windows
of the test text. MODEL is the folder of a causal language model, for `errors` also of an encoder; a
text is a parquet or jsonl file with a column `text`, joined without separator and cut into windows,
which an encoder reads between its special tokens. Rows are written as they come.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from functools import partial
from math import exp
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import torch
from surroundings import surroundings
from torch import Tensor, nn

import slt_compress
from slt_compress.anatomy.states import evaluating
from slt_compress.gates import METHODS, Method
from slt_compress.gates.exchanges import row_errors
from slt_compress.gates.gating import gated
from slt_compress.masks import Masks
from slt_compress.searching.block_passes import Stage, Stream, stages_of
from slt_compress.searching.first_scores import first_scores
from slt_compress.searching.input_grams import as_matrix, seen_grams
from slt_compress.searching.permuting import permuted_plan
from slt_compress.searching.swapping import Swapping
from slt_compress.sites.budget import Budget, binarize
from slt_compress.sites.fitting import plan_sites
from slt_compress.sites.sites import SitePlan

CASES = {"50": (0.5, "unstructured"), "60": (0.4, "unstructured"), "2:4": (0.5, "2:4")}


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("errors", "perplexity"))
    parser.add_argument("--source", required=True)
    parser.add_argument("--calibration", required=True, type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument(
        "--methods", nargs="+", default=["wanda", "swaps"],
        help='names, options as JSON behind: swaps{"pool":8}',
    )  # fmt: skip
    parser.add_argument("--windows", type=int, default=64)
    parser.add_argument("--skip", type=int, default=0, help="test windows in front to leave out")
    parser.add_argument("--test-windows", type=int, default=16)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=4, help="windows in a batch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--permute", action="store_true", help="N:M in an order of the inputs")
    parser.add_argument("--out", required=True, type=Path)
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    settings = {
        key: value.name if isinstance(value, Path) else value
        for key, value in vars(arguments).items()
        if key not in ("out", "source")
    }
    for row in {"errors": errors, "perplexity": perplexities}[arguments.what](arguments):
        rows.append(row)
        said = {key: value for key, value in row.items() if key != "sites"}
        print(json.dumps(said), file=sys.stderr, flush=True)
        content = {"model": Path(arguments.source).name, "settings": settings, "rows": rows,
                   **surroundings()}  # fmt: skip
        arguments.out.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def opened(source: str) -> tuple[nn.Module, Any]:
    """The model and its tokenizer."""
    from transformers import AutoTokenizer

    checkpoint = slt_compress.open_checkpoint(source)
    return checkpoint.module.eval(), AutoTokenizer.from_pretrained(source)


def windows(tokenizer: Any, file: Path, length: int) -> Tensor:
    """All whole windows of a text, [windows, length]."""
    read = partial(pd.read_json, lines=True) if file.suffix == ".jsonl" else pd.read_parquet
    text = "".join(read(file)["text"])
    ids = tokenizer(text, return_tensors="pt", verbose=False).input_ids[0]
    first, last = tokenizer.cls_token_id, tokenizer.sep_token_id
    if first is None or last is None:
        return ids[: len(ids) // length * length].view(-1, length)
    inner = length - 2
    cut = ids[1:-1][: (len(ids) - 2) // inner * inner].view(-1, inner)
    return nn.functional.pad(nn.functional.pad(cut, (1, 0), value=first), (0, 1), value=last)


def logits_of(module: nn.Module, ids: Tensor) -> Tensor:
    """One forward pass; the last hidden states of a model without a head."""
    options = {"use_cache": False} if hasattr(module, "lm_head") else {}
    output: Tensor = module(input_ids=ids, **options)[0]
    return output


def method_of(text: str) -> Method:
    """A method from its name and options."""
    name, brace, options = text.partition("{")
    method: Method = METHODS[name](**json.loads(brace + options) if brace else {})
    return method


def errors(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each case: the errors of the sites by either method, and their ratios."""
    module, tokenizer = opened(arguments.source)
    texts = windows(tokenizer, arguments.calibration, arguments.length)
    batches = list(texts[: arguments.windows].split(arguments.batch))
    others = list(texts[arguments.windows :][: arguments.windows // 4].split(arguments.batch))
    plans = {case: plan_sites(module, None, budget_of(case), gate_head=False) for case in CASES}
    plan = plans["50"]
    sites: dict[str, list[dict[str, Any]]] = {case: [] for case in arguments.cases}
    with torch.no_grad(), evaluating(module):
        for stage, calibration, fresh in dense_grams(module, plan, batches, others):
            for case in arguments.cases:
                sites[case] += site_errors(
                    module, plans[case], stage, case, calibration, fresh, arguments
                )
            print(stage.module, file=sys.stderr, flush=True)
    for case, found in sites.items():
        yield {"case": case, "sites": found, "ratio": mean_ratios(found)}


def dense_grams(
    module: nn.Module, plan: SitePlan, batches: list[Tensor], others: list[Tensor]
) -> Iterator[tuple[Stage, Mapping[str, Tensor], Mapping[str, Tensor]]]:
    """Every stage with the Gram matrices of its sites on the batches, and on others."""

    def run(ids: Tensor) -> Tensor:
        return logits_of(module, ids)

    streams = [Stream(module=module, run=run, batches=given) for given in (batches, others)]
    for stage in stages_of(module, plan, run, others[0]):
        grams = []
        for stream in streams:
            with seen_grams(module, stage.sites) as seen:
                stream.advance(stage)
            means = {name: gram.mean() for name, gram in seen.items()}
            grams.append({name: mean[0] for name, mean in means.items() if mean is not None})
        yield stage, grams[0], grams[1]


def site_errors(
    module: nn.Module,
    plan: SitePlan,
    stage: Stage,
    case: str,
    calibration: Mapping[str, Tensor],
    fresh: Mapping[str, Tensor],
    arguments: argparse.Namespace,
) -> list[dict[str, Any]]:
    """The errors of the sites of a stage by each method, relative to the energy of its output."""
    names = {site.name for site in stage.sites}
    part = SitePlan(sites=tuple(s for s in plan.sites if s.name in names), skipped={})
    weights = {site.name: module.get_parameter(site.name).detach() for site in part.sites}
    rows = []
    for site in part.sites:
        weight = as_matrix(site, weights[site.name])
        row: dict[str, Any] = {"site": site.name}
        for text in arguments.methods:
            started = time.monotonic()
            swapping = Swapping(
                module=module, plan=SitePlan(sites=(site,), skipped={}),
                method=METHODS["swaps"](diagonal=1.0) if text == "wanda" else method_of(text),
                budget=budget_of(case), weights=weights, batches=[],
                forward=logits_of, seed=arguments.seed,
            )  # fmt: skip
            mask = as_matrix(site, swapping.site_mask(site, calibration[site.name][None]))
            seconds = time.monotonic() - started
            row[text] = {
                "calibration": relative(weight, mask, calibration[site.name]),
                "held_out": relative(weight, mask, fresh[site.name]),
                "kept": int(mask.sum()), "seconds": round(seconds, 3),
            }  # fmt: skip
        rows.append(row)
    return rows


def relative(weight: Tensor, mask: Tensor, gram: Tensor) -> float:
    """Error of the output of a layer over the energy of the output."""
    energy = row_errors(weight, torch.zeros_like(mask), gram).sum()
    return float(row_errors(weight, mask, gram).sum() / energy)


def mean_ratios(sites: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Mean over the sites of the error of each method over the first method's."""
    methods = [key for key in sites[0] if key != "site"]
    return {
        method: {
            key: fmean(site[method][key] / site[methods[0]][key] for site in sites)
            for key in ("calibration", "held_out")
        }
        for method in methods
    }


def budget_of(case: str) -> Budget:
    """The budget of a case."""
    density, pattern = CASES[case]
    return Budget(density=density, pattern=pattern)


def perplexities(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """A row for each case and method, in turn; in front the dense network."""
    module, tokenizer = opened(arguments.source)
    texts = windows(tokenizer, arguments.calibration, arguments.length)
    batches = list(texts[: arguments.windows].split(arguments.batch))
    test = windows(tokenizer, arguments.test, arguments.length)[arguments.skip :]
    test = test[: arguments.test_windows]
    yield {"case": "dense", "perplexity": perplexity(module, test)}
    for case in arguments.cases:
        budget = budget_of(case)
        plan = plan_sites(module, None, budget, gate_head=False)
        weights = {site.name: module.get_parameter(site.name).detach() for site in plan.sites}
        if arguments.permute and budget.shape.kind == "n:m":
            plan = permuted_plan(module, plan, weights, batches, logits_of)
        for text in arguments.methods:
            started, worked = time.monotonic(), time.process_time()
            scores, notes = first_scores(
                module, plan, method_of(text), weights, batches, logits_of,
                budget=budget, random_init=False, seed=arguments.seed,
            )  # fmt: skip
            masks = binarize(scores, budget, plan.layouts)
            seconds, cpu = time.monotonic() - started, time.process_time() - worked
            del scores
            yield {
                "case": case, "method": text, "perplexity": masked_perplexity(
                    module, plan, masks, test
                ),
                "kept": sum(int(mask.sum()) for mask in masks.values()), "gated": plan.gated,
                "seconds": round(seconds, 1), "cpu_seconds": round(cpu, 1), "notes": list(notes),
            }  # fmt: skip


def masked_perplexity(module: nn.Module, plan: SitePlan, masks: Masks, test: Tensor) -> float:
    """Perplexity of the network with a mask on."""
    with gated(module, plan) as gates:
        gates.mask(masks, {})
        return perplexity(module, test)


@torch.no_grad()
def perplexity(module: nn.Module, test: Tensor) -> float:
    """exp of the mean loss of the next token, over all windows."""
    losses = [
        torch.nn.functional.cross_entropy(logits_of(module, ids[None])[0, :-1], ids[1:]).item()
        for ids in test
    ]
    return exp(fmean(losses))


if __name__ == "__main__":
    main()
