"""What it takes to commit one checkpoint, from a state that no longer changes: write it, then let superseded ones go.

It knows nothing of the run, so it may happen on another thread than the one that trains; one at a time.
"""

from __future__ import annotations

__all__ = ("STALL_TIMEOUT", "Commit", "Committer", "SaveRequest")

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hookbus._version import __version__
from hookbus.checkpoint import CheckpointStore, save_checkpoint
from hookbus.checkpoint.retention import GROUPS, groups_of, superseded

if TYPE_CHECKING:
    from hookbus.types import HookLike


STALL_TIMEOUT = 60.0
"""Seconds without progress after which the end of a run waits no longer for a checkpoint, where nobody says otherwise."""


class SaveRequest(NamedTuple):
    """What is to be saved at the next step boundary."""

    name: str
    role: str = "periodic"
    """`periodic`, or another word for one that retention does not count."""
    max_keep: int = -1
    """How many periodic checkpoints of its owner stay, the newest; -1 for all."""
    facts: Mapping[str, Any] = {}
    """Plain values to keep in its manifest."""
    supersedes: tuple[str, ...] = ()
    """Checkpoints that go once this one is committed."""
    owner: HookLike | None = None
    """The hook whose checkpoint it is; None where somebody asks by hand."""
    directory: Path | None = None
    """Where it goes instead of `checkpoints/` in the work directory."""
    leave_out: tuple[str, ...] = ()
    """Entries that it does not hold."""
    asynchronous: bool = False
    """Whether training goes on while it is written; at the boundary the state is only copied."""
    stall_timeout: float = STALL_TIMEOUT
    """How many seconds the end of a run waits for it without a single byte being written meanwhile."""


@dataclass(frozen=True)
class Commit:
    """A request, and what was so when it was taken up."""

    request: SaveRequest
    store: CheckpointStore
    epoch: int
    iter: int
    group: str | None
    """What the checkpoints of its owner are counted under."""
    link_from: Path | None = None
    """A checkpoint of the same step, with which it may share files."""
    is_unchanged: bool = False
    """Whether weights and optimizer are known to be those of that checkpoint."""

    @property
    def step(self) -> tuple[int, int]:
        """The completed epochs and iterations."""
        return (self.epoch, self.iter)

    @property
    def is_periodic(self) -> bool:
        """Whether retention counts it."""
        return self.request.role == "periodic"


class Committer:
    """Writes the checkpoints of one run, and remembers how many of them each hook keeps."""

    def __init__(self) -> None:
        self._limits: dict[str | None, int] = {}

    def commit(self, commit: Commit, checkpoint: Mapping[str, Any]) -> Path:
        """Write the checkpoint and return its directory; what it supersedes goes once it is durable."""
        path = save_checkpoint(
            commit.store,
            commit.request.name,
            checkpoint,
            epoch=commit.epoch,
            iter=commit.iter,
            role=commit.request.role,
            hookbus_version=__version__,
            facts=_facts(commit),
            replace=True,
            link_from=commit.link_from,
            is_unchanged=commit.is_unchanged,
        )
        self._let_go(commit)
        return path

    def _let_go(self, commit: Commit) -> None:
        request, committed = commit.request, commit.store.list()
        going = {info.name for info in committed}.intersection(request.supersedes)  # a hook may have skipped one
        if commit.is_periodic:
            self._limits[commit.group] = request.max_keep
            going |= set(superseded(committed, commit.group, self._limits, protected={request.name}))
        for name in going - {request.name}:
            commit.store.remove(name)


def _facts(commit: Commit) -> dict[str, Any]:
    """Return what goes into the manifest; one that several hooks ask for at the same moment belongs to all of them."""
    request = commit.request
    if not commit.is_periodic:
        return dict(request.facts)
    here = [info for info in commit.store.list() if (info.name, info.iter) == (request.name, commit.iter)]
    groups = {commit.group, *(group for info in here for group in groups_of(info))} - {None}
    return {**request.facts, GROUPS: sorted(groups)} if groups else dict(request.facts)
