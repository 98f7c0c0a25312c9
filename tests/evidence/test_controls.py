"""Controls: the same pattern and count in every layer, and nothing else of the learned mask."""

from __future__ import annotations

import torch
from torch import Tensor

from slt_compress.evidence.controls import control_masks
from slt_compress.masks import Masks
from slt_compress.sites.layouts import ELEMENTWISE

LAYOUTS = dict.fromkeys(("conv", "fc", "constant", "none"), ELEMENTWISE)


def controls() -> tuple[Masks, dict[str, Tensor], dict[str, Masks]]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"conv": (6, 3, 3, 3), "fc": (40, 50), "constant": (40, 50), "none": (3, 3)}
    masks = {n: torch.rand(s, generator=generator) < 0.3 for n, s in shapes.items()}
    masks["fc"][:10] = False
    masks["none"][:] = False
    weights = {n: torch.randn(s, generator=generator) for n, s in shapes.items()}
    weights["constant"] = weights["constant"].sign()
    learned = Masks(masks)
    return learned, weights, dict(control_masks(learned, weights, 7, LAYOUTS))


def test_controls_keep_the_count_of_every_layer() -> None:
    learned, _, found = controls()
    assert sorted(found) == ["magnitude", "random", "shuffled"]
    for control in found.values():
        assert {n: (m.shape, int(m.sum())) for n, m in control.items()} == {
            n: (m.shape, int(m.sum())) for n, m in learned.items()
        }


def test_the_shuffled_control_keeps_the_count_of_every_row_and_the_random_one_does_not() -> None:
    learned, _, found = controls()

    def per_row(masks: Masks, name: str) -> Tensor:
        return masks[name].reshape(len(masks[name]), -1).sum(1)

    for name in learned:
        assert torch.equal(per_row(found["shuffled"], name), per_row(learned, name))
    assert not torch.equal(found["shuffled"]["fc"], learned["fc"])
    assert bool((per_row(found["random"], "fc")[:10] > 0).all())
    assert found["random"].iou(learned) < 0.3


def test_the_magnitude_control_keeps_the_largest_weights() -> None:
    _, weights, found = controls()
    for name in ("conv", "fc"):
        mask, values = found["magnitude"][name], weights[name].abs()
        assert values[mask].min() > values[~mask].max()
    rows = found["magnitude"]["constant"].sum(1)
    assert bool((rows > 0).all()), "equal magnitudes are kept from the top rows down"


def test_controls_depend_on_the_seed_alone() -> None:
    learned, weights, found = controls()
    again, other = (dict(control_masks(learned, weights, seed, LAYOUTS)) for seed in (7, 8))
    for name in found:
        assert found[name].iou(again[name]) == 1.0
        assert found[name].iou(other[name]) < 1.0
