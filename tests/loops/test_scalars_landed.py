"""`ScalarsLanded`: recorded values with the iterations that they belong to, for those who observe from the background."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hookbus import MessageHub
from hookbus.bus import EventBus
from hookbus.events import AfterTrain, AfterTrainIter, AfterValIter, BeforeTrainIter, Event, ScalarsLanded
from tests.runner.builders import make_runner

STEPS = 6
"""Of the small run: two epochs of three batches."""


def record_later(bus: EventBus) -> list[ScalarsLanded]:
    """Return a list that fills from the background."""
    seen: list[ScalarsLanded] = []
    bus.subscribe(ScalarsLanded, lambda event: seen.append(event), background=True)
    return seen


def values(seen: list[ScalarsLanded], key: str) -> dict[int, float | None]:
    """Return the values of one key by their iterations; each iteration may come once."""
    found: dict[int, float | None] = {}
    for event in seen:
        for iteration, value in zip(event.iters, event.scalars.get(key, []), strict=key in event.scalars):
            if value is not None:
                assert iteration not in found
                found[iteration] = value
    return found


def test_on_the_cpu_it_comes_once_for_each_iteration(tmp_path: Path) -> None:
    """With the loss of that iteration, counted from 1, as the history has it."""
    runner = make_runner(tmp_path, val_dataloader=None)
    seen = record_later(runner.bus)
    runner.train()
    history = runner.message_hub.get_scalar("train/loss")
    assert [event.iters for event in seen if "train/loss" in event.scalars] == [[n] for n in range(1, STEPS + 1)]
    assert list(values(seen, "train/loss").values()) == list(history.data[0])


def test_every_key_has_a_value_or_none_for_every_iteration(tmp_path: Path) -> None:
    """Rows and columns are as long as each other, whatever is recorded when."""
    runner = make_runner(tmp_path, val_dataloader=None)

    def records(iter: int, hub: MessageHub) -> None:
        hub.update_scalar("always", iter)
        if iter % 2:
            hub.update_scalars({"odd": 10.0 * iter, "odd/twice": torch.tensor(20.0 * iter)})

    runner.bus.subscribe(AfterTrainIter, records)
    seen = record_later(runner.bus)
    runner.train()
    for event in seen:
        assert {len(column) for column in event.scalars.values()} == {len(event.iters)}
        assert event.iters == sorted(set(event.iters))
    assert values(seen, "always") == {n + 1: n for n in range(STEPS)}
    assert values(seen, "odd") == {n + 1: 10 * n for n in range(STEPS) if n % 2}
    assert values(seen, "odd/twice") == {n + 1: 20 * n for n in range(STEPS) if n % 2}


def test_values_that_are_no_numbers_arrive_as_they_are(tmp_path: Path) -> None:
    """NaN and infinities are what an observer wants to see most."""
    runner = make_runner(tmp_path, val_dataloader=None)
    strange = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e300]
    tensors = torch.tensor(strange, dtype=torch.float64)
    runner.bus.subscribe(AfterTrainIter, lambda iter, hub: hub.update_scalar("strange", tensors[iter]))
    seen = record_later(runner.bus)
    runner.train()
    assert repr(list(values(seen, "strange").values())) == repr(strange)


def test_the_value_is_that_of_its_step_although_the_tensor_goes_on(tmp_path: Path) -> None:
    """A tensor that the loop writes again reads as of the moment when it was recorded."""
    runner = make_runner(tmp_path, val_dataloader=None)
    running = torch.zeros(())

    def records(iter: int, hub: MessageHub) -> None:
        running.fill_(iter)
        hub.update_scalar("running", running)
        running.fill_(-1)

    runner.bus.subscribe(AfterTrainIter, records)
    seen = record_later(runner.bus)
    runner.train()
    assert list(values(seen, "running").values()) == list(range(STEPS))


def test_what_is_recorded_anywhere_in_a_step_belongs_to_it(tmp_path: Path) -> None:
    """Before it, after it, and behind the last one."""
    runner = make_runner(tmp_path, val_dataloader=None)
    runner.bus.subscribe(BeforeTrainIter, lambda iter, hub: hub.update_scalar("before", iter))
    runner.bus.subscribe(AfterTrain, lambda hub: hub.update_scalar("at the end", 7.0))
    seen = record_later(runner.bus)
    runner.train()
    assert values(seen, "before") == {n + 1: n for n in range(STEPS)}


def test_validation_does_not_disturb_the_steps(tmp_path: Path) -> None:
    """What it records belongs to the iteration behind which it runs."""
    runner = make_runner(tmp_path)
    runner.bus.subscribe(AfterValIter, lambda batch_idx, iter, hub: hub.update_scalar(f"val/{batch_idx}", iter))
    seen = record_later(runner.bus)
    runner.train()
    assert sorted(values(seen, "train/loss")) == list(range(1, STEPS + 1))
    assert set(values(seen, "val/0")) <= {3, 6}


def test_a_second_training_tells_only_its_own(tmp_path: Path) -> None:
    """What was recorded before is not news, also where nobody listened then."""
    runner = make_runner(tmp_path, val_dataloader=None, train_cfg=dict(by_epoch=False, max_iters=4))
    runner.train()
    again = make_runner(
        tmp_path,
        val_dataloader=None,
        train_cfg=dict(by_epoch=False, max_iters=9),
        experiment_name=runner.experiment_name,
        resume=True,
    )
    seen = record_later(again.bus)
    again.train()
    assert sorted(values(seen, "train/loss")) == [5, 6, 7, 8, 9]


def test_nobody_pays_where_nobody_listens(tmp_path: Path) -> None:
    """The event is not even made; who comes in the middle hears from then on."""
    runner = make_runner(tmp_path, val_dataloader=None)
    seen: list[ScalarsLanded] = []

    def come(iter: int) -> None:
        if iter == 3:
            runner.bus.subscribe(ScalarsLanded, lambda event: seen.append(event), background=True)

    runner.bus.subscribe(AfterTrainIter, come)
    runner.train()
    assert set(range(5, STEPS + 1)) <= set(values(seen, "train/loss")) <= set(range(1, STEPS + 1))


@pytest.mark.parametrize("background", [False, True])
async def test_it_can_be_heard_in_every_lane_and_streamed(background: bool, tmp_path: Path) -> None:
    """Coroutine functions, awaited or not, and a reader beside the run."""
    runner = make_runner(tmp_path, val_dataloader=None)
    seen: list[Any] = []

    async def observes(event: Event) -> None:
        seen.append(event)

    runner.bus.subscribe(ScalarsLanded, observes, background=background)
    async with runner.bus.stream(ScalarsLanded) as events:
        await runner.train_async()
        pulled = [event async for event in events]
    assert pulled == seen
    assert sorted(values(pulled, "train/loss")) == list(range(1, STEPS + 1))
