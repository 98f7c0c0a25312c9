"""Passes through a network block by block, each from the outputs of the block before it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.anatomy.blocks import block_names
from slt_compress.sites.sites import Site, SitePlan

RunBatch = Callable[[Any], Any]
# What keeps values that come one at a time: a list, or files.
Store = Callable[[Iterable[Any]], Sequence[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Sites that are worked on together: those of one block, or one site outside all blocks.

    Attributes:
        module: name of the block, or of the site's module.
        sites: in the order of the plan.
        once: whether a forward pass calls the module exactly once, so that it can stop behind it.
        continues: whether the output of the stage before leads to the bits of a whole pass.
    """

    module: str
    sites: tuple[Site, ...]
    once: bool
    continues: bool = False


def stages_of(module: nn.Module, plan: SitePlan, run: RunBatch, batch: Any) -> tuple[Stage, ...]:
    """The sites of a plan by block, in the order in which a forward pass on `batch` calls these.

    Stages that the pass does not call are at the end. The module has to be as in the passes to
    come, in eval mode.
    """
    blocks = block_names(module)
    members: dict[str, list[Site]] = {}
    for site in plan.sites:
        block = next((name for name in blocks if f"{site.module}.".startswith(f"{name}.")), None)
        members.setdefault(site.module if block is None else block, []).append(site)
    digests: dict[str, list[bytes]] = {}
    with ExitStack() as hooks:
        for name in members:
            hook = module.get_submodule(name).register_forward_hook(_digester(name, digests))
            hooks.callback(hook.remove)
        run(batch)
    called = [*digests, *(name for name in members if name not in digests)]
    stages = [
        Stage(module=name, sites=tuple(members[name]), once=len(digests.get(name, ())) == 1)
        for name in called
    ]
    return tuple(_marked(module, run, batch, stages, digests))


def _digester(name: str, digests: dict[str, list[bytes]]) -> Any:
    def keep(_: nn.Module, __: Any, output: Any) -> None:
        digests.setdefault(name, []).append(_digest(output))

    return keep


def _digest(output: Any) -> bytes:
    """Of the bits of a module's first output; what gives no tensor equals nothing."""
    tensor = first_tensor(output)
    if tensor is None:
        return b""
    values = tensor.detach().cpu().contiguous().view(torch.uint8)
    return sha256(values.numpy().tobytes()).digest()


def _marked(
    module: nn.Module,
    run: RunBatch,
    batch: Any,
    stages: Sequence[Stage],
    digests: Mapping[str, Sequence[bytes]],
) -> Iterator[Stage]:
    """The stages, those marked that give the bits of a whole pass from the one before them."""
    stream = Stream(module=module, run=run, batches=[batch])
    for stage in stages:
        continued = replace(stage, continues=stage.once and bool(stream.outputs))
        outputs = list(stream.through(continued)) if continued.continues else []
        if outputs and b"" != _digest(outputs[0]) == digests[stage.module][0]:
            stream.hold(continued, outputs)
            yield continued
        else:
            stream.advance(stage)
            yield stage


class _StopPass(Exception):  # noqa: N818 - it is no error
    """Ends a forward pass behind the last module that it is for."""


@dataclass(slots=True)
class Stream:
    """Batches on their way through a network, held by the outputs of the last stage so far.

    At a stage that `continues`, the stage before it is replaced by its stored output and all those
    before that by zeros of the shape of theirs, so that only its own module costs time. At any
    other the pass begins at the input. Only one stage's outputs are held.
    """

    module: nn.Module
    run: RunBatch
    batches: Sequence[Any]
    store: Store = list
    outputs: Sequence[Any] = ()
    last: str = ""
    shapes: dict[str, list[Any]] = field(default_factory=dict)

    def through(self, stage: Stage) -> Iterator[Any]:
        """Run the batches through a stage, in order; yields what its module gives for each."""
        for index in range(len(self.batches)):
            yield self.output(stage, index)

    def pass_through(self, stage: Stage) -> None:
        """Run through a stage for what hooks see of it."""
        for _ in self.through(stage):
            pass

    def advance(self, stage: Stage) -> None:
        """Run through a stage as it is now, and hold its outputs."""
        if stage.once:
            self.hold(stage, self.through(stage))
        else:
            self.pass_through(stage)
            self.outputs, self.shapes = (), {}

    def outputs_of(self, stage: Stage) -> Sequence[Any]:
        """As `advance`; and what the stage gave for each batch."""
        if stage.once:
            self.advance(stage)
            return self.outputs
        outputs = self.store(self.through(stage))
        self.outputs, self.shapes = (), {}
        return outputs

    def hold(self, stage: Stage, outputs: Iterable[Any]) -> None:
        """Take what a stage gives for each batch as the place where the batches are."""
        shapes: list[Any] = []

        def noted() -> Iterator[Any]:
            for output in outputs:
                shapes.append(_mapped(output, _shape))
                yield output

        self.outputs, self.last = self.store(noted()), stage.module
        self.shapes[stage.module] = shapes

    def output(self, stage: Stage, index: int) -> Any:
        """What the module of a stage gives for one batch."""
        caught: list[Any] = []

        def catch(_: nn.Module, __: Any, output: Any) -> None:
            caught.append(output)
            if stage.once:
                raise _StopPass

        device = next(self.module.parameters()).device
        with ExitStack() as undo:
            if stage.continues and self.outputs:
                for name, shapes in self.shapes.items():
                    owner = self.module.get_submodule(name)
                    give = partial(_mapped, shapes[index], partial(_zeros, device))
                    if name == self.last:
                        # copied: the network may work on it in place
                        give = partial(_mapped, self.outputs[index], torch.clone)
                    undo.enter_context(_replaced(owner, give))
            hook = self.module.get_submodule(stage.module).register_forward_hook(catch)
            undo.callback(hook.remove)
            with suppress(_StopPass):
                self.run(self.batches[index])
        return caught[-1] if caught else None


@contextmanager
def _replaced(owner: nn.Module, output: Callable[[], Any]) -> Iterator[None]:
    """Let a module give an output, whatever it is called with."""
    own = vars(owner).get("forward")
    owner.forward = lambda *_, **__: output()
    try:
        yield
    finally:
        del owner.forward
        if own is not None:
            owner.forward = own


def _mapped(output: Any, change: Callable[[Tensor], Tensor]) -> Any:
    """The output of a module with its tensors changed, as deep as tuples and lists go."""
    if isinstance(output, Tensor):
        return change(output)
    if isinstance(output, tuple | list) and not hasattr(output, "_fields"):
        return type(output)(_mapped(value, change) for value in output)
    return output


def _shape(tensor: Tensor) -> Tensor:
    """A tensor's shape and dtype, without memory."""
    return tensor.to("meta")


def _zeros(device: torch.device, shape: Tensor) -> Tensor:
    return torch.zeros_like(shape, device=device)


def first_tensor(output: Any) -> Tensor | None:
    """The output of a module, or the first of several."""
    first = output[0] if isinstance(output, tuple | list) and output else output
    return first if isinstance(first, Tensor) else None


def gathered(batches: Iterable[Any], limit: int) -> list[Any]:
    """At most `limit` batches."""
    return [batch for batch, _ in zip(batches, range(limit), strict=False)]
