"""The mailbox of a thread, and the answers to what was put into it."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from functools import partial

import anyio
import anyio.to_thread
import pytest

from hookbus.errors import WouldDeadlock
from hookbus.mailbox import Acknowledgement, LoopHandle, Mailbox
from hookbus.types import Backend


def test_letters_are_served_in_the_order_of_arrival() -> None:
    """Also those that a letter leaves while it is served."""
    mailbox, seen = Mailbox(), list[int]()
    mailbox.put(lambda: seen.append(1))
    mailbox.put(lambda: mailbox.put(lambda: seen.append(3)))
    mailbox.put(lambda: seen.append(2))
    assert not mailbox.empty()
    mailbox.serve()

    assert seen == [1, 2, 3]
    assert mailbox.empty()


def test_waiting_serves_until_the_condition_holds_and_no_further() -> None:
    """A letter behind the one that ends the wait stays for the next."""
    mailbox, seen = Mailbox(), list[int]()
    for n in range(3):
        mailbox.put(partial(seen.append, n))
    assert mailbox.wait(lambda: 1 in seen)
    assert seen == [0, 1]
    assert not mailbox.empty()


def test_waiting_ends_at_the_timeout() -> None:
    """With an empty box, and with letters that do not help."""
    mailbox = Mailbox()
    assert not mailbox.wait(lambda: False, timeout=0.01)
    mailbox.put(lambda: None)
    assert not mailbox.wait(lambda: False, timeout=0.01)
    assert not mailbox.wait(lambda: False, timeout=0)
    assert mailbox.wait(lambda: True, timeout=0)


def test_a_request_that_begins_something_is_answered_when_that_is_done() -> None:
    """Also with its error, which is then not raised where it began."""
    for error in (None, KeyError("gone")):
        begun: Acknowledgement[int] = Acknowledgement("the work")
        answer: Acknowledgement[int] = Acknowledgement("asking for it")
        answer.carry_out_or_raise(lambda begun=begun: begun)  # type: ignore[misc]  # mypy cannot infer a default
        assert not answer.done()
        if error is None:
            begun.set_result(5)
            assert answer.result() == 5
        else:
            begun.set_error(error)
            with pytest.raises(KeyError, match="gone"):
                answer.result()


def test_a_request_may_begin_what_has_failed_already() -> None:
    """It is the answer all the same, and nobody is told twice."""
    begun: Acknowledgement[int] = Acknowledgement("the work")
    begun.set_error(KeyError("gone"))
    answer: Acknowledgement[int] = Acknowledgement("asking for it")
    answer.carry_out_or_raise(lambda: begun)
    assert answer.done()
    with pytest.raises(KeyError, match="gone"):
        answer.result()


def test_a_letter_that_raises_keeps_the_others() -> None:
    """The error goes to whoever serves."""
    mailbox, seen = Mailbox(), list[int]()

    def fail() -> None:
        raise KeyError

    mailbox.put(fail)
    mailbox.put(lambda: seen.append(1))
    with pytest.raises(KeyError):
        mailbox.serve()
    mailbox.serve()

    assert seen == [1]


def test_letters_of_many_threads_are_each_served_once() -> None:
    """In the order of each sender."""
    mailbox, seen = Mailbox(), list[tuple[int, int]]()

    def send(sender: int) -> None:
        for n in range(500):
            mailbox.put(partial(seen.append, (sender, n)))

    threads = [threading.Thread(target=send, args=(sender,)) for sender in range(4)]
    for thread in threads:
        thread.start()
    assert mailbox.wait(lambda: len(seen) == 2000, timeout=30)
    for thread in threads:
        thread.join()

    assert all([n for who, n in seen if who == sender] == list(range(500)) for sender in range(4))


async def test_an_answer_can_be_awaited() -> None:
    """Before and after it came, by several at once, each time anew."""
    answer: Acknowledgement[int] = Acknowledgement("a request")
    seen: list[int] = []

    async def wait() -> None:
        seen.append(await answer)

    assert "pending" in repr(answer)
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        await anyio.to_thread.run_sync(answer.set_result, 7)

    assert seen == [7, 7, 7]
    assert await answer == answer.result() == 7
    assert "done" in repr(answer)


async def test_an_error_arrives_as_itself_where_it_is_awaited() -> None:
    """The very object."""
    answer: Acknowledgement[int] = Acknowledgement("a request")
    error = KeyError("mine")
    answer.set_error(error)
    with pytest.raises(KeyError) as caught:
        await answer
    assert caught.value is error


async def test_who_stops_waiting_for_an_answer_disturbs_nobody() -> None:
    """The answer still comes, to a waiter that is there."""
    answer: Acknowledgement[int] = Acknowledgement("a request")
    with anyio.move_on_after(0.01) as scope:
        await answer
    assert scope.cancelled_caught
    answer.set_result(1)
    assert await answer == 1


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_an_answer_may_come_when_the_loop_that_waited_is_gone(backend: Backend) -> None:
    """Nothing is raised at the thread that answers."""
    answer: Acknowledgement[int] = Acknowledgement("a request")
    handles: list[LoopHandle] = []

    async def give_up() -> None:
        handles.append(LoopHandle.current())
        with anyio.move_on_after(0.01):
            await answer

    anyio.run(give_up, backend=backend)
    answer.set_result(1)

    assert answer.result() == 1
    assert handles[0].call_soon(lambda: None) is False


def test_a_thread_waits_for_an_answer_of_another_one() -> None:
    """And no longer than it likes."""
    answer: Acknowledgement[int] = Acknowledgement("a request")
    with pytest.raises(TimeoutError):
        answer.result(timeout=0.01)
    thread = threading.Thread(target=lambda: answer.carry_out(lambda: 3))
    thread.start()
    assert answer.result(timeout=10) == 3
    thread.join()


async def test_waiting_where_the_answer_would_have_to_come_from_is_refused() -> None:
    """On threads and in coroutines alike, but only while there is no answer."""

    def refuse() -> None:
        raise WouldDeadlock("no")

    answer: Acknowledgement[int] = Acknowledgement("a request", check_wait=refuse)
    with pytest.raises(WouldDeadlock):
        answer.result()
    with pytest.raises(WouldDeadlock):
        await answer
    answer.set_result(1)
    assert answer.result() == await answer == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_while_a_request_is_carried_out_goes_both_ways(kind: type[BaseException]) -> None:
    """The thread that serves is interrupted, and who waits does not wait for ever."""
    answer: Acknowledgement[int] = Acknowledgement("a request")

    def interrupted() -> int:
        raise kind

    with pytest.raises(kind):
        answer.carry_out(interrupted)
    with pytest.raises(kind):
        answer.result()


def never_looked_at(answer: Acknowledgement[int]) -> None:
    """Do nothing with an answer."""


def given_up(answer: Acknowledgement[int]) -> None:
    """Wait, but not long enough."""
    with pytest.raises(TimeoutError):
        answer.result(timeout=0)


def looked_at(answer: Acknowledgement[int]) -> None:
    """Wait to the end, once the error is there."""
    answer.set_error(KeyError("lost"))
    with pytest.raises(KeyError):
        answer.result()


def forgiven(answer: Acknowledgement[int]) -> None:
    """Say that the error does not matter."""
    answer.forgive()


@pytest.mark.parametrize(("use", "is_logged"), [(never_looked_at, True), (given_up, True), (looked_at, False), (forgiven, False)])
def test_an_error_that_nobody_sees_is_logged(
    use: Callable[[Acknowledgement[int]], None], is_logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """When the answer is dropped; also if someone waited but gave up before."""
    answer: Acknowledgement[int] = Acknowledgement("the request")
    use(answer)
    if not answer.done():
        answer.set_error(KeyError("lost"))
    del answer
    gc.collect()

    assert [record.message for record in caplog.records] == (
        ["the request failed and nobody waited for it: KeyError: 'lost'"] if is_logged else []
    )
