"""The probe: a few inputs of a model, with the logits that the masked model gives.

Version 1 stores all of it. Version 2 makes the inputs from a seed, and stores no more of the logits
than tells models apart, so that it is a small part of any folder and holds nobody's data.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from slt_compress.errors import SltError
from slt_compress.storage.files import (
    dtype_name,
    read_manifest,
    read_safetensors,
    sha256_tensors,
    write_safetensors,
)
from slt_compress.storage.manifests import Manifest, as_shape, check_manifest
from slt_compress.storage.seeded import Range, parse_ranges, range_like

_LOGITS = "logits"  # the key in the file, beside the names of the inputs
_KIND = ("slt-probe", 2)
_SEED = 0
# Bytes of logits that are stored, and of integers that no seed can give.
_MOST_LOGITS, _MOST_INTEGERS = 1 << 15, 24_000
# Odd, and 2^64 over the golden ratio: multiples of it are spread evenly modulo 2^64.
_GOLDEN = 0x9E3779B97F4A7C15
_NARROW = (torch.uint8, torch.uint16, torch.int32)

Run = Callable[[Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Seeded:
    """What version 2 states instead of storing it.

    Attributes:
        ranges: the inputs that the seed gives, by name.
        narrowed: dtypes of the integers that are stored in a narrower one, by name.
        shape, hash: of all logits; the hash is that of tensors, of `logits` alone.
    """

    ranges: Mapping[str, Range]
    narrowed: Mapping[str, str]
    shape: tuple[int, ...]
    hash: str

    def to_dict(self) -> dict[str, Any]:
        """The manifest of the file."""
        return {
            "kind": _KIND[0],
            "version": _KIND[1],
            "seed": _SEED,
            "ranges": {name: one.to_dict() for name, one in self.ranges.items()},
            "narrowed": dict(self.narrowed),
            "logits": {"shape": list(self.shape), "hash": self.hash},
        }


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Probe:
    """One batch of inputs and the masked model's answer to it.

    Attributes:
        inputs: the tensors of the batch by argument name.
        logits: what the masked model gives for them; of version 2, evenly spread ones where all
            would be too many.
        seeded: None for version 1.
    """

    inputs: Mapping[str, Tensor]
    logits: Tensor
    seeded: Seeded | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of all logits."""
        return tuple(self.logits.shape) if self.seeded is None else self.seeded.shape

    @property
    def largest(self) -> float:
        """The largest magnitude among the stored logits."""
        return float(self.logits.double().abs().max())

    def is_answered_by(self, logits: Tensor) -> bool:
        """Whether all logits of a model are these, bit for bit."""
        if self.seeded is None:
            return torch.equal(logits, self.logits)
        return sha256_tensors({_LOGITS: logits}) == self.seeded.hash

    def difference(self, logits: Tensor) -> float:
        """Largest difference to the stored logits; infinite where the shapes differ."""
        if tuple(logits.shape) != self.shape:
            return float("inf")
        here = logits if self.seeded is None else _sampled(logits)
        return float((here.double() - self.logits.double()).abs().max())

    def answered(self, logits: Tensor) -> Probe:
        """The probe with the logits of another model."""
        if self.seeded is None:
            return replace(self, logits=logits.clone())
        return replace(
            self,
            logits=_sampled(logits),
            seeded=replace(self.seeded, **_facts(logits)),
        )

    def without(self, name: str) -> Probe:
        """The probe without one of its inputs."""
        inputs = {key: value for key, value in self.inputs.items() if key != name}
        if self.seeded is None:
            return replace(self, inputs=inputs)
        ranges = {key: one for key, one in self.seeded.ranges.items() if key != name}
        narrowed = {key: one for key, one in self.seeded.narrowed.items() if key != name}
        return replace(
            self, inputs=inputs, seeded=replace(self.seeded, ranges=ranges, narrowed=narrowed)
        )

    def write(self, path: Path) -> None:
        """Write the file."""
        if self.seeded is None:
            write_safetensors(path, {**self.inputs, _LOGITS: self.logits})
            return
        stored = {key: _narrow(v) for key, v in self.inputs.items() if key not in
                  self.seeded.ranges}  # fmt: skip
        write_safetensors(path, {**stored, _LOGITS: self.logits}, self.seeded.to_dict())


def make_probe(real: Mapping[str, Tensor], run: Run, *, most: int | None = 8) -> Probe:
    """The probe of a model, with as little of real inputs as it takes.

    Args:
        real: a batch by argument name, whose first examples are copied in shape and range.
        run: gives the logits of a batch.
        most: how many examples; None for inputs whose first dimension may be no batch.
    """
    examples = _first(real, most)
    every = {name: range_like(name, value) for name, value in examples.items()}
    made = {name: one for name, one in every.items() if one is not None}
    # Some models refuse made-up ids: those that look for an end of the sentence, or for as many
    # places as there are images. Real ones are stored for them.
    floats = {name: one for name, one in made.items() if examples[name].is_floating_point()}
    for ranges in (made, floats) if made.keys() != floats.keys() else (made,):
        batch = examples if ranges is made or most is None else _cut(examples, most)
        probe = _tried({n: replace(one, shape=tuple(batch[n].shape)) for n, one in ranges.items()},
                       batch, run)  # fmt: skip
        if probe is not None:
            return probe
    return Probe(inputs=examples, logits=run(examples).contiguous())


