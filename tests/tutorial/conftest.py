"""Training here is tiny, so neither further threads nor a disk that is waited for would prove anything more."""

from __future__ import annotations

from tests.runner.conftest import no_waiting_for_the_disk, one_torch_thread

__all__ = ("no_waiting_for_the_disk", "one_torch_thread")
