"""The whole path on every family: search, report, export, load, verify, evaluate."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pico
import pytest
import timm
import torch
import transformers
from data_sets import ready
from pipelines import check_whole_path, short
from torch import nn

import slt_compress
from slt_compress import Budget, Training
from slt_compress.artifacts.formats import FORMATS
from slt_compress.checkpoints import open_checkpoint
from slt_compress.errors import ArtifactError, SltError, SourceError

DATA = {
    "vit": "pictures",
    "bert": "reviews",
    "gpt2": "prose",
    "llama": "prose",
    "mixtral": "prose",
    "resnet": "pictures",
    "convnext": "pictures",
}
SHORT = Training(steps=3, batch_size=4, selections=2)


@pytest.mark.parametrize("name", DATA)
def test_pretrained(name, checkpoints, data_sets, tmp_path):
    ticket = slt_compress.search(
        checkpoints[name], data_sets[DATA[name]], recipe=short(), out=tmp_path / "ticket"
    )
    report = check_whole_path(ticket, tmp_path)
    # the ticket's model is the origin with zeros where the masks say so, and nothing else
    origin = open_checkpoint(checkpoints[name]).module.state_dict()
    masked = slt_compress.load(ticket.path).state_dict()
    changed = set(ticket.buffers)
    assert masked.keys() == origin.keys()
    for key, tensor in origin.items():
        if key in changed:
            continue
        mask = ticket.masks.get(key)
        wanted = tensor if mask is None else torch.where(mask, tensor, torch.zeros(()).to(tensor))
        assert torch.equal(masked[key], wanted), key
    assert bool(changed) == (name == "resnet")  # BatchNorm is measured again under the mask
    names = {"accuracy", "loss", "agreement", "kl"}
    if DATA[name] == "prose":
        names = {"loss", "perplexity", "agreement", "kl"}
    assert set(report.metrics["hard"]) == names
    assert set(report.metrics["dense"]) == names - {"agreement", "kl"}
    evaluated = slt_compress.evaluate(ticket.path)
    assert evaluated["metrics"].items() <= dict(report.metrics["hard"]).items()
    assert slt_compress.evaluate(tmp_path / "sparse-csr") == evaluated


def test_dense_exports_open_with_their_own_library(checkpoints, data_sets, tmp_path):
    for name in ("gpt2", "resnet"):
        ticket = slt_compress.search(
            checkpoints[name], data_sets[DATA[name]], recipe=short(), out=tmp_path / name / "ticket"
        )
        out = slt_compress.export(ticket.path, out=tmp_path / name / "dense").path
        if name == "gpt2":
            plain = transformers.AutoModelForCausalLM.from_pretrained(out)
            transformers.AutoTokenizer.from_pretrained(out)
            assert plain.lm_head.weight is plain.transformer.wte.weight
        else:
            plain = timm.create_model(f"local-dir:{out}", pretrained=True)
        ours = slt_compress.load(ticket.path).state_dict()
        assert all(torch.equal(value, ours[key]) for key, value in plain.state_dict().items())


def test_tied_weights_stay_tied(checkpoints, data_sets, tmp_path):
    ticket = slt_compress.search(
        checkpoints["gpt2"], data_sets["prose"], recipe=short(), out=tmp_path / "ticket"
    )
    assert "transformer.wte.weight" in ticket.skipped
    out = slt_compress.export(ticket.path, format="sparse-csr", out=tmp_path / "out").path
    loaded = slt_compress.load(out)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert (out / "tokenizer.json").is_file()
    assert "license: mit" in (out / "README.md").read_text()


def test_a_process_of_its_own_verifies(checkpoints, data_sets, tmp_path):
    ticket = slt_compress.search(
        checkpoints["llama"], data_sets["prose"], recipe=short(), out=tmp_path / "ticket"
    )
    found = slt_compress.verify(ticket.path)
    assert found.ok
    gone = tmp_path / "moved"
    shutil.copytree(checkpoints["llama"], gone)
    assert slt_compress.verify(ticket.path, origin=gone, in_process=True).ok
    torch.manual_seed(9)
    other = transformers.LlamaForCausalLM(transformers.LlamaConfig(**pico.DECODER, **pico.END))
    other.save_pretrained(gone)
    found = slt_compress.verify(ticket.path, origin=gone, in_process=True)
    assert not found.ok
    assert [check.name for check in found.checks if not check.ok] == ["origin"]


@pytest.mark.parametrize(("name", "dtype"), [("vit", torch.float16), ("llama", torch.bfloat16)])
def test_half_precision_weights(name, dtype, checkpoints, data_sets, tmp_path):
    origin = tmp_path / "origin"
    shutil.copytree(checkpoints[name], origin)
    open_checkpoint(origin).module.to(dtype).save_pretrained(origin)
    ticket = slt_compress.search(
        origin, data_sets[DATA[name]], recipe=short(), out=tmp_path / "ticket"
    )
    check_whole_path(ticket, tmp_path)
    module = slt_compress.load(tmp_path / "sparse-csr")
    assert {p.dtype for p in module.parameters()} == {dtype}
    for site, mask in ticket.masks.items():
        kept = open_checkpoint(origin).module.get_parameter(site) * mask
        assert torch.equal(module.get_parameter(site), kept)


@pytest.mark.parametrize("init", ["random", "default", "kaiming-normal"])
def test_random_lenet_on_digits(init, tmp_path):
    recipe = short(init=init, evaluation={"limit": 40})
    ticket = slt_compress.search("lenet-300-100", "digits", recipe=recipe, out=tmp_path / "ticket")
    assert set(ticket.gains) == set(ticket.masks)
    check_whole_path(ticket, tmp_path)
    assert (tmp_path / "ticket" / "origin.safetensors").is_file() == (init == "default")
    assert slt_compress.evaluate(tmp_path / "dense")["examples"] == 40


@pytest.mark.parametrize("source", ["timm:test_vit", "resnet20-cifar"])
def test_random_image_networks(source, data_sets, tmp_path):
    ticket = slt_compress.search(
        source, data_sets["pictures"], recipe=short(init="random"), out=tmp_path / "ticket"
    )
    check_whole_path(ticket, tmp_path)
    head = slt_compress.load(ticket.path)(torch.zeros(1, 3, *_size(source)))
    assert head.shape == (1, 3)  # as many outputs as the data has classes
    assert bool(ticket.buffers) == (source == "resnet20-cifar")


def _size(source):
    return (160, 160) if source == "timm:test_vit" else (32, 32)


@pytest.mark.parametrize("name", ["bert", "gpt2", "vit"])
def test_random_init_of_a_folder_keeps_its_tokenizer(name, checkpoints, data_sets, tmp_path):
    folder = tmp_path / "config"
    shutil.copytree(checkpoints[name], folder, ignore=shutil.ignore_patterns("*.safetensors"))
    data = data_sets[DATA[name]]
    ticket = slt_compress.search(folder, data, recipe=short(init="random"), out=tmp_path / "ticket")
    report = check_whole_path(ticket, tmp_path)
    companion = "preprocessor_config.json" if name == "vit" else "tokenizer.json"
    found = {file.name for file in (tmp_path / "sparse-csr").iterdir()}
    assert companion in found or "processor_config.json" in found
    evaluated = slt_compress.evaluate(ticket.path)["metrics"]
    assert evaluated == report.metrics["hard"]
    assert slt_compress.evaluate(tmp_path / "dense")["metrics"] == evaluated
    shutil.rmtree(folder)  # the weights come from the seed alone
    assert slt_compress.verify(ticket.path, in_process=True).ok


def test_a_random_init_of_another_size_than_its_processor_has(checkpoints, tmp_path):
    recipe = short(init="random", model={"image_size": 32}, evaluation={"limit": 12})
    ticket = slt_compress.search(checkpoints["vit"], "digits", recipe=recipe, out=tmp_path / "t")
    check_whole_path(ticket, tmp_path)
    for path in (ticket.path, tmp_path / "dense", tmp_path / "sparse-csr"):
        assert slt_compress.evaluate(path)["metrics"] == ticket.metrics["hard"]


@pytest.mark.parametrize("kind", ["ForMaskedLM", "Model"])
def test_heads_without_labels(kind, data_sets, tmp_path):
    """A masked language model makes its own labels; a bare model has its hidden states compared."""
    torch.manual_seed(0)
    config = transformers.BertConfig(**pico.SMALL, **pico.TEXT, intermediate_size=32)
    getattr(transformers, f"Bert{kind}")(config).save_pretrained(tmp_path / "bert")
    pico.save_tokenizer(tmp_path / "bert")
    ticket = slt_compress.search(
        tmp_path / "bert", data_sets["prose"], recipe=short(), out=tmp_path / "ticket"
    )
    report = check_whole_path(ticket, tmp_path)
    assert ("perplexity" in report.metrics["hard"]) == (kind == "ForMaskedLM")
    assert "loss" in slt_compress.evaluate(ticket.path)["metrics"]


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(6, 8)
        self.norm = nn.BatchNorm1d(8)
        self.gru = nn.GRU(8, 5, batch_first=True)
        self.head = nn.Linear(5, 2)

    def forward(self, x):
        return self.head(self.gru(self.norm(self.body(x)).relu()[:, None])[0][:, -1])


def test_a_module_of_ones_own(tmp_path):
    torch.manual_seed(0)
    module = Own().train()
    before = {key: value.clone() for key, value in module.state_dict().items()}
    batches = [(torch.randn(8, 6), torch.randint(0, 2, (8,))) for _ in range(4)]

    def loss_fn(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1])

    ticket = slt_compress.search(
        module, batches, budget=Budget(density=0.4), training=SHORT, loss_fn=loss_fn,
        out=tmp_path / "ticket",
    )  # fmt: skip
    assert module.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    assert set(ticket.metrics["hard"]) == {"loss"}
    loaded = slt_compress.load(ticket.path, model=module)
    assert not loaded.training
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())
    for name, mask in ticket.masks.items():
        assert torch.equal(loaded.state_dict()[name], before[name] * mask)
    assert torch.equal(loaded.norm.running_mean, ticket.buffers["norm.running_mean"])
    assert slt_compress.verify(ticket.path, model=module).ok
    for format in FORMATS:
        out = slt_compress.export(
            ticket.path, format=format, out=tmp_path / format, model=module
        ).path
        # a mask alone needs the weights, any other format nothing but the architecture
        again = slt_compress.load(out, model=module if format == "mask" else Own())
        state = loaded.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
        assert slt_compress.verify(out, model=module).ok
        assert not slt_compress.verify(out, model=Own()).ok
        assert "model=your_module" in (out / "README.md").read_text()
    for use in (slt_compress.load, slt_compress.verify, slt_compress.export):
        with pytest.raises(SltError, match="model="):
            use(ticket.path)
    with pytest.raises(SltError, match="loss_fn"):
        slt_compress.search(module, batches)
    with pytest.raises(SltError, match="the name of a data set"):
        slt_compress.search("lenet-300-100", batches)


class Repeating(nn.Module):
    """A module called three times in one forward, and a weight in two modules."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.mirror, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
        self.mirror.weight = self.body.weight

    def forward(self, x):
        for _ in range(3):
            x = self.body(x).tanh()
        return self.head(self.mirror(x))


