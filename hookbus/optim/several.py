"""Several optimizers in one run, driven by the model's own `train_step`."""

from __future__ import annotations

__all__ = ("OptimWrapperDict",)

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import torch

from hookbus._config import refuse, shown
from hookbus.bus import EventBus
from hookbus.errors import ConfigError, choices
from hookbus.hub import MessageHub
from hookbus.optim.wrapper import OptimWrapper
from hookbus.progress import Progress
from hookbus.types import Live


class OptimWrapperDict(Mapping[str, OptimWrapper]):
    """Optimizers by name: `optim_wrapper["generator"].update_params(loss)`.

    `OptimWrapperDict(generator=..., discriminator=...)`; each wrapper takes the name it has here.

    Raises:
        ConfigError: there is none, one is no `OptimWrapper`, or two wrap the same optimizer.
    """

    def __init__(self, **wrappers: OptimWrapper) -> None:
        refuse(_misfits(wrappers))
        self._wrappers = wrappers
        for name, wrapper in wrappers.items():
            wrapper.name = name

    def __repr__(self) -> str:
        return f"<OptimWrapperDict of {', '.join(self)}>"

    def __getitem__(self, name: str) -> OptimWrapper:
        if name not in self._wrappers:
            msg = f"no optimizer is called {shown(name)}; {choices(str(name), self._wrappers)}"
            raise KeyError(msg)
        return self._wrappers[name]

    def __contains__(self, name: object) -> bool:
        return name in self._wrappers

    def __iter__(self) -> Iterator[str]:
        return iter(self._wrappers)

    def __len__(self) -> int:
        return len(self._wrappers)

    def attach(self, bus: EventBus, hub: MessageHub, progress: Progress, live: Live, max_iters: Callable[[], int | None]) -> None:
        """Have all of them publish on this bus and record in this hub from now on."""
        for wrapper in self.values():
            wrapper.attach(bus, hub, progress, live, max_iters)

    def update_params(self, loss: torch.Tensor) -> NoReturn:
        """Refuse: which of them is meant has to be said.

        Raises:
            ConfigError: always.
        """
        first = next(iter(self))
        msg = f"there are several optimizers ({', '.join(self)}): say which, optim_wrapper[{first!r}].update_params(loss)"
        raise ConfigError(msg)

    def finish(self) -> None:
        """Have each use the gradients of an incomplete group of micro-batches."""
        for wrapper in self.values():
            wrapper.finish()

    def wrappers(self) -> dict[str, OptimWrapper]:
        """Return every wrapper by name."""
        return dict(self)

    def wrapper_of(self, optimizer: torch.optim.Optimizer) -> OptimWrapper:
        """Return the wrapper of one of the optimizers.

        Raises:
            ConfigError: it is none of them.
        """
        for wrapper in self.values():
            if wrapper.optimizer is optimizer:
                return wrapper
        msg = f"{type(optimizer).__name__}: this object is none of the optimizers of the run ({', '.join(self)})"
        raise ConfigError(msg)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of each by its name."""
        return {name: wrapper.state_dict() for name, wrapper in self.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the state of each.

        Raises:
            ConfigError: the state is not that of optimizers of these names.
        """
        if set(state_dict) != set(self):
            msg = f"the state is of {', '.join(map(str, state_dict))}; expected that of the optimizers {', '.join(self)}"
            raise ConfigError(msg)
        for name, wrapper in self.items():
            wrapper.load_state_dict(state_dict[name])


def _misfits(wrappers: Mapping[str, Any]) -> list[str]:
    if not wrappers:
        return ["an OptimWrapperDict needs at least one OptimWrapper, got none"]
    problems = [f"{k} = {shown(v)}: expected an OptimWrapper" for k, v in wrappers.items() if not isinstance(v, OptimWrapper)]
    first: dict[int, str] = {}
    for name, wrapper in wrappers.items():
        optimizer = getattr(wrapper, "optimizer", wrapper)
        if first.setdefault(id(optimizer), name) != name:
            problems.append(f"{name} has the same {type(optimizer).__name__} object as {first[id(optimizer)]}")
    return problems
