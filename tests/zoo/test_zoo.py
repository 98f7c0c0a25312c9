"""The zoo: every model of both libraries is planned, small instances go the whole path.

The sample runs with the suite; `make zoo` runs all of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.zoo.libraries import has_class, timm_names, transformers_types
from tests.zoo.pipeline import walk_path
from tests.zoo.planning import row_of

# What peers break on: packed experts, shared blocks, recurrent cells, standardised and depthwise
# convolutions, weight norm, routers, einsum weights, tables of positions.
SAMPLE = [
    ("timm", "coat_tiny"), ("timm", "tf_efficientnet_cc_b0_4e"), ("timm", "nf_resnet26"),
    ("timm", "sequencer2d_s"), ("timm", "swinv2_cr_tiny_224"),
    ("transformers", "switch_transformers"), ("transformers", "zamba"), ("transformers", "ibert"),
    ("transformers", "reformer"), ("transformers", "mamba2"), ("transformers", "gpt_oss"),
    ("transformers", "wav2vec2"), ("transformers", "depth_anything"),
]  # fmt: skip
ENOUGH, MOST = 0.97, 0.99


@pytest.mark.parametrize(("library", "name"), SAMPLE)
def test_a_sample_is_planned(library: str, name: str) -> None:
    row = row_of(library, name)
    assert (row.outcome, row.error) == ("planned", "")
    assert row.strict_share >= ENOUGH, row.ungated


@pytest.mark.parametrize(("library", "name"), [("transformers", "xlnet"), ("timm", "test_vit")])
def test_a_sample_goes_the_whole_path(library: str, name: str, tmp_path: Path) -> None:
    found = walk_path(library, name, tmp_path)
    assert (found["outcome"], found["error"]) == ("equal", "")
    assert found["sites"]


@pytest.mark.zoo
@pytest.mark.parametrize("library", ["timm", "transformers"])
def test_every_model_is_planned(library: str) -> None:
    names = timm_names() if library == "timm" else list(filter(has_class, transformers_types()))
    rows = [row_of(library, name) for name in names]
    assert not [row for row in rows if row.outcome == "failed"]
    planned = [row for row in rows if row.outcome == "planned"]
    assert len(planned) >= (len(names) if library == "timm" else 600)
    assert sum(row.share >= ENOUGH for row in planned) >= MOST * len(planned)
