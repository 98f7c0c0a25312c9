"""Schedules: from the start to the target, each in its own way."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slt_compress.searching.schedules import density_at

ALL: Any = ["cubic", "linear", "exponential", "constant"]


@given(
    st.sampled_from(ALL), st.floats(0.001, 0.999), st.floats(0.0, 1.0), st.floats(0.0, 1.0),
    st.floats(0.0, 1.0), st.floats(0.0, 1.0),
)  # fmt: skip
def test_a_density_falls_from_its_start_to_its_target(
    schedule: Any, target: float, above: float, ramp: float, early: float, late: float
) -> None:
    start = target + above * (1 - target)
    first, second = (
        density_at(progress, schedule, start=start, target=target, ramp=ramp)
        for progress in sorted((early, late))
    )
    slack = 1e-12
    assert start + slack >= first >= second - slack
    assert second >= target - slack
    assert density_at(1.0, schedule, start=start, target=target, ramp=ramp) == target
    if ramp > 0 and schedule != "constant":
        begin = density_at(0.0, schedule, start=start, target=target, ramp=ramp)
        assert begin == pytest.approx(start)


@pytest.mark.parametrize(
    ("schedule", "quarter", "half"),
    [
        ("cubic", 0.1 + 0.9 * 0.5**3, 0.1), ("linear", 0.55, 0.1),
        ("exponential", 0.1**0.5, 0.1), ("constant", 0.1, 0.1),
    ],
)  # fmt: skip
def test_the_schedules_at_half_of_the_ramp(schedule: Any, quarter: float, half: float) -> None:
    found = [
        density_at(progress, schedule, start=1.0, target=0.1, ramp=0.5)
        for progress in (0.25, 0.5, 0.75)
    ]
    assert found == pytest.approx([quarter, half, 0.1])
    assert density_at(0.0, schedule, start=1.0, target=0.1, ramp=0.0) == 0.1
