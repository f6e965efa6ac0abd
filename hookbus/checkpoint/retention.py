"""Which checkpoints may go once a newer one is durable. Pure: nothing here touches a file.

Only periodic checkpoints with a sound manifest are ever named; the newest one and those the caller protects never are. Whoever
asks for checkpoints at intervals counts its own, its group, and several may own the same one.
"""

from __future__ import annotations

__all__ = ("GROUPS", "Retention", "groups_of", "superseded")

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from hookbus.checkpoint.manifest import CheckpointInfo
from hookbus.errors import ConfigError

GROUPS = "groups"
"""The fact in a manifest that lists the groups a checkpoint belongs to."""


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


def groups_of(info: CheckpointInfo) -> tuple[str, ...]:
    """Return the groups that a checkpoint belongs to; none where somebody asked for it by hand."""
    return tuple(info.facts.get(GROUPS, ()))


def superseded(
    committed: Collection[CheckpointInfo], group: str | None, limits: Mapping[str | None, int], *, protected: Collection[str] = ()
) -> list[str]:
    """Return the names of the checkpoints to delete after a commit in a group, oldest first.

    Args:
        committed: all that are there.
        group: the one that has just committed; None for those that belong to none.
        limits: how many each group keeps; a checkpoint that also belongs to a group without a limit stays.
        protected: names that stay.
    """
    going = {
        each: Retention(limit).superseded([info for info in committed if each in _owners(info)], protected=protected)
        for each, limit in limits.items()
    }
    owners = {info.name: _owners(info) for info in committed}
    return [name for name in going[group] if all(name in going.get(owner, ()) for owner in owners[name])]


def _owners(info: CheckpointInfo) -> tuple[str | None, ...]:
    return groups_of(info) or (None,)
