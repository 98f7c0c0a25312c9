"""What a ticket is made of, before it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from slt_compress.masks import Masks
from slt_compress.sites.unit_gains import UnitGains
from slt_compress.storage.probe import Probe
from slt_compress.tickets.records import Extra, Metrics, SiteFacts, Units


@dataclass(frozen=True, slots=True, kw_only=True)
class TicketContent:
    """Everything in a ticket that is equal for equal searches; JSON objects are JSON-able.

    Attributes:
        origin: record of the checkpoint.
        masks: the final masks.
        gains: factor per site, empty where there is none.
        buffers: changed buffers by name.
        stored: tensors by name that the origin's seed does not give.
        budget: the budget as asked for.
        recipe: the resolved recipe.
        metrics: of the dense, the hard-masked and the soft-masked model.
        controls: metrics of the controls.
        skipped: reason per parameter that is not a site.
        weights_hash: `sha256_tensors` of the frozen weights of all sites.
        parameters: number of parameters of the model.
        card: Markdown text of README.md.
        probe: inputs with the logits of the masked model.
        history: one JSON object per step, without a clock in it.
        sites: what is known of the sites beside their masks.
        units: kept and gated units of each site, for patterns whose units are larger than a weight.
        scores: the scores behind the masks.
        origin_tensors: the origin's own weights, where they cannot be had again.
        extra: further facts.
        unit_gains: gains of the kept units, for the sites that have them.
        tuned: parameters by name that were trained beside the mask.
    """

    origin: Mapping[str, object]
    masks: Masks
    gains: Mapping[str, float]
    buffers: Mapping[str, Tensor]
    stored: Mapping[str, Tensor]
    budget: Mapping[str, object]
    recipe: Mapping[str, object]
    metrics: Metrics
    controls: Metrics
    skipped: Mapping[str, str]
    weights_hash: str
    parameters: int
    card: str
    probe: Probe | None = None
    history: Sequence[Mapping[str, object]] = ()
    sites: Mapping[str, SiteFacts] = field(default_factory=dict)
    units: Mapping[str, Units] | None = None
    scores: Mapping[str, Tensor] | None = None
    origin_tensors: Mapping[str, Tensor] | None = None
    extra: Extra | None = None
    unit_gains: Mapping[str, UnitGains] = field(default_factory=dict)
    tuned: Mapping[str, Tensor] = field(default_factory=dict)
