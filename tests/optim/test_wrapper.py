"""One wrapped optimizer: what an update does, which points it publishes, and what happens where something fails."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import pytest
import torch

from hookbus.errors import ConfigError, Skip
from hookbus.events import AfterBackward, AfterOptimizerStep, BeforeOptimizerStep, StepEvent
from hookbus.optim import OptimWrapper
from tests.optim.builders import Training, close, gradients_of, loss_of, make_batches, make_model, same

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "clipped": dict(clip_grad=dict(max_norm=1e-3)),
    "accumulating": dict(accumulative_counts=1, clip_grad=dict(type="value", clip_value=0.1)),
    "float16": dict(dtype="float16", loss_scale=128),
}
every_way = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def names(events: list[StepEvent]) -> list[str]:
    """Return the names of events."""
    return [type(event).__name__ for event in events]


def test_an_update_is_that_of_torch() -> None:
    """Weights after ten updates are equal to the last bit to those of a loop by hand."""
    training = Training()
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for batch in make_batches(10):
        training.iterate(batch)
        loss_of(model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    assert same(training.weights(), [parameter.detach() for parameter in model.parameters()])


@every_way
def test_the_inner_points_come_in_order_with_the_facts_of_the_iteration(options: dict[str, Any]) -> None:
    """`AfterBackward`, `BeforeOptimizerStep`, `AfterOptimizerStep`, whatever is done to the gradients."""
    training = Training(**options, kept_in=torch.float32)
    training.progress.epoch, training.progress.iter, training.progress.batch_idx = 2, 7, 1
    seen = training.record()
    training.iterate(*make_batches(1, torch.float32))
    assert names(seen) == ["AfterBackward", "BeforeOptimizerStep", "AfterOptimizerStep"]
    assert {(event.epoch, event.iter, event.batch_idx) for event in seen} == {(2, 7, 1)}


@every_way
def test_gradients_are_there_before_the_step_and_gone_after_it(options: dict[str, Any]) -> None:
    """A handler of `AfterOptimizerStep` sees moved weights and no gradients."""
    training = Training(**options, kept_in=torch.float32)
    before = training.weights()
    seen: list[tuple[bool, bool]] = []
    training.bus.subscribe(StepEvent, lambda: seen.append((None not in training.gradients(), same(before, training.weights()))))
    training.iterate(*make_batches(1, torch.float32))
    assert seen == [(True, True), (True, True), (False, False)]


@every_way
def test_a_skipped_update_clears_gradients_and_is_not_counted(options: dict[str, Any]) -> None:
    """Weights stay, the next update is not burdened with the gradients of this one."""
    training, other = Training(**options, kept_in=torch.float32), Training(**options, kept_in=torch.float32)
    first, second = make_batches(2, torch.float32)
    before, seen = training.weights(), training.record()

    def veto() -> None:
        raise Skip("not now")

    subscription = training.bus.subscribe(BeforeOptimizerStep, veto)
    training.iterate(first)
    assert training.gradients() == [None, None]
    assert (training.wrapper.skipped, training.wrapper.updates) == (True, 0)
    assert same(before, training.weights())
    subscription.cancel()
    training.iterate(second)
    other.iterate(second)
    assert (training.wrapper.skipped, training.wrapper.updates) == (False, 1)
    assert same(other.weights(), training.weights())
    assert [event.skipped for event in seen if isinstance(event, AfterOptimizerStep)] == [True, False]


@every_way
def test_an_update_may_be_done_step_by_step(options: dict[str, Any]) -> None:
    """`backward`, `should_update` and `step` come to the same as `update_params`."""
    together, apart = Training(**options, kept_in=torch.float32), Training(**options, kept_in=torch.float32)
    seen = apart.record()
    for batch in make_batches(3, torch.float32):
        together.iterate(batch)
        with apart.wrapper.optim_context(apart.model):
            loss = loss_of(apart.model, batch)
        apart.wrapper.zero_grad()
        apart.wrapper.backward(loss)
        assert apart.wrapper.should_update()
        apart.wrapper.step()
    assert same(together.weights(), apart.weights())
    assert len(seen) == 9


def test_steps_of_the_optimizer_itself_are_counted() -> None:
    """A model that calls `optimizer.step(closure)` on its own counts like one that uses `update_params`."""
    training = Training()
    training.iterate(*make_batches(1))
    loss_of(training.model, make_batches(1)[0]).backward()  # type: ignore[no-untyped-call]
    training.optimizer.step()
    assert training.wrapper.updates == 2


def test_an_optimizer_keeps_no_wrapper_alive_and_carries_no_counter_of_a_dead_one() -> None:
    """An optimizer that serves one run after the other does not get slower."""
    training = Training()
    optimizer, wrapper = training.optimizer, weakref.ref(training.wrapper)
    counter = next(iter(optimizer._optimizer_step_post_hooks.values()))
    assert counter is training.wrapper._counter
    del training, counter
    gc.collect()
    assert wrapper() is None
    assert not optimizer._optimizer_step_post_hooks


@every_way
@pytest.mark.parametrize("event_type", [AfterBackward, BeforeOptimizerStep, AfterOptimizerStep])
def test_gradients_of_a_failed_update_stay_for_the_search_but_do_not_count_twice(
    event_type: type[StepEvent], options: dict[str, Any]
) -> None:
    """Where training goes on after an error, the next update sees the gradients of its own batch alone."""
    training, other = Training(**options, kept_in=torch.float32), Training(**options, kept_in=torch.float32)
    first, second = make_batches(2, torch.float32)

    def fail() -> None:
        raise FloatingPointError

    subscription = training.bus.subscribe(event_type, fail)
    with pytest.raises(FloatingPointError):
        training.iterate(first)
    assert (None in training.gradients()) == (event_type is AfterOptimizerStep)
    subscription.cancel()
    if event_type is AfterOptimizerStep:
        other.iterate(first)
    training.iterate(second)
    other.iterate(second)
    assert same(other.weights(), training.weights())


@every_way
def test_who_updates_step_by_step_may_go_on_after_an_error_too(options: dict[str, Any]) -> None:
    """The next `backward` begins with clean gradients."""
    training, other = Training(**options, kept_in=torch.float32), Training(**options, kept_in=torch.float32)
    first, second = make_batches(2, torch.float32)

    def fail() -> None:
        raise FloatingPointError

    training.bus.subscribe(BeforeOptimizerStep, fail, once=True)
    training.wrapper.backward(loss_of(training.model, first))
    with pytest.raises(FloatingPointError):
        training.wrapper.step()
    training.wrapper.backward(loss_of(training.model, second))
    training.wrapper.step()
    other.wrapper.update_params(loss_of(other.model, second))
    assert same(other.weights(), training.weights())


def test_an_optimizer_that_computes_the_loss_itself_is_counted_and_publishes_nothing() -> None:
    """LBFGS calls its closure several times; only the step as a whole counts."""
    model, batch = make_model(), make_batches(1)[0]
    wrapper = OptimWrapper(torch.optim.LBFGS(model.parameters()))

    def closure() -> float:
        wrapper.optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    wrapper.optimizer.step(closure)
    assert wrapper.updates == 1


def test_a_wrapper_without_a_run_updates_all_the_same() -> None:
    """Nothing has to be attached to try out a model's `train_step`."""
    model, batch = make_model(), make_batches(1)[0]
    before = [parameter.detach().clone() for parameter in model.parameters()]
    expected = gradients_of(model, [batch])
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=1.0), clip_grad=dict(max_norm=1e9))
    wrapper.update_params(loss_of(model, batch))
    moved = [old - parameter.detach() for old, parameter in zip(before, model.parameters(), strict=True)]
    assert close(list(moved), expected)


def test_only_its_own_optimizer_has_this_wrapper() -> None:
    """Another one of the same kind is refused."""
    training = Training()
    assert training.wrapper.wrapper_of(training.optimizer) is training.wrapper
    with pytest.raises(ConfigError, match="SGD: this object is not the optimizer of the run"):
        training.wrapper.wrapper_of(Training().optimizer)


def test_every_bad_option_is_reported_at_once() -> None:
    """Each with its name, its value and what was expected."""
    with pytest.raises(ConfigError) as caught:
        OptimWrapper("SGD", accumulative_counts=0, clip_grad=dict(max_nrom=1.0), dtype="flaot16")  # type: ignore[arg-type]
    text = str(caught.value)
    assert text.startswith("5 problems")
    for words in ("optimizer = 'SGD'", "accumulative_counts = 0", "clip_grad.max_nrom = 1.0", "'max_norm'", "dtype = 'flaot16'"):
        assert words in text
