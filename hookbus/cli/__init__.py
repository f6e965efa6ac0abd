"""The command `hookbus`: what is asked about runs from a shell. Needs the extra `cli`; nothing of it is loaded by training."""

from __future__ import annotations

__all__: tuple[str, ...] = ()
