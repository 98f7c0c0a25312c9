"""Comparisons: searches by several methods, sparsities and seeds, row by row in one file."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from pydantic import TypeAdapter, ValidationError

from slt_compress.errors import DataError, RecipeError, SltError, SourceError, TicketError
from slt_compress.gates import METHODS, Method
from slt_compress.searching.overrides import merged
from slt_compress.searching.recipes import Recipe, method_section, parse_recipe
from slt_compress.searching.reserving import forget_finished
from slt_compress.storage.files import json_text, parse_json, read_json, write_json
from slt_compress.storage.locks import locked, remove_unfinished
from slt_compress.tickets import Ticket, free_path

FILE = "compare.json"
# The first metric that every row has is compared.
METRICS = ("accuracy", "f1", "pearson", "perplexity", "agreement", "loss")
LESS_IS_BETTER = ("perplexity", "loss")

RunSearch = Callable[[Recipe, Path], Ticket]
Key = tuple[str, float, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The result of one search: its `hard` metrics, or the `error` that ended it."""

    method: str
    sparsity: float
    seed: int
    hard: Mapping[str, float] | None
    seconds: float
    ticket: str | None
    error: str | None = None

    @property
    def key(self) -> Key:
        """Identifies the row within its comparison."""
        return self.method, self.sparsity, self.seed

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON; `error` is present only if the search failed."""
        content = asdict(self)
        return {key: value for key, value in content.items() if key != "error" or self.error}


# Called with each new row, its number, and the number of all planned rows.
OnRow = Callable[[Row, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The rows of a comparison in planned order, and the folder that stores them."""

    folder: Path
    rows: tuple[Row, ...]

    @property
    def failed(self) -> bool:
        """Whether any search failed."""
        return any(row.error is not None for row in self.rows)

    @property
    def metric(self) -> str | None:
        """The first of `METRICS` that every finished row has."""
        finished = [row.hard for row in self.rows if row.hard is not None]
        shared = (name for name in METRICS if all(name in metrics for metrics in finished))
        return next(shared, None) if finished else None

    def summary(self) -> list[dict[str, Any]]:
        """Number of finished seeds, mean and standard deviation, per method and sparsity.

        The deviation is that of a sample (n - 1). It is None with one seed, and the mean is None
        with no finished seed.
        """
        metric = self.metric or ""
        groups: dict[tuple[str, float], list[float]] = {}
        for row in self.rows:
            values = groups.setdefault((row.method, row.sparsity), [])
            if row.hard is not None and metric:
                values.append(row.hard[metric])
        return [
            {
                "method": method, "sparsity": sparsity, "seeds": len(values),
                "metric": metric or None,
                "mean": fmean(values) if values else None,
                "std": stdev(values) if len(values) > 1 else None,
            }
            for (method, sparsity), values in groups.items()
        ]  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """`rows` and `summary`, ready for JSON."""
        return {"rows": [row.to_dict() for row in self.rows], "summary": self.summary()}


def planned(
    recipe: Recipe, methods: Sequence[str | Method], sparsities: Sequence[float], seeds: int
) -> tuple[Recipe, ...]:
    """The recipe of every search: all methods and sparsities with one seed, then with the next.

    The options in the `method` section of `recipe` apply only to the method of that name. The
    seeds count up from `training.seed`.

    Raises:
        SltError: a method or sparsity is invalid, or there is nothing to compare.
    """
    if not methods or not sparsities or seeds < 1:
        raise RecipeError("a comparison needs at least one method, one sparsity and one seed")
    if recipe.training.max_time is not None:
        raise RecipeError(
            f"training.max_time is {recipe.training.max_time}, but a comparison gives every method "
            "the same steps: use --set training.max_time=null with --steps or --epochs"
        )
    sections = [method_section(method) for method in dict.fromkeys(methods)]
    names = [section["name"] for section in sections]
    if len(set(names)) < len(names):
        raise RecipeError(f"each method can be compared only once, not {', '.join(names)}")
    content, first = recipe.to_dict(), recipe.training.seed
    own = {section["name"] for section in sections} - METHODS.keys()

    def one(seed: int, sparsity: float, section: Mapping[str, Any]) -> Recipe:
        # an instance of the user's own stands for itself: no recipe can name it
        named = {} if section["name"] in own else {"method": section}
        changes = {"target_sparsity": sparsity, "training": {"seed": seed}, **named}
        parsed = parse_recipe(merged(content, changes))
        return parsed if named else replace(parsed, method=section)

    return tuple(
        one(seed, sparsity, section)
        for seed in range(first, first + seeds)
        for sparsity in dict.fromkeys(sparsities)
        for section in sections
    )


