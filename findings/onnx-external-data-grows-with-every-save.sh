#!/bin/sh
# onnx 1.23.2. Expected: saving a model over its own files gives files of the same size.
# Seen: save_model(..., save_as_external_data=True) appends to the file of weights that is there. The graph is right, so
# that nothing fails, and the file is as many times too large as it was saved.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/v"
"$folder/v/bin/pip" install -q onnx==1.23.2 numpy==2.4.6
FOLDER="$folder" "$folder/v/bin/python" - <<'PYTHON'
import os

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

weight = np.ones((256, 256), np.float32)


def model():
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 256]) for name in "xy"]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    return helper.make_model(
        helper.make_graph([node], "g", ends[:1], ends[1:], [numpy_helper.from_array(weight, "w")])
    )


folder, sizes = os.environ["FOLDER"], []
for _ in range(3):
    onnx.save_model(model(), f"{folder}/m.onnx", save_as_external_data=True, location="m.data")
    sizes.append(os.path.getsize(f"{folder}/m.data"))
print(f"{weight.nbytes:,} bytes of weights; the file after each save: {sizes}")
assert sizes == [weight.nbytes * times for times in (1, 2, 3)], "the file is written anew now"
PYTHON
