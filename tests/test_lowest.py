"""`make test-lowest` reads the lower bound of every dependency of the pyproject.toml at hand."""

from __future__ import annotations

from pathlib import Path

import pytest
from lowest import constraints

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def project(*dependencies: str, extra: str = "ruff>=0.12") -> str:
    return (
        f'[project]\ndependencies = {list(dependencies)}\noptional-dependencies.dev = ["{extra}"]'
    )


def test_every_bound_of_the_project_is_read() -> None:
    names = [line.split("==")[0] for line in constraints(PYPROJECT.read_text(encoding="utf-8"))]
    assert {"torch", "transformers", "timm", "pytest", "mkdocstrings"} <= set(names)
    assert len(names) == len(set(names))


def test_extras_of_a_dependency_are_left_out() -> None:
    assert constraints(project("a-b[c,d]>=1.2", "e>=3")) == ["a-b==1.2", "e==3", "ruff==0.12"]


@pytest.mark.parametrize("dependency", ["a", "a<2", "a>=1,<2", "ruff>=0.13"])
def test_other_bounds_are_one_sentence(dependency: str) -> None:
    with pytest.raises(SystemExit, match=r"is not name>=version|has two lower bounds"):
        constraints(project(dependency))
