"""Averaged weights: the formulas, what is averaged and what is copied, and the exchange with the model's own weights."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from hookbus.averaging import (
    AveragedWeights,
    Averager,
    ExponentialMovingAverage,
    MomentumAnnealingEMA,
    StochasticWeightAverage,
    weights,
)
from hookbus.errors import CheckpointError, ConfigError
from hookbus.registry import AVERAGERS


class Holder(torch.nn.Module):
    """A model that is nothing but its weights."""

    def __init__(self, **tensors: torch.Tensor) -> None:
        super().__init__()
        for name, tensor in tensors.items():
            if name.startswith("buffer"):
                self.register_buffer(name, tensor)
            else:
                self.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=tensor.is_floating_point()))

    def fill(self, value: float) -> None:
        """Give each weight and each buffer one value."""
        with torch.no_grad():
            for tensor in (*self.parameters(), *self.buffers()):
                tensor.fill_(value)


def averaged_after(averager: Averager, values: list[float], model: Holder | None = None) -> list[float]:
    """Return the average behind each update, of a weight that has these values."""
    model = model or Holder(weight=torch.zeros(2))
    average = AveragedWeights(model, averager)
    seen = []
    for value in values:
        model.fill(value)
        average.update()
        seen.append(round(average.state_dict()["weight"][0].item(), 5))
    return seen


# --- the formulas -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("averager", "expected"),
    [
        (ExponentialMovingAverage(momentum=0.1), [1, 1.1, 1.29, 1.561, 1.9049]),
        (ExponentialMovingAverage(momentum=0.1, interval=2), [1, 1, 1.2, 1.2, 1.58]),
        (StochasticWeightAverage(), [1, 1.5, 2, 2.5, 3]),
        (StochasticWeightAverage(interval=2), [1, 1, 2, 2, 3]),
        (MomentumAnnealingEMA(momentum=0.1, gamma=3), [1, 1.75, 2.5, 3.25, 4]),
        (MomentumAnnealingEMA(momentum=0.1, gamma=3, interval=2), [1, 1, 2.2, 2.2, 3.4]),
        (MomentumAnnealingEMA(momentum=0.5, gamma=1), [1, 1.5, 2.25, 3.125, 4.0625]),
    ],
    ids=repr,
)
def test_the_average_of_one_to_five_is_that_of_the_formula(averager: Averager, expected: list[float]) -> None:
    """Worked out by hand; the first update copies."""
    assert averaged_after(averager, [1, 2, 3, 4, 5]) == expected


@given(
    shapes=st.lists(st.lists(st.integers(0, 4), max_size=3).map(tuple), min_size=1, max_size=6),
    steps=st.integers(1, 5),
    momentum=st.floats(0.001, 0.5),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.complex64]),
)
@settings(max_examples=25, deadline=None)
def test_all_shapes_are_averaged_alike(shapes: list[tuple[int, ...]], steps: int, momentum: float, dtype: torch.dtype) -> None:
    """One pass over many tensors gives what the formula gives for each."""
    model = Holder(**{f"w{index}": torch.zeros(shape, dtype=dtype) for index, shape in enumerate(shapes)})
    average = AveragedWeights(model, ExponentialMovingAverage(momentum))
    expected: dict[str, torch.Tensor] = {}
    for step in range(steps):
        for name, weight in model.named_parameters():
            weight.data = torch.randn(weight.shape, dtype=dtype)
            expected[name] = (1 - momentum) * expected[name] + momentum * weight.data if step else weight.data.clone()
        average.update()
    for name, value in average.state_dict().items():
        torch.testing.assert_close(value, expected[name])


class Kernels(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes which operations run."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Note one."""
        self.seen.append(func.name())
        return func(*args, **kwargs or {})


def test_an_update_is_one_kernel_for_each_dtype() -> None:
    """Whatever the number of tensors; nothing is read on the host, so no device is waited for."""
    tensors = {f"w{index}": torch.ones(3, dtype=(torch.float32, torch.float64)[index % 2]) for index in range(40)}
    average = AveragedWeights(Holder(**tensors), MomentumAnnealingEMA())
    average.update()
    with Kernels() as kernels:
        average.update()
    assert kernels.seen == ["aten::_foreach_lerp_.Scalar"] * 2


