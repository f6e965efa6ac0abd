"""The default hooks of a run, as data, and how a user's `default_hooks` and `custom_hooks` change them."""

from __future__ import annotations

__all__ = ("DEFAULT_HOOKS", "HookEntry", "build_hook", "build_hooks", "check_subscribable", "hook_problems")

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from hookbus._config import refuse, shown
from hookbus.bus import EventBus
from hookbus.bus.hook_methods import hook_methods
from hookbus.errors import ConfigError, SubscriptionError, choices
from hookbus.priority import Priority, get_priority
from hookbus.registry import HOOKS
from hookbus.types import HookLike

DEFAULT_HOOKS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "runtime_info": {"type": "RuntimeInfoHook"},
        "timer": {"type": "IterTimerHook"},
        "sampler_seed": {"type": "DistSamplerSeedHook"},
        "logger": {"type": "LoggerHook"},
        "param_scheduler": {"type": "ParamSchedulerHook"},
        "checkpoint": {"type": "CheckpointHook", "interval": 1},
    }
)
"""In the order in which they are added; the order of priorities is theirs."""


class HookEntry(NamedTuple):
    """A hook and the priority it was given, if any."""

    hook: HookLike
    priority: int | None

    def __str__(self) -> str:
        return f"{type(self.hook).__name__} {self.in_order()}"

    def in_order(self) -> int:
        """Return the priority it has: the one it was given, else its own."""
        own = getattr(self.hook, "priority", Priority.NORMAL)
        return self.priority if self.priority is not None else get_priority(own)


def build_hooks(default_hooks: object, custom_hooks: object) -> list[HookEntry]:
    """Return the default hooks with a user's changes, then the user's own.

    Raises:
        ConfigError: a name, type or option is unknown or ill-typed, or something is not a hook; names all of them.
    """
    refuse(hook_problems(default_hooks, custom_hooks))
    specs = _default_specs(default_hooks) | _custom_specs(custom_hooks)
    entries = [build_hook(spec, path) for path, spec in specs.items()]
    check_subscribable(entries)
    return entries


def hook_problems(default_hooks: object, custom_hooks: object) -> list[str]:
    """Return everything that `build_hooks` would refuse, without building a hook."""
    problems: list[str] = []
    specs: dict[str, object] = {}
    for read, given in ((_default_specs, default_hooks), (_custom_specs, custom_hooks)):
        try:
            specs |= read(given)
        except ConfigError as error:
            problems.append(str(error))
    for path, spec in specs.items():
        problems += HOOKS.check(spec, path=path, extra_keys=("priority",)) if isinstance(spec, Mapping) else _check(spec, path)
    return problems


def check_subscribable(entries: Iterable[HookEntry]) -> None:
    """Refuse hooks that no bus would take, before they are put on the one of the run.

    Raises:
        SubscriptionError: a method asks for a name that its event does not offer.
        ConfigError: a priority is none.
    """
    trial = EventBus()
    for entry in entries:
        trial.add_hook(entry.hook, entry.priority)


def build_hook(spec: object, path: str) -> HookEntry:
    """Return the hook that a config describes, or the one that was given."""
    if not isinstance(spec, Mapping):
        refuse(_check(spec, path))
        return HookEntry(spec, None)
    hook = HOOKS.build(spec, path=path, extra_keys=("priority",))
    refuse(_check(hook, path))
    priority = spec.get("priority")
    try:
        return HookEntry(hook, None if priority is None else get_priority(priority))
    except ConfigError as error:
        raise ConfigError(f"{path}.priority: {error}") from None


def _check(hook: object, path: str) -> list[str]:
    """Return what keeps an object from being a hook."""
    if isinstance(hook, str | bytes | int | float | list | tuple | None):
        return [f"{path} = {shown(hook)}: expected a hook or a dict(type=...)"]
    try:
        hook_methods(hook)
    except SubscriptionError as error:
        return [f"{path}: {error}"]
    return []


def _default_specs(given: object) -> dict[str, object]:
    if not isinstance(given, Mapping | None):
        msg = f"default_hooks must be a dict of name to config, got {shown(given)}; its names: {', '.join(DEFAULT_HOOKS)}"
        raise ConfigError(msg)
    specs: dict[str, object] = {f"default_hooks.{name}": config for name, config in DEFAULT_HOOKS.items()}
    for name, spec in (given or {}).items():
        path = f"default_hooks.{name}"
        if path not in specs and (spec is None or (isinstance(spec, Mapping) and "type" not in spec)):
            msg = f"default_hooks has no {name!r} that could be changed or removed; {choices(str(name), DEFAULT_HOOKS)}"
            raise ConfigError(msg)
        if spec is None:
            del specs[path]
        else:
            specs[path] = _merged(DEFAULT_HOOKS.get(name, {}), spec)
    return specs


def _merged(default: Mapping[str, Any], spec: object) -> object:
    """Return the entry a user gave; one of the same type inherits the options it does not set."""
    if not isinstance(spec, Mapping) or spec.get("type", default.get("type")) != default.get("type"):
        return spec
    return {**default, **spec}


def _custom_specs(given: object) -> dict[str, object]:
    if given is None:
        return {}
    if isinstance(given, Mapping):
        return {"custom_hooks": given}
    if not isinstance(given, list | tuple):
        msg = f"custom_hooks must be a list of hooks or configs, got {shown(given)}"
        raise ConfigError(msg)
    return {f"custom_hooks[{index}]": spec for index, spec in enumerate(given)}
