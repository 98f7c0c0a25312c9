"""What a ticket was searched by: facts of a report that are equal for equal searches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypedDict

from slt_compress.storage.manifests import Manifest, is_count
from slt_compress.tickets import Ticket, read_history


class SearchFacts(TypedDict, total=False):
    """What a ticket was searched by: facts that are equal for equal searches.

    `examples` counts those of `train`, `held_out` and `test`; `test` is the split that was measured
    on, `steps` those that were taken, and `labels_match` whether labels were used.
    """

    method: str
    dataset: str
    test: str
    labels_match: bool
    examples: Mapping[str, int]
    steps: int
    seed: int


def check_search(manifest: Manifest) -> None:
    """Refuse facts of another type; artifacts of before this key lack it.

    Raises:
        SltError: the one of the manifest.
    """
    search = manifest.object("search") if "search" in manifest.values else {}
    examples = search.get("examples", {})
    whole = isinstance(examples, dict) and all(
        is_count(count, least=0)
        for count in (*examples.values(), search.get("steps", 0), search.get("seed", 0))
    )
    words = (search.get(key, "") for key in ("method", "dataset", "test"))
    if not whole or not all(isinstance(word, str) for word in words):
        raise manifest.damaged(f"its facts on the search are {str(search)[:60]}")


def search_facts(ticket: Ticket) -> SearchFacts:
    """The facts on the search that a ticket records; empty for one that was not searched."""
    data, method = ticket.extra.data, ticket.recipe.get("method")
    training = ticket.recipe.get("training")
    if not any(ticket.metrics.values()):
        return {}
    facts: SearchFacts = {"steps": len(read_history(ticket))}
    if isinstance(method, Mapping):
        facts["method"] = str(method.get("name"))
    if isinstance(training, Mapping) and is_count(training.get("seed"), least=0):
        facts["seed"] = training["seed"]
    if data is not None:
        facts |= _data_facts(data)
    return facts


def _data_facts(data: Mapping[str, object]) -> SearchFacts:
    splits = data.get("splits")
    facts: SearchFacts = {"labels_match": data.get("labels_match") is True}
    if isinstance(splits, Mapping):
        counted = {str(name): n for name, n in splits.items() if is_count(n, least=0)}
        facts["examples"] = counted
    if isinstance(data.get("spec"), str):
        facts["dataset"] = str(data["spec"])
    if isinstance(data.get("test"), str):
        facts["test"] = str(data["test"])
    return facts
