"""A validation that is stopped leaves no trace: the run that goes on is the one that was never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hookbus.events import AfterValEpoch, AfterValIter
from hookbus.runner import Runner
from tests.checkpoint.builders import assert_same
from tests.runner.builders import make_runner
from tests.runner.learners import final_state, make_learner


def stop_at(runner: Runner, iteration: int, batch_idx: int) -> Runner:
    """Stop behind a batch of the validation that comes after an iteration."""

    def is_there(event: AfterValIter) -> bool:
        return (event.iter, event.batch_idx) == (iteration, batch_idx)

    runner.bus.subscribe(AfterValIter, lambda runner: runner.stop(), when=is_there, once=True)
    return runner


@pytest.mark.parametrize("is_new_runner", [True, False])
def test_a_stopped_validation_draws_nothing(is_new_runner: bool, tmp_path: Path) -> None:
    """Its shuffling begins anew, and so the training behind it sees the same batches."""
    changes: dict[str, Any] = dict(by_epoch=False, default_hooks=dict(checkpoint=dict(by_epoch=False, interval=4), logger=None))
    make_learner(tmp_path / "straight", **changes).train()
    stopped = stop_at(make_learner(tmp_path / "cut", **changes), 5, 0)
    stopped.train()
    assert (stopped.iter, stopped.progress.validation_due) == (5, True)
    if is_new_runner:
        make_learner(tmp_path / "cut", resume=True, **changes).train()
    else:
        stopped.train()
    straight, cut = (final_state(tmp_path / name, "iter_12") for name in ("straight", "cut"))
    for part in ("state_dict", "optimizer", "rng", "progress"):
        assert_same(cut[part], straight[part])


def test_a_stop_behind_the_last_batch_comes_too_late_for_the_validation(tmp_path: Path) -> None:
    """It has its result, and is not run again."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=2))
    results: list[int] = []
    runner.bus.subscribe(AfterValEpoch, lambda epoch: results.append(epoch))
    metrics = stop_at(runner, 3, 1).train()
    assert (results, runner.progress.validation_due) == ([1], False)
    assert "loss" in metrics
    runner.train()
    assert results == [1, 2]
