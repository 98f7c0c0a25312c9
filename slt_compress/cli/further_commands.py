"""The commands that have files of their own, in the order of the help."""

from __future__ import annotations

import typer

from slt_compress.cli.apply_command import apply
from slt_compress.cli.audit_command import audit
from slt_compress.cli.bench_command import bench


def add_commands(app: typer.Typer) -> None:
    """Register them."""
    for command in (bench, audit, apply):
        app.command()(command)
