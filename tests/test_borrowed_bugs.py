"""Bugs of other libraries that have to do with dispatch, loops and control, each as a test that carries its name.

Those about controls stand in `tests/runner/test_controls_from_anywhere.py`; `docs/reliability.md` says where each is proved.
"""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from hookbus.bus import Background, EventBus, background
from hookbus.checkpoint import load_checkpoint
from hookbus.errors import EmptyDataLoader, RunEnded
from hookbus.events import AfterTrainIter, RunFailed, ScalarsLanded
from hookbus.hooks import Hook
from hookbus.hub import MessageHub
from hookbus.runner import Runner
from tests.bus.ticks import Tick
from tests.runner.builders import make_runner, same, weights

PATIENCE = 20.0


def test_keras_thread_pool_step_8_does_not_run_before_step_7() -> None:
    """Callbacks at the end of a batch were sent to several workers; here each has one, whatever the others do."""
    heard: dict[str, list[int]] = {"a": [], "b": [], "c": []}

    async def c(event: Tick) -> None:
        await anyio.sleep(0.001 * (event.n % 3 == 0))
        heard["c"].append(event.n)

    with EventBus() as bus:
        for name in "ab":
            bus.subscribe(Tick, lambda event, name=name: heard[name].append(event.n), background=True)
        bus.subscribe(Tick, c, background=True)
        for n in range(200):
            bus.emit(Tick(n=n))
    assert [heard[name] for name in "abc"] == [list(range(200))] * 3


def test_keras_switch_one_that_cannot_run_late_leaves_the_others_late() -> None:
    """One callback without support for it had all of them called at once; here each lane is the subscriber's own."""
    release = threading.Event()
    order: list[str] = []

    def late() -> None:
        release.wait(PATIENCE)
        order.append("late")

    with EventBus() as bus:
        bus.subscribe(Tick, lambda: order.append("inline"))
        bus.subscribe(Tick, late, background=True, priority="HIGHEST")
        bus.emit(Tick())
        order.append("published")
        release.set()
    assert order == ["inline", "published", "late"]


async def test_browser_use_5509_waiting_on_one_bus_never_runs_the_handlers_of_another() -> None:
    """Awaiting an event drained the queues of every bus; here each handler runs where its own bus lives."""
    ran: list[tuple[str, int]] = []

    def note(name: str) -> Callable[[], None]:
        return lambda: ran.append((name, threading.get_ident()))

    def use_the_other() -> None:
        with EventBus() as other:
            other.subscribe(Tick, note("other"))
            other.subscribe(Tick, note("other, late"), background=True)
            go_on.wait(PATIENCE)
            assert [name for name, _ in ran] == ["mine"]
            other.emit(Tick())

    go_on = threading.Event()
    thread = threading.Thread(target=use_the_other)
    thread.start()
    async with EventBus() as mine:
        mine.subscribe(Tick, note("mine"))
        await mine.publish(Tick())
    go_on.set()
    await anyio.to_thread.run_sync(thread.join)
    idents = dict(ran)
    assert idents["mine"] == threading.get_ident()
    assert idents["other"] == thread.ident
    assert idents["other, late"] not in (idents["mine"], idents["other"])


class Mistyped(Hook):
    """Has a bug of its own that is a TypeError."""

    def after_train_iter(self, runner: Runner) -> None:
        """Raise, two calls down."""
        self._add(runner.iter)

    def _add(self, number: Any) -> None:
        number + "one"


