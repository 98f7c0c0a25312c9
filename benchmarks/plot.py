"""Plot the accuracy of a bake-off against the sparsity, as SVG.

    python benchmarks/plot.py benchmarks/results/bakeoff-mnist.json -o docs/bakeoff-mnist.svg

Needs matplotlib (the extra `bench`). Points are means over the seeds, bars their standard
deviation.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot
from tables import suffix_of

MARKERS = "os^Dv*P"
# Lines of text stay text, and equal results give equal bytes.
mpl.rcParams |= {"svg.fonttype": "none", "svg.hashsalt": "slt-compress", "font.size": 10}


def main() -> None:
    """Parse, plot, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("-o", "--out", required=True, type=Path)
    parser.add_argument("--from", dest="bottom", type=float, help="lower end of the accuracy axis")
    arguments = parser.parse_args()
    summary = [entry for file in arguments.results for entry in labelled(file)]
    figure, axes = pyplot.subplots(figsize=(6.4, 3.8), layout="constrained")
    for index, label in enumerate(dict.fromkeys(entry["label"] for entry in summary)):
        points = sorted(
            (entry["sparsity"] * 100, entry["mean"] * 100, (entry["std"] or 0.0) * 100)
            for entry in summary
            if entry["label"] == label and entry["mean"] is not None
        )
        sparsity, mean, deviation = zip(*points, strict=True)
        axes.errorbar(
            sparsity, mean, deviation, label=label, marker=MARKERS[index % len(MARKERS)],
            capsize=3, linewidth=1.2,
        )  # fmt: skip
    axes.set_xlabel("sparsity of the gated weights, %")
    axes.set_ylabel("test accuracy of the hard mask, %")
    if arguments.bottom is not None:
        axes.set_ylim(bottom=arguments.bottom)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(arguments.out, metadata={"Date": None})


def labelled(file: Path) -> list[dict[str, Any]]:
    """The means of a file, with the names that the table gives their methods."""
    content = json.loads(file.read_text())
    return [
        {**entry, "label": entry["method"] + suffix_of(content)} for entry in content["summary"]
    ]


if __name__ == "__main__":
    main()
