"""The commands and their options."""

from __future__ import annotations

__all__ = ("app", "checkpoints", "report")

import datetime
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from hookbus._version import __version__
from hookbus.cli.run_directory import find_run
from hookbus.errors import ConfigError, choices

_EXIT_CODES = """
Exit codes: 0 done; 1 no run there, a file that cannot be written, or a damaged checkpoint; 2 a command that is not understood.
"""

app = typer.Typer(
    name="hookbus",
    help="Look at training runs.",
    epilog=_EXIT_CODES,
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,  # a traceback is for a bug report, and goes there as Python writes it
)

RunDirectory = Annotated[
    Path, typer.Argument(metavar="RUN_DIR", help="A work directory, whose starts are joined, or the log directory of one start.")
]


CheckpointDirectory = Annotated[
    Path | None,
    typer.Option("--checkpoints", metavar="DIR", help="Where the checkpoints lie, if not in RUN_DIR/checkpoints."),
]

_FORMATS = ("png", "html")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"hookbus {__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    """Look at training runs."""


@app.command(epilog=_EXIT_CODES)
def report(
    run_dir: RunDirectory,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the files go; RUN_DIR where left out.")] = None,
    format: Annotated[str, typer.Option(metavar="LIST", help="What to write: png, html, or both.")] = "png,html",
    checkpoints: CheckpointDirectory = None,
) -> None:
    """Draw a run, finished or still running: report.png and report.html.

    Curves, times per handler, checkpoints and the last log lines. The page is one file that loads nothing from anywhere.
    """
    formats = _formats(format)
    with _errors_as_text():
        find_run(run_dir)
        from hookbus.cli.report import write_report  # only here: what draws takes seconds to load, and mistakes are told at once

        for path in write_report(run_dir, out or run_dir, formats, checkpoints, datetime.datetime.now()):
            typer.echo(path)


@app.command(epilog=_EXIT_CODES)
def checkpoints(
    run_dir: RunDirectory,
    verify: Annotated[bool, typer.Option("--verify", help="Compare every byte with its checksum.")] = False,
    directory: CheckpointDirectory = None,
) -> None:
    """List the checkpoints of a run, the newest last."""
    with _errors_as_text():
        where = directory or find_run(run_dir).checkpoint_directory
        from hookbus.cli.checkpoint_list import find_checkpoints  # only here: it loads torch
        from hookbus.cli.checkpoint_table import checkpoint_lines

        listing = find_checkpoints(where, verify=verify)
        for line in checkpoint_lines(listing):
            typer.echo(line)
    if listing.damaged:
        raise typer.Exit(1)


def _formats(text: str) -> list[str]:
    """Return the wanted formats, each once."""
    named = list(dict.fromkeys(part.strip().lower() for part in text.split(",") if part.strip()))
    unknown = [name for name in named if name not in _FORMATS]
    if unknown or not named:
        wrong = unknown[0] if unknown else ""
        raise typer.BadParameter(f"{wrong!r} is no format; {choices(wrong, _FORMATS)}", param_hint="--format")
    return named


@contextmanager
def _errors_as_text() -> Iterator[None]:
    """Turn what a user can put right into one sentence and exit code 1."""
    try:
        yield
    except (ConfigError, OSError) as error:
        typer.echo(f"hookbus: {error}", err=True)
        raise typer.Exit(1) from None
