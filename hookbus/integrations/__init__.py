"""What lets other libraries and hookbus work together; each file is imported when it is first needed."""

from __future__ import annotations

__all__: tuple[str, ...] = ()
