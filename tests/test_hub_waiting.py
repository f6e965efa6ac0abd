"""Waiting for versions of a hub: in tasks, on threads, on other loops; what wakes whom, and what is left afterwards."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import anyio
import anyio.abc
import anyio.from_thread
import anyio.to_thread
import pytest

from hookbus._waiting import Waiters
from hookbus.errors import RunEnded
from hookbus.hub import MessageHub, Snapshot
from hookbus.types import Backend

BACKENDS: list[Backend] = ["asyncio", "trio"]
LONG = 20.0
"""Seconds within which everything that is waited for here comes, on however busy a machine."""


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Have threads take turns after each microsecond instead of each five milliseconds."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


class Run:
    """A run on a thread of its own, whose body a test writes."""

    def __init__(self, hub: MessageHub, body: Callable[[], object]) -> None:
        self._hub = hub
        self._body = body
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Run:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _run(self) -> None:
        self._hub.begin_run(threading.get_ident())
        try:
            self._body()
        finally:
            self._hub.end_run()


class Background:
    """A function on a thread, with what it returned or raised."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.value: object = None
        self.error: BaseException | None = None
        self._function = function
        self._thread = threading.Thread(target=self._run, daemon=True)  # one that waits for ever must fail its test only
        self._thread.start()

    def _run(self) -> None:
        try:
            self.value = self._function()
        except BaseException as error:  # noqa: BLE001  looked at by the test
            self.error = error

    def join(self) -> Background:
        """Wait until it is done."""
        self._thread.join(LONG)
        assert not self._thread.is_alive()
        return self


@contextmanager
def live(hub: MessageHub) -> Iterator[MessageHub]:
    """Make the calling thread the training thread of a run."""
    hub.begin_run(threading.get_ident())
    try:
        yield hub
    finally:
        hub.end_run()


def commit(hub: MessageHub, **info: object) -> bool:
    """Write and commit, as the training thread does after a publish."""
    hub.update_info_dict(info)
    hub.commit()
    return True


