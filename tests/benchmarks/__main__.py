"""Measure everything and print a table: `python -m tests.benchmarks [dispatch] [hub] [loop] [memory] [startup] [writers]`."""

from __future__ import annotations

import os
import platform
import sys

import torch

from tests.benchmarks import dispatch, hub, loop, memory, startup, writers

PARTS = {"dispatch": dispatch, "hub": hub, "loop": loop, "startup": startup, "writers": writers, "memory": memory}


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
