"""Kind F: tables as people have them, compared with the plain builders of `datasets`."""

from __future__ import annotations

import codecs
import gc
import json
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as papq
import pytest
from data_sets import PLAIN
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slt_compress.data import DataOptions, RawData, open_data
from slt_compress.errors import DataError

TEXTS = ["one", "two", "three", "four", "five", "six"]
LABELS = ["no", "yes"] * 3


def examples(raw: RawData) -> list[tuple[str, Any]]:
    """(text, label by name or value) of all rows of both splits."""
    found = []
    for split in raw.splits.values():
        texts = split.rows.column(raw.columns.inputs[0])
        labels = [None] * len(texts) if split.labels is None else split.labels.tolist()
        named = [raw.classes[n] if raw.classes and n is not None else n for n in labels]
        found += list(zip(texts, named, strict=True))
    return sorted(found, key=str)


def read(path: Path, options: DataOptions = PLAIN) -> RawData:
    return open_data(str(path), options)


# ---------------------------------------------------------------- Arrow's types by kind

AS_TEXT = {
    "string": pa.string(),
    "large_string": pa.large_string(),
    "string_view": pa.string_view(),
    "dictionary": pa.dictionary(pa.int8(), pa.string()),
    "dictionary of large": pa.dictionary(pa.int32(), pa.large_string()),
}
AS_LABEL = {
    **AS_TEXT,
    "int8": pa.int8(),
    "uint16": pa.uint16(),
    "dictionary of int": pa.dictionary(pa.int8(), pa.int64()),
    "bool": pa.bool_(),
}


def stored_as(values: pa.Array, kind: pa.DataType) -> pa.Array:
    if pa.types.is_dictionary(kind):
        return values.cast(kind.value_type).dictionary_encode()
    return values.cast(kind)


@pytest.mark.parametrize("label", AS_LABEL)
@pytest.mark.parametrize("text", AS_TEXT)
def test_text_and_labels_of_any_arrow_type(tmp_path: Path, text: str, label: str) -> None:
    named = label in AS_TEXT
    values = LABELS if named else [name == "yes" for name in LABELS]
    if not named and label != "bool":
        values = [int(value) for value in values]
    columns = {
        "text": pa.array(TEXTS).cast(AS_TEXT[text]),
        "label": stored_as(pa.array(values), AS_LABEL[label]),
    }
    papq.write_table(pa.table(columns), tmp_path / "train.parquet")
    raw = read(tmp_path)
    assert raw.num_classes == 2
    assert raw.classes == (("no", "yes") if named else None)
    assert examples(raw) == sorted(
        zip(TEXTS, LABELS if named else map(int, values), strict=True), key=str
    )


def test_a_categorical_column_of_pandas_holds_labels(tmp_path: Path) -> None:
    frame = pd.DataFrame({"text": TEXTS, "label": pd.Categorical(LABELS, ["yes", "no", "maybe"])})
    frame.to_parquet(tmp_path / "train.parquet")
    assert read(tmp_path).classes == ("no", "yes")


AS_LIST = {
    "list": pa.list_(pa.string()),
    "large_list": pa.large_list(pa.string()),
    "list of dictionary": pa.list_(pa.dictionary(pa.int8(), pa.string())),
    "list of large": pa.list_(pa.large_string()),
    "list of views": pa.list_(pa.string_view()),
}
WORDS = [["Ann", "runs"], ["a", "dog", "sees", "Bob"], ["no"], ["one", "two"]]
TAGS = [["PER", "O"], ["O", "O", "O", "PER"], ["O"], ["O", "LOC"]]


@pytest.mark.parametrize("kind", AS_LIST)
def test_words_and_tags_of_any_arrow_type(tmp_path: Path, kind: str) -> None:
    columns = {"tokens": pa.array(WORDS, AS_LIST[kind]), "ner_tags": pa.array(TAGS, AS_LIST[kind])}
    papq.write_table(pa.table(columns), tmp_path / "train.parquet")
    raw = read(tmp_path)
    assert (raw.columns.inputs, raw.columns.label, raw.columns.tags) == (
        ("tokens",), "ner_tags", True,
    )  # fmt: skip
    assert raw.classes == ("LOC", "O", "PER")