def test_shared_weights_and_modules_called_several_times(tmp_path):
    torch.manual_seed(0)
    module, batches = Repeating(), [torch.randn(5, 6) for _ in range(3)]
    ticket = slt_compress.search(
        module, batches, budget=Budget(density=0.4), training=SHORT, out=tmp_path / "ticket",
        loss_fn=lambda model, batch: model(batch).square().mean(),
    )  # fmt: skip
    assert set(ticket.masks) == {"body.weight", "head.weight"}
    expected = copy.deepcopy(module)
    with torch.no_grad():
        for site, mask in ticket.masks.items():
            expected.get_parameter(site).mul_(mask)
        for format in ("dense", "sparse-csr"):
            out = slt_compress.export(
                ticket.path, format=format, out=tmp_path / format, model=module
            ).path
            loaded = slt_compress.load(out, model=Repeating())
            assert loaded.mirror.weight is loaded.body.weight
            assert torch.equal(loaded(batches[0]), expected(batches[0]))
            assert slt_compress.verify(out, model=module, in_process=True).ok


def test_regression_on_pairs(data_sets, tmp_path):
    folder = pico.save_bert(tmp_path / "bert", num_labels=1, problem_type="regression")
    ticket = slt_compress.search(
        folder, data_sets["scores"], recipe=short(), out=tmp_path / "ticket"
    )
    report = check_whole_path(ticket, tmp_path)
    assert {"pearson", "loss"} <= set(report.metrics["hard"])
    model = slt_compress.load(ticket.path)
    prepared = ready(data_sets["scores"], open_checkpoint(folder))
    with torch.no_grad():
        pairs = [
            (model(**{k: v for k, v in batch.items() if k != "labels"}).logits.view(-1),
             batch["labels"].view(-1))
            for batch in prepared.test
        ]  # fmt: skip
    scores, labels = (torch.cat(column).double() for column in zip(*pairs, strict=True))
    pearson = float(torch.corrcoef(torch.stack([scores, labels]))[0, 1])
    assert report.metrics["hard"]["pearson"] == pytest.approx(pearson, abs=1e-6)
    assert report.metrics["hard"]["loss"] == pytest.approx(float((scores - labels).square().mean()))


