"""The command that plans every model of both libraries and writes `docs/coverage.md`.

    python -m tests.zoo.coverage PLANS.jsonl PIPELINE.jsonl

Rows of plans are added to the first file as they are made, so an interrupted run goes on where it
stopped; the second one is that of `tests.zoo.pipeline`.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.zoo.libraries import timm_names, transformers_types
from tests.zoo.planning import Row, row_of

PAGE = Path(__file__).parents[2] / "docs" / "coverage.md"
ENOUGH = 0.97
# Found by models that ended the process, and worked around in slt_compress/convolutions.py.
_ONEDNN = """
`fastvit_t8`, `mobileone_s1` and `repvgg_a0` ended the process before, by a fault of
[oneDNN](https://github.com/uxlfoundation/oneDNN/issues/6035) that needs no gates: the backward
pass of a strided 1x1 convolution of few channels, channels last, writes past its workspace. A
search gives such convolutions their inputs with channels first. To see it with plain torch
(glibc's checks show the first damage):

```console
$ LD_PRELOAD=libc_malloc_debug.so.0 MALLOC_CHECK_=3 OMP_NUM_THREADS=1 python -c '
> import torch
> pictures = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
> convolution = torch.nn.Conv2d(3, 48, 1, stride=2, bias=False)
> for _ in range(20): convolution(pictures).sum().backward()'
free(): invalid pointer
```
"""


def all_rows(file: Path) -> list[Row]:
    """A row for every model, made now or read from `file`."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    rows = {(row.library, row.name): row for row in (Row(**json.loads(line)) for line in lines)}
    names = [("transformers", name) for name in transformers_types()]
    names += [("timm", name) for name in timm_names()]
    with file.open("a", encoding="utf-8") as out:
        for key in names:
            if key not in rows:
                rows[key] = row_of(*key)
                print(json.dumps(rows[key].to_dict()), file=out, flush=True)
    return [rows[key] for key in names]


def page(rows: Sequence[Row], instances: Sequence[Mapping[str, Any]]) -> str:
    """The table, with every model that is an exception by its name."""
    return "\n".join([*_lines(rows), *_path(instances), *_exceptions(rows)]) + "\n"


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    yield "# Coverage"
    yield ""
    yield (
        "What `slt-compress plan` makes of every architecture of timm and every model type of "
        "transformers, built from its default config on the meta device. Made by "
        "`make coverage` (`python -m tests.zoo.coverage`) with "
        + ", ".join(f"{name} {version(name)}" for name in ("timm", "transformers", "torch"))
        + "."
    )
    yield ""
    yield (
        "| library | models | built | planned | at least 97 % gated | … bare tables counted "
        "| median gated |"
    )
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for library in ("timm", "transformers"):
        mine = [row for row in rows if row.library == library and row.outcome != "no class"]
        built = [row for row in mine if row.outcome != "not built"]
        planned = [row for row in built if row.outcome == "planned"]
        enough = sum(row.share >= ENOUGH for row in planned)
        strict = sum(row.strict_share >= ENOUGH for row in planned)
        part, strict_part = enough / len(planned), strict / len(planned)
        shares = sorted(row.share for row in planned)
        yield (
            f"| {library} | {len(mine):,} | {len(built):,} | {len(planned):,} "
            f"| {enough:,} ({part:.1%}) | {strict:,} ({strict_part:.1%}) "
            f"| {shares[len(shares) // 2]:.2%} |"
        )
    yield ""
    yield (
        "*Gated* is the share of all weights of two or more dimensions, without embeddings and "
        "what is tied to them. A table of positions or tokens is an embedding: it is added to "
        "activations or looked up, and multiplies nothing. Most models hold theirs as an "
        "`nn.Embedding`, some as a bare parameter; neither kind counts. *Bare tables counted* is "
        "the stricter share in which the second kind counts as matrices that are not gated; the "
        "models that it puts below 97 % are listed further down. Routers count as not gated in "
        "both. In every planned model sites and skipped parameters together are all parameters, "
        "each once."
    )


def _path(instances: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    done = [row for row in instances if "outcome" in row]
    yield "\n## The whole path\n"
    yield (
        "Two search steps, a ticket, its export as `sparse-csr` and `dense`, loading, `verify`: on "
        "the smallest member of each family of timm and on each type of transformers with a config "
        "shrunk by one rule, or on as many of them as one run came to "
        "(`python -m tests.zoo.pipeline`). *Equal* are those whose loaded outputs are bit for bit "
        "those of the origin with its weights masked by hand. *Unfit* are those for which the rule "
        "gives no small model that runs, or no inputs that it takes: they say nothing about the "
        "search.\n"
    )
    yield "| library | tried | equal | not equal | unfit |"
    yield "|---|--:|--:|--:|--:|"
    for library in ("timm", "transformers"):
        found = Counter(row["outcome"] for row in done if row["library"] == library)
        yield (
            f"| {library} | {found.total():,} | {found['equal']:,} | {found['failed']:,} "
            f"| {found['unfit']:,} |"
        )
    yield ""
    for row in done:
        if row["outcome"] == "failed":
            yield f"- `{row['name']}` ({row['library']}): {row['error'][:160]}"
    yield _ONEDNN
    for library in ("timm", "transformers"):
        names = sorted(
            row["name"] for row in done
            if (row["library"], row["outcome"]) == (library, "equal")
        )  # fmt: skip
        yield f"\nEqual in {library}: " + ", ".join(f"`{name}`" for name in names) + "."


def _exceptions(rows: Sequence[Row]) -> Iterator[str]:
    planned = [row for row in rows if row.outcome == "planned"]
    low = sorted((r for r in planned if r.strict_share < ENOUGH), key=lambda r: r.strict_share)
    yield "\n## Less than 97 % gated, bare tables counted\n"
    yield "| model | gated | weights that are not, by reason |"
    yield "|---|--:|---|"
    for row in low:
        reasons = ", ".join(f"{why} ({count:,})" for why, count in row.ungated.items())
        yield f"| `{row.name}` ({row.library}) | {row.strict_share:.1%} | {reasons} |"
    failed = [row for row in rows if row.outcome == "failed"]
    yield "\n## Not planned\n"
    yield from ([f"- `{r.name}` ({r.library}): {r.error}" for r in failed] or ["None."])
    yield "\n## Not built\n"
    yield "The library itself cannot build these from their default config here:\n"
    for row in rows:
        if row.outcome == "not built":
            # neither where its config lay for the moment nor where the library is installed
            said = re.sub(r" \(/\S*\)| from '/\S*", "", row.error)
            yield f"- `{row.name}`: {said.partition(': ')[2][:120] or said[:120]}"
    parts = [row.name for row in rows if row.outcome == "no class"]
    yield "\n## Types without a class\n"
    yield (
        f"{len(parts)} types of transformers are configs of parts of other models, which no auto "
        "class opens on their own: " + ", ".join(f"`{name}`" for name in parts) + "."
    )
    yield "\n## Why weights are not gated\n"
    yield "| reason | models | weights, in % of all matrices of both libraries |"
    yield "|---|--:|--:|"
    total = sum(row.matrices for row in planned)
    models: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    for row in planned:
        models.update(row.ungated.keys())
        weights.update(row.ungated)
    for reason, count in weights.most_common():
        yield f"| {reason} | {models[reason]:,} | {count / total:.3%} |"


def main(arguments: list[str]) -> None:
    plans, pipeline = (Path(argument) for argument in arguments)
    rows = all_rows(plans)
    lines = pipeline.read_text(encoding="utf-8").splitlines()
    PAGE.write_text(page(rows, [json.loads(line) for line in lines]), encoding="utf-8")
    print(f"{len(rows):,} models: {PAGE}")


if __name__ == "__main__":
    main(sys.argv[1:])
