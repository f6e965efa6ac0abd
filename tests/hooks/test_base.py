"""The helpers of the base class, as tables."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hookbus.hooks import Hook


@pytest.mark.parametrize(
    ("n", "start", "hits"),
    [
        (1, 0, [1, 2, 3, 4, 5, 6, 7, 8]),
        (3, 0, [3, 6]),
        (3, 2, [2, 5, 8]),
        (4, 8, [8]),
        (2, 20, []),
        (0, 0, []),
        (-1, 0, []),
    ],
)
def test_every_n_counts_completed_epochs_and_iterations_from_a_start(n: int, start: int, hits: list[int]) -> None:
    """The running one counts as completed; `n` below one means never."""
    hook = Hook()
    runners = [SimpleNamespace(epoch=done, iter=done) for done in range(8)]
    assert [runner.epoch + 1 for runner in runners if hook.every_n_epochs(runner, n, start)] == hits
    assert [runner.iter + 1 for runner in runners if hook.every_n_train_iters(runner, n, start)] == hits


def test_every_n_inner_iters_counts_batches() -> None:
    """From one, anew in each epoch."""
    assert [index for index in range(7) if Hook().every_n_inner_iters(index, 3)] == [2, 5]
    assert not any(Hook().every_n_inner_iters(index, 0) for index in range(7))


def test_the_last_ones_are_recognised_before_the_counters_move() -> None:
    """In `after_train_epoch` and `after_train_iter`, where they are asked."""
    hook = Hook()
    runner = SimpleNamespace(epoch=1, iter=5, max_epochs=2, max_iters=6)
    assert hook.is_last_train_epoch(runner)
    assert hook.is_last_train_iter(runner)
    runner.epoch, runner.iter = 0, 4
    assert not hook.is_last_train_epoch(runner)
    assert not hook.is_last_train_iter(runner)
    assert hook.end_of_epoch([1, 2, 3], 2)
    assert not hook.end_of_epoch([1, 2, 3], 1)
