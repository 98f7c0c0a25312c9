#!/bin/sh
# datasets 5.2.0. Expected: a streamed file is closed when one stops reading it, whatever its format.
# Seen: after the first rows of a csv the reader is dropped without being closed, so that the file is closed by the garbage
# collector (ResourceWarning: unclosed file): where warnings are errors, looking at five rows of a csv fails. Json lines, text
# and a csv that was read to its end are closed.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install -q datasets==5.2.0 numpy==2.4.6
FOLDER="$folder" "$folder/v/bin/python" - <<'PYTHON'
import gc
import os
import warnings

from datasets import load_dataset, utils

utils.disable_progress_bars()
contents = {"csv": "text\n" + "a\n" * 50_000, "json": '{"text": "a"}\n' * 50_000, "text": "a\n" * 50_000}
unclosed = {}
for kind, content in contents.items():
    path = f"{os.environ['FOLDER']}/rows.{kind}"
    with open(path, "w") as file:
        file.write(content)
    for count in (5, 50_000):
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            rows = load_dataset(kind, data_files=path, split="train", streaming=True)
            assert sum(1 for _ in rows.take(count)) == count
            del rows
            gc.collect()
        unclosed[kind, count] = sum(
            issubclass(one.category, ResourceWarning) and path in str(one.message) for one in said
        )
print(f"files that were left open, by format and rows read: {unclosed}")
assert unclosed.pop(("csv", 5)) == 1, "csv is closed now"
assert not any(unclosed.values())
PYTHON
