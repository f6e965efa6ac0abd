"""A watch names the handlers that read values of a device by accident, on the CPU, too, and no others."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

import anyio
import numpy as np
import pytest
import torch
from anyio.lowlevel import checkpoint

from hookbus.bus import EventBus
from hookbus.errors import BusError
from hookbus.events import AfterTrainIter
from hookbus.hooks import Hook
from hookbus.hub import MessageHub
from hookbus.testing import find_device_reads, make_runner
from tests.bus.ticks import Tick, Tock

LOSS = torch.tensor(1.5)
LOSSES = torch.tensor([1.5, 2.5])
COUNT = torch.tensor(3)
MASK = torch.tensor([True, False])

READING: dict[str, Callable[[], object]] = {
    "item": lambda: LOSS.item(),
    "float": lambda: float(LOSS),
    "int": lambda: int(COUNT),
    "bool": lambda: bool(LOSS),
    "a condition": lambda: 1 if LOSS > 1 else 2,
    "the smaller one": lambda: min(LOSS, LOSS + 1),
    "tolist": lambda: LOSSES.tolist(),
    "cpu": lambda: LOSS.cpu(),
    "to": lambda: LOSS.to("cpu"),
    "numpy": lambda: LOSS.numpy(),
    "an array": lambda: np.asarray(LOSSES),
    "text": lambda: f"{LOSS:.3f}",
    "the whole text": lambda: repr(LOSS),
    "finite": lambda: math.isfinite(LOSS),
    "a range": lambda: range(COUNT),
    "equal": lambda: torch.equal(LOSS, LOSS),
    "member": lambda: 1.5 in LOSSES,
    "a mask": lambda: LOSSES[MASK],
    "nonzero": lambda: LOSSES.nonzero(),
    "where": lambda: torch.where(MASK),
    "a tensor of tensors": lambda: torch.tensor([LOSS, LOSS]),
    "a norm that must be finite": lambda: torch.nn.utils.get_total_norm([LOSSES], error_if_nonfinite=True),
}

NOT_READING: dict[str, Callable[[], object]] = {
    "arithmetic": lambda: (LOSS * 2 + LOSSES).mean(),
    "shape": lambda: (LOSSES.shape, LOSSES.numel(), len(LOSSES), LOSSES.dtype, LOSSES.device),
    "a place": lambda: LOSSES[0],
    "a slice": lambda: LOSSES[:1],
    "another type": lambda: LOSS.to(torch.float64),
    "the device of another tensor": lambda: LOSS.to(LOSSES.device) + LOSSES.to(device=LOSS.device),
    "a copy that nobody waits for": lambda: LOSS.to("cpu", non_blocking=True),
    "a choice": lambda: torch.where(MASK, LOSSES, -LOSSES),
    "filling": lambda: LOSSES.clone().masked_fill_(MASK, 0.0),
    "numbers": lambda: torch.tensor([1.0, 2.0]),
    "a detached copy": lambda: LOSS.detach().clone(),
}


@pytest.fixture
def bus() -> EventBus:
    """Return a bus of its own."""
    return EventBus()


@pytest.mark.parametrize("read", READING.values(), ids=READING)
def test_a_read_is_found(read: Callable[[], object], bus: EventBus) -> None:
    """With handler, event and the line of this file."""
    bus.subscribe(Tick, lambda: read(), name="reader")
    with find_device_reads(bus) as reads:
        bus.emit(Tick())
        bus.emit(Tick())
    (found,) = reads
    assert (found.handler, found.event, found.file) == ("reader", "Tick", __file__)
    assert reads.counts[found] == 2
    assert reads.handlers == ["reader"]


@pytest.mark.parametrize("work", NOT_READING.values(), ids=NOT_READING)
def test_what_needs_no_value_is_not_found(work: Callable[[], object], bus: EventBus) -> None:
    """It is only asked of the device."""
    bus.subscribe(Tick, lambda: work())
    with find_device_reads(bus) as reads:
        bus.emit(Tick())
    assert not list(reads), str(reads)


def test_the_report_shows_line_and_code(bus: EventBus) -> None:
    """So that nobody has to look for it."""

    def careless() -> None:
        LOSS.item()

    bus.subscribe(Tick, careless, name="careless")
    with find_device_reads(bus) as reads:
        assert str(reads) == "no handler read a value of a device"
        bus.emit(Tick())
    line = careless.__code__.co_firstlineno + 1
    expected = f"careless on Tick reads a value of a device (item): {__file__}:{line}: LOSS.item() [1 times]"
    assert str(reads) == expected


def test_each_handler_is_named_once_in_the_log(bus: EventBus, caplog: pytest.LogCaptureFixture) -> None:
    """However often and in however many places it reads."""
    bus.subscribe(Tick, lambda: (LOSS.item(), float(LOSS)), name="first")
    bus.subscribe(Tick, lambda: LOSSES.tolist(), name="second")
    with caplog.at_level(logging.WARNING, "hookbus"), find_device_reads(bus) as reads:
        for _ in range(3):
            bus.emit(Tick())
    assert [record.getMessage().split(" on ")[0] for record in caplog.records] == ["first", "second"]
    assert "record it in the hub" in caplog.text
    assert len(reads) == 3


def test_handlers_that_may_read_are_left_out(bus: EventBus) -> None:
    """By the pattern of their names."""
    for name in ("Logger.after_train_iter", "Logger.after_val_epoch", "other"):
        bus.subscribe(Tick, lambda: LOSS.item(), name=name)
    with find_device_reads(bus, ignore=["Logger.*"]) as reads:
        bus.emit(Tick())
    assert reads.handlers == ["other"]


def test_the_handler_that_reads_is_named_and_not_the_one_that_published(bus: EventBus) -> None:
    """An event may be published inside a handler, which may read something itself, before and after."""
    bus.subscribe(Tock, lambda: LOSS.item(), name="inner")

    def publish(n: int) -> None:
        if n:
            float(LOSS)
        bus.emit(Tock())
        if n:
            float(LOSS)

    bus.subscribe(Tick, publish, name="outer")
    with find_device_reads(bus) as reads:
        bus.emit(Tick(n=0))
        assert reads.handlers == ["inner"]
        bus.emit(Tick(n=1))
    assert reads.handlers == ["inner", "outer"]
    assert sorted(reads.counts.values()) == [1, 1, 2]


def test_nothing_is_watched_afterwards(bus: EventBus) -> None:
    """Also when the block ends with an error, and a second watch may follow."""
    bus.subscribe(Tick, lambda: LOSS.item())
    with pytest.raises(ArithmeticError), find_device_reads(bus):
        raise ArithmeticError
    with find_device_reads(bus) as reads:
        pass
    bus.emit(Tick())
    assert len(reads) == 0
    assert bus.around is None


def test_two_watches_at_once_are_refused(bus: EventBus) -> None:
    """The seam has room for one."""
    with find_device_reads(bus), pytest.raises(BusError, match="around"), find_device_reads(bus):
        pass


def test_values_in_host_memory_may_be_read_where_there_is_a_device(bus: EventBus) -> None:
    """There they cost nothing; tensors of a device are found as ever, wherever they are read."""
    far = torch.empty((), device="meta")
    bus.subscribe(Tick, lambda: LOSS.item(), name="near")
    for name, read in (
        ("item", far.item),
        ("to", lambda: far.to(torch.device("cpu"))),
        ("copy_", lambda: LOSS.clone().copy_(far)),
    ):
        bus.subscribe(Tick, lambda read=read: read(), name=name, on_error="log")
    with find_device_reads(bus, host_tensors=False) as reads:
        bus.emit(Tick())
    assert reads.handlers == [read.operation for read in reads] == ["item", "to", "copy_"]


def test_recording_in_the_hub_is_not_meant(bus: EventBus) -> None:
    """It reads a host tensor at once, and a device's when it has landed; a flush waits on purpose."""

    def log(hub: MessageHub) -> None:
        hub.update_scalar("loss", LOSS)
        hub.update_scalars({"loss": LOSS, "acc": LOSS})
        hub.flush()
        hub.get_scalar("loss").mean()

    bus.subscribe(Tick, log)
    with find_device_reads(bus) as reads:
        bus.emit(Tick())
    assert not list(reads), str(reads)


