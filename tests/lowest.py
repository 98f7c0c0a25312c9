"""The lowest version of every dependency, as constraints of pip: `python tests/lowest.py`.

Run by `make test-lowest`, with nothing but the standard library.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path


def constraints(text: str) -> list[str]:
    """`name==version` for every `name>=version` of a pyproject.toml, extras too."""
    project = tomllib.loads(text)["project"]
    extras = project.get("optional-dependencies", {}).values()
    found = {}
    for requirement in (*project["dependencies"], *(entry for group in extras for entry in group)):
        match = re.fullmatch(r"([\w-]+)(?:\[[\w,-]+\])?>=([\w.]+)", requirement)
        if match is None:
            raise SystemExit(f"{requirement} is not name>=version")
        name, version = match.groups()
        if found.setdefault(name, version) != version:
            raise SystemExit(f"{name} has two lower bounds, {found[name]} and {version}")
    return [f"{name}=={version}" for name, version in sorted(found.items())]


if __name__ == "__main__":
    root = Path(__file__).parents[1]
    print("\n".join(constraints((root / "pyproject.toml").read_text(encoding="utf-8"))))
