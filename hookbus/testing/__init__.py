"""For tests of hooks, services and loops: what a run published, small real runs, and a clock that does not make one wait.

Nothing here needs pytest, and trio only where a test runs on it.
"""

from __future__ import annotations

__all__ = (
    "DeviceRead",
    "DeviceReads",
    "Recorder",
    "find_device_reads",
    "make_loader",
    "make_model",
    "make_parts",
    "make_runner",
    "record",
    "run_with_virtual_clock",
    "virtual_clock",
    "virtual_clock_backends",
)

from hookbus.device_reads import DeviceRead, DeviceReads, find_device_reads
from hookbus.testing.recording import Recorder, record
from hookbus.testing.runs import make_loader, make_model, make_parts, make_runner
from hookbus.testing.virtual_clock import run_with_virtual_clock, virtual_clock, virtual_clock_backends
