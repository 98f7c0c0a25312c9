"""The masks of an imported checkpoint: all of them, by the names of the opened module."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from slt_compress.anatomy.copies import flatten_
from slt_compress.anatomy.parameters import joined
from slt_compress.checkpoints import Checkpoint
from slt_compress.checkpoints.families import load_weights
from slt_compress.errors import SourceError, TicketError
from slt_compress.masks import Masks, masked_weight
from slt_compress.sites.sites import SitePlan
from slt_compress.storage.files import sha256_tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class Spelled:
    """The tensors of a checkpoint as files hold them, and what their spelling masks.

    Attributes:
        tensors: plain tensors by their key, with the values that masks remove where there are any.
        masks: masks by key, of tensors whose spelling says more than their zeros.
        where: whose they are.
    """

    tensors: Mapping[str, Tensor]
    masks: Mapping[str, Tensor]
    where: str

    def masked(self) -> dict[str, Tensor]:
        """The tensors with zeros where they are masked: the model that is imported."""
        return {
            key: masked_weight(tensor, self.masks[key], 1.0) if key in self.masks else tensor
            for key, tensor in self.tensors.items()
        }

    def marks(self) -> dict[str, Tensor]:
        """1 for what is kept and 0 for what is not, as tensors that load as the weights do."""
        return {
            key: self.masks.get(key, tensor != 0).to(tensor.dtype)
            if tensor.is_floating_point()
            else tensor
            for key, tensor in self.tensors.items()
        }


def masks_of(checkpoint: Checkpoint, plan: SitePlan, spelled: Spelled) -> dict[str, Tensor]:
    """Every mask of the source, by the name of its parameter: of sites first, then of others.

    Libraries rename, fuse and split tensors as they load them. Masks go the way of the weights:
    they are loaded as if they were weights, and none may get lost on that way.

    Raises:
        TicketError: a mask is of no parameter, or does not come out as a mask; names the tensor.
    """
    module = checkpoint.module
    weights = {site.name: _weight(module, site.name) for site in plan.sites}
    weights |= {n: p for n, p in module.named_parameters() if n not in weights}
    marks = spelled.marks() if spelled.masks else {}
    marked = _marked(checkpoint, spelled, marks) if marks else {}
    if marks:
        _check_complete(checkpoint, spelled, marks, marked)
    sites = {site.name for site in plan.sites}
    found: dict[str, Tensor] = {}
    for name, weight in weights.items():
        if not weight.is_floating_point():
            continue
        explicit = any(key in spelled.masks for key in checkpoint.file_keys.get(name, ()))
        mask = marked[name] if name in marked else weight.detach() != 0
        natural = name not in sites and not explicit and _is_natural(module, name, mask)
        if not natural and not bool(mask.all()):
            found[name] = mask
    return found


def _marked(
    checkpoint: Checkpoint, spelled: Spelled, marks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The masks of all parameters, loaded as the weights are."""
    module, _ = load_weights(
        checkpoint.family, checkpoint.task, checkpoint.config, marks, spelled.where
    )
    loaded = {name: tensor.detach() for name, tensor in module.named_parameters()}
    for name, mark in loaded.items():
        masked = [k for k in checkpoint.file_keys.get(name, ()) if k in spelled.masks]
        if masked and not bool(((mark == 0) | (mark == 1)).all()):
            raise TicketError(
                f"{spelled.where}: the mask of {masked[0]} cannot be carried over, as the model "
                f"computes {name} from that tensor and others"
            )
    return {name: mark != 0 for name, mark in loaded.items() if mark.is_floating_point()}


