"""What a wrapped optimizer puts into a checkpoint, and how it goes on from there."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from hookbus.checkpoint.encode import encode_state
from hookbus.errors import ConfigError
from tests.optim.builders import Training, make_batches, same

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "accumulating": dict(accumulative_counts=3),
    "accumulating in float16": dict(accumulative_counts=4, dtype="float16", loss_scale=dict(init_scale=64.0, growth_interval=2)),
    "float16": dict(dtype="float16", loss_scale=dict(init_scale=2.0**40, growth_interval=3)),
}


def resumed(training: Training, **options: Any) -> Training:
    """Return a training that goes on where this one is."""
    later = Training(**options, max_iters=training.max_iters, kept_in=torch.float32)
    later.model.load_state_dict(copy.deepcopy(training.model.state_dict()))
    later.wrapper.load_state_dict(copy.deepcopy(training.wrapper.state_dict()))
    later.progress.iter = training.progress.iter
    return later


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("cut", range(8))
def test_a_training_cut_anywhere_goes_on_exactly(cut: int, options: dict[str, Any]) -> None:
    """Also in the middle of a group of micro-batches, and while the loss scale is still too large."""
    batches = make_batches(8, torch.float32)
    straight = Training(**options, max_iters=8, kept_in=torch.float32)
    first = Training(**options, max_iters=8, kept_in=torch.float32)
    for batch in batches:
        straight.iterate(batch)
    for batch in batches[:cut]:
        first.iterate(batch)
    second = resumed(first, **options)
    for batch in batches[cut:]:
        second.iterate(batch)
    assert same(straight.weights(), second.weights())


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_the_state_is_one_that_torch_and_a_checkpoint_take(options: dict[str, Any]) -> None:
    """The optimizer of torch loads it as it is; what is ours stands beside its two keys."""
    training = Training(**options, kept_in=torch.float32)
    training.iterate(*make_batches(2, torch.float32))
    state = training.wrapper.state_dict()
    assert {"state", "param_groups"} <= set(state) <= {"state", "param_groups", "loss_scaler", "accumulation"}
    encode_state(state)
    bare = torch.optim.SGD(training.model.parameters(), lr=1.0)
    bare.load_state_dict(state)
    assert bare.param_groups[0]["lr"] == 0.1


def test_a_plain_optimizer_has_the_state_of_torch_and_nothing_else() -> None:
    """Who does not accumulate and scale sees nothing of it."""
    training = Training()
    training.iterate(*make_batches(1))
    assert set(training.wrapper.state_dict()) == {"state", "param_groups"}


def test_a_state_without_our_part_begins_a_new_group() -> None:
    """torch's own dict is fine; gradients from before do not belong to it."""
    training = Training(accumulative_counts=3)
    training.iterate(*make_batches(2))
    training.wrapper.load_state_dict(training.optimizer.state_dict())
    assert training.gradients() == [None, None]
    training.iterate(*make_batches(2))
    assert training.wrapper.updates == 0


def test_who_no_longer_accumulates_drops_the_gradients_of_an_incomplete_group() -> None:
    """They were divided for a group that will not be completed."""
    before, after = Training(accumulative_counts=3), Training()
    before.iterate(*make_batches(2))
    after.wrapper.load_state_dict(before.wrapper.state_dict())
    assert after.gradients() == [None, None]


def test_the_rules_of_a_loss_scale_are_those_of_this_run() -> None:
    """Only the scale itself comes from the checkpoint."""
    options: dict[str, Any] = dict(dtype="float16", loss_scale=dict(init_scale=8.0, growth_interval=1))
    first = Training(**options, kept_in=torch.float32)
    first.iterate(*make_batches(2, torch.float32))
    second = resumed(first, dtype="float16", loss_scale=dict(growth_interval=50))
    assert second.wrapper.state_dict()["loss_scaler"] == {
        "scale": 32.0,
        "growth_factor": 2.0,
        "backoff_factor": 0.5,
        "growth_interval": 50,
        "_growth_tracker": 0,
    }


def test_the_state_of_several_optimizers_is_refused() -> None:
    """The names that it holds are said."""
    with pytest.raises(ConfigError, match="not that of one optimizer; it has the keys generator, discriminator"):
        Training().wrapper.load_state_dict({"generator": {}, "discriminator": {}})
