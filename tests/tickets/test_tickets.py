"""Tickets: a round trip, golden bytes, the same bytes every time, and every damage refused."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
import torch

from slt_compress.errors import TicketError
from slt_compress.masks import Masks
from slt_compress.sites.layouts import Blocks
from slt_compress.sites.unit_gains import UnitGains
from slt_compress.storage.files import write_safetensors
from slt_compress.storage.probe import Probe
from slt_compress.tickets import (
    Counts,
    Extra,
    SiteFacts,
    TicketContent,
    free_path,
    newest,
    read_history,
    read_origin_tensors,
    read_probe,
    read_scores,
    read_ticket,
    ticket_hash,
    write_ticket,
)

MASKS = {
    "fc.weight": torch.tensor([[1, 0, 1, 0, 1], [0, 0, 0, 1, 1]], dtype=torch.bool),
    "conv.weight": torch.arange(18).reshape(2, 1, 3, 3) % 4 == 0,
}

GOLDEN = {
    "README.md": "eebea3324077a86fa5247237f70edb34cfd43146b608c8847461d9f6151d969e",
    "history.jsonl": "66c8882c9655bbfef409c53c7a1716ad996e377adba938a4b826eaaca76d734b",
    "masks.safetensors": "84d011dc2345ec17d287612e4b6f433ce511e8b813bbc87c03965012c08a585e",
    "probe.safetensors": "62814648102eb9de86500731f1e59f0f0674d1a2962d92f2dfb84e0d8d910dbd",
    "ticket.json": "aba1a029aa2c18d16961ceb59920765077e6e88c5337c6a8d621a53d739aab2d",
}


def contents(**changes):
    """The content of a small ticket; `changes` replace some."""
    values = {
        "origin": {"kind": "random", "init": {"scheme": "signed-constant", "seed": 0}},
        "masks": Masks(MASKS),
        "gains": {"fc.weight": 1.5, "conv.weight": 0.1},
        "buffers": {"bn.running_mean": torch.tensor([0.5, -0.0])},
        "stored": {"bn.running_mean": torch.tensor([1.0, 2.0]), "pos": torch.ones(2).bfloat16()},
        "budget": {"density": 0.5},
        "recipe": {"search": {"steps": 3}},
        "metrics": {"hard": {"loss": float("inf"), "accuracy": 0.5}},
        "controls": {"random": {"accuracy": 0.25}},
        "skipped": {"fc.bias": "a bias"},
        "weights_hash": "0" * 64,
        "parameters": 30,
        "probe": Probe(inputs={"x": torch.ones(8, 5)}, logits=torch.zeros(8, 2)),
        "history": [{"index": 0, "loss": 1.0}, {"index": 1, "loss": float("nan")}],
        "card": "# A ticket\n",
        **changes,
    }
    return TicketContent(**values)


@pytest.fixture
def path(tmp_path):
    write_ticket(tmp_path / "t", contents(), run={"seconds": 1.25})
    return tmp_path / "t"


TRAINED = {
    "gains": {"conv.weight": 0.1},
    "masks": Masks({**MASKS, "fc.weight": torch.tensor([[1] * 5, [0] * 5], dtype=torch.bool)}),
    "unit_gains": {
        "fc.weight": UnitGains(
            layout=Blocks(weight=(2, 5), matrix=(2, 5), block=(1, 5)), values=(-1.5, None)
        )
    },
    "tuned": {"bn.weight": torch.tensor([1.0, -0.0])},
}
GOLDEN_TRAINED = {
    "masks.safetensors": "aae944abcbcfebbc4c42b4b3ef9ec27b25df4939ab167a95a4742546f9c88762",
    "ticket.json": "310c844d69469278bdd31a5aec074e241fad3b5423f6713a65c2d05bea4b974b",
}


@pytest.fixture
def trained(tmp_path):
    write_ticket(tmp_path / "trained", contents(**TRAINED))
    return tmp_path / "trained"


def test_numbers_trained_beside_the_mask_come_back_and_are_version_3(trained):
    ticket = read_ticket(trained)
    assert ticket.version == 3
    assert ticket.unit_gains == TRAINED["unit_gains"]
    assert torch.equal(ticket.tuned["bn.weight"], TRAINED["tuned"]["bn.weight"])
    assert ticket.tuned["bn.weight"].signbit().tolist() == [False, True]
    assert ticket.counts.to_dict()["gains"] == 1
    assert ticket.counts.to_dict()["tuned"] == 2
    assert ticket.factors["fc.weight"].tolist() == [[-1.5] * 5, [1.0] * 5]
    assert ticket.factors["conv.weight"] == 0.1
    for name, digest in GOLDEN_TRAINED.items():
        assert hashlib.sha256((trained / name).read_bytes()).hexdigest() == digest


FC = "fc.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m["unit_gains"][FC].update(values=[-1.5]), "one number in fp32 per unit"),
        (lambda m: m["unit_gains"][FC].update(values=[0.1, None]), "one number in fp32 per unit"),
        (lambda m: m["unit_gains"][FC].update(values=[2, None]), "one number in fp32 per unit"),
        (lambda m: m["unit_gains"][FC].update(values=[1e39, None]), "one number in fp32 per unit"),
        (lambda m: m["unit_gains"][FC].update(values=[-1.5, 1.5]), "not those it keeps"),
        (lambda m: m["unit_gains"][FC].update(values=[None, 1.5]), "not those it keeps"),
        (lambda m: m["unit_gains"][FC].update(block=[0, 5]), "do not fit its shape"),
        (lambda m: m["unit_gains"][FC].update(block=[3, 5]), "do not fit its shape"),
        (lambda m: m["unit_gains"][FC].update(matrix=[2**40, 5]), "do not fit its shape"),
        (lambda m: m["unit_gains"][FC].update(weight=[5, 2]), "of another shape or no site"),
        (lambda m: m["unit_gains"].update(other=m["unit_gains"][FC]), "another shape or no site"),
        (lambda m: m["unit_gains"].update({FC: 3}), "the unit gains of fc.weight are 3"),
        (lambda m: m["gains"].update({FC: 2.0}), "a gain of its own and gains of its units"),
        (lambda m: m["counts"].update(gains=2), "counts 2 gains"),
        (lambda m: m["counts"].update(tuned=3), "counts 3 tuned numbers"),
        (lambda m: m["counts"].update(tuned=-1), "counts -1 tuned"),
        (lambda m: m.update(tuned=["bn.weight", "other"]), "lacks tuned/other"),
        (lambda m: m.update(tuned=[]), "disagree"),
        (lambda m: m.update(version=2), "disagree"),
    ],
)
def test_damaged_numbers_are_refused(trained, change, words):
    edit(trained, change)
    with pytest.raises(TicketError, match=words):
        read_ticket(trained)


def edit(path, change):
    """Change the manifest of a ticket with a function."""
    manifest = json.loads((path / "ticket.json").read_text())
    change(manifest)
    (path / "ticket.json").write_text(json.dumps(manifest))


def replace_masks(path, tensors):
    """Put other tensors into a ticket, under a hash that fits them."""
    write_safetensors(path / "masks.safetensors", tensors)
    digest = hashlib.sha256((path / "masks.safetensors").read_bytes()).hexdigest()
    edit(path, lambda m: m["files"].update({"masks.safetensors": digest}))


def test_a_ticket_comes_back_as_it_was(tmp_path):
    given = contents(
        sites={"fc.weight": SiteFacts(dtype="float32", kind="linear")},
        extra=Extra(environment={"threads": 2}, dense_nbytes=120, notes=("a note",)),
    )
    written = write_ticket(tmp_path / "t", given)
    ticket = read_ticket(str(tmp_path / "t"))
    for found in (written, ticket):
        assert found.path == tmp_path / "t"
        assert {name: mask.tolist() for name, mask in found.masks.items()} == {
            name: mask.tolist() for name, mask in MASKS.items()
        }
        for field in ("origin", "gains", "budget", "recipe", "metrics", "controls", "skipped"):
            assert getattr(found, field) == getattr(given, field)
        for field in ("buffers", "stored"):
            tensors = getattr(found, field)
            wanted = getattr(given, field)
            assert tensors.keys() == wanted.keys()
            for name, tensor in tensors.items():
                assert tensor.dtype is wanted[name].dtype
                assert torch.equal(tensor, wanted[name])
    assert ticket.buffers["bn.running_mean"].signbit().tolist() == [False, True]
    assert ticket.counts == Counts(kept=10, gated=28, parameters=30)
    assert ticket.counts.to_dict() == {"kept": 10, "gated": 28, "parameters": 30}
    assert ticket.sites["fc.weight"].to_dict() == {
        "dtype": "float32",
        "kind": "linear",
        "shape": [2, 5],
        "kept": 5,
        "total": 10,
    }
    assert ticket.extra == given.extra
    assert ticket.weights_hash == "0" * 64
    assert ticket.hash == ticket_hash(tmp_path / "t")


def test_the_files_beside_the_manifest(path):
    assert sorted(file.name for file in path.iterdir()) == [
        "README.md",
        "history.jsonl",
        "masks.safetensors",
        "probe.safetensors",
        "run.json",
        "ticket.json",
    ]
    probe = read_probe(path)
    assert probe.inputs.keys() == {"x"}
    assert probe.inputs["x"].shape == (8, 5)
    assert torch.equal(probe.logits, torch.zeros(8, 2))
    first, second = read_history(path)
    assert first == {"index": 0, "loss": 1.0}
    assert second["loss"] != second["loss"]
    assert (path / "README.md").read_text() == "# A ticket\n"
    for reader, name in ((read_scores, "scores"), (read_origin_tensors, "origin")):
        with pytest.raises(TicketError, match=f"has no {name}.safetensors"):
            reader(path)


def test_optional_tensors(tmp_path):
    scores, weights = {"fc.weight": torch.rand(2, 5)}, {"fc.weight": torch.rand(2, 5)}
    path = write_ticket(tmp_path / "t", contents(scores=scores, origin_tensors=weights)).path
    assert torch.equal(read_scores(path)["fc.weight"], scores["fc.weight"])
    assert torch.equal(read_origin_tensors(path)["fc.weight"], weights["fc.weight"])


def test_golden_bytes_of_the_masks(path):
    data = (path / "masks.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert header["__metadata__"] == {
        "slt": '{"kind": "slt-ticket", "shapes": {"conv.weight": [2, 1, 3, 3],'
        ' "fc.weight": [2, 5]}, "version": 1}'
    }
    assert set(header) == {
        "__metadata__",
        "buffer/bn.running_mean",
        "stored/bn.running_mean",
        "stored/pos",
        "conv.weight",
        "fc.weight",
    }
    # 10101 00011 and every fourth of 18, lowest bit first, padded with zeros.
    begin, end = header["fc.weight"]["data_offsets"]
    assert data[8 + length + begin : 8 + length + end] == bytes([0b00010101, 0b00000011])
    begin, end = header["conv.weight"]["data_offsets"]
    assert data[8 + length + begin : 8 + length + end] == bytes([0x11, 0x11, 0x01])
    assert hashlib.sha256(data).hexdigest() == GOLDEN["masks.safetensors"]


def test_golden_bytes_of_the_whole_ticket(path):
    found = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in path.iterdir()
        if file.name != "run.json"
    }
    assert found == GOLDEN
    assert ticket_hash(path) == GOLDEN["ticket.json"]


def test_only_run_json_may_differ(tmp_path):
    shuffled = Masks({name: MASKS[name] for name in reversed(MASKS)})
    first = write_ticket(tmp_path / "a", contents(), run={"seconds": 1.25}).path
    second = write_ticket(
        tmp_path / "b", contents(masks=shuffled), run={"seconds": 9, "path": "b"}
    ).path
    different = [
        f.name for f in first.iterdir() if f.read_bytes() != (second / f.name).read_bytes()
    ]
    assert different == ["run.json"]


def test_run_json_and_the_card_are_outside_every_hash(path):
    (path / "run.json").unlink()
    (path / "README.md").write_text("mine")
    assert read_ticket(path).masks.kept == 10


def test_a_taken_path_is_refused(path):
    before = (path / "ticket.json").read_bytes()
    with pytest.raises(TicketError, match="not empty"):
        write_ticket(path, contents(card="other"))
    assert (path / "ticket.json").read_bytes() == before


def test_a_failed_write_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_ticket(tmp_path / "t", contents(recipe={"bad": object()}))
    with pytest.raises(TicketError, match="no mask was given"):
        write_ticket(tmp_path / "t", contents(sites={"other": SiteFacts()}))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["masks.safetensors", "probe.safetensors", "history.jsonl"])
def test_a_changed_file_is_refused(path, name):
    data = bytearray((path / name).read_bytes())
    data[-1] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(TicketError, match=f"{name} was changed or damaged"):
        read_ticket(path)
    (path / name).unlink()
    with pytest.raises(TicketError, match=f"{name} is missing"):
        read_ticket(path)


def test_what_is_no_ticket_is_refused(tmp_path, path):
    with pytest.raises(TicketError, match=r"is not a ticket: it has no ticket\.json"):
        read_ticket(tmp_path / "nowhere")
    edit(path, lambda m: m.update(kind="recipe"))
    with pytest.raises(TicketError, match="not the manifest of a slt-ticket"):
        read_ticket(path)


def test_a_newer_ticket_is_refused_with_the_way_out(path):
    edit(path, lambda m: m.update(version=5))
    with pytest.raises(TicketError, match=r"newer slt-compress \(format 5.*upgrade"):
        read_ticket(path)


@pytest.mark.parametrize("version", [None, 0, -1, True, "1", 1.0, [1]])
def test_a_version_that_is_none_is_refused(path, version):
    edit(path, lambda m: m.update(version=version))
    with pytest.raises(TicketError, match="version"):
        read_ticket(path)


DAMAGE = {
    "no sites": lambda m: m.pop("sites"),
    "sites as a list": lambda m: m.update(sites=[]),
    "a lost site": lambda m: m["sites"].pop("fc.weight"),
    "a further site": lambda m: m["sites"].update(more={"shape": [1], "kept": 0, "total": 1}),
    "a site without shape": lambda m: m["sites"]["fc.weight"].pop("shape"),
    "a site that is text": lambda m: m["sites"].update({"fc.weight": "x"}),
    "another shape": lambda m: m["sites"]["fc.weight"].update(shape=[5, 7]),
    "a shape that fits the bytes only": lambda m: m["sites"]["fc.weight"].update(shape=[9]),
    "a transposed count": lambda m: m["sites"]["fc.weight"].update(shape=[3, 3], total=9),
    "a huge shape": lambda m: m["sites"]["fc.weight"].update(shape=[2**40, 2**40]),
    "a shape that overflows": lambda m: m["sites"]["fc.weight"].update(shape=[2**47] * 16),
    "a negative shape": lambda m: m["sites"]["fc.weight"].update(shape=[-2, -5]),
    "a shape of floats": lambda m: m["sites"]["fc.weight"].update(shape=[2.0, 5.0]),
    "another count": lambda m: m["sites"]["fc.weight"].update(kept=4),
    "another sum": lambda m: m["counts"].update(kept=9),
    "another total": lambda m: m["counts"].update(gated=27),
    "no counts": lambda m: m.pop("counts"),
    "no files": lambda m: m.pop("files"),
    "no masks": lambda m: m["files"].pop("masks.safetensors"),
    "a path as a file": lambda m: m["files"].update({"../secret": "0" * 64}),
    "no buffers": lambda m: m.pop("buffers"),
    "a lost buffer": lambda m: m.update(buffers=[]),
    "a further buffer": lambda m: m["buffers"].append("x"),
    "a buffer twice": lambda m: m["buffers"].append("bn.running_mean"),
    "buffers of numbers": lambda m: m.update(buffers=[1]),
    "a further stored tensor": lambda m: m["stored"].append("x"),
    "a gain of no site": lambda m: m["gains"].update(other=1.0),
    "a gain that is text": lambda m: m["gains"].update({"fc.weight": "1"}),
    "an infinite gain": lambda m: m["gains"].update({"fc.weight": {"__float__": "Infinity"}}),
    "no origin": lambda m: m.pop("origin"),
    "no metrics": lambda m: m.update(metrics=None),
    "a metric that is text": lambda m: m["metrics"]["hard"].update(loss="low"),
    "metrics as a list": lambda m: m["metrics"].update(hard=[1.0]),
    "a count that is no number": lambda m: m["counts"].update(parameters="30"),
    "no parameters": lambda m: m["counts"].update(parameters=0),
    "units as a number": lambda m: m["counts"].update(units=3),
    "units of a site as text": lambda m: m["sites"]["fc.weight"].update(units="all"),
    "a huge gain": lambda m: m["gains"].update({"fc.weight": 10**400}),
    "no hash of the weights": lambda m: m.pop("weights_hash"),
    "extra facts as a list": lambda m: m.update(extra=[]),
    "an environment as text": lambda m: m["extra"].update(environment="linux"),
    "bytes that are true": lambda m: m["extra"].update(dense_nbytes=True),
    "silenced weights as text": lambda m: m["extra"].update(silenced={"fc.bias": "2"}),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_manifest_that_lies_is_refused(path, damage):
    edit(path, DAMAGE[damage])
    with pytest.raises(TicketError) as caught:
        read_ticket(path)
    assert "\n" not in str(caught.value)


def test_padding_bits_and_other_dtypes_are_refused(path):
    good = {"conv.weight": torch.tensor([0x11, 0x11, 1], dtype=torch.uint8)}
    extra = {"buffer/bn.running_mean": torch.zeros(2)}
    extra |= {"stored/bn.running_mean": torch.zeros(2), "stored/pos": torch.zeros(2)}
    bits = torch.tensor([0b00010101, 0b00000011], dtype=torch.uint8)
    replace_masks(path, good | extra | {"fc.weight": bits})
    assert read_ticket(path).masks.kept == 10
    for bad in (bits + torch.tensor([0, 4], dtype=torch.uint8), bits.to(torch.int32), bits[None]):
        replace_masks(path, good | extra | {"fc.weight": bad})
        with pytest.raises(TicketError, match="damaged"):
            read_ticket(path)
    replace_masks(path, good | extra)
    with pytest.raises(TicketError, match=r"disagree on \['fc\.weight'\]"):
        read_ticket(path)


def test_newest_goes_by_the_clock_of_the_manifest(tmp_path):
    with pytest.raises(TicketError, match="slt-compress search"):
        newest(tmp_path / "tickets")
    for age, name in enumerate(["b", "a", ".c.part-00000000"]):
        write_ticket(tmp_path / "tickets" / name, contents())
        manifest = tmp_path / "tickets" / name / "ticket.json"
        os.utime(manifest, ns=(10**18 + age, 10**18 + age))
    (tmp_path / "tickets" / "z").mkdir()
    assert newest(tmp_path / "tickets").name == "a"


def test_free_path_counts_up(tmp_path):
    taken = []
    for _ in range(3):
        path = free_path(tmp_path, "vit-relaxed-0.9")
        path.mkdir()
        taken.append(path.name)
    assert taken == ["vit-relaxed-0.9", "vit-relaxed-0.9-2", "vit-relaxed-0.9-3"]
