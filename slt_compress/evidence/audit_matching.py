"""Which weight of a file is which site of a ticket: by name, else by shape and content."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from slt_compress.anatomy.wrapped_names import plain_name
from slt_compress.errors import SourceError
from slt_compress.evidence.audit_tensors import StoredModel, StoredWeight

_SAMPLES = 4096  # places of a weight that are compared
_CLEARLY = 0.2  # by how much another way to lie has to be more alike
_ALIKE = 0.5  # cosine from which two weights are the same one: others have about 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """A stored weight found for a site.

    Attributes:
        key: its name in the file.
        turned: how its elements lie: `as stored`, `transposed`, or `n heads` for rows that were
            interleaved by head.
    """

    key: str
    turned: str

    def read(self, stored: StoredWeight, shape: tuple[int, ...]) -> Tensor:
        """The weight in the shape of its site.

        Raises:
            SourceError: it is damaged, or has another number of elements.
        """
        return dict(orientations(stored.read(), shape, heads_of(self.turned)))[self.turned]


def match_sites(known: Mapping[str, Tensor], model: StoredModel) -> dict[str, Match]:
    """Find sites in a model.

    Args:
        known: by site, what is looked for: the masked weight, or the mask alone.
        model: where.
    """
    found: dict[str, Match] = {}
    by_name = {plain_name(key): key for key in reversed(list(model.weights))}
    for site, weight in known.items():
        key = site if site in model.weights else by_name.get(plain_name(site))
        turned = None if key is None else _turned(weight, model.weights[key], model.heads)
        if key is not None and turned is not None:
            found[site] = Match(key=key, turned=turned)
    taken = {match.key for match in found.values()}
    rest = {site: weight for site, weight in known.items() if site not in found}
    if rest:
        found |= _by_content(rest, model, taken)
    return found


def orientations(
    stored: Tensor, shape: tuple[int, ...], heads: Sequence[int] = ()
) -> Iterator[tuple[str, Tensor]]:
    """The ways in which a stored tensor can be a weight of this shape."""
    if stored.numel() != math.prod(shape):
        return
    yield "as stored", stored.reshape(shape)
    if len(shape) == 2 and tuple(stored.shape) == shape[::-1]:
        yield "transposed", stored.T
    for count in heads:
        if len(shape) == 2 and tuple(stored.shape) == shape and shape[0] % (2 * count) == 0:
            rows = stored.reshape(count, shape[0] // count // 2, 2, shape[1])
            yield f"{count} heads", rows.swapaxes(1, 2).reshape(shape)


def heads_of(turned: str) -> tuple[int, ...]:
    """The number of heads in the name of an orientation."""
    return (int(turned.split()[0]),) if turned.endswith("heads") else ()


def _turned(weight: Tensor, stored: StoredWeight, heads: Sequence[int]) -> str | None:
    """How a weight lies that has the right name; None where it is another one.

    A square weight may be transposed, so that the likelier way is taken.
    """
    shape = tuple(weight.shape)
    ways = list(orientations(stored.read(), shape, heads))
    if len(ways) < 2:
        return ways[0][0] if ways else None
    pattern = weight.dtype is torch.bool
    wanted = _sampled(weight, pattern=pattern)
    likely = [float(_sampled(way, pattern=pattern) @ wanted) for _, way in ways]
    best = max(range(len(ways)), key=lambda i: likely[i])
    # what was trained on may be like neither: then the way that needs no turning
    return ways[best if likely[best] > likely[0] + _CLEARLY else 0][0]


def _by_content(
    known: Mapping[str, Tensor], model: StoredModel, taken: set[str]
) -> dict[str, Match]:
    """The likeliest pairs first, each stored weight once."""
    pattern = any(weight.dtype is torch.bool for weight in known.values())
    wanted: dict[tuple[int, ...], dict[str, Tensor]] = {}
    for site, weight in known.items():
        wanted.setdefault(tuple(weight.shape), {})[site] = _sampled(weight, pattern=pattern)
    pairs: list[tuple[float, str, Match]] = []
    for key, stored in model.weights.items():
        if key in taken:
            continue
        try:
            whole = stored.read()
        except SourceError:  # it may be no weight that is asked for
            continue
        for shape, sites in wanted.items():
            for turned, weight in orientations(whole, shape, model.heads):
                sample = _sampled(weight, pattern=pattern)
                pairs += [(float(sample @ site_sample), site, Match(key=key, turned=turned))
                          for site, site_sample in sites.items()]  # fmt: skip
    found: dict[str, Match] = {}
    for likeness, site, match in sorted(pairs, key=lambda pair: -pair[0]):
        if likeness >= _ALIKE and site not in found and match.key not in taken:
            found[site] = match
            taken = taken | {match.key}
    return found


def _sampled(weight: Tensor, *, pattern: bool) -> Tensor:
    """Some places of a weight, the same for all of this shape, as a vector of length 1.

    Where nothing but a mask is known, the pattern of zeros stands for the weight.
    """
    flat = weight.reshape(-1)
    if flat.numel() > _SAMPLES:
        generator = torch.Generator().manual_seed(flat.numel())
        flat = flat[torch.randint(flat.numel(), (_SAMPLES,), generator=generator)]
    sample = torch.nan_to_num(flat.float())
    if pattern:
        sample = (sample != 0).float()
        sample = sample - sample.mean()
    scaled: Tensor = sample / sample.norm().clamp(min=1e-30)
    return scaled
