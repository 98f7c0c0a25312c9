"""Workloads: the data, objective and metrics that a search runs on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slt_compress.anatomy.blocks import block_names
from slt_compress.anatomy.states import evaluating
from slt_compress.checkpoints import Checkpoint, open_checkpoint, sketch_checkpoint
from slt_compress.checkpoints.hollow import open_hollow
from slt_compress.checkpoints.tasks import LANGUAGE_TASKS, Head, to_device
from slt_compress.data import (
    RawData,
    SearchData,
    default_data,
    modalities_of,
    open_data,
    open_default,
    prepare,
)
from slt_compress.errors import DataError, RecipeError, SltError
from slt_compress.evidence.metrics import Metrics, evaluate
from slt_compress.searching.announcing import announce_default, announce_opened
from slt_compress.searching.fit_checks import check_fits, head_options
from slt_compress.searching.loss_checks import GuardedLoss
from slt_compress.searching.objectives import (
    Objective,
    ObjectiveOptions,
    Outcome,
    distill_objective,
    objective_name,
    own_objective,
    task_objective,
)
from slt_compress.searching.planning import missing_weights
from slt_compress.searching.recipes import Recipe
from slt_compress.searching.setup import Workload


def open_workload(
    source: str | Path | nn.Module,
    data: str | Iterable[Any] | None,
    loss_fn: Callable[[nn.Module, Any], Tensor] | None,
    recipe: Recipe,
) -> tuple[Checkpoint, SearchData | None, Workload]:
    """The workload of a named checkpoint, or of a user's own module with the user's own batches.

    Raises:
        SltError: the source or the data cannot be used, or do not fit together.
    """
    if isinstance(source, nn.Module):
        if loss_fn is None or data is None or isinstance(data, str):
            raise SltError("a module of your own needs batches and loss_fn(module, batch)")
        return Checkpoint.of_module(source), None, own_workload(source, data, loss_fn)
    if data is not None and not isinstance(data, str):
        raise SltError("your own batches need a module of your own: give the name of a data set")
    checkpoint, prepared = open_source(source, recipe)
    announce_opened(checkpoint, prepared)
    check_fits(checkpoint, prepared, frozen=recipe.training.batchnorm == "frozen")
    return checkpoint, prepared, checkpoint_workload(checkpoint, prepared, recipe.objective)


def open_source(source: str | Path, recipe: Recipe) -> tuple[Checkpoint, SearchData]:
    """The checkpoint and its data. The head of a random init gets the classes of the data.

    Raises:
        SourceError, DataError: the source or the data cannot be used.
    """
    training = recipe.training
    # A model that no data set can feed is refused before its weights are read or downloaded.
    sketch = sketch_checkpoint(
        source, revision=recipe.revision, weights=recipe.weights, init=recipe.init,
        options=recipe.model,
    )  # fmt: skip
    modalities_of(sketch)
    raw: RawData | None = None
    if recipe.dataset is None:
        announce_default(default_data(sketch), sketch.task)
    else:
        raw = open_data(recipe.dataset, recipe.data)
    given: dict[str, Any] = {
        "revision": recipe.revision, "weights": recipe.weights, "init": recipe.init,
        "seed": training.seed, "options": head_options(sketch, recipe.model, raw),
        "num_classes": raw.num_classes if raw and recipe.init else None,
        "classes": raw.classes if raw and recipe.init else None,
    }  # fmt: skip
    checkpoint = open_hollow(source, **given) if _by_blocks(recipe) else None
    checkpoint = checkpoint or open_checkpoint(source, **given)
    if raw is None:
        raw = open_default(default_data(checkpoint), checkpoint, recipe.data)
    prepared = prepare(
        raw, checkpoint, batch_size=training.batch_size, seed=training.seed,
        limit=recipe.evaluation.limit,
    )  # fmt: skip
    return checkpoint, prepared


def _by_blocks(recipe: Recipe) -> bool:
    """Whether the matrices of the model can stay in their files; a mask to stay in needs them."""
    return recipe.objective.name == "reconstruct" and recipe.inside is None


def sketch_source(source: str | Path | nn.Module, recipe: Recipe) -> Checkpoint:
    """The checkpoint of a search on the meta device. Only configurations are downloaded.

    The head of a random init gets the classes of the data if the data is on this machine. A
    user's own module is used as it is.

    Raises:
        SourceError, DataError: the source cannot be found, or the local data cannot be used.
    """
    if isinstance(source, nn.Module):
        return Checkpoint.of_module(source)
    raw: RawData | None = None
    if recipe.dataset is not None and recipe.init and is_at_hand(recipe.dataset):
        raw = open_data(recipe.dataset, recipe.data)
    return sketch_checkpoint(
        source, revision=recipe.revision, weights=recipe.weights, init=recipe.init,
        seed=recipe.training.seed, options=recipe.model,
        num_classes=raw.num_classes if raw else None, classes=raw.classes if raw else None,
    )  # fmt: skip


def obstacles(checkpoint: Checkpoint) -> tuple[str, ...]:
    """What would prevent a search of a sketched source, one sentence each."""
    reasons = missing_weights(checkpoint)
    try:
        if checkpoint.kind != "module":
            modalities_of(checkpoint)
    except DataError as error:
        return (*reasons, str(error))
    return reasons


def is_at_hand(dataset: str) -> bool:
    """Whether a data set is certainly on this machine: part of the package, or a path."""
    return dataset == "digits" or Path(dataset).expanduser().exists()


def checkpoint_workload(
    checkpoint: Checkpoint, data: SearchData, options: ObjectiveOptions
) -> Workload:
    """The workload of a checkpoint on prepared data.

    Raises:
        DataError: the objective needs labels that the data does not have.
    """
    forward = checkpoint.forward
    first = next(iter(data.test))
    seq2seq = checkpoint.task == "seq2seq"
    return Workload(
        forward=forward,
        measure=partial(_measure, forward, checkpoint, data.head),
        objective=_objective(checkpoint, data, options),
        train=data.train,
        held_out=data.held_out,
        test=data.test,
        compare=checkpoint.init is None,
        probe={key: value for key, value in first.items() if seq2seq or key != "labels"},
    )


def _measure(
    forward: Any,
    checkpoint: Checkpoint,
    head: Head,
    module: nn.Module,
    batches: Iterable[Any],
    **options: Any,
) -> Metrics:
    return evaluate(module, batches, forward, checkpoint.task, head=head, **options)


def _objective(checkpoint: Checkpoint, data: SearchData, options: ObjectiveOptions) -> Objective:
    forward, task = checkpoint.forward, checkpoint.task
    name = objective_name(options, random_init=checkpoint.init is not None)
    if name == "reconstruct":  # blocks have losses of their own
        return Objective(_no_loss)
    if name == "lm" and task not in LANGUAGE_TASKS:
        raise RecipeError(
            f"the objective 'lm' needs a language model ({', '.join(LANGUAGE_TASKS)}), but "
            f"{checkpoint.source} is opened for {task}: use --objective task or distill"
        )
    if name in ("task", "lm"):
        if not data.labels_match or task == "features":
            raise DataError(
                f"the objective 'task' needs labels: {data.label_note or 'the model has no head.'} "
                "Use --objective distill, which needs no labels"
            )
        return task_objective(
            forward, task, label_smoothing=options.label_smoothing, head=data.head
        )
    return distill_objective(
        forward, task, temperature=options.temperature, label_weight=options.label_weight,
        blocks=block_names(checkpoint.module), hidden_weight=options.hidden_weight, head=data.head,
    )  # fmt: skip


def _no_loss(module: nn.Module, batch: Any, target: Any) -> Outcome:
    raise RecipeError("the objective reconstruct has a loss for each block and none for the whole")


def own_workload(
    module: nn.Module, data: Iterable[Any], loss_fn: Callable[[nn.Module, Any], Tensor]
) -> Workload:
    """The workload of a user's own module. `data` is a re-iterable of batches of any kind.

    Every tenth batch is held out, and at least one if there are several. Selection and metrics
    use the held-out batches; the metric is the mean of `loss_fn(module, batch)`.

    Raises:
        DataError: there is no batch, or `data` can be iterated only once.
    """
    if isinstance(data, Iterator):
        raise DataError("data is an iterator and ends after one epoch: give a list or DataLoader")
    count = sum(1 for _ in data)
    if count == 0:
        raise DataError("data has no batches: give at least one")
    held_out = OwnBatches(source=data, count=count, held_out=True)
    guarded = GuardedLoss(loss_fn, module)
    return Workload(
        forward=guarded,
        measure=partial(_mean_loss, guarded),
        objective=own_objective(guarded),
        train=OwnBatches(source=data, count=count, held_out=False),
        held_out=held_out,
        test=held_out,
        compare=False,
        probe={},
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnBatches:
    """A user's own batches. Every tenth is held out, and at least one if there are several."""

    source: Iterable[Any]
    count: int
    held_out: bool

    def __len__(self) -> int:
        return sum(self._mine(index) for index in range(self.count))

    def __iter__(self) -> Iterator[Any]:
        return (batch for index, batch in enumerate(self.source) if self._mine(index))

    def epoch(self, index: int) -> Iterator[Any]:
        """The batches, in the order of the source."""
        return iter(self)

    def _mine(self, index: int) -> bool:
        if self.count == 1:
            return True
        return (index % min(10, self.count) == min(10, self.count) - 1) == self.held_out


def _mean_loss(
    loss_fn: GuardedLoss,
    module: nn.Module,
    batches: Iterable[Any],
    **options: Any,
) -> Metrics:
    """Mean of the user's loss over batches, in eval mode."""
    device = next(module.parameters()).device
    with torch.no_grad(), evaluating(module):
        losses = [float(loss_fn(module, to_device(batch, device))) for batch in batches]
    loss_fn.check_weights()
    return {"loss": sum(losses) / len(losses)}
