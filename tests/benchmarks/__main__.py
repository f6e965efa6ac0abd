"""Measure everything and print a table: `python -m tests.benchmarks`, or only the parts that are named behind it."""

from __future__ import annotations

import os
import platform
import sys

import torch

from tests.benchmarks import (
    async_checkpoints,
    averaging,
    background,
    checkpoints,
    dispatch,
    hub,
    loop,
    memory,
    service,
    startup,
    writers,
)

PARTS = {
    "dispatch": dispatch,
    "background": background,
    "service": service,
    "hub": hub,
    "loop": loop,
    "startup": startup,
    "writers": writers,
    "averaging": averaging,
    "checkpoints": checkpoints,
    "async_checkpoints": async_checkpoints,
    "memory": memory,
}


def main() -> None:
    """Print the figures of the parts that were named, or of all."""
    wanted = sys.argv[1:] or list(PARTS)
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} cores\n")
    print("| what | measured | limit | |")
    print("|---|---|---|---|")
    for name in wanted:
        for row in PARTS[name].rows():
            print(row, flush=True)


if __name__ == "__main__":
    main()