def test_mmengine_call_hook_a_type_error_in_a_hook_keeps_its_traceback(tmp_path: Path) -> None:
    """It was raised again from None, as if the hook had been called with the wrong arguments."""
    with pytest.raises(TypeError, match="unsupported operand") as raised:
        make_runner(tmp_path, custom_hooks=[Mistyped()]).train()
    frames = [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert frames[-2:] == ["after_train_iter", "_add"]
    assert raised.value.__cause__ is None
    (note,) = [note for note in raised.value.__notes__ if "handled" in note]
    assert "Mistyped.after_train_iter" in note
    assert "AfterTrainIter" in note
    assert "iter=0" in note


def test_ignite_who_listens_for_failures_does_not_swallow_them(tmp_path: Path) -> None:
    """A handler for exceptions kept them from being raised; here it only hears of them."""
    runner = make_runner(tmp_path)
    heard: list[RunFailed] = []
    runner.bus.subscribe(RunFailed, lambda event: heard.append(event))
    runner.bus.subscribe(AfterTrainIter, lambda: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        runner.train()
    assert [event.error_type for event in heard] == ["ZeroDivisionError"]


def test_nvalchemi_171_a_tensor_that_is_used_again_reads_as_of_its_step() -> None:
    """It was read later, when the loop had written the next value into it."""
    hub = MessageHub("reused")
    hub.begin_run(threading.get_ident())
    loss = torch.zeros(())
    for n in range(5):
        loss.fill_(n)
        hub.update_scalar("loss", loss)
    loss.fill_(-1)
    hub.end_run()
    assert list(hub.get_scalar("loss").data[0]) == [0, 1, 2, 3, 4]


class Late(Hook):
    """Counts in the background what a checkpoint has to keep."""

    def __init__(self) -> None:
        self.count = 0

    @background()
    def after_train_iter(self) -> None:
        """Count, after a while."""
        threading.Event().wait(0.002)
        self.count += 1

    def state_dict(self) -> dict[str, int]:
        """Return the count."""
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take over the count."""
        self.count = state_dict["count"]


def test_olmo_core_a_save_waits_for_results_that_are_late(tmp_path: Path) -> None:
    """A checkpoint was taken before a callback in the background had booked what belonged to it."""
    hooks = dict(checkpoint=dict(by_epoch=False, interval=2), logger=None)
    make_runner(tmp_path, custom_hooks=[Late()], default_hooks=hooks).train()
    for iterations in (2, 4, 6):
        states = load_checkpoint(tmp_path / "checkpoints" / f"iter_{iterations}")["hooks"]
        assert [state["count"] for key, state in states.items() if "Late" in key] == [iterations]


class Numbered(Hook):
    """Has a state, and is there twice."""

    def __init__(self, first: int) -> None:
        self.value = first

    def after_train_iter(self) -> None:
        """Change the state."""
        self.value += 1

    def state_dict(self) -> dict[str, int]:
        """Return the value."""
        return {"value": self.value}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Take over the value."""
        self.value = state_dict["value"]


def test_transformers_33875_two_hooks_of_one_class_keep_states_of_their_own(tmp_path: Path) -> None:
    """One overwrote the other; here over a save, a load and another save."""
    make_runner(tmp_path, custom_hooks=[Numbered(0), Numbered(100)], train_cfg=dict(max_epochs=1)).train()
    hooks = [Numbered(0), Numbered(0)]
    make_runner(tmp_path, custom_hooks=hooks, resume=True).train()
    assert [hook.value for hook in hooks] == [6, 106]
    states = load_checkpoint(tmp_path / "checkpoints" / "epoch_2")["hooks"]
    assert sorted(state["value"] for key, state in states.items() if "Numbered" in key) == [6, 106]


def test_unsloth_zoo_873_a_runner_that_is_used_again_carries_nothing_stale(tmp_path: Path) -> None:
    """Handlers of a run that failed, or was stopped, are not there twice in the next one."""
    runner = make_runner(tmp_path)
    heard: list[int] = []
    runner.bus.subscribe(AfterTrainIter, lambda event: heard.append(event.iter))
    once = runner.bus.subscribe(AfterTrainIter, lambda runner: runner.stop(), when=lambda event: event.iter == 1)
    runner.train()
    once.cancel()
    runner.train()
    assert heard == list(range(6))
    assert runner.iter == 6


class Ending(IterableDataset[Any]):
    """Data without a known length, that ends, or never begins."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __iter__(self) -> Any:
        return ((torch.ones(4), 0) for _ in range(self.size))


def test_nemo_rl_2899_data_that_ends_without_a_batch_is_an_error_and_no_silent_spin(tmp_path: Path) -> None:
    """The trainer asked an empty buffer for ever."""
    loop = dict(by_epoch=False, max_iters=10)
    with pytest.raises(EmptyDataLoader):
        make_runner(tmp_path, train_dataloader=DataLoader(Ending(0)), val_dataloader=None, train_cfg=loop).train()


async def test_nemo_rl_3488_who_waits_for_a_run_that_dies_hears_of_it(tmp_path: Path) -> None:
    """A consumer polled for hours what nobody produced any more."""
    runner = make_runner(tmp_path)
    runner.bus.subscribe(AfterTrainIter, lambda: 1 // 0, when=lambda event: event.iter == 2)
    read: list[int] = []

    async def read_all() -> None:
        async with runner.bus.stream(AfterTrainIter) as events:
            async for event in events:
                read.append(event.iter)

    async def wait() -> None:
        with pytest.raises(RunEnded):
            await runner.bus.wait_for(AfterTrainIter, when=lambda event: event.iter == 1000)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_all)
            tasks.start_soon(wait)
            await anyio.wait_all_tasks_blocked()
            with pytest.raises(ZeroDivisionError):
                await runner.train_async()
    assert read in ([0, 1], [0, 1, 2])


def test_hassette_72_a_slow_observer_changes_nothing_but_its_own_count(tmp_path: Path) -> None:
    """Queues grew without a bound; here what is too much is dropped and counted, and training ends with the same weights."""
    release = threading.Event()
    runners = [make_runner(tmp_path / name, train_cfg=dict(max_epochs=20), val_dataloader=None) for name in "ab"]
    bus = runners[1].bus
    bus.drain_timeout = 0.01
    slow = bus.subscribe(AfterTrainIter, release.wait, background=Background(maxsize=4))
    runners[0].train()
    bus.subscribe(AfterTrainIter, release.set, when=lambda event: event.iter == 59)
    runners[1].train()
    assert same(weights(runners[0].model), weights(runners[1].model))
    stats = slow.stats()
    assert stats.published == 60
    assert stats.dropped > 0
    assert stats.published == stats.handled + stats.failures + stats.dropped + stats.cancelled


def test_prime_rl_1668_a_late_value_keeps_its_own_step(tmp_path: Path) -> None:
    """A metric of step n that arrived after step n + 5 was lost, or booked under the step of its arrival."""
    runner = make_runner(tmp_path, val_dataloader=None)
    behind = threading.Event()
    booked: list[tuple[int, float | None]] = []

    def book(event: ScalarsLanded) -> None:
        behind.wait(PATIENCE)
        booked.extend(zip(event.iters, event.scalars["train/loss"], strict=True))

    runner.bus.subscribe(ScalarsLanded, book, background=True)
    runner.bus.subscribe(AfterTrainIter, behind.set, when=lambda event: event.iter == 5)
    runner.train()
    values, _ = runner.message_hub.get_scalar("train/loss").data
    assert [value for _, value in booked] == pytest.approx(list(values))
    assert [n for n, _ in booked] == sorted({n for n, _ in booked})
    assert len(booked) == 6
