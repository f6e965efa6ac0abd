"""Makes the optimizers of a run out of what the user gave: objects as they are, configs checked and built."""

from __future__ import annotations

__all__ = ("build_optim_wrapper", "optimizer_problems")

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.optim import LBFGS, Optimizer

from hookbus._config import place, refuse, shown
from hookbus.errors import choices
from hookbus.optim import OptimWrapper, OptimWrapperDict
from hookbus.optim.options import WRAPPER_OPTIONS, wrapper_problems
from hookbus.registry import OPTIMIZERS

_FORMS = "a torch optimizer or a dict(type=...)"
_WRAPPERS: dict[str, dict[str, Any]] = {"OptimWrapper": {}, "AmpOptimWrapper": {"dtype": "float16"}}
"""What may stand as `type` among the options, and what it sets where the user does not."""


def build_optim_wrapper(
    optimizer: object, optim_wrapper: object, model: torch.nn.Module
) -> OptimWrapper | OptimWrapperDict | None:
    """Return the optimizers of a run, wrapped; None where there are none.

    Args:
        optimizer: a torch optimizer or a config; or a dict of these by name, where a config is for the parameters of the
            submodule of that name.
        optim_wrapper: wrapped optimizers, or the options of each wrapper, perhaps with the optimizer among them.
        model: whose parameters they update.

    Raises:
        ConfigError: something is unknown, ill-typed, given twice, or updates no parameter of the model; names each.
    """
    refuse(optimizer_problems(optimizer, optim_wrapper, model))
    for given in (optimizer, optim_wrapper):
        if isinstance(given, OptimWrapper | OptimWrapperDict):
            return given
    spec, path = _place_of_optimizer(optimizer, optim_wrapper)
    options = _options(optim_wrapper)
    if spec is None:
        return None
    if not _is_several(spec):
        return OptimWrapper(_built(spec, path, model), **options)
    built = {name: _built(item, place(path, name), _submodule(model, name) or model) for name, item in spec.items()}
    return OptimWrapperDict(**{name: OptimWrapper(each, **options) for name, each in built.items()})


def optimizer_problems(optimizer: object, optim_wrapper: object, model: object) -> list[str]:
    """Return everything that `build_optim_wrapper` would refuse, one sentence each, without building anything."""
    if isinstance(optim_wrapper, OptimWrapper | OptimWrapperDict):
        twice = f"optimizer = {shown(optimizer)}: optim_wrapper has its optimizer already; leave one of them out"
        return [twice] if optimizer is not None else _wrapper_problems(optim_wrapper, "optim_wrapper", model)
    if isinstance(optimizer, OptimWrapper | OptimWrapperDict):
        twice = f"optim_wrapper = {shown(optim_wrapper)}: optimizer = {shown(optimizer)} is wrapped already; leave it out"
        return [twice] if optim_wrapper is not None else _wrapper_problems(optimizer, "optimizer", model)
    if not isinstance(optim_wrapper, Mapping | None):
        return [f"optim_wrapper = {shown(optim_wrapper)}: expected an OptimWrapper, an OptimWrapperDict, or a dict of options"]
    spec, path = _place_of_optimizer(optimizer, optim_wrapper)
    problems = list(_option_problems(optim_wrapper)) if optim_wrapper is not None else []
    if spec is None:
        missing = f"optim_wrapper = {shown(optim_wrapper)}: there is no optimizer for it"
        return problems if optim_wrapper is None else [*problems, missing]
    if optimizer is not None and spec is not optimizer:
        problems.append(f"{path} = {shown(spec)}: there is optimizer = {shown(optimizer)} already; leave one of them out")
    return problems + _spec_problems(spec, path, model)


def _place_of_optimizer(optimizer: object, optim_wrapper: object) -> tuple[Any, str]:
    """Return the optimizer, which may stand among the options of its wrapper, and where it stands."""
    inside = optim_wrapper.get("optimizer") if isinstance(optim_wrapper, Mapping) else None
    return (optimizer, "optimizer") if inside is None else (inside, "optim_wrapper.optimizer")


def _options(optim_wrapper: object) -> dict[str, Any]:
    if not isinstance(optim_wrapper, Mapping):
        return {}
    given = {key: optim_wrapper[key] for key in WRAPPER_OPTIONS if key in optim_wrapper}
    return _WRAPPERS[optim_wrapper.get("type", "OptimWrapper")] | given


