"""Damaged and hostile files: refused with one sentence, whatever was done to them."""

from __future__ import annotations

import contextlib
import json
import struct
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_artifact import Tiny, bits, export, own, tiny

from slt_compress.artifact import read_artifact
from slt_compress.checkpoints import open_checkpoint
from slt_compress.errors import SltError
from slt_compress.formats import FORMATS
from slt_compress.masks import Masks

WEIGHTS = "weights.slt.safetensors"
SPARSE = [name for name in FORMATS if FORMATS[name].sparse and name != "mask"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The bytes of a small artifact in every format, and a folder to put them in."""
    folder = tmp_path_factory.mktemp("fuzz")
    found = {}
    for format in SPARSE:
        export(folder / format, *tiny(), format)
        found[format] = (folder / format / WEIGHTS).read_bytes()
    return folder, found


def state():
    return {name: bits(tensor) for name, tensor in tiny()[0].module.state_dict().items()}


def is_safe(folder, format, data):
    """Whether changed bytes are refused in one sentence, or are no change of the weights."""
    (folder / format / WEIGHTS).write_bytes(data)
    try:
        loaded = read_artifact(folder / format, model=Tiny())
    except SltError as error:
        return "\n" not in str(error)
    found = {name: bits(tensor) for name, tensor in loaded.module.state_dict().items()}
    wanted = state()
    return found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in wanted)


FAST = settings(
    max_examples=25, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


@pytest.mark.parametrize("format", SPARSE)
@FAST
@given(data=st.data())
def test_flipped_bits(files, format, data):
    folder, known = files
    changed = bytearray(known[format])
    for _ in range(data.draw(st.integers(1, 3))):
        changed[data.draw(st.integers(0, len(changed) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    assert is_safe(folder, format, bytes(changed))


@pytest.mark.parametrize("format", SPARSE)
@FAST
@given(data=st.data())
def test_cut_and_grown_files(files, format, data):
    folder, known = files
    whole = known[format]
    at, length = data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, 40))
    more = data.draw(st.binary(max_size=40))
    assert is_safe(folder, format, whole[:at] + more + whole[at + length :])


def header_of(data):
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(header, body):
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


NUMBERS = st.sampled_from([0, 1, 2, 3, 7, 8, 255, 2**31, 2**40, 2**62, 2**63, 2**64, -1])


@pytest.mark.parametrize("format", SPARSE)
@FAST
@given(data=st.data())
def test_headers_that_lie(files, format, data):
    """Overlaps, holes, other shapes and dtypes, and sizes that no machine has."""
    folder, known = files
    header, body = header_of(known[format])
    for _ in range(data.draw(st.integers(1, 2))):
        name = data.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
        entry = header[name]
        match data.draw(st.sampled_from(["offsets", "shape", "dtype", "drop", "swap"])):
            case "offsets":
                entry["data_offsets"][data.draw(st.integers(0, 1))] = data.draw(NUMBERS)
            case "shape":
                entry["shape"] = data.draw(st.lists(NUMBERS, max_size=3))
            case "dtype":
                entry["dtype"] = data.draw(st.sampled_from(["F32", "U8", "I64", "BOOL", "F8", "?"]))
            case "drop":
                header[name + "x"] = header.pop(name)
            case "swap":
                other = data.draw(st.sampled_from(sorted(set(header) - {"__metadata__"})))
                header[name], header[other] = header[other], entry
    assert is_safe(folder, format, with_header(header, body))


@pytest.mark.parametrize("format", SPARSE)
@FAST
@given(data=st.data())
def test_manifests_that_lie(files, format, data):
    folder, known = files
    header, body = header_of(known[format])
    manifest = json.loads(header["__metadata__"]["slt"])
    entry = manifest["entries"][data.draw(st.sampled_from(sorted(manifest["entries"])))]
    odd = st.one_of(NUMBERS, st.none(), st.text(max_size=3), st.lists(NUMBERS, max_size=3),
                    st.floats(), st.booleans(), st.just({}))  # fmt: skip
    place = data.draw(st.sampled_from([manifest, entry, manifest["ties"], manifest["entries"]]))
    key = data.draw(st.sampled_from([*sorted(place), "more", ""]))
    if data.draw(st.booleans()):
        place[key] = data.draw(odd)
    else:
        place.pop(key, None)
    with contextlib.suppress(ValueError):
        header["__metadata__"]["slt"] = json.dumps(manifest, allow_nan=False)
    assert is_safe(folder, format, with_header(header, body))


HUGE = """
import resource, sys
import torch
from slt_compress.artifact import read_artifact
from slt_compress.checkpoints import open_checkpoint
from slt_compress.errors import SltError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
for path in sys.argv[1:]:
    try:
        read_artifact(path)
    except SltError as error:
        assert "\\n" not in str(error), error
    else:
        raise SystemExit(f"{path} was opened")
"""


def test_nothing_is_allocated_on_the_word_of_a_file(tmp_path):
    """Under a limit of 256 MiB more than an idle process: what claims more is only a sentence."""
    checkpoint = open_checkpoint("lenet-300-100", init="random")
    masks = {n: torch.ones_like(p, dtype=torch.bool)
             for n, p in checkpoint.module.named_parameters() if p.dim() > 1}  # fmt: skip
    claims = {
        "classes": lambda m: m["config"].update(num_classes=10**9),
        "shape": lambda m: [e.update(shape=[2**30, 2**10]) for e in m["entries"].values()],
        "both": lambda m: (
            m["config"].update(num_classes=2**30),
            m["entries"][max(masks)].update(shape=[2**30, 100]),
        ),
    }
    paths = []
    for format in ("sparse-csr", "bitmask"):
        for name, lie in claims.items():
            path = tmp_path / f"{format}-{name}"
            export(path, checkpoint, Masks(masks), format)
            header, body = header_of((path / WEIGHTS).read_bytes())
            manifest = json.loads(header["__metadata__"]["slt"])
            lie(manifest)
            header["__metadata__"]["slt"] = json.dumps(manifest)
            (path / WEIGHTS).write_bytes(with_header(header, body))
            paths.append(str(path))
    giant = tmp_path / "giant"
    giant.mkdir()
    (giant / WEIGHTS).write_bytes(struct.pack("<Q", 2**62) + b"{}")
    (tmp_path / "hollow").mkdir()
    (tmp_path / "hollow" / WEIGHTS).write_bytes(
        with_header({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}, b"")
    )
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(HUGE), *paths, str(giant), str(tmp_path / "hollow")],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_the_check_itself_notices_other_weights(files):
    folder, _ = files
    checkpoint, masks = tiny()
    with torch.no_grad():
        checkpoint.module.first.bias += 1
    export(folder / "other", own(checkpoint.module), masks, "bitmask")
    assert not is_safe(folder, "bitmask", (folder / "other" / WEIGHTS).read_bytes())
