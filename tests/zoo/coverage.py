"""The command that plans every model of both libraries and writes `docs/coverage.md`.

    python -m tests.zoo.coverage PLANS.jsonl PIPELINE.jsonl

Each plan adds a row to the first file, so an interrupted run continues where it stopped. The second
file is the one that `tests.zoo.pipeline` writes.
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
# The models that met it; slt_compress/anatomy/memory_formats.py has the workaround.
_ONEDNN = """
## A fault of oneDNN

`fastvit_t8`, `mobileone_s1` and `repvgg_a0` met
[a fault of oneDNN](https://github.com/uxlfoundation/oneDNN/issues/6035) with torch 2.14.1 (oneDNN
3.12): the backward pass of a strided 1x1 convolution with few input channels, in channels-last
layout, writes past its workspace. It needs no gates. The process of the search ended at a later
memory allocation. A search now gives such convolutions their inputs in
channels-first layout, and these three models take the whole path.
"""


def all_rows(file: Path) -> list[Row]:
    """A row for every model, planned now or read from `file`."""
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
    """The page: the tables, and every exception by name."""
    return "\n".join([*_lines(rows), *_path(instances), *_exceptions(rows)]) + "\n"


def _lines(rows: Sequence[Row]) -> Iterator[str]:
    yield "# Coverage"
    yield ""
    yield (
        "The result of `slt-compress plan` for every architecture of timm and every model type of "
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
        "*Gated* is the gated share of all weights with two or more dimensions, without "
        "embeddings and weights tied to them. A table of positions or tokens is an embedding: it "
        "is added or looked up, and multiplies nothing. Most models hold it as an `nn.Embedding`, "
        "some as a bare parameter; neither kind counts. *Bare tables counted* is stricter: bare "
        "parameters count as matrices that are not gated. The models that fall below 97 % by this "
        "share are listed below. Routers count as not gated in both. In every planned model, "
        "sites and skipped parameters together are all parameters, each exactly once."
    )


def _path(instances: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    done = [row for row in instances if "outcome" in row]
    yield "\n## The whole path\n"
    yield (
        "The whole path is two search steps, a ticket, its exports as `sparse-csr` and `dense`, "
        "loading and `verify`. It runs on the smallest member of each timm family and on each "
        "transformers type, whose config is shrunk by one rule; the table has as many of them as "
        "one run could finish (`python -m tests.zoo.pipeline`). *Equal* models have loaded "
        "outputs that are bit-identical to those of the origin with its weights masked by hand. "
        "*Unfit* models say nothing about the search: the rule gives no small model that runs, or "
        "no inputs for it.\n"
    )
    yield "| library | tried | equal | not equal | unfit |"
    yield "|---|--:|--:|--:|--:|"
    for library in ("timm", "transformers"):
        counts = Counter(row["outcome"] for row in done if row["library"] == library)
        yield (
            f"| {library} | {counts.total():,} | {counts['equal']:,} | {counts['failed']:,} "
            f"| {counts['unfit']:,} |"
        )
    yield ""
    for row in done:
        if row["outcome"] == "failed":
            yield f"- `{row['name']}` ({row['library']}): {row['error'][:160]}"
    for library in ("timm", "transformers"):
        names = sorted(
            row["name"] for row in done
            if (row["library"], row["outcome"]) == (library, "equal")
        )  # fmt: skip
        yield f"\nEqual in {library}: " + ", ".join(f"`{name}`" for name in names) + "."
    yield _ONEDNN.rstrip("\n")


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
    yield "On this machine the library itself cannot build these from their default config:\n"
    for row in rows:
        if row.outcome == "not built":
            # without the paths of this machine
            reason = re.sub(r" \(/\S*\)| from '/\S*", "", row.error)
            yield f"- `{row.name}`: {reason.partition(': ')[2][:120] or reason[:120]}"
    parts = [row.name for row in rows if row.outcome == "no class"]
    yield "\n## Types without a class\n"
    yield (
        f"{len(parts)} types of transformers are configs of parts of other models, which no auto "
        "class opens alone: " + ", ".join(f"`{name}`" for name in parts) + "."
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