def asking(hub: MessageHub) -> int:
    """Return how many readers have asked to be woken."""
    return len(hub.waiters.asking)


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition of the test comes true."""
    with anyio.fail_after(LONG):
        while not condition():  # noqa: ASYNC110  conditions of all kinds, seen from outside
            await anyio.sleep(0.001)


def until_on_thread(condition: Callable[[], object]) -> None:
    """Wait on a thread until a condition of the test comes true."""
    deadline = time.monotonic() + LONG
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def value_is(value: object) -> Callable[[Snapshot], object]:
    """Return a predicate on the piece of information `n`."""
    return lambda snapshot: snapshot.get_info("n") == value and f"n is {value}"


# --- wait_until -------------------------------------------------------------------------------------------------------


async def test_what_is_true_already_is_returned_at_once() -> None:
    """The predicate sees the newest version first, and what it returned is the result."""
    hub = MessageHub()
    hub.update_info("n", 1)
    assert await hub.wait_until(value_is(1)) == "n is 1"
    assert hub.wait_until_blocking(value_is(1), timeout=0) == "n is 1"


async def test_a_task_waits_for_what_the_training_thread_writes() -> None:
    """It looks at versions only, so it may miss some, but not the one that stays."""
    hub = MessageHub()
    asked = threading.Event()

    def body() -> None:
        until_on_thread(asked.is_set)
        for n in range(100):
            commit(hub, n=n)

    with Run(hub, body):
        with anyio.fail_after(LONG):

            def predicate(snapshot: Snapshot) -> int | None:
                asked.set()
                return snapshot.version if snapshot.get_info("n", -1) >= 50 else None

            version = await hub.wait_until(predicate)
    assert version is not None
    assert version > 50


async def test_a_quiet_hub_wakes_its_waiter() -> None:
    """A waiter that has asked to be woken is, by a single commit, for as long as it takes."""
    hub = MessageHub()
    found: list[object] = []

    async def wait(value: int) -> None:
        found.append(await hub.wait_until(value_is(value)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait, 1)
        await until(lambda: asking(hub) == 1)
        hub.update_info("n", 0)
        await until(lambda: asking(hub) == 1)
        assert found == []
        hub.update_info("n", 1)
    assert found == ["n is 1"]


async def test_several_waiters_of_several_kinds_wait_for_different_things() -> None:
    """Each gets its own, in tasks and on threads."""
    hub = MessageHub()
    found: list[str] = []

    async def wait(value: int) -> None:
        found.append(str(await hub.wait_until(value_is(value))))

    def wait_on_thread(value: int) -> None:
        found.append(str(hub.wait_until_blocking(value_is(value), LONG)))

    async def write(value: int, answered: int) -> None:
        await until(lambda: len(found) == answered and asking(hub) == 6 - answered)
        hub.update_info("n", value)

    threads = [Background(partial(wait_on_thread, value)) for value in (1, 3)]
    async with anyio.create_task_group() as tasks:
        for value in (1, 2, 2, 3):
            tasks.start_soon(wait, value)
        await write(1, answered=0)
        await write(2, answered=2)
        await write(3, answered=4)
    for thread in threads:
        assert thread.join().error is None
    assert sorted(found) == ["n is 1", "n is 1", "n is 2", "n is 2", "n is 3", "n is 3"]


async def test_waiting_may_begin_before_the_run_does() -> None:
    """A server asks for the first loss while the run is still being built."""
    hub = MessageHub()
    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as tasks:
            thread = Background(lambda: hub.wait_until_blocking(value_is(3)))
            tasks.start_soon(hub.wait_until, value_is(3))
            await until(lambda: asking(hub) == 2)
            with Run(hub, lambda: commit(hub, n=3)):
                pass
            thread.join()
    assert (thread.value, thread.error) == ("n is 3", None)


async def test_the_end_of_a_run_ends_the_waiting() -> None:
    """The error names the run; who asks after the end is told at once."""
    hub = MessageHub("short")
    go_on = threading.Event()

    async def end() -> None:
        await until(lambda: asking(hub) == 2)
        go_on.set()

    with Run(hub, lambda: go_on.wait(LONG)):
        thread = Background(lambda: hub.wait_until_blocking(value_is(3)))
        with pytest.raises(RunEnded, match="the run 'short' ended before the condition waited for came true"):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(end)
                try:
                    await hub.wait_until(value_is(3))
                except RunEnded as error:
                    ended = error
            raise ended
    assert isinstance(thread.join().error, RunEnded)
    with pytest.raises(RunEnded):
        await hub.wait_until(value_is(3))
    with pytest.raises(RunEnded):
        hub.wait_until_blocking(value_is(3))


async def test_what_the_last_version_holds_is_found_after_the_end() -> None:
    """Written in the very last moment, by the training thread or another one."""
    for number in range(50):
        hub = MessageHub()

        def body(hub: MessageHub = hub, number: int = number) -> None:
            writer = Background(lambda: hub.update_info("n", number))
            if number % 2:
                writer.join()
                hub.update_info("own", number)
            else:
                hub.update_info("own", number)
                writer.join()

        with anyio.fail_after(LONG), Run(hub, body):
            snapshot = await hub.wait_until(lambda snapshot: snapshot.get_info("n") is not None and snapshot)
            assert snapshot
            assert await hub.wait_until(lambda snapshot: snapshot.get_info("own") is not None)


async def test_an_error_of_a_predicate_goes_to_its_caller() -> None:
    """Nobody else hears of it, the writer least of all."""
    hub = MessageHub()

    def predicate(snapshot: Snapshot) -> object:
        return 1 / snapshot.get_info("n", 1)

    with live(hub):
        threads = [Background(lambda: hub.wait_until_blocking(lambda s: predicate(s) == 7)) for _ in range(2)]
        with pytest.raises(ZeroDivisionError):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(until, lambda: asking(hub) == 3 and commit(hub, n=0))
                try:
                    await hub.wait_until(lambda s: predicate(s) == 7)
                except ZeroDivisionError as error:
                    caught = error
            raise caught
        assert all(isinstance(thread.join().error, ZeroDivisionError) for thread in threads)
        commit(hub, n=2)


async def test_a_cancelled_waiter_leaves_nothing() -> None:
    """Not even until the garbage collector comes: the writer has nobody to look after."""
    hub = MessageHub()

    async def watch() -> None:
        async for _ in hub.watch("n"):
            pass

    for _ in range(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hub.wait_until, value_is(1))
            tasks.start_soon(watch)
            await until(lambda: asking(hub) == 2)
            tasks.cancel_scope.cancel()
        assert asking(hub) == 0
        with pytest.raises(TimeoutError):
            hub.wait_until_blocking(value_is(1), timeout=0.02)
        assert asking(hub) == 0


async def test_a_waiter_that_gets_its_answer_leaves_nothing() -> None:
    """Waiting again and again does not make commits dearer."""
    hub = MessageHub()
    watcher = hub.watch()
    for n in range(10):
        thread = Background(partial(hub.wait_until_blocking, value_is(n)))
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hub.wait_until, value_is(n))
            await until(lambda: asking(hub) == 2)
            hub.update_info("n", n)
        thread.join()
        assert (await anext(watcher)).get_info("n") == n
        assert asking(hub) == 0


# --- watch ------------------------------------------------------------------------------------------------------------


async def test_a_watcher_that_keeps_up_sees_each_version() -> None:
    """One after the other, until the run ends."""
    hub = MessageHub()
    seen: list[int | None] = []
    quiet = threading.Event()

    def is_last(n: int) -> bool:
        return seen[-1:] == [n]

    def body() -> None:
        for n in range(5):
            commit(hub, n=n)
            until_on_thread(partial(is_last, n))

    async def watch() -> None:
        async for snapshot in hub.watch():
            seen.append(snapshot.get_info("n"))
        quiet.set()

    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await until(lambda: seen)
            with Run(hub, body):
                await until(quiet.is_set)
    assert [n for n in seen if n is not None] in ([0, 1, 2, 3, 4], [0, 1, 2, 3, 4, 4])  # the end may commit once more


async def test_a_slow_watcher_skips_to_the_newest() -> None:
    """It holds nobody up, never goes back, and sees the last version."""
    hub = MessageHub()
    seen: list[int] = []
    first = threading.Event()

    def body() -> None:
        commit(hub, n=0)
        until_on_thread(first.is_set)
        for n in range(1, 2001):
            commit(hub, n=n)

    with Run(hub, body):
        with anyio.fail_after(LONG):
            async for snapshot in hub.watch():
                seen.append(snapshot.get_info("n", -1))
                if seen[-1] >= 0 and not first.is_set():
                    first.set()
                    await until(lambda: hub.get_info("n") == 2000)
    assert seen == sorted(seen)
    assert seen[-1] == 2000
    assert len(seen) <= 5


async def test_a_watcher_of_keys_sees_only_what_concerns_them() -> None:
    """Scalars and information alike, also when they are removed or written with what they hold already."""
    hub = MessageHub()
    hub.update_info("note", "old")
    hub.update_scalar("loss", 1.0)
    seen: list[tuple[object, int]] = []
    updates: list[Callable[[], object]] = [
        lambda: hub.update_scalar("loss", 1.0),
        lambda: hub.update_info("note", "new"),
        lambda: hub.pop_info("note"),
        lambda: hub.update_scalars({"loss": 2.0, "lr": 1.0}),
    ]

    def has_seen(number: int) -> bool:
        return len(seen) == number

    async def watch() -> None:
        async for snapshot in hub.watch("loss", "note", "never"):
            seen.append((snapshot.get_info("note"), len(snapshot.get_scalar("loss"))))

    with anyio.fail_after(LONG):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await until(lambda: len(seen) == 1)
            for number, update in enumerate(updates, start=2):
                hub.update_info("other", number)
                hub.update_scalar("lr", number)
                await until(lambda: asking(hub) == 1)
                assert len(seen) == number - 1
                update()
                await until(partial(has_seen, number))
            tasks.cancel_scope.cancel()
    assert seen == [("old", 1), ("old", 2), ("new", 2), (None, 2), (None, 3)]


async def test_watching_an_ended_run_shows_its_last_version_and_ends() -> None:
    """Also with keys, and again with a second watcher."""
    hub = MessageHub()
    with Run(hub, lambda: commit(hub, n=5)):
        pass
    for watcher in (hub.watch(), hub.watch("n"), hub.watch()):
        assert [snapshot.get_info("n") async for snapshot in watcher] == [5]


async def test_a_watcher_may_be_made_anywhere_and_used_on_a_loop_later() -> None:
    """It belongs to the loop that first iterates it."""
    hub = MessageHub()
    watcher = await anyio.to_thread.run_sync(hub.watch)
    with Run(hub, lambda: commit(hub, n=5)), anyio.fail_after(LONG):
        seen = [snapshot.get_info("n") async for snapshot in watcher]
    assert seen[-1] == 5


# --- threads and other loops ------------------------------------------------------------------------------------------


def test_a_thread_is_told_when_its_time_is_up() -> None:
    """The error names the hub and the time; a timeout of zero only looks."""
    hub = MessageHub("slow")
    for timeout in (0, 0.02):
        with pytest.raises(TimeoutError, match=f"the condition did not come true in the message hub 'slow' within {timeout} s"):
            hub.wait_until_blocking(value_is(1), timeout)


def test_a_thread_is_told_when_its_time_is_up_although_versions_keep_coming() -> None:
    """A busy hub must not keep a waiter from looking at the clock, nor have it look at every version."""
    hub = MessageHub()
    looks = 0
    over = threading.Event()

    def body() -> None:
        n = 0
        while not over.is_set():
            commit(hub, n=n)
            n += 1

    def predicate(_: Snapshot) -> bool:
        nonlocal looks
        looks += 1
        return False

    with Run(hub, body):
        began = time.monotonic()
        try:
            with pytest.raises(TimeoutError):
                hub.wait_until_blocking(predicate, timeout=0.2)
            took = time.monotonic() - began
        finally:
            over.set()
    assert took < LONG / 2
    assert looks <= 0.2 / 0.01 + 2
    assert hub.snapshot().version > looks


@pytest.mark.parametrize("backend", BACKENDS)
async def test_a_waiter_on_another_loop_is_woken_there(backend: Backend) -> None:
    """Whatever loop it runs on, and whoever writes."""
    hub = MessageHub()

    def elsewhere() -> object:
        return anyio.run(hub.wait_until, value_is(2), backend=backend)

    thread = Background(elsewhere)
    await until(lambda: asking(hub) == 1)
    hub.update_info("n", 1)
    await until(lambda: asking(hub) == 1)
    assert thread.value is None
    await anyio.to_thread.run_sync(hub.update_info, "n", 2)
    assert thread.join().value == "n is 2"


# --- the moments between two looks ------------------------------------------------------------------------------------


class UnluckyHub(MessageHub):
    """A hub at which something happens right after a certain look of its reader, or around the last commit of a run."""

    def __init__(self) -> None:
        super().__init__("unlucky")
        self.looks = 0
        self.after_look: dict[int, Callable[[], object]] = {}
        self.after_flush: Callable[[], object] = bool
        self.before_last_commit: Callable[[], object] = bool
        self.after_last_commit: Callable[[], object] = bool
        self._ending = False

    def snapshot(self) -> Snapshot:
        """Return the newest version, which may not be the newest any more when the caller gets it."""
        seen = super().snapshot()
        self.looks += 1
        self.after_look.pop(self.looks, bool)()
        return seen

    def flush(self) -> None:
        """Take notice that the run is about to end."""
        super().flush()
        self.after_flush()
        self._ending = True

    def commit(self, *, fold: bool = False) -> None:
        """Commit, and have something happen before and after the last time."""
        ending, self._ending = self._ending, False
        if ending:
            self.before_last_commit()
        super().commit(fold=fold)
        if ending:
            self.after_last_commit()


@pytest.mark.parametrize("look", [1, 2, 3])
async def test_a_version_right_after_a_look_is_not_missed(look: int) -> None:
    """A reader that found nothing new asks to be woken, and then looks once more before it waits."""
    hub = UnluckyHub()
    hub.after_look[look] = partial(hub.update_info, "n", 1)
    thread = Background(partial(hub.wait_until_blocking, value_is(1)))
    assert (thread.join().value, thread.error) == ("n is 1", None)
    hub.looks = 0
    hub.after_look[look] = partial(hub.update_info, "n", 2)
    with anyio.fail_after(LONG):
        assert await hub.wait_until(value_is(2)) == "n is 2"


@pytest.mark.parametrize("look", [1, 2, 3])
async def test_an_end_right_after_a_look_is_not_missed(look: int) -> None:
    """Neither on a thread nor in a task."""
    hub = UnluckyHub()
    hub.after_look[look] = hub.end_run
    thread = Background(partial(hub.wait_until_blocking, value_is("never")))
    assert isinstance(thread.join().error, RunEnded)
    hub = UnluckyHub()
    hub.after_look[look] = hub.end_run
    with anyio.fail_after(LONG), pytest.raises(RunEnded):
        await hub.wait_until(value_is("never"))


def test_a_run_has_not_ended_before_its_last_version() -> None:
    """Who looks just before the last commit, with something in the inbox, gets to see that."""
    hub = UnluckyHub()
    readers: list[Background] = []

    def write() -> None:
        Background(partial(hub.update_info, "n", "last")).join()

    def read() -> None:
        readers.append(Background(partial(hub.wait_until_blocking, value_is("last"))))
        until_on_thread(lambda: hub.looks)

    hub.after_flush, hub.before_last_commit = write, read
    with live(hub):
        pass
    assert (readers[0].join().value, readers[0].error) == ("n is last", None)


def test_a_reader_that_asks_between_the_last_version_and_the_end_is_woken() -> None:
    """It has seen that version already, so only the end itself can tell it."""
    hub = UnluckyHub()
    hub.after_last_commit = lambda: until_on_thread(lambda: asking(hub))
    reader = Background(partial(hub.wait_until_blocking, value_is("never")))
    with live(hub):
        pass
    assert isinstance(reader.join().error, RunEnded)


# --- under stress -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hasty_threads")
def test_no_wake_up_is_missed_in_many_short_runs() -> None:
    """The moment between the last look and the wait is the one where a version could be overlooked."""
    for number in range(150):
        hub = MessageHub()
        threads = [Background(partial(hub.wait_until_blocking, value_is("last"))) for _ in range(2)]
        pause = threading.Event()

        def body(hub: MessageHub = hub, number: int = number, pause: threading.Event = pause) -> None:
            for n in range(number % 3):
                commit(hub, n=n)
            pause.wait(number % 7 * 1e-4)
            commit(hub, n="last")

        with Run(hub, body):
            pass
        for thread in threads:
            assert (thread.join().value, thread.error) == ("n is last", None)


@pytest.mark.usefixtures("hasty_threads")
async def test_no_wake_up_of_a_task_is_missed_in_many_short_runs() -> None:
    """As above, with tasks that wait and tasks that watch up to the end."""
    for number in range(60):
        hub = MessageHub()
        last: list[object] = []

        async def watch(hub: MessageHub = hub, last: list[object] = last) -> None:
            async for snapshot in hub.watch("n"):
                last.append(snapshot.get_info("n"))

        def body(hub: MessageHub = hub, number: int = number) -> None:
            threading.Event().wait(number % 5 * 1e-4)
            commit(hub, n=number)
            if number % 2:
                commit(hub, n="last")
            else:
                hub.update_info("n", "last")

        with anyio.fail_after(LONG):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hub.wait_until, value_is("last"))
                tasks.start_soon(watch)
                with Run(hub, body):
                    await anyio.lowlevel.checkpoint()
        assert last[-1] == "last"


async def test_a_busy_hub_hardly_ever_wakes_its_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    """While versions keep coming, readers look from time to time on their own, so the writer does not pay for them."""
    wakes = 0
    notify = Waiters.notify

    def counted(waiters: Waiters) -> None:
        nonlocal wakes
        wakes += len(waiters.asking)
        notify(waiters)

    monkeypatch.setattr(Waiters, "notify", counted)
    hub = MessageHub()
    over = threading.Event()
    looks = 0

    def body() -> None:
        n = 0
        while not over.is_set():
            commit(hub, n=n)
            n += 1

    async def watch() -> None:
        nonlocal looks
        async for _ in hub.watch():
            looks += 1

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        thread = Background(lambda: hub.wait_until_blocking(lambda s: s.get_info("done")))
        with Run(hub, body):
            began = anyio.current_time()
            await until(lambda: looks >= 10 and hub.snapshot().version >= 2000)
            took = anyio.current_time() - began
            over.set()
            hub.update_info("done", True)
    thread.join()
    assert looks <= took / 0.01 + 3
    assert wakes <= 2 * (took / 0.01 + 3)
    assert wakes < hub.snapshot().version / 20