def _option_problems(optim_wrapper: Mapping[Any, Any]) -> Iterator[str]:
    valid = (*WRAPPER_OPTIONS, "optimizer", "type")
    for key in optim_wrapper:
        if key not in valid:
            where = place("optim_wrapper", str(key))
            yield f"{where} = {shown(optim_wrapper[key])}: no such option; {choices(str(key)[:100], valid)}"
    kind = optim_wrapper.get("type", "OptimWrapper")
    if kind not in tuple(_WRAPPERS):
        yield f"optim_wrapper.type = {shown(kind)}: {choices(str(kind)[:100], _WRAPPERS)}"
    else:
        yield from wrapper_problems(_options(optim_wrapper), "optim_wrapper")


def _is_several(spec: object) -> bool:
    """Return whether a dict names optimizers, in contrast to the config of one, even one that lacks its type."""
    return isinstance(spec, Mapping) and "type" not in spec and any(isinstance(v, Mapping | Optimizer) for v in spec.values())


def _spec_problems(spec: Any, path: str, model: object) -> list[str]:
    if not _is_several(spec):
        return _single_problems(spec, path, model, model)
    problems: list[str] = []
    first: dict[int, str] = {}
    for name, item in spec.items():
        where = place(path, str(name))
        if not isinstance(name, str):
            problems.append(f"{path} has the key {shown(name)}: expected the name of an optimizer")
        elif isinstance(item, Mapping) and isinstance(model, torch.nn.Module) and _submodule(model, name) is None:
            children = [child for child, _ in model.named_children()]
            problems.append(f"{where}: {type(model).__name__} has no submodule {name!r} to optimize; {choices(name, children)}")
        else:
            problems += _single_problems(item, where, _submodule(model, name) if isinstance(item, Mapping) else model, model)
        if isinstance(item, Optimizer) and first.setdefault(id(item), where) != where:
            problems.append(f"{where} is the same {type(item).__name__} object as {first[id(item)]}")
    return problems


def _single_problems(item: object, path: str, optimized: object, model: object) -> list[str]:
    """Return what is wrong with one optimizer of the parameters of `optimized`, the model itself or a part of it."""
    if isinstance(item, Optimizer):
        return list(_object_problems(item, path, model))
    if not isinstance(item, Mapping):
        return [f"{path} = {shown(item)}: expected {_FORMS}"]
    problems = OPTIMIZERS.check(item, path=path, given=("params",))
    if not problems and _is_lbfgs(item["type"]) and not hasattr(model, "train_step"):
        problems.append(_closure_problem(path))
    if not problems and isinstance(optimized, torch.nn.Module) and next(optimized.parameters(), None) is None:
        problems.append(f"{path} = {shown(item['type'])}: {type(optimized).__name__} has no parameters to optimize")
    return problems


def _object_problems(optimizer: Optimizer, path: str, model: object) -> Iterator[str]:
    if isinstance(optimizer, LBFGS) and not hasattr(model, "train_step"):
        yield _closure_problem(path)
    if isinstance(model, torch.nn.Module):
        own = {id(parameter) for parameter in model.parameters()}
        if not any(id(parameter) in own for group in optimizer.param_groups for parameter in group["params"]):
            yield f"{path} = {type(optimizer).__name__}: it updates no parameter of the model {type(model).__name__}"


def _wrapper_problems(wrapped: OptimWrapper | OptimWrapperDict, path: str, model: object) -> list[str]:
    wrappers = {path: wrapped} if isinstance(wrapped, OptimWrapper) else {place(path, k): w for k, w in wrapped.items()}
    return [problem for where, wrapper in wrappers.items() for problem in _object_problems(wrapper.optimizer, where, model)]


def _is_lbfgs(named: object) -> bool:
    cls = OPTIMIZERS.get(named) if isinstance(named, str) else named
    return isinstance(cls, type) and issubclass(cls, LBFGS)


def _closure_problem(path: str) -> str:
    return f"{path} = LBFGS: it computes the loss several times a step; use it in a train_step method of the model"


def _submodule(model: object, name: str) -> torch.nn.Module | None:
    return dict(model.named_modules()).get(name) if isinstance(model, torch.nn.Module) and name else None


def _built(spec: Any, path: str, optimized: torch.nn.Module) -> Optimizer:
    if isinstance(spec, Optimizer):
        return spec
    optimizer: Optimizer = OPTIMIZERS.build(spec, path=path, given={"params": optimized.parameters()})
    return optimizer
