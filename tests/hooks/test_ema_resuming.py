"""A run that averages and is resumed is the run that was never interrupted, bit for bit, wherever it was cut."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from hookbus.events import AfterLoadCheckpoint
from hookbus.hooks import EMAHook
from hookbus.runner import Runner
from tests.checkpoint.builders import assert_same
from tests.parameters import slow_unless
from tests.runner.learners import ITERATIONS, Fickle, final_state, make_learner, train_until

LAST = {True: "epoch_3", False: f"iter_{ITERATIONS}"}
KINDS: dict[str, dict[str, Any]] = {
    "moving": dict(momentum=0.3, update_buffers=True),
    "mean": dict(ema_type="StochasticWeightAverage", interval=2),
    "late": dict(ema_type="MomentumAnnealingEMA", gamma=2, begin_iter=6),
}
CUTS = [(cut, kind) for cut in range(1, ITERATIONS) for kind in [list(KINDS)[cut % 3]]]


def make(work_dir: Path, kind: str, *, by_epoch: bool = True, async_save: bool = False, **changes: Any) -> Runner:
    """Return a learner that averages; its last group of micro-batches is shorter than the others."""
    checkpoint = dict(save_best="loss", by_epoch=by_epoch, interval=1 if by_epoch else 4, async_save=async_save)
    options: dict[str, Any] = {
        "custom_hooks": [Fickle(), EMAHook(**KINDS[kind])],
        "default_hooks": dict(checkpoint=checkpoint, logger=None),
        "optim_wrapper": dict(accumulative_counts=2),
    }
    return make_learner(work_dir, by_epoch=by_epoch, **options | changes)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that gives the final state of a run that was never interrupted, made once for each kind."""

    @cache
    def state_of(kind: str, by_epoch: bool) -> dict[str, Any]:
        work_dir = tmp_path_factory.mktemp("straight")
        make(work_dir, kind, by_epoch=by_epoch).train()
        return final_state(work_dir, LAST[by_epoch])

    return state_of


@pytest.mark.parametrize("by_epoch", [True, False], ids=["by epochs", "by iterations"])
@pytest.mark.parametrize(("cut", "kind"), slow_unless(lambda cut, kind: cut in (4, 5, 6), CUTS))
def test_a_run_that_averages_goes_on_exactly(cut: int, kind: str, by_epoch: bool, straight: Any, tmp_path: Path) -> None:
    """In the middle of a group, before averaging begins, before a validation: weights, average, metrics and all the rest."""
    train_until(make(tmp_path, kind, by_epoch=by_epoch, async_save=cut % 2 == 0), cut)
    torch.manual_seed(99)
    make(tmp_path, kind, by_epoch=by_epoch, resume=True).train()
    assert_same(final_state(tmp_path, LAST[by_epoch]), straight(kind, by_epoch))


def forget_average(checkpoint: dict[str, Any]) -> None:
    """Leave the average out."""
    del checkpoint["averaged"]


def forget_steps(checkpoint: dict[str, Any]) -> None:
    """Begin to count anew."""
    checkpoint["hooks"]["EMAHook"]["steps"] = 1


def exchange(checkpoint: dict[str, Any]) -> None:
    """Take one for the other."""
    checkpoint["averaged"] = dict(checkpoint["state_dict"])


@pytest.mark.parametrize("forget", [forget_average, forget_steps, exchange])
def test_leaving_out_a_part_of_the_average_shows(forget: Any, straight: Any, tmp_path: Path) -> None:
    """The comparison above is worth something."""
    train_until(make(tmp_path, "mean"), 7)
    runner = make(tmp_path, "mean", resume=True)
    runner.bus.subscribe(AfterLoadCheckpoint, forget, priority="HIGHEST")
    runner.train()
    with pytest.raises(AssertionError):
        assert_same(final_state(tmp_path, "epoch_3"), straight("mean", True))
