"""Background handlers in runs: hooks with state, errors, controls from the background, the end of a run, and several runs."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import msgspec
import pytest

from hookbus import Background, Hook, background, every
from hookbus.bus import EventBus, HandlerCost
from hookbus.checkpoint import load_checkpoint
from hookbus.events import AfterRun, AfterTrainIter, AfterVal, BeforeRun, Event, LogRecorded, MountPoint, RunFailed
from hookbus.runner import Runner
from hookbus.types import Backend
from tests.bus.listeners import KINDS, PATIENCE, Gate, Kind, balances, handler
from tests.runner.builders import at_iter, make_loader, make_runner, names, record, same, unique_name, weights

BACKENDS: list[Backend] = ["asyncio", "trio"]


class Broken(Exception):
    """What a failing handler raises."""


class CountingHook(Hook):
    """Counts iterations in the background, slowly, and has the count saved."""

    def __init__(self, gate: Gate | None = None) -> None:
        self.count = 0
        self.gate = gate

    @background
    def after_train_iter(self, iter: int) -> None:
        if self.gate is not None:
            self.gate.pass_through()
        self.count += 1

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.count = state_dict["count"]


# --- barriers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_save_waits_for_the_background_handlers_of_hooks_with_state(backend: Backend, tmp_path: Path) -> None:
    """Each checkpoint holds the count of its own step."""
    runner = make_runner(tmp_path, val_dataloader=None, custom_hooks=[CountingHook()])
    runner.train(backend=backend)
    for epoch, iterations in [(1, 3), (2, 6)]:
        states = load_checkpoint(tmp_path / "checkpoints" / f"epoch_{epoch}")["hooks"]
        assert {"count": iterations} in list(states.values())


def test_a_save_does_not_wait_for_the_others(tmp_path: Path) -> None:
    """An observer that stands still holds up no save."""
    runner, gate = make_runner(tmp_path, val_dataloader=None), Gate()
    saved: list[bool] = []
    standing = runner.bus.subscribe(AfterTrainIter, handler("function", lambda event: None, gate), background=True)

    def look(iter: int) -> None:
        if iter == 4:
            gate.wait_until_reached()
            saved.append((tmp_path / "checkpoints" / "epoch_1").exists())
            gate.open()

    runner.bus.subscribe(AfterTrainIter, look)
    runner.train()
    assert saved == [True]
    assert standing.stats().handled == 6


@pytest.mark.parametrize("kind", KINDS)
def test_before_after_run_everything_published_has_been_handled(kind: Kind, tmp_path: Path) -> None:
    """So whoever closes files in `AfterRun` closes them behind the last event; those of `AfterRun` are handled, too."""
    runner = make_runner(tmp_path)
    seen: list[str] = []
    at_the_end: list[str] = []
    runner.bus.subscribe(MountPoint, handler(kind, lambda event: seen.append(type(event).__name__)), background=True)
    runner.bus.subscribe(AfterRun, lambda: at_the_end.extend(seen), priority="HIGHEST")
    inline = record(runner.bus)
    runner.train()
    assert seen == names(inline)
    assert at_the_end == names(inline)[:-1]


def test_a_run_gives_up_waiting_and_says_for_whom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What was not handled is cancelled and counted."""
    runner = make_runner(tmp_path, val_dataloader=None)
    runner.bus.drain_timeout = 0.1

    async def for_ever() -> None:
        await anyio.sleep_forever()

    subscription = runner.bus.subscribe(AfterTrainIter, for_ever, background=True)
    runner.train()
    stats = subscription.stats()
    assert (stats.published, stats.handled, stats.cancelled, stats.pending) == (6, 0, 6, 0)
    assert "for_ever is late: 6 events of AfterTrainIter still wait for it" in capsys.readouterr().err


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_error_that_is_to_be_raised_ends_the_run_at_a_step_boundary(kind: Kind, backend: Backend, tmp_path: Path) -> None:
    """As itself, with a note that names handler, event and step; `RunFailed` and `AfterRun` follow."""
    runner = make_runner(tmp_path, val_dataloader=None, train_cfg=dict(max_epochs=100_000), default_hooks=dict(checkpoint=None))

    def fails(event: AfterTrainIter) -> None:
        if event.iter == 2:
            raise Broken("in the background")

    runner.bus.subscribe(AfterTrainIter, handler(kind, fails), background=True, on_error="raise", name="strict")
    failed, ended = record(runner.bus, RunFailed), record(runner.bus, AfterRun)
    with pytest.raises(Broken) as caught:
        runner.train(backend=backend)
    assert any(note.startswith("while strict handled AfterTrainIter(") and "iter=2" in note for note in caught.value.__notes__)
    assert len(failed) == len(ended) == 1
    [event] = failed
    assert isinstance(event, RunFailed)
    assert (event.error_type, event.handler) == ("Broken", "strict")
    assert runner.iter >= 3


