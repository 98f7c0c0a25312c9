"""The probe: made from a seed where the model takes it, small whatever the model gives."""

from __future__ import annotations

import hashlib

import pytest
import torch

from slt_compress.errors import TicketError
from slt_compress.storage.files import read_manifest, read_safetensors, write_safetensors
from slt_compress.storage.probe import Probe, make_probe, read_probe_file
from slt_compress.storage.seeded import MOST_ELEMENTS, Range, range_like

SEED = torch.Generator().manual_seed(0)
IMAGES = {"pixel_values": torch.randn(8, 3, 32, 32, generator=SEED) + 2}
WORDS = {
    "input_ids": torch.randint(5, 900, (8, 64), generator=SEED),
    "attention_mask": torch.ones(8, 64, dtype=torch.int64),
    "labels": torch.where(torch.rand(8, 64, generator=SEED) < 0.5, -100, 7),
}


def classes(inputs):
    return inputs["pixel_values"].flatten(1)[:, :10].cumsum(1)


def vocabulary(inputs):
    return (inputs["input_ids"][..., None] * torch.arange(1.0, 901)).sin()


def strict(inputs):
    """As a model that looks for the one end in every sentence."""
    if not bool((inputs["input_ids"] == 900).sum(1).eq(1).all()):
        raise ValueError("every sentence needs one end")
    return vocabulary(inputs)


def read(probe, path):
    probe.write(path)
    again = read_probe_file(path, TicketError)
    assert again.inputs.keys() == probe.inputs.keys()
    for name, value in probe.inputs.items():
        assert again.inputs[name].dtype == value.dtype
        assert torch.equal(again.inputs[name], value)
    assert torch.equal(again.logits, probe.logits)
    assert again.seeded == probe.seeded
    return again


def test_images_are_noise_of_the_same_mean_and_spread_and_none_is_stored(tmp_path):
    probe = make_probe(IMAGES, classes)
    made, real = probe.inputs["pixel_values"], IMAGES["pixel_values"]
    assert made.shape == real.shape
    assert not torch.equal(made, real)
    assert abs(float(made.mean() - real.mean())) < 0.05
    assert abs(float(made.std() - real.std())) < 0.05
    again = read(probe, tmp_path / "p")
    assert set(read_safetensors(tmp_path / "p", TicketError)) == {"logits"}
    assert again.is_answered_by(classes(again.inputs))
    assert (tmp_path / "p").stat().st_size < 2_000


def test_ids_are_valid_masks_hide_nothing_and_many_logits_are_sampled(tmp_path):
    probe = make_probe(WORDS, vocabulary)
    ids = probe.inputs["input_ids"]
    assert 5 <= int(ids.min()) < int(ids.max()) < 900
    assert len(ids.unique()) > 200
    assert bool(probe.inputs["attention_mask"].eq(1).all())
    assert bool(probe.inputs["labels"].eq(7).all())  # never a position that a loss leaves out
    again = read(probe, tmp_path / "p")
    logits = vocabulary(again.inputs)
    assert again.logits.shape == (8192,)
    assert again.shape == (8, 64, 900)
    assert again.is_answered_by(logits)
    assert again.difference(logits) == 0.0
    assert (tmp_path / "p").stat().st_size < 64_000
    changed = logits.clone()
    changed[3, 5, 7] += 1e-3
    assert not again.is_answered_by(changed)  # wherever the change is
    assert again.difference(logits + 0.5) == pytest.approx(0.5, abs=1e-5)
    assert again.difference(logits[:1]) == float("inf")
    assert len({float(value) for value in again.logits}) > 4000  # from all over the place


def test_real_integers_are_stored_narrow_where_a_model_refuses_made_up_ones(tmp_path):
    real = {**WORDS, **IMAGES}
    real["input_ids"] = real["input_ids"].clone()
    real["input_ids"][:, -1] = 900
    probe = make_probe(real, strict)
    assert torch.equal(probe.inputs["input_ids"], real["input_ids"])
    assert torch.equal(probe.inputs["labels"], real["labels"])
    assert not torch.equal(probe.inputs["pixel_values"], real["pixel_values"])
    assert read(probe, tmp_path / "p").is_answered_by(strict(probe.inputs))
    stored = read_safetensors(tmp_path / "p", TicketError)
    assert stored["input_ids"].dtype == torch.uint16
    assert stored["labels"].dtype == torch.int32


def test_fewer_examples_where_real_integers_take_much_room(tmp_path):
    real = {"input_ids": torch.randint(70_000, (8, 4096), generator=SEED)}
    real["input_ids"][:, -1] = 70_001

    def run(inputs):
        if not bool(inputs["input_ids"][:, -1].eq(70_001).all()):
            raise ValueError("no end")
        return inputs["input_ids"].float()

    probe = make_probe(real, run)
    assert len(probe.inputs["input_ids"]) == 1
    probe.write(tmp_path / "p")
    assert (tmp_path / "p").stat().st_size < 64_000


def test_all_is_stored_where_a_model_takes_nothing_else(tmp_path):
    def run(inputs):
        if not torch.equal(inputs["pixel_values"], IMAGES["pixel_values"]):
            return torch.full((8, 2), float("nan"))
        return torch.ones(8, 2)

    probe = make_probe(IMAGES, run)
    assert probe.seeded is None
    read(probe, tmp_path / "p")
    assert read_manifest(tmp_path / "p", TicketError) is None


