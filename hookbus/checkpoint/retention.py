"""Which checkpoints may go once a newer one is durable. Pure: nothing here touches a file.

Only periodic checkpoints with a sound manifest are ever named; the newest one and those the caller protects never are.
"""

from __future__ import annotations

__all__ = ("Retention",)

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from hookbus.checkpoint.manifest import CheckpointInfo
from hookbus.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Retention:
    """Keeps the newest `max_keep` periodic checkpoints; None or -1 keeps all.

    Raises:
        ConfigError: if `max_keep` is not one of these.
    """

    max_keep: int | None = None

    def __post_init__(self) -> None:
        valid = self.max_keep is None or (type(self.max_keep) is int and (self.max_keep == -1 or self.max_keep >= 1))
        if not valid:
            message = f"max_keep must be a whole number of at least 1, or -1 or None to keep all, got {self.max_keep!r}"
            raise ConfigError(message)

    def superseded(self, committed: Iterable[CheckpointInfo], *, protected: Collection[str] = ()) -> list[str]:
        """Return the names of the checkpoints to delete, oldest first.

        Call it after a commit and protect the name just committed: a run resumed from an older step commits below the highest
        one.
        """
        if self.max_keep is None or self.max_keep == -1:
            return []
        periodic = sorted((info for info in committed if info.role == "periodic"), key=lambda info: info.step)
        return [info.name for info in periodic[: -self.max_keep] if info.name not in protected]
