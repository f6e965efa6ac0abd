"""Training here is tiny, so neither further threads nor a disk that is waited for would prove anything more."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
import torch

from tests.conftest import LOOPS


@pytest.fixture(scope="package", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Let torch compute on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="package", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Leave it to the system when it writes: that a loss of power is survived is for the drills and tests/checkpoint to show."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(
    scope="module",
    params=[pytest.param(*loop.values, id=loop.id, marks=[pytest.mark.slow] * (loop.id == "uvloop")) for loop in LOOPS],
)
def anyio_backend(request: pytest.FixtureRequest) -> object:
    """Run an async test on asyncio and trio, and on uvloop among the slow tests; those of the bus have all of them at once."""
    return request.param
