"""The message hub: recording, versions, who sees what when, finding hubs, and state."""

from __future__ import annotations

import contextvars
import copy
import gc
import itertools
import json
import math
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pytest
import torch

from hookbus.bus import EventBus
from hookbus.errors import ConfigError, InvalidName, MetricNotFound, RunAlreadyLive, RunEnded, WouldDeadlock
from hookbus.hub import FOLD_AFTER, HISTORY_IN_CHECKPOINT, MessageHub, Snapshot
from tests.bus.ticks import Tick, Tock


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Have threads take turns after each microsecond instead of each five milliseconds."""
    usual = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(usual)


@contextmanager
def live(hub: MessageHub) -> Iterator[MessageHub]:
    """Make the calling thread the training thread of a run."""
    hub.begin_run(threading.get_ident())
    try:
        yield hub
    finally:
        hub.end_run()


def on_thread(function: Callable[..., object], *arguments: object) -> None:
    """Call a function on another thread and wait for it; its error is raised here."""
    errors: list[BaseException] = []

    def body() -> None:
        try:
            function(*arguments)
        except BaseException as error:  # noqa: BLE001  raised below
            errors.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    thread.join()
    if errors:
        raise errors[0]


def standing(hub: MessageHub) -> tuple[int, bool]:
    """Return the newest version, and whether something waits to be committed."""
    return hub.snapshot().version, hub.dirty


def values_of(hub: MessageHub | Snapshot, key: str) -> list[float]:
    """Return the recorded values of a key."""
    return hub.get_scalar(key).data[0]


# --- recording --------------------------------------------------------------------------------------------------------


def test_scalars_are_recorded_with_their_count_and_the_step_of_the_hub() -> None:
    """The loop keeps the step; whoever records does not have to know it."""
    hub = MessageHub()
    hub.update_scalar("loss", 2.0)
    hub.step = 7
    hub.update_scalar("loss", 6.0, count=3)
    hub.update_scalars({"loss": 1.0, "lr": 0.1})
    assert hub.get_scalar("loss").newest() == ([2.0, 6.0, 1.0], [1, 3, 1], [0, 7, 7])
    assert hub.get_scalar("lr").mean() == 0.1
    assert hub.log_scalars.keys() == {"loss", "lr"}
    assert hub.snapshot().scalars == {"loss": 1.0, "lr": 0.1}


ACCEPTED = {
    "int": 3,
    "float": 3.0,
    "numpy float64": np.float64(3),
    "numpy float32": np.float32(3),
    "numpy int": np.int16(3),
    "numpy array of no dimensions": np.array(3),
    "numpy array of one element": np.array([[3.0]]),
    "tensor of no dimensions": torch.tensor(3),
    "tensor of one element": torch.tensor([3.0]),
    "half precision": torch.tensor(3.0, dtype=torch.bfloat16),
    "tensor with a gradient": torch.tensor(3.0, requires_grad=True),
    "parameter": torch.nn.Parameter(torch.tensor([3.0])),
}

REFUSED = {
    "str": "3",
    "None": None,
    "list": [3.0],
    "complex": 3j,
    "object": object(),
    "two elements": torch.zeros(2),
    "no element": torch.zeros(0),
    "numpy two elements": np.zeros(2),
    "numpy str": np.str_("3"),
    "numpy array of text": np.array("3"),
    "numpy array of objects": np.array(None),
    "complex tensor": torch.tensor(3j),
    "two elements on a device": torch.empty(2, device="meta"),
}


@pytest.mark.parametrize("value", ACCEPTED.values(), ids=ACCEPTED)
def test_numbers_of_every_kind_are_recorded_as_floats(value: Any) -> None:
    """Both ways of recording take the same."""
    hub = MessageHub()
    hub.update_scalar("loss", value)
    hub.update_scalars({"loss": value})
    assert values_of(hub, "loss") == [3.0, 3.0]
    assert [type(recorded) for recorded in values_of(hub, "loss")] == [float, float]


@pytest.mark.parametrize("value", [True, np.True_, torch.tensor(True)], ids=["bool", "numpy", "tensor"])
def test_truth_values_are_recorded_as_one_and_zero(value: Any) -> None:
    """So a metric that says yes or no can be averaged."""
    hub = MessageHub()
    hub.update_scalar("found", value)
    assert values_of(hub, "found") == [1.0]


@pytest.mark.parametrize("value", REFUSED.values(), ids=REFUSED)
def test_what_is_not_one_number_is_refused_by_key(value: Any) -> None:
    """The error names the key, and nothing of the call is recorded."""
    hub = MessageHub()
    with pytest.raises(ConfigError, match="'loss' must be recorded as a number or a tensor of one element, got "):
        hub.update_scalar("loss", value)
    with pytest.raises(ConfigError, match="'loss'"):
        hub.update_scalars({"lr": 1.0, "loss": value})
    assert hub.snapshot().version == 0


def test_a_refused_update_leaves_nothing_on_its_way_from_a_device_either() -> None:
    """A value on a device that stood before the refused one is not recorded later."""
    with live(MessageHub()) as hub:
        with pytest.raises(ConfigError, match="'loss' must be recorded as a number"):
            hub.update_scalars({"far": torch.empty((), device="meta"), "loss": "3"})
        assert not hub.dirty


@pytest.mark.parametrize("count", [0, -1, 2.5, "3", None], ids=str)
def test_a_count_that_is_no_positive_whole_number_is_refused(count: Any) -> None:
    """At once, not when somebody reads."""
    with live(MessageHub()) as hub:
        with pytest.raises(ConfigError, match=r"count must be a whole number of at least 1, got .* for 'loss'"):
            hub.update_scalar("loss", 1.0, count)
        assert not hub.dirty


def test_the_mapping_of_an_update_may_be_used_again() -> None:
    """Callers commonly fill one dict again and again."""
    with live(MessageHub()) as hub:
        losses, info = {"loss": 1.0}, {"epoch": 1}
        hub.update_scalars(losses)
        hub.update_info_dict(info)
        losses["loss"], info["epoch"] = 9.0, 9
        hub.commit()
        assert (hub.snapshot().scalars, hub.get_info("epoch")) == ({"loss": 1.0}, 1)


def test_nothing_to_record_makes_no_version() -> None:
    """An empty dict is not an update."""
    hub = MessageHub()
    hub.update_scalars({})
    assert hub.snapshot().version == 0


def test_information_is_set_read_and_removed() -> None:
    """A removed piece reads as the default, before and after the hub folds its log."""
    hub = MessageHub()
    hub.update_info("epoch", 3)
    hub.update_info_dict({"max_epochs": 10, "note": None})
    assert hub.runtime_info == {"epoch": 3, "max_epochs": 10, "note": None}
    assert (hub.get_info("note", "default"), hub.get_info("missing"), hub.get_info("missing", 5)) == (None, None, 5)
    assert hub.pop_info("epoch") == 3
    for _ in range(2 * FOLD_AFTER):
        assert hub.get_info("epoch", "gone") == "gone"
        assert "epoch" not in hub.runtime_info
        assert hub.pop_info("epoch", 5) == 5
    hub.update_info("epoch", 4)
    assert hub.get_info("epoch") == 4


def test_a_scalar_and_a_piece_of_information_of_one_name_do_not_mix() -> None:
    """They are two kinds of things, also in the uncommitted log."""
    hub = MessageHub()
    hub.update_scalar("x", 1.0)
    hub.update_info("x", "text")
    assert (values_of(hub, "x"), hub.get_info("x")) == ([1.0], "text")
    hub.pop_info("x")
    assert values_of(hub, "x") == [1.0]
    assert hub.get_info("x") is None


def test_an_unknown_scalar_is_an_error_that_names_the_nearest() -> None:
    """The text tells what there is."""
    hub = MessageHub()
    with pytest.raises(MetricNotFound, match=r"no scalar 'loss' in the message hub; valid choices: \(none\)"):
        hub.get_scalar("loss")
    hub.update_scalars({"train/loss": 1.0, "lr": 0.1})
    hub.update_info("train/los", "not a scalar")
    with pytest.raises(KeyError, match=r"'train/los' .*did you mean 'train/loss'\? valid choices: train/loss, lr"):
        hub.get_scalar("train/los")


def test_what_a_reader_records_into_a_history_it_got_stays_with_it() -> None:
    """Reading gives views, so nobody disturbs anybody."""
    hub = MessageHub()
    for value in range(3 * FOLD_AFTER):
        hub.update_scalar("loss", value)
        hub.get_scalar("loss").update(-1.0)
        hub.log_scalars["loss"].update(-2.0)
        hub.runtime_info["mine"] = 1
    assert values_of(hub, "loss") == list(range(3 * FOLD_AFTER))
    assert hub.runtime_info == {}


# --- versions ---------------------------------------------------------------------------------------------------------


def test_without_a_run_each_update_is_a_version() -> None:
    """Nobody has to commit; groups are one version."""
    hub = MessageHub()
    updates: list[Callable[[], object]] = [
        lambda: hub.update_scalar("a", 1),
        lambda: hub.update_scalars({"a": 1, "b": 2}),
        lambda: hub.update_info("c", 3),
        lambda: hub.update_info_dict({"c": 4, "d": 5}),
        lambda: hub.pop_info("c"),
    ]
    for number, update in enumerate(updates, start=1):
        update()
        assert standing(hub) == (number, False)
    assert (hub.snapshot().scalars, hub.runtime_info) == ({"a": 1.0, "b": 2.0}, {"d": 5})


def test_during_a_run_others_see_what_is_committed() -> None:
    """The training thread reads what it wrote at once, everybody else after the commit."""
    with live(MessageHub()) as hub:
        hub.update_scalar("loss", 1.0)
        hub.update_info("epoch", 1)
        assert standing(hub) == (0, True)
        assert (values_of(hub, "loss"), hub.get_info("epoch")) == ([1.0], 1)
        assert (list(hub.log_scalars), hub.runtime_info) == (["loss"], {"epoch": 1})

        def look() -> None:
            assert (hub.log_scalars, hub.runtime_info, hub.get_info("epoch", 0)) == ({}, {}, 0)
            with pytest.raises(MetricNotFound):
                hub.get_scalar("loss")

        on_thread(look)
        hub.commit()
        assert standing(hub) == (1, False)

        def look_again() -> None:
            assert (values_of(hub, "loss"), hub.get_info("epoch")) == ([1.0], 1)

        on_thread(look_again)


def test_updates_of_other_threads_come_with_the_next_commit() -> None:
    """They go through an inbox, whose arrival marks the hub dirty."""
    with live(MessageHub()) as hub:
        on_thread(hub.update_scalar, "loss", 1.0)
        on_thread(hub.update_info_dict, {"a": 1, "b": 2})
        assert standing(hub) == (0, True)
        assert hub.snapshot().runtime_info == {}
        hub.update_info("c", 3)
        hub.commit()
        assert standing(hub) == (1, False)
        assert (hub.snapshot().scalars, hub.snapshot().runtime_info) == ({"loss": 1.0}, {"a": 1, "b": 2, "c": 3})


def test_only_the_training_thread_commits() -> None:
    """A bus on another thread that shares the hub of a run leaves that to it."""
    with live(MessageHub()) as hub:
        hub.update_info("a", 1)

        def publish() -> None:
            bus = EventBus("other", hub=hub)
            bus.subscribe(Tick, lambda: hub.update_info("b", 2))
            bus.emit(Tick())

        on_thread(publish)
        assert standing(hub) == (0, True)
        hub.commit()
        assert hub.snapshot().runtime_info == {"a": 1, "b": 2}


def test_snapshots_never_change() -> None:
    """Whatever is written, folded or removed later, an old version reads as it did."""
    with live(MessageHub()) as hub:
        seen: list[tuple[Snapshot, dict[str, float], dict[str, Any], list[float]]] = []
        for number in range(3 * FOLD_AFTER):
            hub.update_scalars({"a": number, "b": -number})
            hub.update_info("n", number)
            if number % 5 == 4:
                hub.pop_info("n")
            hub.commit()
            snapshot = hub.snapshot()
            if number % 7 == 0:
                seen.append((snapshot, snapshot.scalars, snapshot.runtime_info, values_of(snapshot, "a")))
    versions = [snapshot.version for snapshot, *_ in seen]
    assert all(before < after for before, after in itertools.pairwise(versions))
    for snapshot, scalars, info, values in seen:
        number = len(values) - 1
        assert scalars == snapshot.scalars == {"a": number, "b": -number}
        assert info == snapshot.runtime_info == ({} if number % 5 == 4 else {"n": number})
        assert snapshot.get_info("n", "gone") == info.get("n", "gone")
        assert values_of(snapshot, "a") == values == list(range(number + 1))
    with pytest.raises(AttributeError):
        seen[0][0].version = 99  # type: ignore[misc]


def test_commits_without_anything_new_are_versions_too() -> None:
    """Version numbers rise and never repeat, also across runs of one hub."""
    hub = MessageHub()
    with live(hub):
        hub.commit()
        hub.commit()
        version = hub.snapshot().version
        assert version == 2
    assert hub.snapshot().version > version
    with live(hub):
        hub.commit()
        assert hub.snapshot().version > version + 1


def test_a_bus_commits_once_after_each_publish_that_wrote() -> None:
    """Handlers of one publish make one version; a publish that wrote nothing makes none."""
    with live(MessageHub()) as hub:
        bus = EventBus(hub=hub)
        seen: list[tuple[int, int]] = []
        bus.subscribe(Tick, lambda event: hub.update_info("n", event.n), when=lambda event: event.n < 3)
        bus.subscribe(Tick, lambda: seen.append((hub.get_info("n"), hub.snapshot().version)))
        for n in range(5):
            bus.emit(Tick(n=n))
        assert seen == [(0, 0), (1, 1), (2, 2), (2, 3), (2, 3)]
        assert standing(hub) == (3, False)


def test_the_end_of_a_run_commits_what_is_left() -> None:
    """From there on each update is a version again."""
    hub = MessageHub()
    with live(hub):
        assert repr(hub) == "<MessageHub 'hookbus', live, version 0>"
        hub.update_info("a", 1)
        on_thread(hub.update_info, "b", 2)
    assert hub.snapshot().runtime_info == {"a": 1, "b": 2}
    assert hub.ended
    hub.update_info("c", 3)
    assert hub.snapshot().get_info("c") == 3
    assert repr(hub).startswith("<MessageHub 'hookbus', ended")
    assert repr(MessageHub("fresh")) == "<MessageHub 'fresh', idle, version 0>"


# --- groups -----------------------------------------------------------------------------------------------------------


def test_a_group_is_one_version_on_the_training_thread() -> None:
    """Also when publishes inside the block commit."""
    with live(MessageHub()) as hub:
        with hub.update() as same:
            assert same is hub
            hub.update_scalar("a", 1.0)
            hub.commit()
            hub.update_info("b", 2)
            hub.commit()
            assert (hub.snapshot().scalars, hub.snapshot().runtime_info) == ({}, {})
        hub.commit()
        assert (hub.snapshot().scalars, hub.snapshot().runtime_info) == ({"a": 1.0}, {"b": 2})


def test_a_group_without_a_run_is_one_version() -> None:
    """It appears when the block ends."""
    hub = MessageHub()
    with hub.update():
        for number in range(5):
            hub.update_scalar("a", number)
        assert hub.snapshot().version == 0
    assert (hub.snapshot().version, values_of(hub, "a")) == (1, [0, 1, 2, 3, 4])
    with hub.update():
        pass
    assert hub.snapshot().version == 1


def test_a_group_that_fails_leaves_nothing() -> None:
    """All or nothing, and the error goes on; later updates are not caught in it."""
    hub = MessageHub()
    with pytest.raises(ZeroDivisionError), hub.update():
        hub.update_scalar("a", 1.0)
        raise ZeroDivisionError
    with live(hub):
        with pytest.raises(ConfigError), hub.update():
            hub.update_info("b", 1)
            hub.update_scalar("a", "text")
        hub.update_info("c", 1)
        hub.commit()
    assert (hub.log_scalars, hub.runtime_info) == ({}, {"c": 1})


def test_a_group_on_another_thread_during_a_run_arrives_whole() -> None:
    """However often the training thread commits meanwhile."""
    with live(MessageHub()) as hub:
        half_way, go_on = threading.Event(), threading.Event()

        def write() -> None:
            with hub.update():
                hub.update_info("a", 1)
                half_way.set()
                go_on.wait(10)
                hub.update_info("b", 1)

        thread = threading.Thread(target=write)
        thread.start()
        half_way.wait(10)
        hub.update_info("mine", 1)
        hub.commit()
        assert hub.snapshot().runtime_info == {"mine": 1}
        go_on.set()
        thread.join()
        hub.commit()
        assert hub.snapshot().runtime_info == {"mine": 1, "a": 1, "b": 1}


def test_a_group_inside_a_group_belongs_to_the_outer_one() -> None:
    """A function that groups its updates may be called in a group; an error of its own takes only its own along."""
    hub = MessageHub()
    with hub.update():
        hub.update_info("a", 1)
        with hub.update():
            hub.update_info("b", 2)
        with pytest.raises(ZeroDivisionError), hub.update():
            hub.update_info("c", 3)
            raise ZeroDivisionError
        assert hub.snapshot().version == 0
    assert (hub.snapshot().version, hub.runtime_info) == (1, {"a": 1, "b": 2})
    with pytest.raises(ZeroDivisionError), hub.update():
        with hub.update():
            hub.update_info("d", 4)
        raise ZeroDivisionError
    assert hub.snapshot().version == 1


def test_groups_of_two_hubs_may_be_nested() -> None:
    """Each hub gets its own, in one version, when its own block ends."""
    one, other = MessageHub("one"), MessageHub("other")
    with one.update():
        one.update_info("a", 1)
        with other.update():
            one.update_info("b", 2)
            other.update_info("c", 3)
            assert (one.snapshot().version, other.snapshot().version) == (0, 0)
        assert (one.snapshot().version, other.snapshot().version) == (0, 1)
    assert (one.snapshot().version, one.runtime_info, other.runtime_info) == (1, {"a": 1, "b": 2}, {"c": 3})


def test_what_outlives_a_group_writes_on_its_own() -> None:
    """A task or thread started inside a block inherits it, but nothing it writes later gets lost in it."""
    hub = MessageHub()
    with hub.update():
        inherited = contextvars.copy_context()
        inherited.run(hub.update_info, "inside", 1)
        assert hub.snapshot().version == 0
    with hub.update():  # some other group is open meanwhile
        inherited.run(hub.update_info, "later", 2)
        assert hub.runtime_info == {"inside": 1, "later": 2}
    with live(hub), hub.update():
        inherited.run(hub.update_info, "in a run", 3)
        hub.commit()
        assert hub.snapshot().get_info("in a run") == 3


async def test_tasks_do_not_share_their_groups() -> None:
    """Of two tasks on one loop, the one without a group writes at once."""
    hub = MessageHub()
    half_way, go_on = anyio.Event(), anyio.Event()

    async def group() -> None:
        with hub.update():
            hub.update_info("a", 1)
            half_way.set()
            await go_on.wait()
            await anyio.to_thread.run_sync(hub.update_info, "from a worker", 1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(group)
        await half_way.wait()
        hub.update_info("b", 2)
        assert hub.runtime_info == {"b": 2}
        go_on.set()
    assert (hub.snapshot().version, hub.runtime_info) == (2, {"b": 2, "a": 1, "from a worker": 1})


# --- awaited handlers -------------------------------------------------------------------------------------------------


def test_an_awaited_handler_reads_its_own_writes_and_those_before_it() -> None:
    """It is the writer while the training thread waits for it; inline handlers after it see what it wrote."""
    with live(MessageHub()) as hub, EventBus(hub=hub) as bus:
        seen: list[Any] = []

        async def handler(hub: MessageHub) -> None:
            seen.append((hub.get_info("inline"), values_of(hub, "loss")))
            hub.update_scalar("loss", 2.0)
            with hub.update():
                hub.update_info("awaited", 2)
            assert MessageHub.get_current_instance() is hub
            seen.append((hub.get_info("awaited"), values_of(hub, "loss"), hub.runtime_info, hub.log_scalars.keys()))
            seen.append(hub.snapshot().version)

        bus.subscribe(Tick, lambda: hub.update_info("inline", 1), priority=10)
        bus.subscribe(Tick, lambda: hub.update_scalar("loss", 1.0), priority=10)
        bus.subscribe(Tick, handler, priority=20)
        bus.subscribe(Tick, lambda: seen.append((hub.get_info("awaited"), values_of(hub, "loss"))), priority=30)
        bus.emit(Tick())
        assert seen == [(1, [1.0]), (2, [1.0, 2.0], {"inline": 1, "awaited": 2}, {"loss"}), 0, (2, [1.0, 2.0])]
        assert hub.snapshot().version == 1


def test_a_task_that_outlives_its_handler_is_not_the_writer() -> None:
    """It sees what is committed, and what it writes comes through the inbox."""
    with live(MessageHub()) as hub:
        contexts: list[contextvars.Context] = []

        async def handler() -> None:
            hub.update_info("a", 1)
            contexts.append(contextvars.copy_context())

        with EventBus(hub=hub) as bus:
            bus.subscribe(Tick, handler)
            bus.emit(Tick())
        hub.update_info("b", 2)

        def later() -> None:
            assert hub.runtime_info == {"a": 1}
            hub.update_info("c", 3)
            assert hub.runtime_info == {"a": 1}

        on_thread(contexts[0].run, later)
        hub.commit()
        assert hub.snapshot().runtime_info == {"a": 1, "b": 2, "c": 3}


@pytest.mark.usefixtures("hasty_threads")
def test_a_handler_and_what_the_training_thread_does_meanwhile_lose_nothing() -> None:
    """While it waits for a handler, the training thread emits what others post: two write, and both read their own."""
    rounds, at_once = 150, 20
    written = 0
    with live(MessageHub()) as hub, EventBus(hub=hub) as bus:

        async def handler() -> None:
            nonlocal written
            while thread.is_alive():
                written += 1
                hub.update_scalars({"a": written, "b": written})
                if written % 64 == 0:
                    assert len(hub.get_scalar("a")) == written
                    await anyio.lowlevel.checkpoint()

        def inline(event: Tock) -> None:
            hub.update_scalar("inline", event.n)
            if event.n % 64 == 0:
                assert len(hub.get_scalar("inline")) == event.n + 1

        def post() -> None:
            for number in range(rounds):
                answers = [bus.post(Tock(n=at_once * number + place)) for place in range(at_once)]
                answers[-1].result(30)

        bus.subscribe(Tick, handler)
        bus.subscribe(Tock, inline)
        thread = threading.Thread(target=post)
        thread.start()
        bus.emit(Tick())
        thread.join()
    assert values_of(hub, "a") == values_of(hub, "b") == list(range(1, written + 1))
    assert values_of(hub, "inline") == list(range(rounds * at_once))


async def test_handlers_on_the_callers_loop_write_without_a_run() -> None:
    """Under `async with bus:` each update is a version at once."""
    hub = MessageHub()

    async def handler() -> None:
        hub.update_info("a", 1)
        assert hub.snapshot().get_info("a") == 1

    async with EventBus(hub=hub) as bus:
        bus.subscribe(Tick, handler)
        await bus.publish(Tick())
    assert standing(hub) == (1, False)


@pytest.mark.usefixtures("hasty_threads")
def test_many_threads_write_without_a_run_while_a_bus_publishes() -> None:
    """Every update arrives, each as a version of its own, whoever commits."""
    hub = MessageHub()
    bus = EventBus(hub=hub)
    bus.subscribe(Tick, lambda event: hub.update_scalar("mine", event.n))
    writers, each = 4, 2000

    def write(writer: int) -> None:
        for number in range(each):
            hub.update_scalar(f"of {writer}", number)

    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(writers)]
    for thread in threads:
        thread.start()
    for n in range(each):
        bus.emit(Tick(n=n))
    for thread in threads:
        thread.join()
    assert all(values_of(hub, key) == list(range(each)) for key in ("mine", *(f"of {writer}" for writer in range(writers))))
    assert hub.snapshot().version == each * (writers + 1)


# --- finding hubs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "-x", "a/b", "a b", "x" * 101, None, 3], ids=str)
def test_a_name_that_could_not_name_a_run_is_refused(name: Any) -> None:
    """Wherever a hub is named."""
    for make in (MessageHub, MessageHub.get_instance, MessageHub.for_run):
        with pytest.raises(InvalidName, match="must be 1 to 100 letters, digits"):
            make(name)


def test_a_hub_that_is_prepared_is_held_until_its_run_adopts_it() -> None:
    """What is written before the run exists is there in the run, although nobody else held the hub."""
    MessageHub.get_instance("prepared").update_info("note", "kept")
    gc.collect()
    assert MessageHub.get_instance("prepared").get_info("note") == "kept"
    hub = MessageHub.for_run("prepared")
    assert hub is MessageHub.get_instance("prepared")
    assert hub.get_info("note") == "kept"


def test_the_next_run_of_a_name_gets_a_fresh_hub() -> None:
    """Even where somebody still holds the hub of the run before."""
    first = MessageHub.for_run("again")
    with live(first):
        first.update_info("note", 1)
        first.commit()
    second = MessageHub.for_run("again")
    assert second is not first
    assert second.runtime_info == {}
    assert MessageHub.get_instance("again") is second
    assert first.get_info("note") == 1


def test_two_runs_prepared_side_by_side_do_not_share_a_hub() -> None:
    """Also when they have one name and neither has begun."""
    first, second = MessageHub.for_run("twins"), MessageHub.for_run("twins")
    assert first is not second


@pytest.mark.parametrize("prepared", [False, True], ids=["fresh", "prepared"])
def test_a_hub_is_freed_when_nobody_holds_it(prepared: bool) -> None:
    """After its run, without waiting for the garbage collector."""
    if prepared:
        MessageHub.get_instance("freed").update_info("a", 1)
    hub = MessageHub.for_run("freed")
    with live(hub):
        hub.update_scalar("loss", 1.0)
        assert MessageHub.get_current_instance() is hub
        with pytest.raises(WouldDeadlock, match="'freed', which only itself writes to"):
            hub.wait_until_blocking(lambda _: False, timeout=0)
    gone = weakref.ref(hub)
    gc.disable()
    try:
        del hub
        assert gone() is None
    finally:
        gc.enable()
    assert MessageHub.for_run("freed").runtime_info == {}


def test_a_hub_whose_run_began_without_adoption_is_not_held_either() -> None:
    """Whether it was asked for by name, or replaces one that was."""
    asked = MessageHub.get_instance("unadopted")
    with live(asked):
        pass
    gone = weakref.ref(asked)
    del asked
    assert gone() is None
    replaced = weakref.ref(MessageHub.get_instance("unadopted"))
    own = MessageHub("unadopted")
    with live(own):
        assert MessageHub.get_instance("unadopted") is own
    assert replaced() is None


def test_two_live_runs_of_one_name_are_refused() -> None:
    """The first is not disturbed by that, and its name is free when it ends."""
    with live(MessageHub("twice")) as first:
        second = MessageHub("twice")
        with pytest.raises(RunAlreadyLive, match="a run named 'twice' is live in this process"):
            second.begin_run(threading.get_ident())
        with pytest.raises(RunAlreadyLive):
            first.begin_run(threading.get_ident())
        assert MessageHub.get_instance("twice") is first
        assert not second.ended
        first.update_info("a", 1)
        assert first.dirty
    with live(second):
        first.end_run()  # once too often: not its name any more
        with pytest.raises(RunAlreadyLive):
            first.begin_run(threading.get_ident())


def test_the_current_hub_is_that_of_the_only_live_run() -> None:
    """Outside of runs there is none, and of several one has to be named."""
    with pytest.raises(RunEnded, match="the live runs are: none"):
        MessageHub.get_current_instance()
    with live(MessageHub("one")) as one:
        assert MessageHub.get_current_instance() is one
        on_thread(lambda: MessageHub.get_current_instance() is one or pytest.fail("another one"))
        with live(MessageHub("other")) as other:
            with pytest.raises(RunEnded, match=r"the live runs are: one, other; use MessageHub.get_instance\(name\)"):
                MessageHub.get_current_instance()
            with EventBus(hub=other) as bus:
                found: list[MessageHub] = []

                async def handler() -> None:
                    found.append(MessageHub.get_current_instance())

                bus.subscribe(Tick, handler)
                bus.emit(Tick())
            assert found == [other]
        assert MessageHub.get_current_instance() is one


def test_many_hubs_of_many_threads_live_side_by_side() -> None:
    """Each thread is the writer of its own only."""

    def run(number: int) -> None:
        with live(MessageHub(f"run-{number}")) as hub:
            for value in range(500):
                hub.update_scalar("loss", value + number)
                hub.commit()
        assert values_of(hub, "loss") == [value + number for value in range(500)]

    threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


# --- state ------------------------------------------------------------------------------------------------------------


def test_a_state_restores_values_counts_steps_and_information() -> None:
    """Exactly, NaN and infinity included."""
    hub = MessageHub()
    for step, value in enumerate([0.1, math.nan, math.inf, -math.inf, 1e-310, -0.0]):
        hub.step = 10 * step
        hub.update_scalar("loss", value, count=step + 1)
    hub.update_info_dict({"epoch": 3, "list": [1, 2], "best": {"score": 0.5}})
    restored = MessageHub("restored")
    restored.load_state_dict(copy.deepcopy(hub.state_dict()))
    values, counts, steps = restored.get_scalar("loss").newest()
    assert [value.hex() for value in values] == [value.hex() for value in values_of(hub, "loss")]
    assert (counts, steps) == ([1, 2, 3, 4, 5, 6], [0, 10, 20, 30, 40, 50])
    assert restored.runtime_info == {"epoch": 3, "list": [1, 2], "best": {"score": 0.5}}
    assert json.dumps(restored.state_dict()) == json.dumps(hub.state_dict())
    restored.update_scalar("loss", 7.0)
    assert len(restored.get_scalar("loss")) == 7
    assert len(hub.get_scalar("loss")) == 6


def test_a_state_holds_the_newest_part_of_a_history() -> None:
    """However long the history is, a checkpoint stays small."""
    with live(MessageHub()) as hub:
        for step in range(HISTORY_IN_CHECKPOINT + 500):
            hub.step = step
            hub.update_scalar("loss", step)
            if step % 100 == 0:
                hub.commit()
        values, counts, steps = hub.state_dict()["log_scalars"]["loss"]
    assert values == steps == list(range(500, HISTORY_IN_CHECKPOINT + 500))
    assert counts == [1] * HISTORY_IN_CHECKPOINT


def test_the_training_thread_saves_what_it_has_not_committed_yet() -> None:
    """A checkpoint written in a handler holds what handlers before it wrote."""
    with live(MessageHub()) as hub:
        hub.update_scalar("loss", 1.0)
        hub.update_info("epoch", 1)
        assert hub.state_dict() == {"log_scalars": {"loss": ([1.0], [1], [0])}, "runtime_info": {"epoch": 1}}


def test_a_saved_state_does_not_change_later() -> None:
    """It shares nothing that is mutable with the hub."""
    hub = MessageHub()
    best = {"score": [1]}
    hub.update_info("best", best)
    hub.update_scalar("loss", 1.0)
    state = hub.state_dict()
    best["score"].append(2)
    hub.update_scalar("loss", 2.0)
    assert state == {"log_scalars": {"loss": ([1.0], [1], [0])}, "runtime_info": {"best": {"score": [1]}}}


def test_keys_that_are_not_resumed_stay_out_of_the_state() -> None:
    """The newest update of a key decides."""
    hub = MessageHub()
    hub.update_scalar("time", 1.0, resumed=False)
    hub.update_info("lr", 1.0, resumed=False)
    hub.update_info_dict({"a": 1, "b": 2}, resumed=False)
    hub.update_info("b", 3)
    hub.update_scalar("loss", 1.0)
    assert hub.state_dict() == {"log_scalars": {"loss": ([1.0], [1], [0])}, "runtime_info": {"b": 3}}
    assert hub.log_scalars.keys() == {"time", "loss"}


@pytest.mark.parametrize("during_run", [False, True])
def test_loading_a_state_merges_it_into_what_is_there(during_run: bool) -> None:
    """Keys of the state replace their namesakes, written a moment ago or long ago; all others stay."""
    saved = MessageHub()
    saved.update_scalar("loss", 1.0)
    saved.update_info_dict({"epoch": 1, "saved": True})
    hub = MessageHub()
    hub.update_info("epoch", 0)
    if during_run:
        hub.begin_run(threading.get_ident())
    hub.update_scalars({"loss": 8.0, "lr": 0.1})
    hub.update_info_dict({"epoch": 9, "own": True})
    earlier = hub.snapshot()
    hub.load_state_dict(saved.state_dict())
    assert (values_of(hub, "loss"), values_of(hub, "lr")) == ([1.0], [0.1])
    assert hub.snapshot().runtime_info == {"epoch": 1, "own": True, "saved": True}
    assert hub.snapshot().version == earlier.version + 1
    hub.update_scalar("loss", 2.0)
    assert values_of(hub, "loss") == [1.0, 2.0]
    assert earlier.get_info("epoch") == (0 if during_run else 9)
    if during_run:
        hub.end_run()


def test_what_is_no_state_is_refused_and_changes_nothing() -> None:
    """The text names what is missing, or the key that is broken."""
    hub = MessageHub()
    hub.update_scalar("loss", 1.0)
    with pytest.raises(ConfigError, match="not the state of a message hub: it lacks log_scalars, runtime_info"):
        hub.load_state_dict({})
    with pytest.raises(ConfigError, match="it lacks runtime_info"):
        hub.load_state_dict({"log_scalars": {}})
    broken: Any
    for broken in (([1.0], [1, 2], [0]), ([1.0], [1]), 5, (["x"], [1], [0]), ([1.0], [0.5], [0])):
        scalars = {"loss": ([9.0], [1], [0]), "train/acc": broken}
        with pytest.raises(ConfigError, match="message hub: 'train/acc'"):
            hub.load_state_dict({"log_scalars": scalars, "runtime_info": {"epoch": 1}})
    assert (values_of(hub, "loss"), hub.runtime_info, hub.snapshot().version) == ([1.0], {}, 1)