def test_labels_that_do_not_match(data_sets, tmp_path):
    folder = pico.save_vit(tmp_path / "vit", ["tench", "goldfish", "shark", "ray"])
    ticket = slt_compress.search(
        folder, data_sets["pictures"], recipe=short(), out=tmp_path / "ticket"
    )
    report = check_whole_path(ticket, tmp_path)
    assert set(report.metrics["hard"]) == {"agreement", "kl"}
    assert any("class" in warning for warning in report.warnings)
    for path in (ticket.path, tmp_path / "dense", tmp_path / "sparse-csr"):
        assert slt_compress.evaluate(path)["metrics"] == report.metrics["hard"]
    with pytest.raises(SltError, match="distill"):
        slt_compress.search(folder, data_sets["pictures"], objective="task", recipe=short())
    shutil.rmtree(folder)
    with pytest.raises(SourceError, match="--origin"):
        slt_compress.evaluate(tmp_path / "dense")


def test_evaluate_on_another_data_set(checkpoints, data_sets, tmp_path):
    recipe = short(data={"label": "kind"})
    ticket = slt_compress.search(
        checkpoints["vit"], data_sets["pictures"], recipe=recipe, out=tmp_path / "ticket"
    )
    assert ticket.recipe["dataset"] == data_sets["pictures"]
    found = slt_compress.evaluate(ticket.path, "digits")  # has no column "kind"
    assert found["examples"] == 360
    assert set(found["metrics"]) == {"agreement", "kl"}


