"""The checkpoints of a run, from their manifests; what is in them is never decoded."""

from __future__ import annotations

__all__ = ("CheckpointListing", "find_checkpoints", "score_of")

from pathlib import Path
from typing import NamedTuple

from hookbus.checkpoint import CheckpointInfo, CheckpointStore, Files
from hookbus.checkpoint.manifest import check_file
from hookbus.errors import CheckpointError


class CheckpointListing(NamedTuple):
    """What lies in a directory of checkpoints."""

    directory: Path
    sound: tuple[CheckpointInfo, ...]
    """The newest last."""
    damaged: dict[str, str]
    """By name, what is wrong."""
    is_verified: bool
    """Whether every byte was compared; otherwise manifests and the sizes of files."""


def find_checkpoints(directory: Path, *, verify: bool = False) -> CheckpointListing:
    """Return the checkpoints in a directory, none where there is no such directory.

    Args:
        directory: where they lie.
        verify: whether to compare every byte with its checksum, which reads all of them.
    """
    store = CheckpointStore(directory)
    if not directory.is_dir():
        return CheckpointListing(directory, (), {}, verify)
    sound: list[CheckpointInfo] = []
    damaged = {name: str(error) for name, error in store.damaged().items()}
    for info in store.list():
        try:
            _check(store, info, verify=verify)
        except CheckpointError as error:
            damaged[info.name] = str(error)
        else:
            sound.append(info)
    return CheckpointListing(directory, tuple(sound), damaged, verify)


def score_of(info: CheckpointInfo) -> tuple[str, float] | None:
    """Return the metric a best checkpoint was kept for, and its value."""
    metric, score = info.facts.get("metric"), info.facts.get("score")
    is_score = isinstance(metric, str) and isinstance(score, int | float) and not isinstance(score, bool)
    return (metric, float(score)) if is_score and metric is not None and score is not None else None


def _check(store: CheckpointStore, info: CheckpointInfo, *, verify: bool) -> None:
    if verify:
        store.verify(info.name)
        return
    files = Files()
    for name, record in info.files.items():
        check_file(info.path / name, record, files)
