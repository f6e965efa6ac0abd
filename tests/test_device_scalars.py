"""Values on their way from a device: taken at their step, sent in batches, in order, and never waited for when recorded.

CPU tensors stand for those of a device where the way is tested, tensors without storage where somebody might read one.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import hookbus._scalars
from hookbus._scalars import SEND_AFTER_SECONDS, SEND_AFTER_UPDATES, SMALLEST_BUFFER, DeviceScalars, on_device
from hookbus.bus import EventBus
from hookbus.errors import ConfigError
from hookbus.hub import MessageHub
from tests.bus.ticks import Tick
from tests.streams import FakeAccelerator, FakeStream


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        """Return the time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Put a clock that stands still in the place of the machine's."""
    clock = Clock()
    monkeypatch.setattr(hookbus._scalars, "time", clock)
    return clock


class FakeEvent:
    """An event of a device that arrives when a test says so."""

    everything_arrived = True

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.waited = False
        self.recorded_on: list[Any] = []

    def record(self, stream: Any = None) -> None:
        """Remember on which stream."""
        self.recorded_on.append(stream)

    def query(self) -> bool:
        """Return whether the device has got so far."""
        return FakeEvent.everything_arrived

    def synchronize(self) -> None:
        """Remember that somebody waited."""
        self.waited = True


@pytest.fixture
def slow_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeEvent]]:
    """Have transfers arrive only when the test says so, or when they are waited for."""
    monkeypatch.setattr(torch, "Event", FakeEvent)
    FakeEvent.everything_arrived = False
    yield FakeEvent
    FakeEvent.everything_arrived = True