# --- what is averaged -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_steps_of_short_weights_are_not_lost(dtype: torch.dtype) -> None:
    """One part in five thousand is less than such a number can tell apart; the average is kept in float32."""
    model = Holder(weight=torch.ones(3, dtype=dtype), bias=torch.ones(2))
    average = AveragedWeights(model, ExponentialMovingAverage(momentum=0.0002))
    average.update()
    model.fill(2.0)
    for _ in range(100):
        average.update()
    assert average.state_dict()["weight"].dtype == torch.float32
    torch.testing.assert_close(average.state_dict()["weight"], torch.full((3,), 2 - (1 - 0.0002) ** 100), rtol=1e-5, atol=0)
    average.exchange()
    assert model.get_parameter("weight").dtype == dtype
    torch.testing.assert_close(model.get_parameter("weight").data, average.state_dict()["weight"].to(dtype))
    average.restore()
    assert model.get_parameter("weight").tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("update_buffers", "expected"),
    [(False, {"weight": 1.1, "buffer": 2.0, "buffer_count": 2}), (True, {"weight": 1.1, "buffer": 1.1, "buffer_count": 2})],
)
def test_buffers_are_those_of_the_model_unless_they_are_averaged(update_buffers: bool, expected: dict[str, float]) -> None:
    """Whole numbers are copied."""
    model = Holder(weight=torch.zeros(1), buffer=torch.zeros(1), buffer_count=torch.zeros((), dtype=torch.long))
    average = AveragedWeights(model, ExponentialMovingAverage(0.1, update_buffers=update_buffers))
    for value in (1, 2):
        model.fill(value)
        average.update()
    assert {name: round(float(value), 4) for name, value in average.state_dict().items()} == expected
    average.exchange()
    assert {name: round(float(value), 4) for name, value in model.state_dict().items()} == expected
    average.restore()
    assert [float(value) for value in model.state_dict().values()] == [2, 2, 2]


def test_a_buffer_that_is_replaced_is_still_averaged() -> None:
    """Some modules put a new tensor in its place in every forward pass."""
    model = Holder(weight=torch.zeros(1), buffer=torch.zeros(1))
    average = AveragedWeights(model, ExponentialMovingAverage(0.1, update_buffers=True))
    for value in (1.0, 2.0):
        model.buffer = torch.full((1,), value)
        average.update()
    assert average.state_dict()["buffer"].item() == pytest.approx(1.1)


def test_whole_numbers_among_the_parameters_are_copied() -> None:
    """There is no average of them."""
    model = Holder(weight=torch.zeros(1), index=torch.zeros(2, dtype=torch.int32))
    average = AveragedWeights(model, ExponentialMovingAverage(0.1))
    for value in (1, 4):
        model.fill(value)
        average.update()
    assert average.state_dict()["index"].tolist() == [4, 4]


def make_tied() -> torch.nn.Sequential:
    """Return a model two of whose modules share a weight."""
    model = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5))
    model[1].weight = model[0].weight
    return model


def test_a_shared_weight_is_averaged_once_and_stays_shared() -> None:
    """In the state it stands under both of its names."""
    model = make_tied()
    average = AveragedWeights(model, ExponentialMovingAverage(0.1))
    average.update()
    state = average.state_dict()
    assert state["0.weight"].data_ptr() == state["1.weight"].data_ptr() != model.get_parameter("0.weight").data_ptr()
    average.exchange()
    average.restore()
    assert model[0].weight is model[1].weight


def test_of_a_shared_weight_one_name_is_enough() -> None:
    """The other one is not taken for a weight that is missing."""
    model = make_tied()
    average = AveragedWeights(model, ExponentialMovingAverage(0.1))
    average.load_state_dict({"0.weight": torch.ones(5, 4)})
    assert (average.state_dict()["1.weight"] == 1).all()
    assert torch.equal(average.state_dict()["1.bias"], model.get_parameter("1.bias"))


