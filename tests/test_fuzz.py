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
from artifact_cases import Tiny, export, own, tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slt_compress.artifacts import decoding, read_artifact, read_site_tensors
from slt_compress.artifacts.formats import FORMATS, decode_masks
from slt_compress.checkpoints import open_checkpoint
from slt_compress.errors import SltError
from slt_compress.masks import Masks
from slt_compress.storage.bits import bits
from slt_compress.storage.files import read_safetensors

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
    return same_or_refused(folder / format, WEIGHTS, data)


def same_or_refused(folder, name, data):
    (folder / name).write_bytes(data)
    try:
        loaded = read_artifact(folder, model=Tiny())
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


TRICKS = ["../x", "..", "/etc/passwd", "C:\\x", "a/b", "a\\b", ".x", "", "x\0", "~", "probe", "CON"]
NAMES = st.one_of(
    st.text(max_size=8),
    st.sampled_from(TRICKS),
    st.sampled_from(TRICKS).map(lambda name: name + ".safetensors"),
    st.none() | NUMBERS | st.lists(st.text(max_size=2), max_size=2),
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """An artifact in shards, with its index, and a file beside it that it must not touch."""
    folder = tmp_path_factory.mktemp("shards")
    export(folder / "one", *tiny(), "coded", max_shard_size=1)
    (folder / "x.safetensors").write_bytes(b"what nobody may open")
    return folder / "one", (folder / "one" / f"{WEIGHTS}.index.json").read_text()


@FAST
@given(data=st.data())
def test_indexes_that_lie(shards, data):
    """Shards of any name, keys that move, and an index that is anything."""
    folder, text = shards
    index = json.loads(text)
    placed = index["weight_map"]
    assert len(set(placed.values())) > 2
    for _ in range(data.draw(st.integers(1, 3))):
        key = data.draw(st.sampled_from([*sorted(placed), "more"]))
        match data.draw(st.sampled_from(["name", "swap", "drop", "map"])):
            case "name":
                placed[key] = data.draw(NAMES)
            case "swap":
                placed[key] = placed.get(data.draw(st.sampled_from(sorted(placed) or [key])))
            case "drop":
                placed.pop(key, None)
            case "map":
                index["weight_map"] = data.draw(st.one_of(NAMES, st.just({})))
    opened = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoding, "read_safetensors", spied(opened))
        assert same_or_refused(folder, f"{WEIGHTS}.index.json", json.dumps(index).encode())
    assert all(path.parent == folder for path in opened)


def spied(opened):
    def read(path, error):
        opened.append(path)
        return read_safetensors(path, error)

    return read


@FAST
@given(words=st.lists(st.integers(0, 2**32 - 1), max_size=12), more=st.integers(0, 3),
       shape=st.lists(st.integers(0, 40), max_size=3).map(tuple))  # fmt: skip
def test_any_words_are_a_mask_of_the_shape_or_refused(words, more, shape):
    stream = torch.tensor(
        [*(byte for word in words for byte in struct.pack("<I", word)), *[0] * more],
        dtype=torch.uint8,
    )
    with contextlib.suppress(SltError):
        (mask,) = decode_masks(stream, [shape])
        assert mask.dtype is torch.bool
        assert mask.shape == shape


def test_sites_are_compared_with_the_model_before_they_are_decoded(tmp_path):
    """For transformers, which builds the model itself: a coded mask may claim any size."""
    export(tmp_path / "x", *tiny(), "coded")
    header, body = header_of((tmp_path / "x" / WEIGHTS).read_bytes())
    manifest = json.loads(header["__metadata__"]["slt"])
    own = {name: tuple(entry["shape"]) for name, entry in manifest["entries"].items()}
    tensors, keys = read_site_tensors(tmp_path / "x", own.get)
    assert keys.keys() == tensors.keys() == dict(tiny()[1]).keys()
    name = min(tensors)
    assert read_site_tensors(tmp_path / "x", {name: own[name]}.get)[0].keys() == {name}
    manifest["entries"][name]["shape"] = [2**40, 2**7]
    header["__metadata__"]["slt"] = json.dumps(manifest)
    (tmp_path / "x" / WEIGHTS).write_bytes(with_header(header, body))
    with pytest.raises(SltError, match="the model has"):
        read_site_tensors(tmp_path / "x", own.get)


HUGE = """
import resource, sys
import torch
from slt_compress.artifacts import decoding, read_artifact, read_site_tensors
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
    for format in ("sparse-csr", "bitmask", "coded"):
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