def _tried(ranges: Mapping[str, Range], batch: Mapping[str, Tensor], run: Run) -> Probe | None:
    """The probe of inputs from a seed; None where the model does not take them."""
    inputs = {n: ranges[n].tensor(n, _SEED) if n in ranges else value for n, value in batch.items()}
    try:
        logits = run(inputs).contiguous()
    except Exception:  # a model raises whatever it likes
        return None
    if logits.numel() == 0 or not bool(logits.isfinite().all()):
        return None
    stored = {name: value for name, value in batch.items() if name not in ranges}
    narrowed = {n: dtype_name(v.dtype) for n, v in stored.items() if _narrow(v) is not v}
    seeded = Seeded(ranges=ranges, narrowed=narrowed, **_facts(logits))
    return Probe(inputs=inputs, logits=_sampled(logits), seeded=seeded)


def read_probe_file(path: Path, error: type[SltError]) -> Probe | None:
    """Read a probe; None for a file without tensors, which says that there is none.

    Raises:
        error: the file is damaged, or from a newer version.
    """
    stated, tensors = read_manifest(path, error), read_safetensors(path, error)
    if not tensors and stated is None:
        return None
    if _LOGITS not in tensors:
        raise error(f"{path} holds inputs without {_LOGITS}; fetch or write it again")
    inputs = {name: value for name, value in tensors.items() if name != _LOGITS}
    if stated is None:
        return Probe(inputs=inputs, logits=tensors[_LOGITS])
    return _seeded_probe(check_manifest(stated, path, _KIND, error), inputs, tensors[_LOGITS])


def _seeded_probe(manifest: Manifest, stored: Mapping[str, Tensor], logits: Tensor) -> Probe:
    seed, narrowed = manifest.integer("seed"), manifest.object("narrowed")
    ranges = parse_ranges(manifest.object("ranges"), manifest.damaged)
    if ranges.keys() & stored.keys() or _LOGITS in ranges or not narrowed.keys() <= stored.keys():
        raise manifest.damaged("an input is both stored and made from the seed, or neither")
    wide = {name: _widened(stored[name], narrowed.get(name), manifest) for name in stored}
    made = {name: one.tensor(name, seed) for name, one in ranges.items()}
    facts = manifest.object("logits")
    shape, digest = as_shape(facts.get("shape")), facts.get("hash")
    if shape is None or not isinstance(digest, str):
        raise manifest.damaged("it does not say the shape and hash of its logits")
    if tuple(logits.shape) != _stored_shape(shape, logits.element_size()):
        raise manifest.damaged(f"it stores logits of shape {tuple(logits.shape)}")
    seeded = Seeded(ranges=ranges, narrowed={str(k): str(v) for k, v in narrowed.items()},
                    shape=shape, hash=digest)  # fmt: skip
    return Probe(inputs={**wide, **made}, logits=logits, seeded=seeded)


def _facts(logits: Tensor) -> dict[str, Any]:
    return {
        "shape": tuple(logits.shape),
        "hash": sha256_tensors({_LOGITS: logits}),
    }


def _count(numel: int, size: int) -> int:
    """How many logits are stored, of so many that have `size` bytes each."""
    return min(numel, _MOST_LOGITS // size)


def _stored_shape(shape: tuple[int, ...], size: int) -> tuple[int, ...]:
    numel = 1
    for extent in shape:
        numel *= extent
    count = _count(numel, size)
    return shape if count == numel else (count,)


def _sampled(logits: Tensor) -> Tensor:
    """The logits that are stored: all of them, or as many as fit, spread evenly."""
    numel, count = logits.numel(), _count(logits.numel(), logits.element_size())
    if count == numel:
        return logits.contiguous().clone()
    places = [((k * _GOLDEN & (1 << 64) - 1) * numel) >> 64 for k in range(count)]
    return logits.reshape(-1)[torch.tensor(places)]


def _first(batch: Mapping[str, Tensor], count: int | None) -> dict[str, Tensor]:
    return {name: value[:count] if value.dim() else value for name, value in batch.items()}


def _cut(examples: Mapping[str, Tensor], most: int) -> dict[str, Tensor]:
    """As many examples as can have their integers stored, at least one."""
    integers = [v for v in examples.values() if v.dim() and not v.is_floating_point()]
    each = sum(_narrow(v).nbytes // max(1, len(v)) for v in integers)
    return _first(examples, max(1, min(most, _MOST_INTEGERS // max(1, each))))


def _narrow(tensor: Tensor) -> Tensor:
    """Integers in the narrowest dtype that holds them; anything else, and -100, as it is."""
    if tensor.dtype not in (torch.int64, torch.int32) or tensor.numel() == 0:
        return tensor
    least, most = int(tensor.min()), int(tensor.max())
    for dtype in _NARROW:
        bounds = torch.iinfo(dtype)
        if bounds.min <= least and most <= bounds.max and dtype != tensor.dtype:
            return tensor.to(dtype)
    return tensor


def _widened(tensor: Tensor, name: str | None, manifest: Manifest) -> Tensor:
    if name is None:
        return tensor
    wide = {dtype_name(dtype): dtype for dtype in (torch.int32, torch.int64)}.get(str(name))
    if wide is None or tensor.dtype not in _NARROW:
        raise manifest.damaged(f"an input is narrowed from {str(name)[:20]!r}")
    return tensor.to(wide)
