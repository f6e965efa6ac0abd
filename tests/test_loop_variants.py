"""The event loops of the tests are those they are named after."""

from __future__ import annotations

import asyncio
import sys

import anyio
import pytest
import sniffio

from tests.conftest import LOOPS


async def test_a_test_runs_on_the_loop_it_is_named_after(request: pytest.FixtureRequest) -> None:
    """A variant that quietly fell back to another loop would prove nothing."""
    name = request.node.callspec.id
    if name == "trio":
        assert sniffio.current_async_library() == "trio"
        return
    loop = asyncio.get_running_loop()
    assert type(loop).__module__.startswith("uvloop") == (name == "uvloop")
    assert loop.get_debug() == (name != "uvloop")
    assert (loop.get_task_factory() is not None) == (name == "eager")


async def test_eager_tasks_begin_at_once(request: pytest.FixtureRequest) -> None:
    """On the others they begin when the loop has its next turn."""
    began: list[bool] = []

    async def begin() -> None:
        began.append(True)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(begin)
        assert began == ([True] if request.node.callspec.id == "eager" else [])


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="eager tasks are tested here")
def test_no_test_runs_with_eager_tasks_on_this_python() -> None:
    """Said once, and not once for each asynchronous test."""
    assert "eager" not in {variant.id for variant in LOOPS}
    pytest.skip("asyncio.eager_task_factory exists from Python 3.12 on: no test of this session ran with eager tasks")
