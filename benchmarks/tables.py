"""Print the Markdown table of a bake-off: test accuracy of hard masks, mean and spread over seeds.

python benchmarks/tables.py benchmarks/results/bakeoff-mnist.json …
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

# What the last part of a case's name means for its rows.
SUFFIXES = {"published": ", as published", "adam": ", by Adam"}


def main() -> None:
    """Parse, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    rows = [row for file in parser.parse_args().results for row in labelled(file)]
    sparsities = sorted({row["sparsity"] for row in rows})
    print("| method | " + " | ".join(f"{100 * value:g} %" for value in sparsities) + " |")
    print("|---|" + "---|" * len(sparsities))
    for label in dict.fromkeys(row["label"] for row in rows):
        cells = [
            cell([row for row in rows if (row["label"], row["sparsity"]) == (label, value)])
            for value in sparsities
        ]
        print(f"| {label} | " + " | ".join(cells) + " |")


def labelled(file: Path) -> list[dict[str, Any]]:
    """The rows of a file, labelled with the suffix of the case (`mnist-published`)."""
    content = json.loads(file.read_text())
    suffix = suffix_of(content)
    return [{**row, "label": f"`{row['method']}`{suffix}"} for row in content["rows"]]


def suffix_of(content: Mapping[str, Any]) -> str:
    """The suffix that the name of a case gives to the labels of its rows."""
    return SUFFIXES.get(content["case"].rpartition("-")[2], "")


def cell(rows: list[dict[str, Any]]) -> str:
    """Mean and sample deviation of the first of accuracy and perplexity that the rows have."""
    finished = [row["hard"] for row in rows if row["hard"]]
    if not finished:
        return ""
    if "accuracy" in finished[0]:
        values = [100 * metrics["accuracy"] for metrics in finished]
    else:
        values = [metrics["perplexity"] for metrics in finished]
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


if __name__ == "__main__":
    main()