def test_a_run_in_a_pause_hears_of_the_error_too(tmp_path: Path) -> None:
    """It would wait for ever otherwise."""
    runner, gate = make_runner(tmp_path, val_dataloader=None), Gate()

    def fails(event: Event) -> None:
        raise Broken

    def pause(iter: int) -> None:
        if iter == 1:
            runner.pause()
            gate.open()

    runner.bus.subscribe(AfterTrainIter, handler("function", fails, gate), background=True, on_error="raise")
    runner.bus.subscribe(AfterTrainIter, pause)
    with pytest.raises(Broken):
        runner.train()


def test_an_error_behind_the_last_step_fails_the_run_too(tmp_path: Path) -> None:
    """Nothing is swallowed because it came late."""
    runner = make_runner(tmp_path, val_dataloader=None)

    def fails(event: Event) -> None:
        raise Broken

    runner.bus.subscribe(AfterRun, handler("function", fails), background=True, on_error="raise")
    with pytest.raises(Broken):
        runner.train()


@pytest.mark.parametrize("kind", KINDS)
def test_a_failing_observer_changes_nothing_in_training(kind: Kind, tmp_path: Path) -> None:
    """The weights are bit for bit those of a run without it; how often it failed stands in its counts."""
    alone = make_runner(tmp_path / "alone")
    alone.train()
    watched = make_runner(tmp_path / "watched")

    subscription = watched.bus.subscribe(AfterTrainIter, handler(kind, _fails), background=True)
    watched.train()
    assert same(weights(alone.model), weights(watched.model))
    assert subscription.stats().failures == 6


def _fails(event: Event) -> None:
    raise Broken


# --- controls and the main stream -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_a_background_handler_may_control_the_run(kind: Kind, tmp_path: Path) -> None:
    """A stop from there takes effect at a step boundary."""
    runner = make_runner(tmp_path, val_dataloader=None, train_cfg=dict(max_epochs=100_000), default_hooks=dict(checkpoint=None))
    answers: list[Any] = []

    def act(event: AfterTrainIter) -> None:
        if event.iter == 3:
            answers.append(runner.stop())

    runner.bus.subscribe(AfterTrainIter, handler(kind, act), background=True)
    runner.train()
    assert answers[0].result(0).iter == runner.iter
    assert runner.iter >= 4


def test_a_function_may_wait_for_its_control_and_for_the_main_stream(tmp_path: Path) -> None:
    """Its thread is not the one that training waits on."""
    runner = make_runner(tmp_path, val_dataloader=None, train_cfg=dict(max_epochs=100_000), default_hooks=dict(checkpoint=None))
    seen: list[Any] = []

    def act(iter: int) -> None:
        if iter == 2:
            seen.append(runner.run_on_main_stream(threading.get_ident).result(PATIENCE))
            runner.pause().result(PATIENCE)
            seen.append(runner.message_hub.get_info("iter"))
            runner.unpause().result(PATIENCE)
            runner.stop().result(PATIENCE)

    runner.bus.subscribe(AfterTrainIter, act, background=True, on_error="raise")
    runner.train()
    assert seen[0] == threading.get_ident()
    assert len(seen) == 2


