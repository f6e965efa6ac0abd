"""Where the command starts: it is always installed, and says what is missing where its extra is not."""

from __future__ import annotations

__all__ = ("main",)

import sys
from importlib.util import find_spec

_NEEDED = ("typer", "matplotlib")
_USAGE = 2
"""The exit code of a command that cannot be understood or is not installed completely."""


def main() -> None:
    """Run the command that the arguments of the process name."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        needed = " and ".join(missing)
        print(f"hookbus: this command needs {needed}; pip install 'hookbus[cli]' brings what is missing", file=sys.stderr)
        sys.exit(_USAGE)
    from hookbus.cli.commands import app  # only here: it imports what may be missing

    app()
