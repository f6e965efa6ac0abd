"""Low precision: the forward pass in another number format, and the scaling of losses for float16."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hookbus.errors import ConfigError
from hookbus.events import AfterOptimizerStep, BeforeOptimizerStep
from tests.optim.builders import Training, gradients_of, make_batches, same

FORMATS: list[tuple[Any, torch.dtype]] = [
    (None, torch.float32),
    ("bfloat16", torch.bfloat16),
    ("float16", torch.float16),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.float16),
]


def make_training(**options: Any) -> Training:
    """Return a training whose weights are kept in float32."""
    return Training(**options, kept_in=torch.float32)


@pytest.mark.parametrize(("dtype", "expected"), FORMATS)
def test_the_forward_pass_computes_in_the_format_asked_for(dtype: Any, expected: torch.dtype) -> None:
    """Inside `optim_context` alone; weights and gradients stay in float32."""
    training = make_training(dtype=dtype)
    batch = make_batches(1, torch.float32)[0]
    with training.wrapper.optim_context(training.model):
        assert training.model(batch).dtype == expected
    assert training.model(batch).dtype == torch.float32
    formats: list[torch.dtype] = []
    training.bus.subscribe(
        BeforeOptimizerStep, lambda: formats.extend(p.grad.dtype for p in training.model.parameters() if p.grad is not None)
    )
    training.iterate(batch)
    assert formats == [torch.float32] * 2


@pytest.mark.parametrize("loss_scale", [1, None, 2.0**10, "dynamic", dict(init_scale=2.0**8, growth_interval=1)])
def test_hooks_and_optimizer_see_gradients_of_their_own_size(loss_scale: Any) -> None:
    """Whatever the loss was multiplied by is taken back before `BeforeOptimizerStep`."""
    training = make_training(dtype="float16", loss_scale=loss_scale, accumulative_counts=2)
    batches = make_batches(6, torch.float32)
    expected: list[torch.Tensor] = []
    faults: list[float] = []

    def compare() -> None:
        for ours, theirs in zip(training.gradients(), expected, strict=True):
            assert ours is not None
            faults.append(float((ours - theirs).abs().max()))

    training.bus.subscribe(BeforeOptimizerStep, compare)
    for number, batch in enumerate(batches):
        if number % 2 == 0:
            expected = gradients_of(training.model, batches[number : number + 2])
        training.iterate(batch)
    assert len(faults) == 6
    assert max(faults) < 5e-3


def overflow(training: Training) -> None:
    """Do one iteration whose gradients are infinite."""
    training.iterate(torch.full((2, 4), 6e4))


def scale_of(training: Training) -> float:
    """Return the loss scale that a checkpoint would hold."""
    return float(training.wrapper.state_dict()["loss_scaler"]["scale"])


def test_an_update_that_overflows_is_left_out_and_says_so() -> None:
    """The scale is halved, gradients are cleared, and the next update takes place."""
    training = make_training(dtype="float16", loss_scale=dict(init_scale=2.0**10))
    before = training.weights()
    outcomes: list[bool] = []
    training.bus.subscribe(AfterOptimizerStep, lambda skipped: outcomes.append(skipped))
    overflow(training)
    assert (training.wrapper.skipped, training.wrapper.updates, scale_of(training)) == (True, 0, 2.0**9)
    assert training.gradients() == [None, None]
    assert same(before, training.weights())
    training.iterate(*make_batches(1, torch.float32))
    assert (training.wrapper.skipped, training.wrapper.updates, scale_of(training)) == (False, 1, 2.0**9)
    assert outcomes == [True, False]


def test_a_scale_given_as_a_number_stays() -> None:
    """Through overflows and long stretches without one."""
    training = make_training(dtype="float16", loss_scale=256)
    for number in range(6):
        training.iterate(*make_batches(1, torch.float32)) if number % 3 else overflow(training)
    assert scale_of(training) == 256.0
    assert training.wrapper.updates == 4


def test_the_scale_grows_by_its_own_rules() -> None:
    """A dict gives the options of torch's scaler; updates count, not micro-batches."""
    options = dict(init_scale=4.0, growth_factor=3.0, growth_interval=2)
    training = make_training(dtype="float16", loss_scale=options, accumulative_counts=2)
    seen = []
    for batch in make_batches(8, torch.float32):
        training.iterate(batch)
        seen.append(scale_of(training))
    assert seen == [4.0, 4.0, 4.0, 12.0, 12.0, 12.0, 12.0, 36.0]


