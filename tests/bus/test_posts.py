"""Events that others ask to be published: in the order of asking, one after the other, whatever their handlers wait for."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import anyio
import anyio.lowlevel
import pytest

import hookbus.bus.host
from hookbus.bus import EventBus
from hookbus.bus.host import Posts
from hookbus.errors import PublishDepthExceeded
from hookbus.hub import MessageHub
from hookbus.mailbox import Mailbox
from hookbus.types import Backend
from tests.bus.listeners import PATIENCE
from tests.bus.ticks import Tick, Tock

BACKENDS: list[Backend] = ["asyncio", "trio"]

PENDING = 100
"""More than publishes may be nested."""


class Nesting(Posts):
    """The broken twin: serves whatever was posted, also while a handler of an earlier post is waited for."""

    def put(self, publish: Callable[[], object]) -> None:
        """Have it published at once."""
        self._mailbox.put(publish)


def post_many(backend: Backend) -> list[int]:
    """Post events whose handler is awaited, all before the first one is served; return the order of the handler's steps."""
    bus, steps = EventBus(backend=backend), list[int]()

    async def handles(n: int) -> None:
        steps.append(n)
        for _ in range(3):
            await anyio.lowlevel.checkpoint()
        steps.append(n)

    bus.subscribe(Tick, handles)
    with bus:
        posted = [bus.post(Tick(n=n)) for n in range(PENDING)]
        for answer in posted:
            answer.forgive()  # the errors are looked for below
    for answer in posted:
        answer.result(0)
    return steps


@pytest.mark.parametrize("backend", BACKENDS)
def test_posts_do_not_nest_although_their_handlers_are_waited_for(backend: Backend) -> None:
    """A hundred that wait are published in order, each behind the end of the one before."""
    assert post_many(backend) == [n for n in range(PENDING) for _ in range(2)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_posts_that_nest_are_found_out(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """The broken twin runs into the limit of nested publishes."""
    monkeypatch.setattr(hookbus.bus.host, "Posts", Nesting)
    with pytest.raises(PublishDepthExceeded):
        post_many(backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_posts_that_come_while_a_handler_is_waited_for_stay_behind_it(backend: Backend) -> None:
    """From other threads, in the order in which each of them asked."""
    bus, order = EventBus(backend=backend), list[int]()
    threads: list[threading.Thread] = []

    async def handles(n: int) -> None:
        if n == 0:
            for number in range(4):
                thread = threading.Thread(target=post_ten, args=(10 * number + 10,))
                threads.append(thread)
                thread.start()
                await anyio.to_thread.run_sync(thread.join)
        order.append(n)

    def post_ten(first: int) -> None:
        for n in range(first, first + 10):
            bus.post(Tick(n=n))

    bus.subscribe(Tick, handles)
    with bus:
        bus.post(Tick(n=0))
        bus.emit(Tock())
    assert order == [0, *range(10, 50)]


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_a_handler_publishes_is_part_of_its_own_publish(backend: Backend) -> None:
    """It goes before what was posted earlier, because the handler waits for it."""
    bus, order = EventBus(backend=backend), list[tuple[str, int]]()

    async def outer(n: int) -> None:
        order.append(("begins", n))
        await bus.publish(Tock(n=n))
        order.append(("ends", n))

    async def inner(n: int) -> None:
        await anyio.lowlevel.checkpoint()
        order.append(("inner", n))

    bus.subscribe(Tick, outer)
    bus.subscribe(Tock, inner)
    with bus:
        for n in range(40):
            bus.post(Tick(n=n))
    assert order == [(what, n) for n in range(40) for what in ("begins", "inner", "ends")]


@pytest.mark.parametrize("backend", BACKENDS)
def test_an_emit_of_the_owner_does_not_wait_for_posts(backend: Backend) -> None:
    """They are served while it waits for its handlers; both come to their end, none is lost."""
    bus, seen = EventBus(backend=backend), list[int]()

    async def handles(n: int) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(n)

    bus.subscribe(Tick, handles)
    with bus:
        answers = [bus.post(Tick(n=n)) for n in range(20)]
        bus.emit(Tick(n=100))
    assert all(answer.done() for answer in answers)
    assert sorted(seen) == [*range(20), 100]
    assert [n for n in seen if n < 100] == list(range(20))


def test_an_error_in_one_post_does_not_hold_up_the_next() -> None:
    """Each answer has its own."""
    bus = EventBus()

    def fails(n: int) -> None:
        if n % 2:
            raise KeyError(n)

    bus.subscribe(Tick, fails)
    with bus:
        answers = [bus.post(Tick(n=n)) for n in range(10)]
    for n, answer in enumerate(answers):
        if n % 2:
            with pytest.raises(KeyError):
                answer.result(0)
        else:
            assert answer.result(0) is None


def test_an_interrupt_that_comes_through_a_post_leaves_the_others_waiting_not_lost() -> None:
    """The next time that the mailbox is served, they have their turn."""
    mailbox, done = Mailbox(), deque[int]()
    posts = Posts(mailbox, MessageHub("posts"))

    def interrupt() -> None:
        raise KeyboardInterrupt

    posts.put(lambda: done.append(1))
    posts.put(interrupt)
    posts.put(lambda: done.append(2))
    with pytest.raises(KeyboardInterrupt):
        mailbox.serve()
    assert list(done) == [1]
    mailbox.serve()
    assert list(done) == [1, 2]


async def test_a_hundred_posts_on_the_callers_loop_are_published_in_order() -> None:
    """With a handler that takes several steps."""
    bus, steps = EventBus(), list[int]()

    async def handles(n: int) -> None:
        steps.append(n)
        await anyio.lowlevel.checkpoint()
        steps.append(n)

    bus.subscribe(Tick, handles)
    async with bus:
        answers = [bus.post(Tick(n=n)) for n in range(PENDING)]
        with anyio.fail_after(PATIENCE):
            for answer in answers:
                await answer
    assert steps == [n for n in range(PENDING) for _ in range(2)]