class NoReading(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Fails whatever reads a value out of a tensor, and so would have to wait for a device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default, "a value was read"
        assert func is not torch.ops.aten.equal.default, "a value was read"
        return func(*args, **(kwargs or {}))


def no_reading() -> NoReading:
    """Return the guard."""
    return NoReading()  # type: ignore[no-untyped-call]


@contextmanager
def live(hub: MessageHub) -> Iterator[MessageHub]:
    """Make the calling thread the training thread of a run."""
    hub.begin_run(threading.get_ident())
    try:
        yield hub
    finally:
        hub.end_run()


def slots_in_flight(scalars: DeviceScalars) -> list[Any]:
    """Return the buffers of the transfers that have not been read, with their events."""
    return [transfer._slot for batch in scalars._in_flight for _, transfer in batch.transfers]


def land_all(scalars: DeviceScalars) -> list[tuple[str, float, int, int]]:
    """Send and land everything."""
    scalars.send()
    return scalars.land(wait=True)


@pytest.fixture
def device_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the hub take CPU tensors for those of a device."""
    monkeypatch.setattr("hookbus.hub.on_device", lambda value: isinstance(value, torch.Tensor))


# --- the way to the host ----------------------------------------------------------------------------------------------


def test_a_tensor_is_on_a_device_unless_the_host_can_read_it() -> None:
    """Numbers and arrays are not tensors at all."""
    assert on_device(torch.empty((), device="meta"))
    assert not any(on_device(value) for value in (torch.zeros(()), 1.0, 1, True, None, "text"))


def test_values_land_with_key_count_and_step_in_the_order_of_recording() -> None:
    """Whatever their kind and shape, as exact as a float can be."""
    scalars = DeviceScalars()
    recorded: list[tuple[str, torch.Tensor, int, int]] = [
        ("loss", torch.tensor(0.1, dtype=torch.float64), 1, 0),
        ("acc", torch.tensor([[3]]), 2, 0),
        ("loss", torch.tensor(0.5, dtype=torch.bfloat16), 4, 1),
        ("found", torch.tensor([True]), 1, 1),
        ("loss", torch.tensor(math.inf), 1, 2),
        ("count", torch.tensor(2**53), 1, 2),
    ]
    for key, value, count, step in recorded:
        scalars.add(key, value, count, step)
    assert land_all(scalars) == [(key, float(value), count, step) for key, value, count, step in recorded]
    assert not scalars
    assert scalars.land(wait=True) == []


def test_a_value_is_the_one_of_its_step() -> None:
    """Although the tensor is reused: changed in place, part of a larger one, or still attached to a graph."""
    scalars = DeviceScalars()
    loss = torch.zeros(3)
    weight = torch.tensor(2.0, requires_grad=True)
    for step in range(5):
        loss[1] = step
        scalars.add("loss", loss[1], 1, step)
        scalars.add("weight", weight, 1, step)
        with torch.no_grad():
            weight += 1
    loss.fill_(-1)
    landed = land_all(scalars)
    assert [value for key, value, *_ in landed if key == "loss"] == [0, 1, 2, 3, 4]
    assert [value for key, value, *_ in landed if key == "weight"] == [2, 3, 4, 5, 6]


def test_nan_lands_as_nan() -> None:
    """A diverged loss must be seen."""
    scalars = DeviceScalars()
    scalars.add("loss", torch.tensor(math.nan), 1, 0)
    assert math.isnan(land_all(scalars)[0][1])


def test_a_device_without_events_is_waited_for() -> None:
    """Its copies are complete when they return, so they have landed as soon as they are sent."""
    scalars = DeviceScalars()
    scalars.add("loss", torch.tensor(1.0), 1, 0)
    scalars.send()
    assert scalars.land() == [("loss", 1.0, 1, 0)]


def test_only_tensors_of_one_element_are_taken() -> None:
    """The error names key and shape; nothing is gathered."""
    scalars = DeviceScalars()
    with pytest.raises(ConfigError, match=r"'loss' must be recorded as a number .* got Tensor of shape \(2, 1\)"):
        scalars.add("loss", torch.zeros(2, 1), 1, 0)
    assert not scalars


def test_a_batch_is_due_after_so_many_iterations_or_so_much_time(clock: Clock) -> None:
    """However many values an iteration records."""
    scalars = DeviceScalars()
    assert not scalars.is_due()
    for step in range(SEND_AFTER_UPDATES):
        for key in "abc":
            scalars.add(key, torch.tensor(1.0), 1, step)
        assert not scalars.is_due()
    scalars.add("a", torch.tensor(1.0), 1, SEND_AFTER_UPDATES)
    assert scalars.is_due()
    scalars.send()
    assert not scalars.is_due()

    clock.now += 10 * SEND_AFTER_SECONDS
    assert not scalars.is_due()
    scalars.add("a", torch.tensor(1.0), 1, 20)
    clock.now += SEND_AFTER_SECONDS / 2
    scalars.add("a", torch.tensor(1.0), 1, 20)
    assert not scalars.is_due()
    clock.now += SEND_AFTER_SECONDS / 2 + 1e-9
    assert scalars.is_due()


def test_what_has_not_arrived_is_left_in_order(slow_device: type[FakeEvent]) -> None:
    """A look takes what is there and does not wait; a later batch never overtakes an earlier one."""
    scalars = DeviceScalars()
    for step in range(3):
        scalars.add("loss", torch.tensor(float(step)), 1, step)
        scalars.send()
        assert scalars.land() == []
    assert scalars
    assert not any(slot.arrival.waited for slot in slots_in_flight(scalars))
    slow_device.everything_arrived = True
    assert [value for _, value, *_ in scalars.land()] == [0, 1, 2]
    assert not scalars


def test_waiting_takes_what_is_under_way_but_not_what_was_not_sent(slow_device: type[FakeEvent]) -> None:
    """So whoever needs everything sends first."""
    scalars = DeviceScalars()
    scalars.add("loss", torch.tensor(1.0), 1, 0)
    scalars.send()
    scalars.add("loss", torch.tensor(2.0), 1, 1)
    assert scalars.land(wait=True) == [("loss", 1.0, 1, 0)]
    assert scalars
    assert land_all(scalars) == [("loss", 2.0, 1, 1)]


def test_values_of_several_devices_land_in_one_order() -> None:
    """A model may be spread over devices, so loss and gradient norm come from different ones."""

    class Elsewhere(torch.Tensor):
        """A tensor that says it lies on another device."""

        @property
        def device(self) -> torch.device:  # type: ignore[override]
            return torch.device("meta")

    scalars = DeviceScalars()
    for step in range(3):
        scalars.add("loss", torch.tensor(float(step)), 1, step)
        scalars.add("grad_norm", torch.tensor(10.0 + step).as_subclass(Elsewhere), 1, step)
    scalars.send()
    assert len(scalars._in_flight[0].transfers) == 2
    landed = scalars.land(wait=True)
    assert [(key, value) for key, value, *_ in landed] == [
        (key, value + step) for step in range(3) for key, value in (("loss", 0.0), ("grad_norm", 10.0))
    ]


def test_the_default_device_does_not_decide_where_values_land() -> None:
    """Users commonly set one so that models are made there."""
    scalars = DeviceScalars()
    scalars.add("loss", torch.tensor(1.0), 1, 0)
    with torch.device("meta"):
        assert land_all(scalars) == [("loss", 1.0, 1, 0)]


def test_a_transfer_that_fails_fails_once() -> None:
    """The error is raised where the batch is sent; what is recorded later is sent as ever."""
    scalars = DeviceScalars()
    scalars.add("loss", torch.empty((), device="meta"), 1, 0)
    with pytest.raises(NotImplementedError):
        scalars.send()
    assert not scalars
    scalars.add("loss", torch.tensor(2.0), 1, 1)
    assert land_all(scalars) == [("loss", 2.0, 1, 1)]


# --- the ring of buffers ----------------------------------------------------------------------------------------------


def send_values(scalars: DeviceScalars, *values: float) -> Any:
    """Record and send values; return the buffer they are on their way to."""
    for value in values:
        scalars.add("loss", torch.tensor(value), 1, 0)
    scalars.send()
    return slots_in_flight(scalars)[-1]


def test_a_buffer_is_used_again_once_its_values_have_been_read() -> None:
    """However many batches a run sends, of whatever sizes: it allocates one buffer, and makes one event."""
    scalars = DeviceScalars()
    slots = set()
    for number in range(50):
        values = [float(number)] * (1 + number % SMALLEST_BUFFER)
        slots.add(send_values(scalars, *values))
        assert [value for _, value, *_ in scalars.land()] == values
    assert len(slots) == 1


def test_the_ring_grows_while_all_its_buffers_are_under_way_and_no_further(slow_device: type[FakeEvent]) -> None:
    """A buffer that the device may still write to is never given out again; afterwards the same ones go round."""
    scalars = DeviceScalars()
    under_way = [send_values(scalars, float(number)) for number in range(5)]
    assert len(set(map(id, under_way))) == 5
    slow_device.everything_arrived = True
    assert [value for _, value, *_ in scalars.land()] == [0, 1, 2, 3, 4]
    slow_device.everything_arrived = False
    again = [send_values(scalars, float(number)) for number in range(5)]
    assert again == under_way
    assert [value for _, value, *_ in scalars.land(wait=True)] == [0, 1, 2, 3, 4]


def test_a_batch_that_no_buffer_holds_gets_a_larger_one_instead() -> None:
    """The smaller one goes; sizes are powers of two, so that batches which grow a little do not each need a new one."""
    scalars = DeviceScalars()
    many = [float(number) for number in range(3 * SMALLEST_BUFFER)]
    small = send_values(scalars, 1.0)
    scalars.land()
    large = send_values(scalars, *many)
    assert [value for _, value, *_ in scalars.land()] == many
    assert (len(small.buffer), len(large.buffer)) == (SMALLEST_BUFFER, 4 * SMALLEST_BUFFER)
    assert send_values(scalars, *many, 1.0) is large


def test_values_read_while_a_buffer_goes_round_are_those_of_their_batch(slow_device: type[FakeEvent]) -> None:
    """What was read stays as it was when the buffer is written to once more."""
    scalars = DeviceScalars()
    read = []
    for number in range(10):
        send_values(scalars, float(number))
        if number % 3 == 2:
            read += scalars.land(wait=True)
    read += scalars.land(wait=True)
    assert [value for _, value, *_ in read] == [float(number) for number in range(10)]


def test_a_send_is_one_transfer_for_each_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many values it brings over."""
    copies: list[int] = []
    copy = torch.Tensor.copy_

    def counted(self: torch.Tensor, source: torch.Tensor, *options: Any, **more: Any) -> torch.Tensor:
        copies.append(source.numel())
        return copy(self, source, *options, **more)

    monkeypatch.setattr(torch.Tensor, "copy_", counted)
    scalars = DeviceScalars()
    send_values(scalars, *map(float, range(30)))
    assert copies == [30]


def test_a_buffer_made_in_inference_mode_serves_outside_it() -> None:
    """A validation may be the first to record something."""
    scalars = DeviceScalars()
    with torch.inference_mode():
        first = send_values(scalars, 1.0)
    assert scalars.land()[0][1] == 1.0
    assert send_values(scalars, 2.0) is first
    assert scalars.land()[0][1] == 2.0


def test_copies_made_on_other_streams_come_before_the_transfer(
    monkeypatch: pytest.MonkeyPatch, slow_device: type[FakeEvent]
) -> None:
    """A thread with a stream of its own recorded them; the event belongs to the stream of the transfer."""
    waited: list[tuple[str, str]] = []

    class Stream(FakeStream):
        def wait_stream(self, other: FakeStream) -> None:
            waited.append((self.name, other.name))

    accelerator = FakeAccelerator().install(monkeypatch)
    monkeypatch.setattr(hookbus._scalars, "_current_stream", accelerator.current_stream)
    main, other = Stream("main"), Stream("other")
    scalars = DeviceScalars()
    for stream in (main, other, main, other):
        accelerator.set_stream(stream)
        scalars.add("loss", torch.tensor(1.0), 1, 0)
    accelerator.set_stream(main)
    scalars.send()
    assert waited == [("main", "other")]
    (slot,) = slots_in_flight(scalars)
    assert set(slot.arrival.recorded_on) == {main}
    assert len(scalars.land(wait=True)) == 4


# --- many threads -----------------------------------------------------------------------------------------------------


def test_many_threads_may_record_while_one_sends() -> None:
    """No value is lost, doubled, or given to another key."""
    scalars = DeviceScalars()
    each, threads = 300, 4

    def record(number: int) -> None:
        for step in range(each):
            scalars.add(f"of {number}", torch.tensor(float(step)), 1, step)

    running = [threading.Thread(target=record, args=(number,)) for number in range(threads)]
    landed = []
    for thread in running:
        thread.start()
    while any(thread.is_alive() for thread in running):
        landed += land_all(scalars)
    landed += land_all(scalars)
    for number in range(threads):
        assert [(value, step) for key, value, _, step in landed if key == f"of {number}"] == [(s, s) for s in range(each)]


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_recording_never_reads_a_value_of_a_device() -> None:
    """Through all ways of recording, and through commits, until somebody asks for it."""
    unreadable = torch.empty((), device="meta")
    hub = MessageHub()
    hub.begin_run(threading.get_ident())
    with no_reading():
        hub.update_scalar("loss", unreadable)
        hub.update_scalar("loss", unreadable.reshape(1, 1), count=3)
        hub.update_scalars({"loss": unreadable, "lr": 0.1})
        with hub.update():
            hub.update_scalar("loss", unreadable)
        hub.commit()
        assert hub.snapshot().scalars == {"lr": 0.1}
        with pytest.raises(AssertionError, match="a value was read"):  # the guard does its work
            hub.update_scalar("loss", torch.tensor(1.0))
    with pytest.raises(NotImplementedError):
        hub.end_run()  # these values cannot be brought over


@pytest.mark.usefixtures("device_everywhere")
def test_recording_and_sending_read_nothing(slow_device: type[FakeEvent]) -> None:
    """Also when batches are due, as long as they have not arrived."""
    with live(MessageHub()) as hub:
        with no_reading():
            for hub.step in range(100):
                hub.update_scalars({"loss": torch.tensor(float(hub.step)), "lr": 0.1})
                hub.commit()
            assert hub.snapshot().scalars == {"lr": 0.1}
        slow_device.everything_arrived = True
        hub.commit()
        assert len(hub.get_scalar("loss")) > 100 - 2 * SEND_AFTER_UPDATES


@pytest.mark.usefixtures("device_everywhere")
def test_a_handler_that_reads_sees_what_has_landed(slow_device: type[FakeEvent], clock: Clock) -> None:
    """Every publish looks whether something arrived, until everything has; a flush waits for all of it."""
    with live(MessageHub()) as hub:
        bus = EventBus(hub=hub)
        bus.subscribe(Tick, lambda: None)
        hub.update_scalar("loss", torch.tensor(1.0))
        bus.emit(Tick())
        assert (hub.dirty, hub.log_scalars) == (True, {})
        clock.now += 2 * SEND_AFTER_SECONDS
        bus.emit(Tick())
        assert (hub.dirty, hub.log_scalars) == (True, {})
        slow_device.everything_arrived = True
        bus.emit(Tick())
        assert (hub.dirty, hub.snapshot().scalars) == (False, {"loss": 1.0})
        slow_device.everything_arrived = False
        hub.update_scalar("loss", torch.tensor(2.0))
        hub.flush()
        assert (hub.dirty, hub.snapshot().scalars) == (False, {"loss": 2.0})


@pytest.mark.usefixtures("device_everywhere", "slow_device")
def test_the_end_of_a_run_waits_for_the_device() -> None:
    """What was recorded last is in the history that remains, recorded by whatever thread."""
    with live(MessageHub()) as hub:
        for hub.step in range(40):
            hub.update_scalar("loss", torch.tensor(float(hub.step)), count=2)
            hub.commit()
        thread = threading.Thread(target=hub.update_scalar, args=("other", torch.tensor(5.0)))
        thread.start()
        thread.join()
        assert hub.dirty
    assert hub.get_scalar("loss").newest() == ([float(step) for step in range(40)], [2] * 40, list(range(40)))
    assert hub.get_scalar("other").current() == 5.0
    assert not hub.dirty


def test_a_broken_device_does_not_keep_a_run_from_ending() -> None:
    """The error is raised, the rest is committed, waiters are told, and the name is free again."""
    hub = MessageHub("broken")
    hub.begin_run(threading.get_ident())
    hub.update_info("a", 1)
    hub.update_scalar("loss", torch.empty((), device="meta"))
    with pytest.raises(NotImplementedError):
        hub.end_run()
    assert hub.ended
    assert hub.runtime_info == {"a": 1}
    with live(MessageHub("broken")) as again:
        assert MessageHub.get_current_instance() is again
    hub.update_info("b", 2)
    assert hub.get_info("b") == 2
