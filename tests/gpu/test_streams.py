"""Kernels of the loop, of inline and awaited handlers and of functions handed over run in the order of the plan."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from anyio.lowlevel import checkpoint

from hookbus.device import MainStream
from hookbus.events import AfterTrainIter
from hookbus.runner import Runner
from tests.gpu.places import CUDA, PLACES, Place
from tests.runner.builders import make_runner
from tests.test_main_stream import NeverSet

ITERATIONS = 6


class Chain:
    """A number on the device that several handlers change in turn; in another order it comes out different."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._number = torch.zeros((), dtype=torch.float64, device=place.device)
        self.streams: set[object] = set()
        self.seen: list[torch.Tensor] = []

    def subscribe(self, runner: Runner) -> None:
        """Have every lane work on the number."""
        runner.bus.subscribe(AfterTrainIter, self.begin, priority="HIGH")
        runner.bus.subscribe(AfterTrainIter, self.go_on)
        runner.bus.subscribe(AfterTrainIter, self.end, priority="LOW")

    def begin(self) -> None:
        """Add one, late."""
        self._place.spin()
        self._number.add_(1)
        self._note()

    async def go_on(self, runner: Runner) -> None:
        """Treble, wait, subtract one late, and have the training thread double."""
        self._number.mul_(3)
        self._note()
        await checkpoint()
        self._place.spin()
        self._number.sub_(1)
        self._note()
        await runner.run_on_main_stream(self._double)

    def end(self) -> None:
        """Add five, and keep what it is."""
        self._number.add_(5)
        self._note()
        self.seen.append(self._number.clone())

    def _double(self) -> None:
        self._place.spin()
        self._number.mul_(2)
        self._note()

    def _note(self) -> None:
        self.streams.add(self._place.current_stream())

    def check(self, main_stream: object) -> None:
        """Fail unless everything ran in order, on one stream."""
        expected = [0.0]
        for _ in range(ITERATIONS):
            expected.append(((expected[-1] + 1) * 3 - 1) * 2 + 5)
        assert self.streams == {main_stream}
        assert [number.item() for number in self.seen] == expected[1:]


def make(place: Place, work_dir: Path) -> tuple[Runner, Chain]:
    """Return a runner on a device whose handlers work on a chain."""
    runner = make_runner(work_dir, device=place.device, val_dataloader=None, default_hooks=dict(checkpoint=None))
    chain = Chain(place)
    chain.subscribe(runner)
    return runner, chain


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("is_chosen", [False, True], ids=["default stream", "chosen stream"])
def test_kernels_of_all_lanes_run_in_order(place: Place, is_chosen: bool, tmp_path: Path) -> None:
    """In a script, whose handlers are awaited on the thread of another loop."""
    runner, chain = make(place, tmp_path)
    if is_chosen:
        with place.on_chosen_stream() as stream:
            runner.train()
            assert place.current_stream() == stream
    else:
        stream = place.current_stream()
        runner.train()
    chain.check(stream)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("is_chosen", [False, True], ids=["default stream", "chosen stream"])
async def test_kernels_run_in_order_in_a_service(place: Place, is_chosen: bool, tmp_path: Path) -> None:
    """The training thread is on the stream of the task that began the run, and so are the handlers on the loop's thread."""
    runner, chain = make(place, tmp_path)
    if is_chosen:
        with place.on_chosen_stream() as stream:
            await runner.train_async()
    else:
        stream = place.current_stream()
        await runner.train_async()
    chain.check(stream)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device, and the CPU has but one stream")
def test_work_off_the_main_stream_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above can fail: a broken twin leaves awaited handlers on the loop's own stream."""
    monkeypatch.setattr(MainStream, "drive", NeverSet.drive)
    runner, chain = make(CUDA, tmp_path)
    with CUDA.on_chosen_stream() as stream:
        runner.train()
    with pytest.raises(AssertionError):
        chain.check(stream)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices")
def test_a_run_on_the_second_device_leaves_the_first_alone(tmp_path: Path) -> None:
    """Device and stream are those of the caller, in awaited handlers, too."""
    devices: set[int] = set()
    runner = make_runner(tmp_path, device="cuda:1", val_dataloader=None, default_hooks=dict(checkpoint=None))

    async def note() -> None:
        devices.add(torch.cuda.current_device())
        await checkpoint()
        devices.add(torch.cuda.current_device())

    runner.bus.subscribe(AfterTrainIter, note)
    with torch.cuda.device(1):
        runner.train()
    assert devices == {1}
    assert torch.cuda.current_device() == 0
