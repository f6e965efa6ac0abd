"""Loading data for a run: where a pass stands, how workers start and are seeded, and what the matter is where they fail."""

from __future__ import annotations

__all__ = (
    "LoaderPosition",
    "NumberedBatch",
    "WorkerBatches",
    "check_main_guard",
    "release_workers",
    "start_loading",
    "stop_loading",
)

from hookbus.loading.failures import check_main_guard
from hookbus.loading.position import LoaderPosition
from hookbus.loading.seeding import NumberedBatch
from hookbus.loading.workers import WorkerBatches, release_workers, start_loading, stop_loading