def test_an_average_that_follows_is_the_model_itself() -> None:
    """It takes no memory, and its exchange does nothing."""
    model = Holder(weight=torch.ones(2))
    average = AveragedWeights(model, StochasticWeightAverage())
    assert average.state_dict()["weight"].data_ptr() == model.get_parameter("weight").data_ptr()
    average.exchange()
    assert not average.is_exchanged
    average.update()
    assert average.state_dict()["weight"].data_ptr() != model.get_parameter("weight").data_ptr()
    average.follow()
    model.fill(3)
    assert average.state_dict()["weight"].tolist() == [3, 3]


# --- the exchange -----------------------------------------------------------------------------------------------------


@pytest.fixture(params=[1, 40, 1 << 26], ids="in parts of {} bytes".format)
def part_bytes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exchange single tensors, a few at once, or all."""
    monkeypatch.setattr(weights, "PART_BYTES", request.param)


def make_overlapping() -> dict[str, torch.Tensor]:
    """Return weights some of which are the same memory, or parts of it, beside one that is not contiguous."""
    flat = torch.arange(12.0)
    return {
        "all": flat,
        "again": flat.view(12),
        "left": flat[:6],
        "even": flat[::2],
        "square": torch.randn(3, 4).t(),
        "short": torch.randn(5).bfloat16(),
        "empty": torch.zeros(0),
        "single": torch.tensor(3.0),
    }


@pytest.mark.usefixtures("part_bytes")
def test_the_exchange_keeps_every_bit_and_every_address() -> None:
    """Also of weights that overlap; optimizers and compiled code go on with the memory they know."""
    torch.manual_seed(0)
    model = Holder(**make_overlapping())
    average = AveragedWeights(model, ExponentialMovingAverage(0.3))
    average.update()
    with torch.no_grad():
        for name in ("all", "square", "short", "single"):
            weight = model.get_parameter(name)
            weight.add_(torch.randn_like(weight))
    average.update()
    own = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    addresses = [weight.data_ptr() for weight in model.parameters()]
    averages = {name: value.clone() for name, value in average.state_dict().items()}
    for _ in range(3):
        average.exchange()
        for name, weight in model.named_parameters():
            assert torch.equal(weight, averages[name].to(weight.dtype))
        average.restore()
        average.restore()
        assert all(torch.equal(weight, own[name]) for name, weight in model.named_parameters())
        assert all(torch.equal(value, averages[name]) for name, value in average.state_dict().items())
    assert [weight.data_ptr() for weight in model.parameters()] == addresses


def test_the_state_during_an_exchange_is_the_average() -> None:
    """Although the memory of the average holds the weights then."""
    model = Holder(weight=torch.ones(2), short=torch.ones(2).bfloat16())
    average = AveragedWeights(model, ExponentialMovingAverage(0.1))
    average.update()
    model.fill(2)
    average.update()
    average.exchange()
    assert [round(value[0].item(), 4) for value in average.state_dict().values()] == [1.1, 1.1]


@pytest.mark.usefixtures("part_bytes")
def test_an_exchange_that_fails_half_way_can_be_taken_back() -> None:
    """No weight is lost, whatever went wrong."""
    model = Holder(a=torch.ones(3), b=torch.ones(3), buffer=torch.ones(3, dtype=torch.float64))
    average = AveragedWeights(model, ExponentialMovingAverage(0.1, update_buffers=True))
    average.update()
    model.fill(2)
    average.update()
    model.buffer = torch.zeros(7, dtype=torch.float64)
    with pytest.raises(RuntimeError):
        average.exchange()
    assert model.get_parameter("a")[0].item() == pytest.approx(1.1)
    average.restore()
    assert [weight.tolist() for weight in model.parameters()] == [[2, 2, 2]] * 2


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=8), part=st.integers(1, 64), seed=st.integers(0, 9))
@settings(max_examples=25, deadline=None)
def test_any_division_into_parts_exchanges_everything_once(sizes: list[int], part: int, seed: int) -> None:
    """The parts cover all weights, and none twice."""
    torch.manual_seed(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(weights, "PART_BYTES", part)
        model = Holder(**{f"w{index}": torch.randn(size) for index, size in enumerate(sizes)})
        average = AveragedWeights(model, ExponentialMovingAverage(0.5))
        average.update()
        before = [weight.detach().clone() for weight in model.parameters()]
        model.fill(7)
        average.exchange()
        assert all(map(torch.equal, model.parameters(), before))
        average.restore()
        assert all((weight == 7).all() for weight in model.parameters())


# --- state ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_a_state_comes_back_bit_for_bit(dtype: torch.dtype) -> None:
    """And goes on averaging as the first one would."""
    models = [Holder(weight=torch.ones(9, dtype=dtype)) for _ in range(2)]
    first, second = (AveragedWeights(model, MomentumAnnealingEMA(gamma=3)) for model in models)
    values = itertools.count(1)
    for _ in range(3):
        models[0].fill(next(values))
        first.update()
    second.load_state_dict({name: value.clone() for name, value in first.state_dict().items()})
    second.steps = first.steps
    for value in (5, 6):
        for model, average in zip(models, (first, second), strict=True):
            model.fill(value)
            average.update()
    assert torch.equal(first.state_dict()["weight"], second.state_dict()["weight"])


def test_names_of_other_wrappings_are_understood() -> None:
    """Of distributed and of compiled models."""
    average = AveragedWeights(Holder(weight=torch.zeros(2)), StochasticWeightAverage())
    average.load_state_dict({"module._orig_mod.weight": torch.ones(2)})
    assert average.state_dict()["weight"].tolist() == [1, 1]


def test_a_weight_of_another_shape_is_refused() -> None:
    """By name, with both shapes."""
    average = AveragedWeights(Holder(weight=torch.zeros(2, 3)), StochasticWeightAverage())
    with pytest.raises(CheckpointError, match=r"the averaged weight weight is \(2,\), expected \(2, 3\)"):
        average.load_state_dict({"weight": torch.zeros(2)})


# --- options and types of one's own -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("averager", "options", "words"),
    [
        ("ExponentialMovingAverage", dict(momentum=0), ["momentum = 0", "between 0 and 1"]),
        ("ExponentialMovingAverage", dict(momentum=1.0), ["momentum = 1.0"]),
        ("ExponentialMovingAverage", dict(momentum=float("nan")), ["momentum = nan"]),
        ("ExponentialMovingAverage", dict(interval=0, momentum=-1.0), ["2 problems", "interval = 0", "momentum = -1.0"]),
        ("StochasticWeightAverage", dict(interval=True), ["interval = True"]),
        ("StochasticWeightAverage", dict(update_buffers=1), ["update_buffers = 1", "expected bool"]),
        ("StochasticWeightAverage", dict(momentum=0.1), ["momentum = 0.1", "no such option", "interval, update_buffers"]),
        ("MomentumAnnealingEMA", dict(gamma=0), ["gamma = 0", "more than 0"]),
        ("MomentumAnnealingEMA", dict(gama=3), ["gama = 3", "did you mean 'gamma'"]),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(averager: str, options: dict[str, Any], words: list[str]) -> None:
    """With its value and with what was expected."""
    with pytest.raises(ConfigError) as raised:
        AVERAGERS.build({"type": averager, **options})
    assert [word for word in words if word not in str(raised.value)] == []


def test_a_decay_given_as_a_momentum_is_pointed_out() -> None:
    """Others count the other way round."""
    with pytest.warns(UserWarning, match=r"momentum = 0.999 is the share of the current.*give momentum=0.001"):
        ExponentialMovingAverage(momentum=0.999)


def test_an_averager_of_ones_own_needs_only_a_share() -> None:
    """It is registered like anything else."""

    class Halving(Averager):
        def share(self, steps: int) -> float:
            return 0.5**steps

    AVERAGERS.register_module("Halving", module=Halving)
    assert averaged_after(AVERAGERS.build(dict(type="Halving")), [0, 1, 2]) == [0, 0.5, 0.875]


def test_an_averager_of_ones_own_may_do_all_by_itself() -> None:
    """With lists of tensors of one dtype and device; those of short weights come in float32."""

    class Largest(Averager):
        def share(self, steps: int) -> float:
            return 1.0

        def average(self, averaged: list[torch.Tensor], current: list[torch.Tensor], steps: int) -> None:
            torch._foreach_maximum_(averaged, current)

    model = Holder(weight=torch.zeros(2, dtype=torch.bfloat16))
    assert averaged_after(Largest(), [1, 3, 2], model) == [1, 3, 3]
