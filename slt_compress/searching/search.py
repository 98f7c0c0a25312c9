"""One search, from a module and its batches to exact masks and the evidence for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from slt_compress.errors import RecipeError
from slt_compress.gates.base import sample_key
from slt_compress.gates.gating import Gates, gated
from slt_compress.searching.accelerators import accelerator_for
from slt_compress.searching.conclusion import Measuring, SearchResult
from slt_compress.searching.first_scores import first_scores
from slt_compress.searching.selection import candidate, chosen, is_due, is_exhausted, weighed
from slt_compress.searching.setup import SearchSetup
from slt_compress.searching.state import SearchState, Step, draw
from slt_compress.searching.training import Engine, engine_for, walk
from slt_compress.sites.layouts import norms

History = list[Mapping[str, Any]]
OnStep = Callable[[Step], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Search(SearchSetup):
    """One search: `run` it, or see how long a step takes."""

    def run(self, on_step: OnStep | None = None) -> SearchResult:
        """Search; the module comes back bit-identical, also after an exception."""
        work, weights = self.workload, self.weights()
        with self._on_device() as accelerator:
            scores, notes = first_scores(
                self.module, self.plan, self.method, weights, work.train, work.forward,
                random_init=self.random_init, seed=self.training.seed,
            )  # fmt: skip
            with self._gated(scores if self.learned else None, accelerator) as gates:
                measuring, history = Measuring(setup=self, gates=gates), History()
                dense = work.measure(self.module, work.test, reference=None)
                if self.learned is not None:
                    with engine_for(self.loop(gates, self.learned), accelerator) as engine:
                        state = self._learn(engine, measuring, history, on_step)
                    scores = dict(chosen(state))
                result = measuring.conclude(scores, weights, dense, tuple(history))
                return replace(result, notes=notes)

    def pace(self) -> float:
        """Seconds of a step: the mean of two after a first one; the module comes back as it was.

        Raises:
            RecipeError: the method takes no steps.
        """
        short = replace(self, training=replace(self.training, steps=3, max_time=None))
        if short.learned is None:
            raise RecipeError(f"the method {self.method.name} takes no steps")
        weights, method = self.weights(), short.learned
        # any order will do: that of a prior makes no step longer, and inputs take time to see
        scores = {
            name: method.start(norms(layout, weights[name]), None, sample_key(0, name))
            for name, layout in self.plan.layouts.items()
        }
        with (
            short._on_device() as accelerator,
            short._gated(scores, accelerator) as gates,
            engine_for(short.loop(gates, method), accelerator) as engine,
        ):
            ends = [state.latest.seconds for state in islice(walk(engine), 3)]
        return (ends[-1] - ends[0]) / 2

    @contextmanager
    def _on_device(self) -> Iterator[Accelerator]:
        """The module on the device of the search for as long as the block lasts."""
        home = next(self.module.parameters()).device
        with accelerator_for(self.training) as accelerator:
            try:
                self.module.to(accelerator.device)
                yield accelerator
            finally:
                self.module.to(home)

    @contextmanager
    def _gated(
        self, scores: Mapping[str, Tensor] | None, accelerator: Accelerator
    ) -> Iterator[Gates]:
        """The module with its gates, all of it on the device of the search."""
        with gated(
            self.module, self.plan, method=self.learned, scores=scores, rescale=self.rescales
        ) as gates:
            self.module.to(accelerator.device)
            yield gates

    def _learn(
        self, engine: Engine, measuring: Measuring, history: History, on_step: OnStep | None
    ) -> SearchState:
        """Train to the end, or until the selection has seen enough; fills the history."""
        state = engine.loop.first_state()
        for drawn in draw(engine.loop.batches, state.position):
            state = engine.step(state, drawn)
            history.append(_record(state.latest))
            if on_step is not None:
                on_step(state.latest)
            if is_due(self.training, state.selected, state.latest.progress):
                passed = replace(state.selected, points=state.selected.points + 1)
                state = _measured(replace(state, selected=passed), measuring, history)
            if state.over or is_exhausted(self.training, state.selected):
                break
        if self.training.selections > 0 and "held_out" not in history[-1]:
            state = _measured(state, measuring, history)
        return state


def _measured(state: SearchState, measuring: Measuring, history: History) -> SearchState:
    """The state after a measurement on the held-out slice, which the last record holds too."""
    scores = candidate(state)
    loss = measuring.held_out_loss(scores)
    history[-1] = {**history[-1], "held_out": loss}
    return replace(state, selected=weighed(state.selected, scores, loss))


def _record(step: Step) -> dict[str, Any]:
    """A step for the history, which has no clock in it."""
    return {key: value for key, value in asdict(step).items() if key != "seconds"}
