"""Resuming: the progress of a search on disk, so that a killed one goes on where it was."""

from __future__ import annotations

import fcntl
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from slt_compress.errors import TicketError
from slt_compress.searching.state import Position, SearchState, Selected, Step
from slt_compress.storage.files import (
    read_json,
    read_manifest,
    read_safetensors,
    write_json,
    write_safetensors,
)

SUFFIX = ".search"
KIND = ("slt-search", 1)
ABOUT, LOCK, _STATE = "search.json", "lock", "state.safetensors"
SAVE_EVERY = 300.0

History = tuple[Mapping[str, Any], ...]


class BusyError(TicketError):
    """Another process is searching there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """A search so far.

    Attributes:
        notes: of the first scores, for the ticket.
        dense: metrics of the dense network; None before they are measured.
        scores: of a one-shot method; None while `state` holds those of a learned one.
        state: after the last saved step.
        buffers: of the module, where steps changed them.
        history: a record per step.
        bits: of a search by blocks: masks and flips of the blocks that are done, as `pack_bits`
            packs them, by `mask/` or `flip/` and the name of the site.
    """

    notes: tuple[str, ...]
    dense: Mapping[str, float] | None = None
    scores: Mapping[str, Tensor] | None = None
    state: SearchState | None = None
    buffers: Mapping[str, Tensor]
    history: History = ()
    bits: Mapping[str, Tensor] = field(default_factory=dict)


class SearchFolder:
    """The folder `<ticket>.search`, locked by one process; a lock dies with its process.

    `search.json` says what is searched; `state.safetensors` holds the progress, and its manifest
    everything that is not a tensor, so that the two are always of the same step.
    """

    def __init__(self, path: Path, save_every: float, *, writes: bool = True) -> None:
        """`writes` is false in all processes of a search but one."""
        self.path = path
        self._save_every = save_every
        self._writes = writes
        self._saved_at = time.monotonic()

    def scratch(self) -> Path:
        """The folder for what a running search puts down; what a killed one left is gone."""
        for left in self.path.glob("blocks-*") if self._writes else ():
            shutil.rmtree(left, ignore_errors=True)
        return self.path

    def due(self) -> bool:
        """Whether `save_every` seconds are over since the last save."""
        return self._writes and time.monotonic() - self._saved_at >= self._save_every

    def save(self, progress: Progress) -> None:
        """Write the progress, whole or not at all; a full disk is a warning and not the end."""
        if not self._writes:
            return
        try:
            write_safetensors(self.path / _STATE, _tensors(progress), _manifest(progress))
        except (OSError, SafetensorError) as cause:
            reason = " ".join(str(cause).split())
            warnings.warn(
                f"the progress could not be saved to {self.path} ({reason}): the search goes on, "
                "but could not be continued if it were interrupted",
                stacklevel=2,
            )
        self._saved_at = time.monotonic()

    def load(self) -> Progress | None:
        """The saved progress; None where nothing was saved yet.

        Raises:
            TicketError: it is damaged, or of another version.
        """
        file = self.path / _STATE
        if not file.exists():
            return None
        manifest = read_manifest(file, TicketError)
        if manifest is None or manifest.get("kind") != KIND[0]:
            raise TicketError(f"{file} is not the state of a search; start over with --fresh")
        if manifest.get("version") != KIND[1]:
            raise TicketError(
                f"{file} has version {str(manifest.get('version'))[:20]} and this slt-compress "
                f"reads {KIND[1]}; start over with --fresh"
            )
        try:
            return _progress(manifest, read_safetensors(file, TicketError))
        except (KeyError, TypeError, ValueError, AttributeError) as cause:
            raise TicketError(
                f"{file} is damaged ({type(cause).__name__}: {str(cause)[:80]}); start over with "
                "--fresh"
            ) from cause

    def remove(self) -> None:
        """Delete the folder: nothing will go on from it."""
        if self._writes:
            shutil.rmtree(self.path, ignore_errors=True)


@contextmanager
def saved_at_the_end(folder: SearchFolder | None, now: Callable[[], Progress]) -> Iterator[None]:
    """Save the progress if the block ends the search, by Ctrl-C or otherwise."""
    try:
        yield
    except BaseException:
        if folder is not None:
            folder.save(now())
        raise


@contextmanager
def search_folder(path: Path, about: Mapping[str, Any], *, fresh: bool) -> Iterator[None]:
    """Hold the folder of a search; what an earlier run of the same search saved is in it.

    Raises:
        BusyError: another process is searching there.
        TicketError: the folder holds another search and `fresh` is false, or it cannot be written.
    """
    with _locked(path):
        if fresh:
            (path / _STATE).unlink(missing_ok=True)
        elif (path / _STATE).exists():
            _refuse_another(path, about)
        try:
            write_json(path / ABOUT, about)
        except OSError as cause:
            raise TicketError(f"cannot write {path}: {cause}") from cause
        yield


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a folder, which is made where it is missing."""
    lone = not path.parent.exists()
    try:
        path.mkdir(parents=True, exist_ok=True)
        stream = (path / LOCK).open("ab")
    except OSError as cause:
        raise TicketError(f"cannot write {path}: {cause}") from cause
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(
                f"another process is searching in {path}: wait for it, or name another folder "
                "with -o"
            ) from None
        try:
            yield
        finally:
            if not (path / _STATE).exists():  # nothing to go on from
                shutil.rmtree(path, ignore_errors=True)
                if lone:
                    with suppress(OSError):  # somebody else put something there
                        path.parent.rmdir()


