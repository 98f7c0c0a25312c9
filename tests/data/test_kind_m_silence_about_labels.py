"""Kind M: before the first step, what is read and measured is told, and what looks wrong."""

from __future__ import annotations

import logging
from pathlib import Path

import pico
import pytest
from data_sets import checkpoint, png, ready, write_table

import slt_compress
from slt_compress import Recipe, Training
from slt_compress.checkpoints import open_checkpoint
from slt_compress.cli.app import main
from slt_compress.data import DataOptions

TEXTS = ["the cat runs", "a dog sleeps", "the newt eats", "it was good", "very bad film"]
CASES = {
    "columns a, b": (
        "a,b\n" + "".join(f"{t},{n % 2}\n" for n, t in enumerate(TEXTS)),
        ["column a", "labels are not used", "has no column of labels (its columns are a, b)"],
    ),
    "empty labels": (
        "text,label\n" + "".join(f"{t},\n" for t in TEXTS),
        ["the label column label is empty", "labels are not used"],
    ),
    "some empty labels": (
        "text,label\n" + "".join(f"{t},{'' if n == 1 else 'ab'[n % 2]}\n"
                                 for n, t in enumerate(TEXTS * 2)),
        ["1 of 10 rows of the split train have no label and are left out"],
    ),
    "one class": (
        "text,label\n" + "".join(f"{t},a\n" for t in TEXTS),
        ["all rows of", "the same label"],
    ),
    "one text": (
        "text,label\n" + "".join(f"same,{n % 2}\n" for n in range(8)),
        ["texts in column text", "are all the same"],
    ),
    "numbers": (
        "text,label\n" + "".join(f"{t},{n / 2}\n" for n, t in enumerate(TEXTS)),
        ["the labels are numbers and the model has 2 outputs"],
    ),
    "semicolons": (
        "text;label\n" + "".join(f"{t};{n % 2}\n" for n, t in enumerate(TEXTS)),
        ["column text with the labels in column label", "2 classes match the model"],
    ),
    "right": (
        "text,label\n" + "".join(f"{t},{n % 2}\n" for n, t in enumerate(TEXTS)),
        ["column text with the labels in column label", "4 rows to search on",
         "accuracy and loss are measured"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_read_and_what_looks_wrong_is_told(tmp_path: Path, case: str) -> None:
    content, said = CASES[case]
    (tmp_path / "train.csv").write_text(content)
    data = ready(tmp_path / "train.csv", open_checkpoint(pico.save_bert(tmp_path / "bert")))
    text = "\n".join((data.overview, *data.warnings))
    for words in said:
        assert words in text
    assert "\n" not in data.overview
    assert bool(data.warnings) == (case not in ("right", "semicolons"))


def test_a_folder_of_one_class_is_told(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    for number in range(5):
        (tmp_path / "cat" / f"{number}.png").write_bytes(png(number))
    data = ready(tmp_path, checkpoint(classes=10))
    assert any("one class folder (cat)" in warning for warning in data.warnings)


def small(folder: Path) -> tuple[Path, Path, Recipe]:
    table = {"text": TEXTS * 4, "kind": [n % 2 for n in range(20)]}
    recipe = Recipe(training=Training(steps=2, batch_size=4, device="cpu", selections=0))
    return pico.save_bert(folder / "bert"), write_table(folder / "a.parquet", table), recipe


def test_a_search_says_it_before_its_first_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, table, recipe = small(tmp_path)
    told: list[int] = []
    with caplog.at_level(logging.INFO, "slt_compress"):
        slt_compress.search(model, str(table), recipe=recipe, out=tmp_path / "ticket",
                            on_step=lambda step: told.append(len(caplog.records)))  # fmt: skip
    assert told[0] >= 2
    assert any("reads column text" in record.getMessage() for record in caplog.records)
    assert any("has no column of labels" in record.getMessage() for record in caplog.records)


@pytest.mark.parametrize("quiet", [False, True])
def test_the_command_line_shows_it_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], quiet: bool
) -> None:
    model, table, _ = small(tmp_path)
    main_with = ["search", str(model), "--dataset", str(table), "--steps", "2", "--device", "cpu",
                 "-o", str(tmp_path / "ticket"), *(["--quiet"] if quiet else [])]  # fmt: skip
    with pytest.raises(SystemExit) as left:
        main(main_with)
    assert left.value.code == 0
    told = capsys.readouterr()
    assert ("reads column text" in told.err) == (not quiet)
    assert "warning: " in told.err
    assert "reads column" not in told.out
    assert logging.getLogger("slt_compress").handlers == []


def test_control_characters_of_names_are_escaped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from slt_compress.cli.log_lines import log_lines

    with log_lines(quiet=False):
        logging.getLogger("slt_compress").info("a \x1b[31m b \u202e c")
    assert capsys.readouterr().err == "a \\x1b[31m b \\u202e c\n"
    assert DataOptions().label is None