@pytest.mark.parametrize("options", [{}, dict(dtype="bfloat16"), dict(dtype="float16", loss_scale=None)])
def test_nothing_is_scaled_without_need(options: dict[str, Any]) -> None:
    """Only float16 scales its losses, unless it is told not to."""
    training = make_training(**options)
    training.iterate(*make_batches(1, torch.float32))
    assert "loss_scaler" not in training.wrapper.state_dict()


def test_an_update_without_any_gradient_is_harmless() -> None:
    """A frozen model for a while, as in training two networks by turns."""
    training = make_training(dtype="float16")
    elsewhere = torch.nn.Parameter(torch.ones(()))
    training.wrapper.update_params(elsewhere * 2)
    training.wrapper.update_params(elsewhere * 2)
    training.iterate(*make_batches(1, torch.float32))
    assert not training.wrapper.skipped or scale_of(training) == 2.0**15


def test_the_last_group_of_scaled_losses_is_the_mean_over_what_there_was() -> None:
    """Scaling and dividing do not get into each other's way."""
    training = make_training(dtype="float16", loss_scale=64, accumulative_counts=4)
    batches = make_batches(3, torch.float32)
    expected = gradients_of(training.model, batches)
    seen: list[float] = []

    def compare() -> None:
        seen.extend(float((a - b).abs().max()) for a, b in zip(training.gradients(), expected, strict=True) if a is not None)

    training.bus.subscribe(BeforeOptimizerStep, compare)
    for batch in batches:
        training.iterate(batch)
    training.wrapper.finish()
    assert len(seen) == 2
    assert max(seen) < 5e-3


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(dtype="flaot16"), ["dtype = 'flaot16'", "did you mean 'float16'", "bfloat16, float16"]),
        (dict(dtype="float32"), ["dtype = 'float32'", "leave it out", "bfloat16, float16"]),
        (dict(dtype=torch.int64), ["dtype = torch.int64", "bfloat16, float16"]),
        (dict(dtype=["float16"]), ["dtype = ['float16']", "bfloat16, float16"]),
        (dict(dtype="float16", loss_scale="dynamci"), ["loss_scale = 'dynamci'", "'dynamic'", "number above 0"]),
        (dict(dtype="float16", loss_scale=0), ["loss_scale = 0", "above 0"]),
        (dict(dtype="float16", loss_scale=True), ["loss_scale = True", "number above 0"]),
        (dict(dtype="float16", loss_scale=float("inf")), ["loss_scale = inf", "number above 0"]),
        (dict(dtype="float16", loss_scale=dict(init_scal=2.0)), ["loss_scale.init_scal = 2.0", "did you mean 'init_scale'"]),
        (dict(dtype="float16", loss_scale=dict(device="cpu")), ["loss_scale.device = 'cpu'", "leave it out"]),
        (dict(dtype="float16", loss_scale=dict(growth_factor=0.5)), ["loss_scale.growth_factor = 0.5", "above 1"]),
        (dict(dtype="float16", loss_scale=dict(backoff_factor=1.5)), ["loss_scale.backoff_factor = 1.5", "below 1"]),
        (dict(dtype="bfloat16", loss_scale=512.0), ["loss_scale = 512.0", "only dtype='float16'", "'bfloat16'"]),
        (dict(loss_scale=dict(init_scale=2.0)), ["loss_scale = ", "only dtype='float16'", "dtype is None"]),
    ],
)
def test_bad_options_of_precision_are_refused(options: dict[str, Any], words: list[str]) -> None:
    """With name, value and what was expected."""
    with pytest.raises(ConfigError) as caught:
        Training(**options)
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text