def _refuse_another(path: Path, about: Mapping[str, Any]) -> None:
    before, now = _flat(read_json(path / ABOUT, TicketError)), _flat(about)
    changed = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
    if changed:
        listed = "; ".join(
            f"{key} was {_short(before.get(key))} and is {_short(now.get(key))}"
            for key in changed[:3]
        )
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise TicketError(
            f"{path} holds an interrupted search that differs: {listed}{more}. Repeat its command "
            "to continue it, start over with --fresh, or name another folder with -o"
        )


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, entry in value.items():
        name = f"{prefix}{key}"
        if isinstance(entry, Mapping) and entry:
            flat |= _flat(entry, f"{name}.")
        else:
            flat[name] = list(entry) if isinstance(entry, tuple) else entry
    return flat


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}…"


def _tensors(progress: Progress) -> dict[str, Tensor]:
    """All tensors of the progress under `<part>/<name>`."""
    state = progress.state
    parts: dict[str, Mapping[str, Tensor]] = {"buffer": progress.buffers, "bits": progress.bits}
    if progress.scores is not None:
        parts["one-shot"] = progress.scores
    if state is not None:
        parts |= {"score": state.scores, "mean": state.mean, "best": state.selected.scores or {}}
        for name, kept in state.optimizer.items():
            parts[f"optimizer/{name}"] = {k: v for k, v in kept.items() if isinstance(v, Tensor)}
    return {f"{part}/{name}": t for part, kept in parts.items() for name, t in kept.items()}


def _manifest(progress: Progress) -> dict[str, Any]:
    """Everything of the progress that is not a tensor."""
    facts: dict[str, Any] = {
        "kind": KIND[0], "version": KIND[1], "notes": list(progress.notes), "state": None,
        "dense": progress.dense and dict(progress.dense), "history": list(progress.history),
    }  # fmt: skip
    state = progress.state
    if state is not None:
        selected = asdict(replace(state.selected, scores=None))
        facts["state"] = {
            "shifts": dict(state.shifts), "scaler": dict(state.scaler),
            "position": asdict(state.position), "last": state.last and asdict(state.last),
            "selected": {**selected, "chosen": state.selected.scores is not None},
        }  # fmt: skip
    return facts


def _progress(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Progress:
    def part(name: str) -> dict[str, Tensor]:
        prefix = f"{name}/"
        return {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}

    state, given = None, facts["state"]
    if given is not None:
        chosen = given["selected"].pop("chosen")
        optimizer: dict[str, dict[str, Tensor]] = {}
        for key, tensor in part("optimizer").items():
            name, _, entry = key.rpartition("/")
            optimizer.setdefault(name, {})[entry] = tensor
        state = SearchState(
            scores=part("score"),
            optimizer=optimizer,
            scaler=given["scaler"],
            mean=part("mean"),
            shifts={name: float(value) for name, value in given["shifts"].items()},
            selected=replace(
                Selected(**given["selected"]), scores=part("best") if chosen else None
            ),
            position=Position(**given["position"]),
            last=None if given["last"] is None else Step(**given["last"]),
        )
    return Progress(
        notes=tuple(facts["notes"]),
        dense=facts["dense"],
        scores=part("one-shot") or None,
        state=state,
        buffers=part("buffer"),
        history=tuple(facts["history"]),
        bits=part("bits"),
    )