@pytest.mark.parametrize("most", [8, None])
def test_without_a_batch_dimension_nothing_is_cut(most):
    real = {"0": torch.randn(20, 3, generator=SEED)}
    probe = make_probe(real, lambda inputs: inputs["0"].sum(0), most=most)
    assert len(probe.inputs["0"]) == (most or 20)


def test_the_answer_of_another_model_and_one_input_less():
    probe = make_probe(WORDS, vocabulary)
    other = probe.answered(vocabulary(probe.inputs) * 2)
    assert other.is_answered_by(vocabulary(other.inputs) * 2)
    assert not other.is_answered_by(vocabulary(other.inputs))
    assert other.logits.shape == probe.logits.shape
    less = probe.without("labels")
    assert less.inputs.keys() == less.seeded.ranges.keys() == {"input_ids", "attention_mask"}


def test_the_bytes_and_values_of_a_seed_are_fixed(tmp_path):
    ranges = {
        "x": Range(dtype="float32", shape=(2, 2), low=-1.0, high=3.0),
        "ids": Range(dtype="int64", shape=(4,), low=3, high=10),
        "half": Range(dtype="bfloat16", shape=(2,), low=0.0, high=1.0),
        "flag": Range(dtype="bool", shape=(3,), low=0, high=1),
    }
    assert ranges["x"].tensor("x", 0).tolist() == FIXED["x"]
    assert ranges["ids"].tensor("ids", 0).tolist() == FIXED["ids"]
    assert ranges["half"].tensor("half", 0).tolist() == FIXED["half"]
    assert ranges["flag"].tensor("flag", 0).dtype == torch.bool
    assert not torch.equal(ranges["x"].tensor("x", 1), ranges["x"].tensor("x", 0))
    probe = make_probe({"x": torch.tensor([[0.0, 1.0], [2.0, 3.0]])}, lambda i: i["x"].sum(1))
    probe.write(tmp_path / "p")
    assert hashlib.sha256((tmp_path / "p").read_bytes()).hexdigest() == FIXED["file"]


@pytest.mark.parametrize(
    "tensor",
    [torch.zeros(0, 3), torch.tensor(1.0), torch.tensor([float("inf")]), torch.tensor([-100]),
     torch.zeros(2, dtype=torch.complex64)],
)  # fmt: skip
def test_what_has_no_range_is_stored(tensor):
    assert range_like("x", tensor) is None


def good(path):
    make_probe(WORDS, vocabulary).write(path)
    return read_manifest(path, TicketError), read_safetensors(path, TicketError)


def entry(**changes):
    return {"dtype": "int64", "shape": [8, 64], "low": 0, "high": 9} | changes


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 3}, "newer slt-compress"),
        ({"kind": "slt-ticket"}, "not the manifest of a slt-probe"),
        ({"seed": "0"}, "'seed'"),
        ({"ranges": {"x": entry(shape=[MOST_ELEMENTS, 2])}}, "elements"),
        ({"ranges": {"x": entry(shape=[-1])}}, "no range"),
        ({"ranges": {"x": entry(low=3, high=2)}}, "no range"),
        ({"ranges": {"x": entry(high=float("inf"))}}, "no range"),
        ({"ranges": {"x": entry(high=2**60)}}, "cannot be int64"),
        ({"ranges": {"x": entry(dtype="uint8", high=256)}}, "cannot hold"),
        ({"ranges": {"x": entry(dtype="int64", low=0.5)}}, "cannot be int64"),
        ({"ranges": {"x": entry(dtype="complex64")}}, "cannot be complex64"),
        ({"ranges": {"x": 3}}, "no range"),
        ({"ranges": {"logits": entry()}}, "both"),
        ({"narrowed": {"y": "int64"}}, "both"),
        ({"logits": {"shape": [8, 64, 900]}}, "hash"),
        ({"logits": {"shape": [8, 64], "hash": "0" * 64}}, "logits of shape"),
    ],
)
def test_a_file_that_contradicts_itself_is_refused(tmp_path, change, said):
    manifest, tensors = good(tmp_path / "p")
    write_safetensors(tmp_path / "q", tensors, manifest | change)
    with pytest.raises(TicketError, match=said):
        read_probe_file(tmp_path / "q", TicketError)


def test_a_narrowed_input_is_widened_to_an_integer_only(tmp_path):
    manifest, tensors = good(tmp_path / "p")
    for dtype, stored in (("float32", torch.uint8), ("int64", torch.float32)):
        more = tensors | {"x": torch.ones(2, dtype=stored)}
        write_safetensors(tmp_path / "q", more, manifest | {"narrowed": {"x": dtype}})
        with pytest.raises(TicketError, match="narrowed"):
            read_probe_file(tmp_path / "q", TicketError)


def test_a_probe_of_before_is_read_and_written_as_it_was(tmp_path):
    old = Probe(inputs={"x": torch.ones(8, 5)}, logits=torch.zeros(8, 2))
    read(old, tmp_path / "p")
    assert old.is_answered_by(torch.zeros(8, 2))
    assert old.difference(torch.ones(8, 2)) == 1.0
    assert old.answered(torch.ones(8, 2)).is_answered_by(torch.ones(8, 2))
    write_safetensors(tmp_path / "none", {})
    assert read_probe_file(tmp_path / "none", TicketError) is None


FIXED = {
    "x": [
        [-0.9177277088165283, -0.6880667209625244],
        [-0.662054717540741, -0.38168707489967346],
    ],
    "ids": [3, 9, 8, 6],
    "half": [0.296875, 0.796875],
    "file": "d7a5f1416450da3385a9bf2ec59608ff91cf723a297dc38b36b7c39c4ead8df3",
}
