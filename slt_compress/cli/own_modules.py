"""What the command line says of a ticket whose module only Python can make."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from slt_compress.errors import OwnModuleError, PythonOnlyError


@contextmanager
def in_python(verb: str, **options: object) -> Iterator[None]:
    """Say what to run in Python where the folder is of a module of the user's own.

    Raises:
        PythonOnlyError: instead of an OwnModuleError, with the lines of Python.
    """
    try:
        yield
    except OwnModuleError as error:
        raise PythonOnlyError(
            f"{error.path} is of a module of your own, which the command line cannot make; in "
            "Python, where `module` is that module:",
            ("import slt_compress", _line(verb, error.path, options)),
        ) from None


def _line(verb: str, path: Path, options: dict[str, object]) -> str:
    """The call; `bench` and `evaluate` measure with data that only Python has too."""
    shown = {name: str(v) if isinstance(v, Path) else v for name, v in options.items()}
    given = "".join(f", {name}={v!r}" for name, v in shown.items() if v not in (None, False))
    if verb == "export" and options.get("shrink"):
        given += ", inputs=(example,)"
    call = {"bench": "load", "evaluate": "load"}.get(verb, verb)
    result = "model = " if call == "load" else ""
    return f"{result}slt_compress.{call}({str(path)!r}{given}, model=module)"