def compare_all(
    source: str,
    recipes: Sequence[Recipe],
    folder: Path,
    search: RunSearch,
    on_row: OnRow | None = None,
) -> Comparison:
    """Run `search(recipe, ticket path)` for every recipe without a finished row in `folder`.

    `compare.json` is written after every row. A failed search gives a row with its error, and
    the next comparison in this folder tries it again. A source or data set that cannot be used
    ends the comparison, because every search would fail.

    Raises:
        SourceError, DataError: the source or the data set cannot be used.
        TicketError: `folder` holds another comparison, or cannot be written.
    """
    with _locked(folder):
        return _compare_all(source, recipes, folder, search, on_row)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the folder of a comparison, so that no other one writes rows to it.

    Raises:
        TicketError: another comparison runs there, or it cannot be written.
    """
    with ExitStack() as held:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(folder))
            remove_unfinished(folder / FILE)  # nobody else writes there now
        except BlockingIOError:
            raise TicketError(
                f"another comparison is running in {folder}: wait for it, or choose another folder"
            ) from None
        except OSError as error:
            reason = error.strerror or error
            raise TicketError(
                f"{folder / FILE} cannot be written ({reason}): choose another folder"
            ) from error
        yield


def _compare_all(
    source: str,
    recipes: Sequence[Recipe],
    folder: Path,
    search: RunSearch,
    on_row: OnRow | None,
) -> Comparison:
    settings = _settings(source, recipes)
    kept, settings = _before(folder / FILE, settings)
    rows = {row.key: row for row in kept}
    keys = [_key(recipe) for recipe in recipes]

    def write() -> None:
        order = dict.fromkeys([*keys, *rows])
        every = Comparison(folder=folder, rows=tuple(rows[key] for key in order if key in rows))
        _write(folder / FILE, {**settings, **every.to_dict()})

    write()
    for number, (key, recipe) in enumerate(zip(keys, recipes, strict=True), 1):
        if key in rows and rows[key].hard is not None:
            continue
        name = "-".join(map(str, key))
        forget_finished(folder / name)  # killed between its ticket and its row
        path = free_path(folder, name)
        rows[key] = _row(key, recipe, path, search)
        write()
        if on_row is not None:
            on_row(rows[key], number, len(keys))
    return Comparison(folder=folder, rows=tuple(rows[key] for key in keys))


def _row(key: Key, recipe: Recipe, path: Path, search: RunSearch) -> Row:
    """Run one search, and describe its result or its error."""
    method, sparsity, seed = key
    row = Row(method=method, sparsity=sparsity, seed=seed, hard=None, seconds=0.0, ticket=None)
    started = time.monotonic()
    try:
        ticket = search(recipe, path)
    except (SourceError, DataError):
        raise
    except Exception as error:  # one method that runs out of memory must not lose the others
        seconds = round(time.monotonic() - started, 3)
        reason = " ".join(str(error).split())
        known = isinstance(error, SltError)
        return replace(
            row, seconds=seconds, error=reason if known else f"{type(error).__name__}: {reason}"
        )
    seconds = round(time.monotonic() - started, 3)
    hard = dict(ticket.metrics["hard"] or {})
    return replace(row, hard=hard, seconds=seconds, ticket=str(ticket.path))


def _key(recipe: Recipe) -> Key:
    return recipe.method["name"], recipe.sparsity, recipe.training.seed


def _settings(source: str, recipes: Sequence[Recipe]) -> dict[str, Any]:
    """The settings that all rows of a folder share, as they are read back from JSON."""
    shared = recipes[0].to_dict()
    for name in ("target_sparsity", "method"):
        del shared[name]
    del shared["training"]["seed"]
    methods = {recipe.method["name"]: dict(recipe.method) for recipe in recipes}
    content = {"source": source, "recipe": shared, "methods": methods}
    return parse_json(json_text(content), FILE, TicketError)


def _before(file: Path, settings: dict[str, Any]) -> tuple[tuple[Row, ...], dict[str, Any]]:
    """The rows of an earlier comparison in this folder, and the settings of all its methods."""
    if not file.exists():
        return (), settings
    content = read_json(file, TicketError)
    try:
        rows = TypeAdapter(tuple[Row, ...]).validate_python(content.get("rows"))
    except ValidationError as error:
        where = ".".join(str(part) for part in ("rows", *error.errors()[0]["loc"]))
        raise TicketError(f"{file} is damaged at {where}: choose another folder") from None
    earlier = {key: content.get(key) for key in settings}
    if not any(row.hard is not None for row in rows):
        return (), settings
    methods = {**_mapping(earlier["methods"]), **settings["methods"]}
    now = {**settings, "methods": methods}
    then = {**earlier, "methods": {**methods, **_mapping(earlier["methods"])}}
    if now != then:
        raise TicketError(
            f"{file} is from another comparison ({_difference(then, now)}): choose another folder"
        )
    return rows, now


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _difference(then: Any, now: Any, path: str = "") -> str:
    """The first key at which two JSON values differ, with both values."""
    if isinstance(then, dict) and isinstance(now, dict):
        # not None, from which a key that is missing differs
        key = min(key for key in {*then, *now} if then.get(key, ...) != now.get(key, ...))
        return _difference(then.get(key), now.get(key), f"{path}.{key}" if path else key)
    return f"{path[:80]} was {repr(then)[:80]} and is {repr(now)[:80]}"


def _write(file: Path, content: Mapping[str, Any]) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, content)
    except OSError as error:
        reason = error.strerror or error
        raise TicketError(f"{file} cannot be written ({reason}): choose another folder") from error
