"""Between two log lines nothing waits for the device, and what is recorded comes over all the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from hookbus.events import AfterTrainIter, BeforeTrainIter
from hookbus.runner import Runner
from tests.gpu.places import CUDA, PLACES, Place
from tests.runner.builders import make_loader, make_model, make_runner

ITERATIONS, INTERVAL = 60, 20


def make_long(place: Place, work_dir: Path, **changes: Any) -> Runner:
    """Return a runner of one epoch with the six default hooks, which logs three lines."""
    loader = make_loader(4 * ITERATIONS, pin_memory=place is CUDA)
    return make_runner(
        work_dir,
        **dict(
            device=place.device,
            train_dataloader=loader,
            val_dataloader=None,
            train_cfg=dict(max_epochs=1),
            default_hooks=dict(logger=dict(interval=INTERVAL)),
        )
        | changes,
    )


@contextmanager
def guard(runner: Runner, place: Place) -> Iterator[list[int]]:
    """Forbid synchronisations from behind the first log line up to the second; give the iterations, as they come."""
    iterations: list[int] = []
    with ExitStack() as window:
        bus = runner.bus
        bus.subscribe(AfterTrainIter, lambda iter: iterations.append(iter), priority="HIGHEST")
        bus.subscribe(
            BeforeTrainIter,
            lambda: window.enter_context(place.without_syncs()),
            priority="HIGHEST",
            when=lambda event: event.iter == INTERVAL,
        )
        bus.subscribe(
            AfterTrainIter,
            window.close,
            priority=59,  # LoggerHook, at 60, waits on purpose
            when=lambda event: event.iter == 2 * INTERVAL - 1,
        )
        yield iterations


WAYS: dict[str, Callable[[], dict[str, Any]]] = {
    "plain": dict,
    "clipped gradients": lambda: dict(optim_wrapper=dict(clip_grad=dict(max_norm=1.0))),
    "accumulation": lambda: dict(optim_wrapper=dict(accumulative_counts=4)),
    "bfloat16": lambda: dict(optim_wrapper=dict(dtype="bfloat16")),
    "schedules": lambda: dict(param_scheduler=dict(type="CosineAnnealingLR", T_max=60, by_epoch=False)),
    "by iterations": lambda: dict(train_cfg=dict(by_epoch=False, max_iters=ITERATIONS)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_nothing_waits_for_the_device_between_two_log_lines(
    place: Place, way: Callable[[], dict[str, Any]], tmp_path: Path
) -> None:
    """Loading, the step, six default hooks, and recording."""
    with place.with_device_scalars():
        runner = make_long(place, tmp_path, **way())
        with guard(runner, place) as guarded:
            runner.train()
    assert guarded == list(range(ITERATIONS))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device, and on the CPU AdamW reads its own steps")
def test_adamw_waits_for_nothing_either(tmp_path: Path) -> None:
    """Its steps are counted on the host."""
    model = make_model()
    runner = make_long(CUDA, tmp_path, model=model, optimizer=torch.optim.AdamW(model.parameters(), lr=0.01))
    with guard(runner, CUDA) as guarded:
        runner.train()
    assert guarded == list(range(ITERATIONS))


@pytest.mark.parametrize("place", PLACES)
def test_a_hook_that_waits_is_found_out(place: Place, tmp_path: Path) -> None:
    """The guard does its work."""
    with place.with_device_scalars():
        runner = make_long(place, tmp_path)
        runner.bus.subscribe(AfterTrainIter, lambda outputs: outputs["loss"].item(), priority=50)
        with pytest.raises((RuntimeError, AssertionError), match=r"synchronizing|a value was read"), guard(runner, place):
            runner.train()


@pytest.mark.parametrize("place", PLACES)
def test_recorded_losses_come_over_as_they_were(place: Place, tmp_path: Path) -> None:
    """Each under its step, although the device may be behind; the buffers are pinned, and go round."""
    losses: list[torch.Tensor] = []
    with place.with_device_scalars():
        runner = make_long(place, tmp_path)
        runner.bus.subscribe(AfterTrainIter, lambda outputs: losses.append(outputs["loss"].clone()))
        runner.bus.subscribe(BeforeTrainIter, place.spin, every=10)
        runner.train()
    history = runner.message_hub.get_scalar("train/loss")
    assert history.newest()[0] == [loss.item() for loss in losses]
    (ring,) = runner.message_hub._on_device._rings.values()
    assert {slot.buffer.is_pinned() for slot in ring._free} == {place is CUDA}
    assert len(ring._free) < ITERATIONS // 8
