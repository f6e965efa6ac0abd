"""What averaging the weights costs: one update of 120 parameters, beside one kernel over them and beside a loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from hookbus.averaging import AveragedWeights, ExponentialMovingAverage, MomentumAnnealingEMA
from tests.benchmarks.measure import Row, compare, timed

PARAMETERS = 120
UPDATES = 50
ROUNDS = 15
SIZES = {"64": (64,), "64 x 64": (64, 64)}


def rows() -> Iterator[Row]:
    """Measure an update of small and of larger parameters, and the exchange for a validation."""
    torch.set_num_threads(1)
    for name, shape in SIZES.items():
        model = _make_model(shape)
        yield _beside_one_kernel(name, model)
        yield _beside_a_loop(name, model)
    yield _exchange(_make_model((64, 64)))


def _make_model(shape: tuple[int, ...]) -> torch.nn.Module:
    torch.manual_seed(0)
    return torch.nn.ParameterList([torch.randn(shape) for _ in range(PARAMETERS)])


def _updating(model: torch.nn.Module, average: AveragedWeights | None = None) -> Callable[[], object]:
    average = average or AveragedWeights(model, ExponentialMovingAverage())
    average.update()
    return average.update


def _beside_one_kernel(name: str, model: torch.nn.Module) -> Row:
    update = _updating(model)
    own: list[torch.Tensor] = list(model.parameters())
    averaged = [parameter.detach().clone() for parameter in own]

    @torch.no_grad()
    def one_kernel() -> None:
        torch._foreach_lerp_(averaged, own, 0.0002)

    pair = compare(lambda: _often(update), lambda: _often(one_kernel), repetitions=UPDATES, rounds=ROUNDS)
    measured = f"{pair.ratio:.2f}x ({pair.ours * 1e6:.0f} us, {pair.other * 1e6:.0f} us)"
    what = f"an update of an average, {PARAMETERS} parameters of {name}, beside `torch._foreach_lerp_`"
    return Row(what, measured, "1.3x", pair.ratio <= 1.3)


def _beside_a_loop(name: str, model: torch.nn.Module) -> Row:
    """Compare with what averaged models do elsewhere: look at a step count that is a tensor, then go from tensor to tensor."""
    update = _updating(model, AveragedWeights(model, MomentumAnnealingEMA()))
    averaged = [parameter.detach().clone() for parameter in model.parameters()]
    steps = torch.tensor(1)

    @torch.no_grad()
    def loop() -> None:
        if steps % 1 == 0:
            for average, parameter in zip(averaged, model.parameters(), strict=True):
                momentum = max(0.0002, 100 / (100 + steps.item()))
                average.mul_(1 - momentum).add_(parameter.data, alpha=momentum)
        steps.add_(1)

    pair = compare(lambda: _often(loop), lambda: _often(update), repetitions=UPDATES, rounds=ROUNDS)
    measured = f"{pair.ratio:.1f}x faster ({pair.other * 1e6:.0f} us, {pair.ours * 1e6:.0f} us)"
    return Row(f"the same with annealing, {name}, beside a loop over the tensors", measured, "2x faster", pair.ratio >= 2)


def _exchange(model: torch.nn.Module) -> Row:
    average = AveragedWeights(model, ExponentialMovingAverage())
    average.update()

    def exchange() -> None:
        average.exchange()
        average.restore()

    pair = compare(lambda: _often(exchange), lambda: _often(average.update), repetitions=UPDATES, rounds=ROUNDS)
    measured = f"{pair.ours * 1e6:.0f} us, {pair.ratio:.1f}x of an update"
    return Row("putting the average into the model and back, 64 x 64", measured, "for information", True)


def _often(function: Callable[[], object]) -> float:
    def repeat() -> None:
        for _ in range(UPDATES):
            function()

    return timed(repeat)
