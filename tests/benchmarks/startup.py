"""What `import hookbus` costs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from tests.benchmarks.measure import Row, compare

ROUNDS = 15


def rows() -> Iterator[Row]:
    """Measure a fresh interpreter with and without the import."""
    pair = compare(lambda: _run("import hookbus"), lambda: _run("pass"), repetitions=1, rounds=ROUNDS)
    yield Row("`import hookbus`", f"{pair.difference:.3f} s", "0.15 s", pair.difference <= 0.15)
    names = "from hookbus import EventBus, MessageHub"
    pair = compare(lambda: _run(names), lambda: _run("pass"), repetitions=1, rounds=ROUNDS)
    yield Row(f"`{names}`", f"{pair.difference:.3f} s", "0.15 s", pair.difference <= 0.15)


def _run(code: str) -> float:
    timing = f"import time; started = time.perf_counter(); exec({code!r}); print(time.perf_counter() - started)"
    done = subprocess.run([sys.executable, "-c", timing], capture_output=True, text=True, check=True)
    return float(done.stdout)
