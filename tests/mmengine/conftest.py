"""These tests need MMEngine, which the environment of the other tests does not have; they are left out there."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from importlib.util import find_spec

import pytest
import torch

collect_ignore_glob = [] if find_spec("mmengine") else ["test_*.py"]

if not collect_ignore_glob:
    with warnings.catch_warnings():  # what importing it warns of is its own affair
        warnings.simplefilter("ignore")
        import mmengine.hooks
        import mmengine.model
        import mmengine.runner  # noqa: F401  a hook imports it while it runs


@pytest.fixture(scope="package", autouse=True)
def one_torch_thread() -> Iterator[None]:
    """Let torch compute on one thread; training here is tiny, so more would only slow it down."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
