"""Kind D: names that are numbers are in their order, and match by them or not at all."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from data_sets import PLAIN, checkpoint, png, ready
from hypothesis import given
from hypothesis import strategies as st

from slt_compress.data import open_data
from slt_compress.data.labels import sorted_names


def csv(path: Path, names: list[str]) -> Path:
    rows = "".join(f"text {row},{name}\n" for row, name in enumerate(names * 3))
    path.write_text("text,label\n" + rows)
    return path


def folders(root: Path, names: list[str], count: int = 3) -> Path:
    for place, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for number in range(count):
            (root / name / f"{number}.png").write_bytes(png(20 * place))
    return root


def labels_of(data: object) -> dict[int, int]:
    """Grey value (20 times the place of the class) to the label of the batch."""
    found: dict[int, int] = {}
    for batch in (*data.train.epoch(0), *data.held_out, *data.test):  # type: ignore[attr-defined]
        grey = ((batch["pixel_values"][:, 0, 0, 0] * 0.3081 + 0.1307) * 255).round().int()
        found |= dict(zip((grey // 20).tolist(), batch["labels"].tolist(), strict=True))
    return found


@pytest.mark.parametrize("count", [2, 10, 12, 101])
def test_number_names_are_sorted_by_value(count: int) -> None:
    names = [str(number) for number in range(count)]
    assert sorted_names(reversed(names)) == tuple(names)


@given(st.sets(st.one_of(st.integers(-50, 500).map(str), st.text(min_size=1, max_size=3))))
def test_other_names_are_sorted_as_text(names: set[str]) -> None:
    found = sorted_names(names)
    assert set(found) == names
    whole = all(re.fullmatch(r"[+-]?[0-9]+", name) for name in names)
    if not whole:
        assert list(found) == sorted(names)


def test_folders_that_are_numbers_are_the_classes_of_an_unnamed_head(tmp_path: Path) -> None:
    root = folders(tmp_path, [str(number) for number in range(12)])
    assert open_data(str(root), PLAIN).classes == tuple(str(number) for number in range(12))
    data = ready(root, checkpoint(classes=12))
    assert data.labels_match
    assert labels_of(data) == {number: number for number in range(12)}


@pytest.mark.parametrize(
    "names",
    [
        [str(number) for number in range(1, 13)],
        ["0", "2", "4"],
        ["-1", "0", "1"],
        ["100", "200", "300"],
    ],
    ids=["from 1", "even", "negative", "hundreds"],
)
def test_numbers_that_are_not_those_of_the_head_are_not_matched(
    tmp_path: Path, names: list[str]
) -> None:
    data = ready(folders(tmp_path, names), checkpoint(classes=len(names)))
    assert not data.labels_match
    assert "nothing says which is which" in data.label_note
    assert "labels" not in next(iter(data.test))
    assert "agreement with the dense model is measured" in data.overview


def test_a_head_that_names_its_numbers_decides(tmp_path: Path) -> None:
    names = [str(number) for number in range(12)]
    model = checkpoint(classes=12, names=tuple(sorted(names)))  # as a careless tool wrote them
    data = ready(folders(tmp_path, names), model)
    assert data.labels_match
    assert labels_of(data) == {int(name): place for place, name in enumerate(sorted(names))}


def test_a_head_with_other_names_is_not_matched_by_number(tmp_path: Path) -> None:
    model = checkpoint(classes=3, names=("zero", "one", "two"))
    assert not ready(folders(tmp_path, ["0", "1", "2"]), model).labels_match


@pytest.mark.parametrize("padded", [["00", "01", "02"], ["0", "1", "2"], ["+0", "1", "2"]])
def test_leading_zeros_and_signs_are_numbers_too(tmp_path: Path, padded: list[str]) -> None:
    data = ready(folders(tmp_path, padded), checkpoint(classes=3))
    assert data.labels_match
    assert labels_of(data) == {0: 0, 1: 1, 2: 2}


def test_names_in_tables_are_numbers_or_strings_in_order(tmp_path: Path) -> None:
    numbers = open_data(str(csv(tmp_path / "a.csv", [str(n) for n in range(12)])), PLAIN)
    assert (numbers.num_classes, numbers.classes) == (12, None)
    quoted = tmp_path / "b.jsonl"
    quoted.write_text("".join(f'{{"text": "t{n}", "label": "{n % 12}"}}\n' for n in range(36)))
    assert open_data(str(quoted), PLAIN).classes == tuple(str(n) for n in range(12))


def test_an_order_that_is_only_assumed_is_told(tmp_path: Path) -> None:
    data = ready(folders(tmp_path, ["cat", "dog"], 5), checkpoint(classes=2))
    assert data.labels_match
    assert "does not name its 2 classes" in data.overview
