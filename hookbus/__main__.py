"""`python -m hookbus` is the command `hookbus`."""

from __future__ import annotations

__all__: tuple[str, ...] = ()

from hookbus.cli.main import main

if __name__ == "__main__":
    main()