def weight_normed_ticket(tmp_path):
    """A ticket of a model with a weight-normed convolution; sound cannot be searched on yet."""
    config = transformers.Wav2Vec2Config(
        **pico.SMALL, intermediate_size=32, conv_dim=(8,), conv_kernel=(3,), conv_stride=(2,),
        num_feat_extract_layers=1, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
        num_labels=2, vocab_size=32,
    )  # fmt: skip
    torch.manual_seed(0)
    transformers.Wav2Vec2ForSequenceClassification(config).save_pretrained(tmp_path / "origin")
    checkpoint = open_checkpoint(tmp_path / "origin")
    own = slt_compress.search(
        checkpoint.module, [torch.randn(2, 64) for _ in range(2)], training=SHORT,
        loss_fn=lambda module, batch: module(batch).logits.square().mean(), out=tmp_path / "own",
        budget=Budget(density=0.3),
    )  # fmt: skip
    from slt_compress.checkpoints import origin_record
    from slt_compress.tickets import SiteFacts, TicketContent, write_ticket

    fields = ("masks", "gains", "buffers", "stored", "budget", "recipe", "metrics", "controls",
              "skipped", "weights_hash", "extra")  # fmt: skip
    inputs = {"input_values": torch.randn(2, 64)}
    content = TicketContent(
        origin=origin_record(checkpoint), parameters=own.counts.parameters, card="",
        sites={name: SiteFacts(dtype="float32") for name in own.masks},
        **{name: getattr(own, name) for name in fields},
    )  # fmt: skip
    write_ticket(tmp_path / "ticket", content)
    return own.masks, inputs


def test_weights_under_a_parametrization(tmp_path):
    masks, inputs = weight_normed_ticket(tmp_path)
    site = "wav2vec2.encoder.pos_conv_embed.conv.weight"
    assert site in masks
    loaded = slt_compress.load(tmp_path / "ticket")
    assert slt_compress.verify(tmp_path / "ticket", in_process=True).ok
    with pytest.raises(ArtifactError, match="sparse-csr"):
        slt_compress.export(tmp_path / "ticket", out=tmp_path / "dense")
    assert not (tmp_path / "dense").exists()
    out = slt_compress.export(tmp_path / "ticket", format="sparse-csr", out=tmp_path / "csr").path
    again = slt_compress.load(out)
    assert torch.equal(again.get_parameter(site) != 0, masks[site])
    with torch.inference_mode():
        assert torch.equal(again(**inputs).logits, loaded(**inputs).logits)
    checks = slt_compress.verify(out, in_process=True)
    assert checks.ok, checks


def test_same_seed_same_bytes(tmp_path):
    command = [
        sys.executable, "-m", "slt_compress", "search", "lenet-300-100", "--init", "random",
        "--dataset", "digits", "--steps", "4", "--set", "save_scores=true",
        "--set", "evaluation.limit=40", "--quiet",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONHASHSEED": "random", "PYTHONPATH": str(Path.cwd())}
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        done = subprocess.run(
            command, cwd=tmp_path / run, env=environment, capture_output=True, text=True, check=True
        )
        assert done.stdout == "tickets/lenet-300-100-relaxed-0.9\n"
        assert done.stderr == ""
    first, second = (tmp_path / run / "tickets/lenet-300-100-relaxed-0.9" for run in ("a", "b"))
    names = {file.name for file in first.iterdir()}
    assert names == {file.name for file in second.iterdir()}
    assert "scores.safetensors" in names
    for name in names - {"run.json"}:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_two_searches_at_once_keep_both_tickets(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = short(init="random", dataset="digits", evaluation={"limit": 20})
    inner = []

    def search_again(step):
        if step.index == 0 and not inner:
            inner.append(None)
            inner[0] = slt_compress.search("lenet-300-100", recipe=recipe)

    outer = slt_compress.search("lenet-300-100", recipe=recipe, on_step=search_again)
    # the first one holds the name while it searches
    assert inner[0].path == Path("tickets/lenet-300-100-relaxed-0.7-2")
    assert outer.path == Path("tickets/lenet-300-100-relaxed-0.7")
    assert len(list(Path("tickets").iterdir())) == 2