async def test_a_coroutine_function_may_await_controls_and_posts(tmp_path: Path) -> None:
    """On the loop of a service."""
    runner = make_runner(tmp_path, val_dataloader=None, train_cfg=dict(max_epochs=100_000), default_hooks=dict(checkpoint=None))
    threads: list[int] = []

    async def act(iter: int) -> None:
        if iter == 2:
            threads.append(await runner.run_on_main_stream(threading.get_ident))
            await runner.bus.publish(AfterVal(epoch=0, iter=0), {"runner": runner})
            await runner.stop()

    runner.bus.subscribe(AfterVal, lambda: threads.append(threading.get_ident()))
    runner.bus.subscribe(AfterTrainIter, act, background=True, on_error="raise")
    await runner.train_async()
    assert len(threads) == 2
    assert threads[0] == threads[1] != threading.get_ident()


# --- hooks ------------------------------------------------------------------------------------------------------------


def test_hook_methods_observe_in_the_background(tmp_path: Path) -> None:
    """With their filters and options, beside methods of the same hook that do not."""
    seen: dict[str, list[int]] = {"every": [], "latest": [], "awaited": []}

    class Watcher(Hook):
        @every(2)
        @background
        def after_train_iter(self, iter: int) -> None:
            seen["every"].append(iter)

        @background(overflow="latest")
        async def after_val_epoch(self, epoch: int) -> None:
            seen["latest"].append(epoch)

        async def after_train_epoch(self, runner: Runner) -> None:
            seen["awaited"].append(runner.epoch)

    runner = make_runner(tmp_path, custom_hooks=[Watcher()])
    runner.train()
    assert seen["every"] == [1, 3, 5]
    assert seen["latest"]
    assert len(seen["awaited"]) == 2


def test_a_run_with_only_inline_handlers_starts_no_thread(tmp_path: Path) -> None:
    """The background lane costs nothing where nobody uses it."""
    runner = make_runner(tmp_path, default_hooks=dict(logger=None, checkpoint=None))
    threads: set[str] = set()
    runner.bus.subscribe(AfterTrainIter, lambda: threads.update(thread.name for thread in threading.enumerate()))
    runner.train()
    assert not any(name.startswith("hookbus") for name in threads)


# --- several runs -----------------------------------------------------------------------------------------------------


def test_a_named_bus_serves_one_run_after_the_other(tmp_path: Path) -> None:
    """What is subscribed by name hears both, each with the hub of its run."""
    name = unique_name()
    seen: list[tuple[int, int]] = []
    bus = EventBus.get_instance(name)
    subscription = bus.subscribe(AfterTrainIter, lambda iter, hub: seen.append((id(hub), iter)), background=True)
    hubs = []
    for part in ("one", "two"):
        runner = make_runner(tmp_path / part, val_dataloader=None, experiment_name=name)
        runner.train()
        hubs.append(runner.message_hub)
    assert seen == [(id(hub), iter) for hub in hubs for iter in range(6)]
    assert balances(subscription.stats())
    assert subscription.stats().handled == 12