async def test_reads_of_coroutines_are_found_at_each_step(bus: EventBus) -> None:
    """After waits, too, but not those of other tasks that have their turn meanwhile."""
    go_on = anyio.Event()

    async def handler() -> None:
        await checkpoint()
        await go_on.wait()
        LOSS.item()

    async def other() -> None:
        float(LOSS)
        go_on.set()

    bus.subscribe(Tick, handler, name="handler")
    with find_device_reads(bus) as reads:
        async with bus, anyio.create_task_group() as tasks:
            tasks.start_soon(other)
            await bus.publish(Tick())
    assert [(read.handler, read.operation) for read in reads] == [("handler", "item")]


async def test_a_mode_that_a_handler_waits_in_is_left_alone() -> None:
    """`with torch.device(...)` puts a mode on the same stack as the watch."""
    kinds: list[str] = []

    async def handler() -> None:
        with torch.device("meta"):
            await checkpoint()
            kinds.append(torch.zeros(()).device.type)
            await checkpoint()
            LOSS.item()
        kinds.append(torch.zeros(()).device.type)

    runner = make_runner(train_cfg=dict(max_epochs=1))
    runner.bus.subscribe(AfterTrainIter, handler, name="handler", once=True)
    with find_device_reads(runner.bus) as reads:
        await runner.train_async()
    assert reads.handlers == ["handler"]
    assert kinds == ["meta", "cpu"]
    assert torch.zeros(()).device.type == "cpu"


class Careful(Hook):
    """Records what it wants to know."""

    def after_train_iter(self, hub: MessageHub, outputs: dict[str, Any]) -> None:
        """Record."""
        hub.update_scalar("twice", 2 * outputs["loss"])


class Careless(Hook):
    """Looks at the loss in each iteration."""

    def after_train_iter(self, outputs: dict[str, Any]) -> None:
        """Look."""
        if outputs["loss"] > 1000:
            raise ArithmeticError


def test_the_default_hooks_read_nothing_by_accident() -> None:
    """A whole training, validation and test, with log lines and checkpoints; a careless hook among them is named."""
    runner = make_runner(custom_hooks=[Careful(), Careless()], default_hooks=dict(logger=dict(interval=2)))
    with find_device_reads(runner.bus) as reads:
        runner.train()
        runner.test()
    assert reads.handlers == ["Careless.after_train_iter"]
