"""Clipping: torch's own functions, the norm recorded without waiting for the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hookbus.errors import ConfigError, Skip
from hookbus.events import AfterBackward, BeforeOptimizerStep
from hookbus.optim import OptimWrapper, OptimWrapperDict
from hookbus.optim.gradients import Clipping, parameters_of
from tests.optim.builders import Training, close, gradients_of, make_batches


def clipped(training: Training) -> list[torch.Tensor]:
    """Return the gradients that the optimizer got in its first step, told from how far the weights moved."""
    before = training.weights()
    training.wrapper.step()
    return [(old - new) / 0.1 for old, new in zip(before, training.weights(), strict=True)]


@pytest.mark.parametrize("norm_type", [1.0, 2.0, float("inf")])
@pytest.mark.parametrize("max_norm", [1e-3, 1, 1e6])
def test_gradients_are_clipped_by_their_norm(max_norm: float, norm_type: float) -> None:
    """As torch's `clip_grad_norm_` does it."""
    training = Training(clip_grad=dict(max_norm=max_norm, norm_type=norm_type))
    batch = make_batches(1)[0]
    expected = gradients_of(training.model, [batch])
    parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in expected]
    for parameter, gradient in zip(parameters, expected, strict=True):
        parameter.grad = gradient
    norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
    training.wrapper.backward(training.model(batch).square().mean())
    assert close(list(clipped(training)), expected)
    assert training.hub.get_scalar("train/grad_norm").current() == pytest.approx(float(norm))


def test_gradients_are_clipped_by_value() -> None:
    """Each element for itself; there is no norm to record."""
    training = Training(clip_grad=dict(type="value", clip_value=0.01))
    batch = make_batches(1)[0]
    expected = [gradient.clamp(-0.01, 0.01) for gradient in gradients_of(training.model, [batch])]
    training.wrapper.backward(training.model(batch).square().mean())
    assert close(list(clipped(training)), expected)
    assert "train/grad_norm" not in training.hub.log_scalars


def test_hooks_see_gradients_before_they_are_clipped() -> None:
    """What they change in `BeforeOptimizerStep` is clipped with the rest."""
    training = Training(clip_grad=dict(max_norm=1.0))

    def enlarge() -> None:
        for parameter in training.model.parameters():
            parameter.grad = torch.full_like(parameter, 100.0)

    training.bus.subscribe(BeforeOptimizerStep, enlarge)
    training.iterate(*make_batches(1))
    assert training.hub.get_scalar("train/grad_norm").current() == pytest.approx(100 * 15**0.5)


def test_the_norm_is_that_of_the_whole_group_once_per_update() -> None:
    """Not of the gradients of one micro-batch."""
    training = Training(clip_grad=dict(max_norm=1e6), accumulative_counts=2)
    batches = make_batches(4)
    norm = torch.stack([gradient.norm() for gradient in gradients_of(training.model, batches[:2])]).norm()
    for batch in batches:
        training.iterate(batch)
    values, _ = training.hub.get_scalar("train/grad_norm").data
    assert len(values) == 2
    assert values[0] == pytest.approx(float(norm))


def test_a_vetoed_update_records_no_norm() -> None:
    """Nothing was clipped."""
    training = Training(clip_grad=dict(max_norm=1.0))

    def veto() -> None:
        raise Skip("not now")

    training.bus.subscribe(BeforeOptimizerStep, veto)
    training.iterate(*make_batches(1))
    assert "train/grad_norm" not in training.hub.log_scalars


def test_each_of_several_optimizers_has_a_norm_of_its_own() -> None:
    """Under its name."""
    first, second = Training(clip_grad=dict(max_norm=1.0)), Training(clip_grad=dict(max_norm=1.0))
    OptimWrapperDict(generator=first.wrapper, discriminator=second.wrapper)
    for training in (first, second):
        training.iterate(*make_batches(1))
    assert list(first.hub.log_scalars) == ["train/generator.grad_norm"]
    assert list(second.hub.log_scalars) == ["train/discriminator.grad_norm"]


def test_clipping_does_not_wait_for_the_device() -> None:
    """On one that can compute and not be read, updates go on as ever, and the norm stays there."""
    model = torch.nn.Linear(4, 3, device="meta")
    wrapper = OptimWrapper(torch.optim.SGD(model.parameters(), lr=0.1), clip_grad=dict(max_norm=1.0), accumulative_counts=2)
    for batch in make_batches(5, torch.float32):
        wrapper.update_params(model(batch.to("meta")).square().mean())
    assert wrapper.updates == 2
    norm = Clipping(dict(max_norm=1.0))(parameters_of(wrapper.optimizer))
    assert norm is not None
    assert norm.is_meta


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (3, ["clip_grad = 3", "dict(max_norm=1.0)"]),
        ({}, ["clip_grad.max_norm is missing", "expected float"]),
        (dict(max_norm="1"), ["clip_grad.max_norm = '1'", "expected float"]),
        (dict(max_norm=True), ["clip_grad.max_norm = True", "expected float"]),
        (dict(max_norm=0), ["clip_grad.max_norm = 0", "above 0"]),
        (dict(max_norm=float("nan")), ["clip_grad.max_norm = nan", "above 0"]),
        (dict(max_norm=1, norm_typ=1.0), ["clip_grad.norm_typ = 1.0", "did you mean 'norm_type'"]),
        (dict(type="vaule", clip_value=1), ["clip_grad.type = 'vaule'", "did you mean 'value'", "norm, value"]),
        (dict(type=["value"]), ["clip_grad.type = ['value']", "norm, value"]),
        (dict(type="value", clip_value=-1), ["clip_grad.clip_value = -1", "above 0"]),
        (dict(type="value", max_norm=1), ["clip_grad.max_norm = 1", "clipping by value has no such option", "clip_value"]),
    ],
)
def test_bad_options_of_clipping_are_refused(options: Any, words: list[str]) -> None:
    """With name, value and what was expected."""
    with pytest.raises(ConfigError) as caught:
        Training(clip_grad=options)
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text


def test_the_gradients_of_a_micro_batch_may_be_changed_in_place() -> None:
    """`AfterBackward` sees them, once per micro-batch."""
    training = Training(accumulative_counts=2)

    def clear() -> None:
        for parameter in training.model.parameters():
            assert parameter.grad is not None
            parameter.grad.zero_()

    training.bus.subscribe(AfterBackward, clear)
    before = training.weights()
    for batch in make_batches(2):
        training.iterate(batch)
    assert close(list(before), training.weights())
