"""Several optimizers by name."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from hookbus.bus import EventBus
from hookbus.errors import ConfigError
from hookbus.events import AfterOptimizerStep
from hookbus.hub import MessageHub
from hookbus.optim import OptimWrapper, OptimWrapperDict
from hookbus.progress import Progress
from tests.optim.builders import loss_of, make_batches, make_model, same


def make_wrappers(**options: Any) -> tuple[OptimWrapperDict, dict[str, torch.nn.Linear]]:
    """Return a dict of two wrappers and the models that they update."""
    models = {"generator": make_model(1), "discriminator": make_model(2)}
    wrappers = {k: OptimWrapper(torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9), **options) for k, m in models.items()}
    return OptimWrapperDict(**wrappers), models


def test_it_is_a_mapping_whose_wrappers_know_their_names() -> None:
    """In the order in which they were given."""
    wrappers, _ = make_wrappers()
    assert list(wrappers) == [wrapper.name for wrapper in wrappers.values()] == ["generator", "discriminator"]
    assert len(wrappers) == 2
    assert "generator" in wrappers
    assert "critic" not in wrappers


def test_each_updates_its_own_parameters() -> None:
    """And all of them publish on the bus of the run."""
    wrappers, models = make_wrappers()
    bus, seen = EventBus(), []
    bus.subscribe(AfterOptimizerStep, lambda event: seen.append(event))
    wrappers.attach(bus, MessageHub("several"), Progress(), {"runner": None}, lambda: None)
    before = {name: copy.deepcopy(model.weight.detach()) for name, model in models.items()}
    wrappers["generator"].update_params(loss_of(models["generator"], make_batches(1)[0]))
    moved = {name: not torch.equal(before[name], model.weight) for name, model in models.items()}
    assert moved == {"generator": True, "discriminator": False}
    assert {name: wrapper.updates for name, wrapper in wrappers.items()} == {"generator": 1, "discriminator": 0}
    assert len(seen) == 1


def test_an_update_without_a_name_is_refused() -> None:
    """The sentence says what to write instead."""
    wrappers, models = make_wrappers()
    with pytest.raises(ConfigError, match=r"generator, discriminator.*optim_wrapper\['generator'\]\.update_params\(loss\)"):
        wrappers.update_params(loss_of(models["generator"], make_batches(1)[0]))


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    """It is a `KeyError`, as of every mapping, so `get` works."""
    wrappers, _ = make_wrappers()
    with pytest.raises(KeyError, match="did you mean 'generator'"):
        wrappers["generater"]
    assert wrappers.get("critic") is None


def test_each_optimizer_has_its_wrapper() -> None:
    """A foreign one is refused with the names there are."""
    wrappers, _ = make_wrappers()
    for wrapper in wrappers.values():
        assert wrappers.wrapper_of(wrapper.optimizer) is wrapper
    with pytest.raises(ConfigError, match=r"none of the optimizers of the run \(generator, discriminator\)"):
        wrappers.wrapper_of(torch.optim.SGD(make_model().parameters(), lr=1.0))


def test_finishing_finishes_each() -> None:
    """Both use what gradients their incomplete groups left."""
    wrappers, models = make_wrappers(accumulative_counts=3)
    for name, wrapper in wrappers.items():
        wrapper.update_params(loss_of(models[name], make_batches(1)[0]))
    wrappers.finish()
    assert [wrapper.updates for wrapper in wrappers.values()] == [1, 1]


def test_the_state_goes_round() -> None:
    """Each finds its own by name, also where the order changed."""
    first, models = make_wrappers()
    second, others = make_wrappers()
    batches = make_batches(4)
    for batch in batches[:2]:
        for name in first:
            first[name].update_params(loss_of(models[name], batch))
    for name, model in models.items():
        others[name].load_state_dict(copy.deepcopy(model.state_dict()))
    state = copy.deepcopy(first.state_dict())
    second.load_state_dict(dict(reversed(state.items())))
    for batch in batches[2:]:
        for name in first:
            first[name].update_params(loss_of(models[name], batch))
            second[name].update_params(loss_of(others[name], batch))
    for name, model in models.items():
        assert same(list(model.parameters()), list(others[name].parameters()))


@pytest.mark.parametrize("names", [["generator"], ["generator", "critic"], ["state", "param_groups"], []])
def test_the_state_of_other_optimizers_is_refused(names: list[str]) -> None:
    """Also that of a single one."""
    wrappers, _ = make_wrappers()
    state = wrappers["generator"].state_dict()
    with pytest.raises(ConfigError, match="expected that of the optimizers generator, discriminator"):
        wrappers.load_state_dict(dict.fromkeys(names, state))


def test_what_does_not_fit_into_the_dict_is_refused() -> None:
    """No wrapper at all, something else than a wrapper, one optimizer under two names."""
    optimizer = torch.optim.SGD(make_model().parameters(), lr=1.0)
    with pytest.raises(ConfigError, match="at least one"):
        OptimWrapperDict()
    with pytest.raises(ConfigError, match=r"generator = SGD.*expected an OptimWrapper"):
        OptimWrapperDict(generator=optimizer)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="critic has the same SGD object as generator"):
        OptimWrapperDict(generator=OptimWrapper(optimizer), critic=OptimWrapper(optimizer))