async def test_two_runs_at_once_keep_their_events_to_themselves(tmp_path: Path) -> None:
    """On one event loop, observed in the background and by streams."""
    runners = [make_runner(tmp_path / str(n), val_dataloader=None, train_dataloader=make_loader(4 * (n + 1))) for n in range(2)]
    seen: dict[int, list[tuple[str, int]]] = {0: [], 1: []}
    pulled: dict[int, list[int]] = {0: [], 1: []}

    async def follow(n: int) -> None:
        async with runners[n].bus.stream(AfterTrainIter) as events:
            ready[n].set()
            async for event in events:
                pulled[n].append(event.iter)

    async def train(n: int) -> None:
        for kind in KINDS:
            act = handler(kind, lambda event, n=n, kind=kind: seen[n].append((kind, event.iter)))  # type: ignore[misc]
            runners[n].bus.subscribe(AfterTrainIter, act, background=True)
        await ready[n].wait()
        await runners[n].train_async()

    ready = [anyio.Event(), anyio.Event()]
    async with anyio.create_task_group() as tasks:
        for n in range(2):
            tasks.start_soon(follow, n)
            tasks.start_soon(train, n)
    for n in range(2):
        steps = list(range(2 * (n + 1)))
        assert pulled[n] == steps
        for kind in KINDS:
            assert [iter for which, iter in seen[n] if which == kind] == steps


async def test_a_stream_entered_before_the_run_hears_all_of_it(tmp_path: Path) -> None:
    """From `BeforeRun` to `AfterRun`; then it ends by itself."""
    name = unique_name()
    async with EventBus.get_instance(name).stream(MountPoint) as events:
        runner = make_runner(tmp_path, experiment_name=name)
        inline = record(runner.bus)
        await runner.train_async()
        pulled = [event async for event in events]
    assert pulled == inline
    assert isinstance(pulled[0], BeforeRun)
    assert isinstance(pulled[-1], AfterRun)


async def test_the_log_can_be_streamed_from_a_service(tmp_path: Path) -> None:
    """As plain values that any encoder takes."""
    runner = make_runner(tmp_path, default_hooks=dict(logger=dict(interval=1)))
    async with runner.bus.stream(LogRecorded, when=lambda event: event.mode == "train" and not event.is_progress) as events:
        await runner.train_async()
        lines = [json.dumps(event.values) async for event in events]
    assert len(lines) == 6
    assert all("loss" in line for line in lines)


async def test_a_subscriber_that_blocks_slows_training_down_only_for_its_timeout(tmp_path: Path) -> None:
    """Then it loses events, and the end of the run says so."""
    runner, gate = make_runner(tmp_path, val_dataloader=None), Gate()
    options = Background(maxsize=1, overflow="block", block_timeout=0.1)
    subscription = runner.bus.subscribe(AfterTrainIter, handler("function", lambda event: None, gate), background=options)
    runner.bus.subscribe(AfterTrainIter, at_iter(5, gate.open))
    with anyio.fail_after(PATIENCE):
        await runner.train_async()
    stats = subscription.stats()
    assert balances(stats)
    assert stats.dropped >= 1
    assert stats.pending == 0


# --- costs ------------------------------------------------------------------------------------------------------------

DEAR = 0.004
"""Seconds that a dear handler works."""


def _works() -> None:
    until = time.perf_counter() + DEAR
    while time.perf_counter() < until:
        pass


def test_a_run_keeps_the_costs_of_its_handlers_and_trains_as_ever(tmp_path: Path) -> None:
    """In `handler_costs.json`, dearest first; the weights are those of a run whose steps nobody watched."""
    plain = make_runner(tmp_path / "plain", val_dataloader=None, train_cfg=dict(max_epochs=20))
    plain.train()
    watched = make_runner(tmp_path / "watched", val_dataloader=None, train_cfg=dict(max_epochs=20))
    watched.bus.subscribe(AfterTrainIter, _works, name="dear")
    watched.train()
    assert same(weights(plain.model), weights(watched.model))
    costs = msgspec.json.decode((watched.log_dir / "handler_costs.json").read_bytes(), type=list[HandlerCost])
    assert [cost.seconds for cost in costs] == sorted((cost.seconds for cost in costs), reverse=True)
    [mine] = [cost for cost in costs if cost.handler == "dear"]
    assert mine.calls == 60
    assert mine.seconds >= 60 * DEAR
    assert costs[0] is mine