def test_shards_that_store_a_column_in_other_ways_are_one_split(tmp_path: Path) -> None:
    for number, kind in enumerate(AS_TEXT.values()):
        columns = {"text": pa.array(TEXTS).cast(kind), "label": pa.array(LABELS).cast(kind)}
        papq.write_table(pa.table(columns), tmp_path / f"train-{number}.parquet")
    assert len(examples(read(tmp_path))) == 6 * len(AS_TEXT)


# ---------------------------------------------------------------- text files

ODD = ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e"]


@pytest.mark.parametrize("odd", ODD, ids=[f"U+{ord(c):04X}" for c in ODD])
def test_only_newlines_end_a_line(tmp_path: Path, odd: str) -> None:
    rows = [{"text": f"a{odd}b {n}", "label": n % 2} for n in range(5)]
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if ord(odd) >= 0x20:  # JSON itself escapes the others
        (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        assert [text for text, _ in examples(read(tmp_path / "a.jsonl"))] == sorted(
            row["text"] for row in rows
        )
    (tmp_path / "b.txt").write_text("".join(f"x{odd}y{n}\n" for n in range(5)), encoding="utf-8")
    assert len(examples(read(tmp_path / "b.txt"))) == 5


MARKS = {"utf-8-sig": "utf-8-sig", "utf-16": "utf-16", "utf-32": "utf-32"}


@pytest.mark.parametrize("encoding", MARKS)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "txt"])
def test_a_byte_order_mark_is_no_part_of_the_data(
    tmp_path: Path, suffix: str, encoding: str
) -> None:
    rows = list(zip(TEXTS, LABELS, strict=True))
    content = {
        "csv": "text,label\n" + "".join(f"{a},{b}\n" for a, b in rows),
        "tsv": "text\tlabel\n" + "".join(f"{a}\t{b}\n" for a, b in rows),
        "jsonl": "".join(json.dumps({"text": a, "label": b}) + "\n" for a, b in rows),
        "json": json.dumps([{"text": a, "label": b} for a, b in rows]),
        "txt": "".join(f"{a}\n" for a in TEXTS),
    }[suffix]
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content.encode(encoding))
    assert path.read_bytes().startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_LE, codecs.BOM_UTF32_LE))
    found = examples(read(path))
    if suffix == "txt":
        assert sorted(text for text, _ in found) == sorted(f"{text}\n" for text in TEXTS)
    else:
        assert found == sorted(rows, key=str)


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "txt"])
def test_text_that_is_not_utf_8_is_told_as_that(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").write_bytes("text,label\ngar\xe7on,1\n".encode("latin-1"))
    with pytest.raises(DataError, match=r"it is not UTF-8 text \(byte 0xe7 in line 2\)"):
        read(tmp_path / f"a.{suffix}")


# ---------------------------------------------------------------- csv


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str) -> None:
    rows = [f'"a, b; c {n}"{delimiter}{n % 2}' for n in range(6)]
    (tmp_path / "a.csv").write_text("\n".join([f"text{delimiter}label", *rows]) + "\n")
    raw = read(tmp_path / "a.csv")
    assert raw.num_classes == 2
    assert examples(raw)[0] == ("a, b; c 0", 0)


def test_a_single_column_with_punctuation_is_one_column(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "".join(f"a; b {n}\n" for n in range(5)))
    assert examples(read(tmp_path / "a.csv"))[0] == ("a; b 0", None)


