"""Several micro-batches for one update: their gradients are those of one big batch."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hookbus.errors import Skip
from hookbus.events import AfterBackward, BeforeOptimizerStep
from tests.optim.builders import Training, close, gradients_of, make_batches, same


@pytest.mark.parametrize(
    ("per_update", "max_iters", "updates_at"),
    [
        (1, 3, [1, 2, 3]),
        (2, 4, [2, 4]),
        (2, 5, [2, 4, 5]),
        (3, 8, [3, 6, 8]),
        (3, 7, [3, 6, 7]),
        (4, 3, [3]),
        (5, 1, [1]),
        (3, None, [3, 6]),
    ],
)
def test_the_optimizer_steps_at_the_end_of_each_group_and_in_the_last_iteration(
    per_update: int, max_iters: int | None, updates_at: list[int]
) -> None:
    """Iterations are counted through epochs; a run of unknown length has nothing but full groups."""
    training = Training(accumulative_counts=per_update, max_iters=max_iters)
    steps: list[int] = []
    training.bus.subscribe(BeforeOptimizerStep, lambda iter: steps.append(iter + 1))
    for batch in make_batches(max_iters or 8):
        training.iterate(batch)
    assert steps == updates_at
    assert training.wrapper.updates == len(updates_at)


@settings(max_examples=60, deadline=None)
@given(per_update=st.integers(1, 5), max_iters=st.integers(1, 12), is_known=st.booleans())
def test_the_gradients_of_a_group_are_those_of_one_big_batch(per_update: int, max_iters: int, is_known: bool) -> None:
    """Each loss is divided by the length of its group, also of the last one, and also where nobody knew it to be the last."""
    training = Training(accumulative_counts=per_update, max_iters=max_iters if is_known else None)
    batches = make_batches(max_iters)
    groups = [batches[start : start + per_update] for start in range(0, max_iters, per_update)]
    faults: list[int] = []
    expected: list[torch.Tensor] = []

    def compare() -> None:
        nonlocal expected
        expected = gradients_of(training.model, groups[training.wrapper.updates])
        if not close(training.gradients(), expected):
            faults.append(training.wrapper.updates)

    training.bus.subscribe(BeforeOptimizerStep, compare)
    for batch in batches:
        training.iterate(batch)
    training.wrapper.finish()
    assert faults == []
    assert training.wrapper.updates == len(groups)


def test_the_last_group_of_eight_in_threes_counts_each_half() -> None:
    """Its two losses are divided by two, not by three."""
    training = Training(accumulative_counts=3, max_iters=8)
    *_, seventh, eighth = batches = make_batches(8)
    for batch in batches[:7]:
        training.iterate(batch)
    half = [gradient / 2 for gradient in gradients_of(training.model, [seventh])]
    assert close(training.gradients(), half)
    weights = training.weights()
    training.iterate(eighth)
    assert not same(weights, training.weights())


def test_every_micro_batch_has_its_after_backward_and_every_update_its_step() -> None:
    """`BeforeOptimizerStep` is published only where an update is due."""
    training = Training(accumulative_counts=3, max_iters=8)
    seen = training.record()
    for batch in make_batches(8):
        training.iterate(batch)
    per_iter = [[type(event).__name__ for event in seen if event.iter == i] for i in range(8)]
    alone, whole = ["AfterBackward"], ["AfterBackward", "BeforeOptimizerStep", "AfterOptimizerStep"]
    assert per_iter == [alone, alone, whole, alone, alone, whole, alone, whole]


def test_a_vetoed_update_takes_its_whole_group_along() -> None:
    """The next group begins with clean gradients and has its full length."""
    training = Training(accumulative_counts=2)
    batches = make_batches(4)

    def veto() -> None:
        raise Skip("not now")

    training.bus.subscribe(BeforeOptimizerStep, veto, once=True)
    for batch in batches[:3]:
        training.iterate(batch)
    assert (training.wrapper.updates, training.wrapper.skipped) == (0, True)
    assert close(training.gradients(), [gradient / 2 for gradient in gradients_of(training.model, batches[2:3])])
    training.iterate(batches[3])
    assert training.wrapper.updates == 1


def test_two_updates_in_one_iteration_count_as_two_micro_batches() -> None:
    """Groups fill up across iterations, and none reaches beyond the last one."""
    training = Training(accumulative_counts=3, max_iters=4)
    steps: list[int] = []
    training.bus.subscribe(BeforeOptimizerStep, lambda iter: steps.append(iter))
    for _ in range(4):
        training.iterate(*make_batches(2))
    training.wrapper.finish()
    assert steps == [1, 2, 3, 3]
    assert training.gradients() == [None, None]


def test_iterations_without_an_update_leave_a_group_waiting() -> None:
    """What is incomplete when the training is over is made the mean over what there was."""
    training = Training(accumulative_counts=4, max_iters=6)
    batches = make_batches(6)
    for number, batch in enumerate(batches):
        training.iterate(*([batch] if number % 2 == 0 else []))
    expected = gradients_of(training.model, batches[::2])
    at_the_end: list[bool] = []
    training.bus.subscribe(BeforeOptimizerStep, lambda: at_the_end.append(close(training.gradients(), expected)))
    assert training.wrapper.updates == 0
    training.wrapper.finish()
    assert (training.wrapper.updates, at_the_end) == (1, [True])


def test_finishing_without_anything_left_does_nothing() -> None:
    """A training whose last iteration updated is finished already."""
    training = Training(accumulative_counts=2, max_iters=4)
    for batch in make_batches(4):
        training.iterate(batch)
    seen, weights = training.record(), training.weights()
    training.wrapper.finish()
    assert seen == []
    assert same(weights, training.weights())


def test_a_training_that_is_prolonged_goes_on_in_full_groups() -> None:
    """The length of a group is settled when it begins."""
    training = Training(accumulative_counts=3, max_iters=4)
    batches = make_batches(10)
    for batch in batches[:4]:
        training.iterate(batch)
    training.max_iters = 10
    for batch in batches[4:]:
        training.iterate(batch)
    assert training.wrapper.updates == 4


def test_a_step_asked_for_early_uses_the_mean_of_what_there_is() -> None:
    """Whoever calls `step` after two of three micro-batches gets the gradients of those two."""
    training = Training(accumulative_counts=3)
    batches = make_batches(2)
    for batch in batches:
        training.iterate(batch)
    expected = gradients_of(training.model, batches)
    seen: list[bool] = []
    training.bus.subscribe(BeforeOptimizerStep, lambda: seen.append(close(training.gradients(), expected)))
    assert not training.wrapper.should_update()
    training.wrapper.step()
    assert seen == [True]


def test_clearing_the_gradients_begins_a_new_group() -> None:
    """The micro-batches whose gradients are gone do not count."""
    training = Training(accumulative_counts=2)
    first, second, third = make_batches(3)
    training.iterate(first)
    training.wrapper.zero_grad()
    training.iterate(second)
    assert training.wrapper.updates == 0
    training.iterate(third)
    assert training.wrapper.updates == 1


def test_an_error_in_the_middle_of_a_group_begins_it_anew() -> None:
    """Gradients that may be half of what they should be are not mixed with those of later batches."""
    training = Training(accumulative_counts=2)
    first, second, third, fourth = make_batches(4)
    training.iterate(first)

    def fail() -> None:
        raise FloatingPointError

    subscription = training.bus.subscribe(AfterBackward, fail)
    with pytest.raises(FloatingPointError):
        training.iterate(second)
    subscription.cancel()
    training.iterate(third)
    assert close(training.gradients(), [gradient / 2 for gradient in gradients_of(training.model, [third])])
    training.iterate(fourth)
    assert training.wrapper.updates == 1
