"""One search, from a module and its batches to exact masks and the evidence for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import Any

from accelerate import Accelerator
from torch import Tensor

from slt_compress.anatomy.states import changed_buffers, set_buffers
from slt_compress.errors import RecipeError, SltError
from slt_compress.gates import Swaps
from slt_compress.gates.base import sample_key
from slt_compress.gates.gating import Gates, gated, scores_of
from slt_compress.searching.accelerators import accelerator_or
from slt_compress.searching.conclusion import Measuring, SearchResult
from slt_compress.searching.events import HeldOut, Part
from slt_compress.searching.first_scores import first_scores, streamed_scores
from slt_compress.searching.interrupting import stopping_between_steps
from slt_compress.searching.permuting import permuted_plan
from slt_compress.searching.preflight import fit_precision_, precision_notes
from slt_compress.searching.resuming import Progress, SearchFolder, saved_at_the_end
from slt_compress.searching.selection import candidate, final, is_due, is_exhausted, weighed
from slt_compress.searching.setup import SearchSetup
from slt_compress.searching.state import Drawn, SearchState, Step, copied, draw
from slt_compress.searching.swapped_scores import check_polish, polished, swapped_scores
from slt_compress.searching.training import Engine, engine_for, walk
from slt_compress.sites.layouts import norms
from slt_compress.storage.aside import set_aside

History = list[Mapping[str, Any]]
OnStep = Callable[[Step], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Search(SearchSetup):
    """One search: `run` it, or see how long a step takes."""

    def run(
        self,
        on_step: OnStep | None = None,
        folder: SearchFolder | None = None,
        accelerator: Accelerator | None = None,
    ) -> SearchResult:
        """Search; the module comes back bit-identical, also after an exception.

        With a folder, the search goes on from what is saved there, and saves its progress. Without
        an accelerator it makes its own.
        """
        if self.training.polish:
            check_polish(self)
        self.tuning.check(self.method, self.budget)
        saved, weights = folder.load() if folder else None, self.weights()
        with self._on_device(accelerator) as accelerator:
            self.tell(Part("start"))
            streamed = streamed_scores(self.method, self.plan, weights, self.training.seed)
            scores, notes = self._start(weights, saved) if streamed is None else (streamed, ())
            with self._gated(scores if self.learned else None, accelerator) as gates:
                measuring = Measuring.of(self, gates)
                kept = None if self.learned or streamed is not None else scores
                progress = replace(saved or Progress(notes=notes, buffers={}), scores=kept)
                progress = self._compared(progress, measuring, folder)
                if self.learned is not None:
                    seconds = progress.state.latest.seconds if progress.state else 0.0
                    loop = self.loop(gates, self.learned)
                    with engine_for(loop, accelerator, seconds=seconds) as engine:
                        progress = self._learn(engine, measuring, progress, on_step, folder)
                if folder is not None:
                    folder.save(progress)
                last, notes = _saved_scores(progress)
                if streamed is not None:
                    last = streamed
                if self.learned is not None and self.training.polish:
                    self.tell(Part("polish"))
                    with gates.holding(last):
                        scores, more = polished(measuring, scores_of(last), weights)
                    last = {**last, **scores}
                    notes = (*notes, *more)
                result = measuring.conclude(
                    last, weights, dict(progress.dense or {}), progress.history
                )
                mixed = precision_notes(self.module, self.training)
                return replace(result, notes=(*notes, *result.notes, *mixed))

    def permuted(self, accelerator: Accelerator) -> Search:
        """The search with an order of the inputs for every N:M mask."""
        self.tell(Part("start"))
        work, weights = self.workload, self.weights()
        with self._on_device(accelerator):
            plan = permuted_plan(
                self.module, self.plan, weights, work.train, work.forward, self.tell
            )
        return replace(self, plan=plan)

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
    def _on_device(self, accelerator: Accelerator | None = None) -> Iterator[Accelerator]:
        """The module on the device of the search for as long as the block lasts."""
        home = next(self.module.parameters()).device
        with accelerator_or(accelerator, self.training) as ready:
            try:
                self.module.to(ready.device)
                fit_precision_(ready, self.module, self.training)
                yield ready
            finally:
                self.module.to(home)

    @contextmanager
    def _gated(
        self, scores: Mapping[str, Tensor] | None, accelerator: Accelerator
    ) -> Iterator[Gates]:
        """The module with its gates, all of it on the device of the search."""
        with gated(
            self.module,
            self.plan,
            method=self.learned,
            scores=scores,
            rescale=self.rescales,
            unit_gains=self.tuning.gains == "unit",
            tuned=self.tuning.names(self.module, self.plan),
        ) as gates:
            self.module.to(accelerator.device)
            yield gates

    def _start(
        self, weights: Mapping[str, Tensor], saved: Progress | None
    ) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
        """The scores to go on from, and notes about the first ones."""
        if saved is not None:
            return _saved_scores(saved)
        work = self.workload
        if isinstance(self.method, Swaps):
            return swapped_scores(self, self.method, weights)
        return first_scores(
            self.module, self.plan, self.method, weights, work.train, work.forward,
            budget=self.budget, random_init=self.random_init, seed=self.training.seed,
            tell=self.tell,
        )  # fmt: skip

    def _compared(
        self, progress: Progress, measuring: Measuring, folder: SearchFolder | None
    ) -> Progress:
        """The progress with the metrics of the dense network, measured where they are missing."""
        if progress.dense is not None:
            return progress
        self.tell(Part("dense"))
        with saved_at_the_end(None if progress.scores is None else folder, lambda: progress):
            dense = measuring.measure(self.workload.test, None)
        return replace(progress, dense=dense)

    def _learn(
        self,
        engine: Engine,
        measuring: Measuring,
        progress: Progress,
        on_step: OnStep | None,
        folder: SearchFolder | None,
    ) -> Progress:
        """Train to the end, or until the selection has seen enough."""
        gates, history = engine.loop.gates, list(progress.history)
        state = self._first_state(engine, progress)

        def now() -> Progress:
            changed = changed_buffers(self.module, gates.dense_buffers)
            return replace(progress, state=state, buffers=changed, history=tuple(history))

        def selected() -> SearchState:
            """The state after the measurement that is due, if one is."""
            if not _is_unmeasured(history) or not is_due(
                self.training, state.selected, state.latest.progress
            ):
                return state
            with saved_at_the_end(folder, now):
                after = _measured(_passed(state), measuring, history, folder)
            self.tell(Part("search"))
            return after

        self.tell(Part("search"))
        state = selected()  # where the search was interrupted in the middle of it
        with stopping_between_steps() as steps:
            for drawn in () if self._ends(state) else draw(engine.loop.batches, state.position):
                state = _step(engine, state, drawn, folder)
                history.append(_record(state.latest))
                state = selected()
                with saved_at_the_end(folder, now):
                    self.tell(state.latest)
                    if on_step is not None:
                        on_step(state.latest)
                    if folder is not None:
                        steps.stop_if_asked(folder.path)
                if self._ends(state):
                    break
                if folder is not None and folder.due():
                    folder.save(now())
        if self.training.selections > 0 and _is_unmeasured(history):
            with saved_at_the_end(folder, now):
                state = _measured(state, measuring, history, folder)
        state = final(state)
        return now()

    def _first_state(self, engine: Engine, progress: Progress) -> SearchState:
        """The state to begin with, or to go on from."""
        state = engine.loop.first_state()
        if progress.state is None:
            return state
        set_buffers(self.module, progress.buffers)
        return copied(progress.state, next(iter(state.scores.values())).device)

    def _ends(self, state: SearchState) -> bool:
        return state.over or is_exhausted(self.training, state.selected)


def _step(
    engine: Engine, state: SearchState, drawn: Drawn, folder: SearchFolder | None
) -> SearchState:
    try:
        return engine.step(state, drawn)
    except SltError:  # the search diverged: what it saved leads there again
        if folder is not None:
            folder.remove()
        raise


def _saved_scores(saved: Progress) -> tuple[Mapping[str, Tensor], tuple[str, ...]]:
    """The scores that a search goes on from, or that its mask is made from; and its notes."""
    scores = saved.scores if saved.state is None else saved.state.scores
    return dict(scores or {}), saved.notes


def _measured(
    state: SearchState, measuring: Measuring, history: History, folder: SearchFolder | None
) -> SearchState:
    """The state after a measurement on the held-out slice, which the last record holds too."""
    tell = measuring.setup.tell
    tell(Part("select"))
    scores = candidate(state)
    loss = measuring.held_out_loss(scores)
    tell(HeldOut(state.latest.index, loss))
    history[-1] = {**history[-1], "held_out": loss}
    selected = weighed(state.selected, scores, loss)
    if selected.scores is scores:
        selected = replace(selected, scores=set_aside(scores, folder.path if folder else None))
    return replace(state, selected=selected)


def _is_unmeasured(history: History) -> bool:
    """Whether a step was taken, and nothing measured since."""
    return bool(history) and "held_out" not in history[-1]


def _passed(state: SearchState) -> SearchState:
    """The state once its next measurement is not due any more."""
    return replace(state, selected=replace(state.selected, points=state.selected.points + 1))


def _record(step: Step) -> dict[str, Any]:
    """A step for the history, which has no clock in it."""
    return {key: value for key, value in asdict(step).items() if key != "seconds"}
