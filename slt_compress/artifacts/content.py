"""What an artifact is made of, before it is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from slt_compress.artifacts.folding import Folds
from slt_compress.artifacts.state import State, masked_state
from slt_compress.checkpoints import Checkpoint
from slt_compress.masks import Masks
from slt_compress.storage.probe import Probe


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What every exported folder holds beside its weights; JSON objects are JSON-able.

    Attributes:
        report: becomes report.json.
        card: Markdown, becomes README.md.
        ticket_hash: hash of the ticket's manifest.
        provenance: what proves the weights: `origin`, `gains`, `weights_hash`, `budget`, `counts`.
        probe: inputs with the logits of the masked model.
        loading: Markdown, becomes HOW_TO_LOAD.md; empty writes none.
    """

    report: Mapping[str, object]
    card: str
    ticket_hash: str
    provenance: Mapping[str, object]
    probe: Probe | None = None
    loading: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ArtifactContent:
    """A masked model and the evidence for it.

    Attributes:
        checkpoint: where the model came from: family, config, classes, companion files.
        module: the model with its masks (and gains) already applied.
        masks: what was kept; kept weights are stored even where they are 0.
        evidence: what the folder holds beside the weights.
        streamed: the tensors of the masked model where `module` has none, because they are computed
            one at a time; the format `dense` takes them for models of transformers only.
        buffers: what the search changed beside the masks; the format `mask` stores it.
        stored: tensors that the origin's seed does not give; the format `mask` stores them.
        orders: of the inputs of sites whose mask is N:M in another order than their own.
        folds: of a dense artifact, how tensors of `module` and `masks` lie in another order.
        tuned: parameters that were trained beside the mask; the format `mask` stores them.
    """

    checkpoint: Checkpoint
    module: nn.Module
    masks: Masks
    evidence: Evidence
    streamed: State | None = None
    buffers: Mapping[str, Tensor] = field(default_factory=dict)
    stored: Mapping[str, Tensor] = field(default_factory=dict)
    orders: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    folds: Folds = field(default_factory=dict)
    tuned: Mapping[str, Tensor] = field(default_factory=dict)

    def state(self) -> State:
        """The tensors of the masked model.

        Raises:
            ArtifactError: a mask was not applied, or is not of a weight of the module.
        """
        return masked_state(self.module, self.masks) if self.streamed is None else self.streamed