def _check_complete(
    checkpoint: Checkpoint,
    spelled: Spelled,
    marks: Mapping[str, Tensor],
    marked: Mapping[str, Tensor],
) -> None:
    """Refuse a mask that no parameter has: the zeros of the files are counted again in the model.

    Raises:
        TicketError: names the tensor whose mask would be lost.
    """
    users: dict[str, list[str]] = {}
    for name in marked:
        for key in checkpoint.file_keys.get(name, ()):
            users.setdefault(key, []).append(name)
    for key, mask in spelled.masks.items():
        names = users.get(key, [])
        if not names and not bool(mask.all()) and not _is_twin(checkpoint, spelled, key, users):
            raise TicketError(
                f"{spelled.where} masks {key}, which is no parameter of the model that "
                f"{checkpoint.task} opens, so that the mask would be lost"
            )
        keys = {k for name in names for k in checkpoint.file_keys[name]}
        if {n for k in keys for n in users[k]} != set(names):
            continue  # split and fused at once: the values of all tensors are compared later
        before = sum(int((marks[k] == 0).sum()) for k in keys)
        after = sum(int((~marked[name]).sum()) for name in names)
        if before != after:
            raise TicketError(
                f"{spelled.where} masks {before:,} weights of {', '.join(sorted(keys)[:3])}, and "
                f"{after:,} of them are found in {', '.join(names[:3])}"
            )


def _is_twin(
    checkpoint: Checkpoint, spelled: Spelled, key: str, users: Mapping[str, list[str]]
) -> bool:
    """Whether a key is a further name of a tied parameter, masked alike under the other name."""
    state = checkpoint.module.state_dict(keep_vars=True)
    tied = {id(state[name]) for name in state if name == key}
    others = [k for k in users if k in spelled.masks and k in state and id(state[k]) in tied]
    return any(torch.equal(spelled.masks[k], spelled.masks[key]) for k in others)


def _is_natural(module: nn.Module, name: str, mask: Tensor) -> bool:
    """Whether zeros are there without pruning: a bias that is all zero, the row of the padding.

    Such zeros are the origin's own values, and stay so. The parts of a computed weight count by
    what is computed of them.
    """
    path, _, leaf = name.rpartition(".")
    owner = module.get_submodule(path)
    if "parametrizations" in path.split("."):
        return True
    if mask.dim() < 2:
        return not bool(mask.any())
    padding = getattr(owner, "padding_idx", None)
    if leaf == "weight" and type(padding) is int and not bool(mask[padding].any()):
        return bool(mask[:padding].all()) and bool(mask[padding + 1 :].all())
    return False


def imported_hashes(
    spelled: Spelled, checkpoint: Checkpoint, masks: Mapping[str, Tensor]
) -> dict[str, str]:
    """Hashes of the imported model by the name of its tensors, to prove the ticket by.

    The model is loaded from the masked tensors, so by another way than the ticket's. Afterwards
    `checkpoint.module` is the masked origin.

    Raises:
        TicketError: the masked origin differs from it; names the tensor.
    """
    imported = checkpoint.module
    if spelled.masks:
        imported, _ = load_weights(
            checkpoint.family, checkpoint.task, checkpoint.config, spelled.masked(), spelled.where
        )
    wanted = hashes(imported, masks)
    with torch.no_grad():
        for name, mask in masks.items():
            flatten_(*_place(checkpoint.module, name))
            weight = _weight(checkpoint.module, name)
            weight.data = masked_weight(weight.detach(), mask, 1.0)
    found = hashes(checkpoint.module, masks)
    wrong = sorted(name for name in wanted.keys() | found.keys()
                   if wanted.get(name) != found.get(name))  # fmt: skip
    if wrong:
        raise TicketError(
            f"{spelled.where} cannot be imported: under its masks {wrong[0]} would not be what it "
            "is there"
        )
    return wanted


def hashes(module: nn.Module, masks: Mapping[str, Tensor] | Masks) -> dict[str, str]:
    """A hash for every tensor that a module saves; -0 counts as 0, and masked weights as plain."""
    for name in masks:
        flatten_(*_place(module, name))
    return {
        name: sha256_tensors({name: _unsigned_zeros(tensor)})
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, Tensor)
    }


def _unsigned_zeros(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point() or tensor.element_size() < 2:
        return tensor
    return torch.where(tensor == 0, torch.zeros_like(tensor), tensor)


def _place(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return module.get_submodule(path), leaf


def _weight(module: nn.Module, name: str) -> Tensor:
    owner, leaf = _place(module, name)
    weight = getattr(owner, leaf)
    if not isinstance(weight, Tensor):
        raise SourceError(f"{joined(type(module).__name__, name)} is no tensor")
    return weight
