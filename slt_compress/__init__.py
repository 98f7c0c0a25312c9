"""slt-compress: make neural networks smaller without touching a weight.

The public names are resolved on first use, so that importing the package imports no torch. Its one
side effect: transformers can open artifacts (`runtime.hf_registration`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from slt_compress.errors import SltError
from slt_compress.runtime.hf_registration import register

if TYPE_CHECKING:
    from slt_compress.api import compare as compare
    from slt_compress.api import evaluate as evaluate
    from slt_compress.api import export as export
    from slt_compress.api import load as load
    from slt_compress.api import plan as plan
    from slt_compress.api import report as report
    from slt_compress.api import search as search
    from slt_compress.api import verify as verify
    from slt_compress.checkpoints import open_checkpoint as open_checkpoint
    from slt_compress.masks import Masks as Masks
    from slt_compress.runtime.adapters import Base as Base
    from slt_compress.runtime.holding import hold_zeros as hold_zeros
    from slt_compress.searching.recipes import Recipe as Recipe
    from slt_compress.searching.settings import Training as Training
    from slt_compress.sites.budget import Budget as Budget
    from slt_compress.sites.sites import Targets as Targets
    from slt_compress.tickets import Ticket as Ticket

__version__ = "0.1.0"

_HOMES = {
    "Base": "runtime.adapters",
    "Budget": "sites.budget",
    "Masks": "masks",
    "Recipe": "searching.recipes",
    "Targets": "sites.sites",
    "Ticket": "tickets",
    "Training": "searching.settings",
    "compare": "api",
    "evaluate": "api",
    "export": "api",
    "hold_zeros": "runtime.holding",
    "load": "api",
    "open_checkpoint": "checkpoints",
    "plan": "api",
    "report": "api",
    "search": "api",
    "verify": "api",
}

__all__ = [  # noqa: RUF022  (verbs, then types)
    "search",
    "plan",
    "export",
    "load",
    "report",
    "verify",
    "evaluate",
    "compare",
    "open_checkpoint",
    "hold_zeros",
    "Budget",
    "Targets",
    "Training",
    "Recipe",
    "Ticket",
    "Masks",
    "Base",
    "SltError",
]

register()


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