def test_names_that_come_twice_are_told_apart_as_in_pandas(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label,text\n" + "a,1,b\nc,0,d\ne,1,f\n")
    raw = read(tmp_path / "a.csv")
    assert list(raw.splits["train"].rows.features) == ["text", "label", "text.1"]
    assert list(pd.read_csv(tmp_path / "a.csv").columns) == ["text", "label", "text.1"]


def test_values_that_look_like_dates_or_nothing_stay_text(tmp_path: Path) -> None:
    rows = [("2024-01-02", "NA"), ("2024-01-03", "null"), ("12:30", "NA"), ("2024", "null")]
    (tmp_path / "a.csv").write_text("text,label\n" + "".join(f"{a},{b}\n" for a, b in rows))
    assert examples(read(tmp_path / "a.csv")) == sorted(rows)


PRINTABLE = st.text(st.characters(blacklist_categories=["Cs", "Cc"]), min_size=1, max_size=8)
CELLS = PRINTABLE.map(lambda text: f"t{text.strip()}")
ROWS = st.lists(st.tuples(CELLS, st.sampled_from(["pos", "neg", "a b"])), min_size=2, max_size=8)


@settings(
    max_examples=30, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")  # the csv builder leaves its reader open
@given(ROWS, st.sampled_from(["csv", "jsonl", "json", "parquet"]),
       st.sampled_from(["train.{}", "imdb_train.{}", "data/train-00000-of-00001.{}",
                        "train/part.{}", "my-training-set.{}", "anything.{}"]))  # fmt: skip
def test_any_table_gives_the_rows_of_datasets(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], suffix: str, name: str
) -> None:
    root = tmp_path_factory.mktemp("table")
    path = root / name.format(suffix)
    path.parent.mkdir(exist_ok=True)
    frame = pd.DataFrame(rows, columns=["text", "label"])
    if suffix == "csv":
        frame.to_csv(path, index=False)
    elif suffix == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=suffix == "jsonl", force_ascii=False)
    expected: Any = datasets.load_dataset(str(root), streaming=True)["train"]
    wanted = sorted(((row["text"], row["label"]) for row in expected), key=str)
    gc.collect()
    assert examples(read(root)) == wanted


# ---------------------------------------------------------------- splits by every spelling

TRAIN = ["train", "training"]
TEST = ["test", "testing", "eval", "evaluation", "validation", "valid", "dev", "val"]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pattern", ["{}.csv", "imdb_{}.csv", "{}-1.csv", "x.{}.csv", "{}/a.csv",
                                     "my-{}/a.csv", "set/{}_2/a.csv", "{}2017/a.csv"])  # fmt: skip
@pytest.mark.parametrize("test", TEST)
def test_test_rows_are_never_trained_on(tmp_path: Path, pattern: str, test: str) -> None:
    for split, word in (("train", "training"), ("test", test)):
        path = tmp_path / pattern.format(word)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text,label\n" + "".join(f"{split} {n},{n % 2}\n" for n in range(4)))
    raw = read(tmp_path)
    texts = {name: part.rows.column("text") for name, part in raw.splits.items()}
    assert {name: {text.split()[0] for text in rows} for name, rows in texts.items()} == {
        "train": {"train"}, "test": {"test"},
    }  # fmt: skip
    names = set(datasets.load_dataset(str(tmp_path), streaming=True))
    gc.collect()
    assert raw.test_split in names


def test_a_file_that_names_no_split_beside_others_is_left_out_and_counted(tmp_path: Path) -> None:
    for name in ("train", "test", "extra"):
        (tmp_path / f"{name}.csv").write_text("text,label\na,0\nb,1\nc,1\n")
    raw = read(tmp_path)
    assert any("extra.csv" in note and "1 file is left out" in note for note in raw.notes)


def test_a_file_of_another_kind_is_left_out_and_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\na,0\nb,1\nc,1\n")
    (tmp_path / "b.csv").write_text("text,label\na,0\nb,1\nc,1\n")
    papq.write_table(pa.table({"text": TEXTS}), tmp_path / "c.parquet")
    raw = read(tmp_path)
    assert len(examples(raw)) == 6
    assert any("c.parquet" in note for note in raw.notes)
