"""Names: patterns that select weights, densities by pattern, and the type that a name implies."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Mapping

from slt_compress.errors import BudgetError, TargetError


def matcher(pattern: str) -> Callable[[str], bool]:
    """A predicate for the names that a pattern matches.

    Raises:
        TargetError: an invalid regular expression.
    """
    if pattern.startswith("re:"):
        try:
            expression = re.compile(pattern[3:])
        except re.error as error:
            raise TargetError(f"{pattern!r} is not a valid regular expression: {error}") from None
        return lambda name: expression.search(name) is not None
    return lambda name: fnmatch.fnmatchcase(name, pattern)


def type_of(name: str) -> str:
    """The name that a weight shares across blocks: its own name with `*` for each index.

    `layers.3.self_attn.q_proj.weight` is of the type `layers.*.self_attn.q_proj.weight`.
    """
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def own_densities(
    sizes: Mapping[str, int], densities: Mapping[str, float], density: float
) -> dict[str, float]:
    """Density of each name that a pattern of `densities` matches.

    `sizes` is the number of units of each name, and `density` the kept fraction of all of them.

    Raises:
        BudgetError: a pattern matches no name, two patterns contradict each other, or together
            they leave too few or too many units to the other names.
    """
    own: dict[str, float] = {}
    for pattern, share in densities.items():
        matches = matcher(pattern)
        hits = [name for name in sizes if matches(name)]
        if not hits:
            raise BudgetError(f"densities: the pattern {pattern!r} matches no site")
        for name in hits:
            if own.setdefault(name, share) != share:
                raise BudgetError(
                    f"densities: {name} matches two patterns, with {own[name]:g} and {share:g}"
                )
    total, taken = sum(sizes.values()), sum(share * sizes[name] for name, share in own.items())
    room = total - sum(sizes[name] for name in own)
    left = density * total - taken
    # Where every name has a density of its own, one unit of rounding is no contradiction.
    least = 1e-9 * total if room else -1.0
    if own and not least <= left <= max(room, 1.0):
        fits = f"{1 - taken / total:g}"
        if room:
            fits = f"a value from {1 - (taken + room) / total:g} to less than {fits}"
        raise BudgetError(
            f"densities keep {taken:,.0f} units, but a target_sparsity of {1 - density:g} keeps "
            f"{density * total:,.0f} in all, and there are {room:,} others; the target must be "
            f"{fits}"
        )
    return own
