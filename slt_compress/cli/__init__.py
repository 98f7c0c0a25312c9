"""The command line: parse, call one function of the API, print the result."""

from __future__ import annotations


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; the entry point of the package."""
    from slt_compress.cli.stopping import signals_heard

    with signals_heard(is_process=arguments is None):
        from slt_compress.cli.app import main as run  # typer is imported when there is work

        run(arguments)
