"""Every error that slt-compress raises on purpose.

SltError                 one sentence a user can act on; the CLI prints it and exits 1
├── SourceError          a checkpoint that cannot be found, reached, read or trusted
│   └── OwnModuleError   a module of the user's own that has to be passed as model=
├── DataError            a data set that cannot be found, reached, read or matched to the task
├── TargetError          a pattern of names that matches nothing, or nothing left to gate
├── BudgetError          a density, scope, floor or pattern that cannot be met
├── RecipeError          a wrong key or value, named by its path in the recipe
├── TicketError          a ticket folder that is incomplete, damaged or from another version
├── ArtifactError        an exported folder that is incomplete, damaged or from another version
└── PythonOnlyError      what no command can do, with the lines of Python that do it
"""

from __future__ import annotations

from pathlib import Path


class SltError(Exception):
    """Base of all errors raised on purpose: the message says what was wrong and what to do."""


class SourceError(SltError):
    """A checkpoint that cannot be found, reached, read or trusted."""


class OwnModuleError(SourceError):
    """A module of the user's own that has to be passed as `model=`; `path` is the folder of it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        super().__init__(
            f"{path} is of a module of your own: pass that module, as in "
            f"slt_compress.load({str(path)!r}, model=module)"
        )


class DataError(SltError):
    """A data set that cannot be found, reached, read or matched to the task."""


class TargetError(SltError):
    """A pattern of names that matches nothing, or nothing left to gate."""


class BudgetError(SltError):
    """A density, scope, floor or pattern that cannot be met."""


class RecipeError(SltError):
    """A wrong key or value in a recipe, named by its path."""


class TicketError(SltError):
    """A ticket folder that is incomplete, damaged or from another version."""


class ArtifactError(SltError):
    """An exported folder that is incomplete, damaged or from another version."""


class PythonOnlyError(SltError):
    """What no command can do, with the `lines` of Python that do it."""

    def __init__(self, message: str, lines: tuple[str, ...] = ()) -> None:
        self.lines = lines
        super().__init__(message)
