"""What a user may give as schedules, read into entries and checked without building anything on a real optimizer."""

from __future__ import annotations

__all__ = ("OPTIONS", "Entry", "build_torch_scheduler", "find_problems", "read_entries", "scheduler_class")

import inspect
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeGuard, cast

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from hookbus._config import place, shown
from hookbus.errors import ConfigError, choices, describe_error, nearest
from hookbus.registry import PARAM_SCHEDULERS
from hookbus.schedulers.parameters import ParameterView, numeric_options, stand_in_for

OPTIONS = ("by_epoch", "begin", "end", "param_name", "monitor")
"""The options of a schedule that are ours; all others are torch's."""

_FORMS = "a torch scheduler, dict(type=...), dict(scheduler=...) or a list of these"
_MADE_BEFORE = "a scheduler object set its first value when it was made"
_FAMILIES = {"Momentum": ", param_name='momentum'", "ParamScheduler": ", param_name=...", "LR": ""}
_OTHER_NAMES = {"CosineRestart": "CosineAnnealingWarmRestarts"}

Optimizers = Optimizer | Mapping[str, Optimizer]


class Entry(NamedTuple):
    """One schedule of a specification: where it stands, what stands there, and the optimizers by name that it may be for.

    `optimizers` is None where they are not known.
    """

    path: str
    item: Any
    optimizers: Mapping[str, Optimizer] | None

    @property
    def targets(self) -> dict[str, Optimizer]:
        """The optimizers that it drives: the one of its scheduler objects, or for a config each that it may be for."""
        held = _held(self.item)
        return {name: each for name, each in (self.optimizers or {}).items() if not held or each is held[0].optimizer}


def read_entries(spec: object, optimizers: Optimizers | None, path: str) -> list[Entry]:
    """Return the entries of a specification in order; names of optimizers that do not exist are left out."""
    if spec is None:
        return []
    known = {"": optimizers} if isinstance(optimizers, Optimizer) else optimizers
    if not _is_by_name(spec, optimizers):
        return [Entry(where, item, known) for where, item in _listed(spec, path)]
    entries: list[Entry] = []
    for name, own in spec.items():
        if known is None or name in known:
            candidates = None if known is None else {name: known[name]}
            entries += [Entry(where, item, candidates) for where, item in _listed(own, place(path, str(name)))]
    return entries


def find_problems(spec: object, optimizers: Optimizers | None, path: str) -> list[str]:
    """Return everything that is wrong with a specification, one sentence each."""
    entries = read_entries(spec, optimizers, path)
    problems = [
        *_unknown_names(spec, optimizers, path),
        *(problem for entry in entries for problem in _problems(entry)),
        *_repeated(entries),
    ]
    return list(dict.fromkeys(problems))


def scheduler_class(item: Any) -> type:
    """Return the class of a scheduler, or the one that a config names."""
    if isinstance(item, LRScheduler):
        return type(item)
    if "scheduler" in item:
        return type(item["scheduler"])
    named = item["type"]
    return named if isinstance(named, type) else PARAM_SCHEDULERS.get(named)


def build_torch_scheduler(item: Mapping[str, Any], path: str, optimizer: Optimizer) -> LRScheduler:
    """Return the torch scheduler that a config describes; its constructor sets a first value at once."""
    return cast(LRScheduler, PARAM_SCHEDULERS.build(item, path=path, given={"optimizer": optimizer}, extra_keys=OPTIONS))


def _is_by_name(spec: object, optimizers: Optimizers | None) -> TypeGuard[Mapping[str, object]]:
    """Return whether a specification is a dict of optimizer to schedules."""
    if isinstance(optimizers, Optimizer) or not isinstance(spec, Mapping) or "type" in spec or "scheduler" in spec:
        return False
    return all(isinstance(own, Mapping | list | tuple | LRScheduler | None) for own in spec.values())


def _listed(spec: object, path: str) -> Iterable[tuple[str, object]]:
    if isinstance(spec, list | tuple):
        return [(f"{path}[{index}]", item) for index, item in enumerate(spec)]
    return [] if spec is None else [(path, spec)]


def _held(item: object) -> list[LRScheduler]:
    """Return the scheduler objects that an entry is or contains."""
    if isinstance(item, LRScheduler):
        return [item]
    values = item.values() if isinstance(item, Mapping) else ()
    inner = [element for value in values for element in (value if isinstance(value, list | tuple) else [value])]
    return [element for element in inner if isinstance(element, LRScheduler)]


# What can be wrong with the whole


def _unknown_names(spec: Any, optimizers: Optimizers | None, path: str) -> Iterator[str]:
    if isinstance(optimizers, Mapping) and _is_by_name(spec, optimizers):
        for name in spec:
            if name not in optimizers:
                yield f"{place(path, str(name))}: there is no optimizer of that name; {choices(str(name)[:100], optimizers)}"


def _repeated(entries: list[Entry]) -> Iterator[str]:
    first: dict[int, str] = {}
    for entry in entries:
        for scheduler in _held(entry.item):
            known = first.setdefault(id(scheduler), entry.path)
            if known != entry.path:
                yield f"{entry.path} is the same {type(scheduler).__name__} object as {known}; it would be stepped twice"


# What can be wrong with one entry


def _problems(entry: Entry) -> list[str]:
    item, path = entry.item, entry.path
    if isinstance(item, LRScheduler):
        return list(_foreign(entry, item, path))
    if not isinstance(item, Mapping):
        return [f"{path} = {shown(item)}: expected {_FORMS}"]
    ours = [*_timing_problems(item, path), *_parameter_problems(entry)]
    if "scheduler" in item:
        return [*_wrapped_problems(entry), *ours, *_made_before(item, path)]
    problems = _name_problems(item, path) or PARAM_SCHEDULERS.check(item, path=path, given=("optimizer",), extra_keys=OPTIONS)
    problems = problems or _class_problems(entry)
    return [*problems, *ours] or list(_trial_problems(entry))


def _wrapped_problems(entry: Entry) -> Iterator[str]:
    item, path = entry.item, entry.path
    scheduler, valid = item["scheduler"], ("scheduler", *OPTIONS)
    for key in item:
        if key not in valid:
            where = place(path, str(key))
            yield f"{where} = {shown(item[key])}: no such option beside a scheduler object; {choices(str(key), valid)}"
    if not isinstance(scheduler, LRScheduler):
        yield f"{path}.scheduler = {shown(scheduler)}: expected a torch scheduler"
    else:
        yield from _foreign(entry, scheduler, f"{path}.scheduler")
        yield from _monitor_problems(item, type(scheduler), path)


def _foreign(entry: Entry, scheduler: LRScheduler, path: str) -> Iterator[str]:
    if entry.optimizers is None or any(scheduler.optimizer is each for each in entry.optimizers.values()):
        return
    own = [f"the {type(each).__name__} {f'{name!r} ' if name else ''}of the runner" for name, each in entry.optimizers.items()]
    yield f"{path} = {type(scheduler).__name__}: it steps another optimizer; expected {' or '.join(own)}"


def _timing_problems(item: Mapping[Any, Any], path: str) -> Iterator[str]:
    if not isinstance(item.get("by_epoch", True), bool):
        yield f"{path}.by_epoch = {shown(item['by_epoch'])}: expected bool"
    if not isinstance(item.get("monitor"), str | None):
        yield f"{path}.monitor = {shown(item['monitor'])}: expected the name of a metric"
    begin, end = item.get("begin", 0), item.get("end")
    begins_well = begin is None or (type(begin) is int and begin >= 0)
    if not begins_well:
        yield f"{path}.begin = {shown(begin)}: expected a whole number, at least 0"
    start = (begin or 0) if begins_well else 0
    if end is not None and not (type(end) is int and end > start):
        yield f"{path}.end = {shown(end)}: expected a whole number above begin = {start}, or None"


def _parameter_problems(entry: Entry) -> Iterator[str]:
    name = entry.item.get("param_name", "lr")
    path = f"{entry.path}.param_name"
    if not isinstance(name, str):
        yield f"{path} = {shown(name)}: expected the name of an option of the optimizer"
        return
    for optimizer in entry.targets.values():
        options = numeric_options(optimizer)
        if name not in options:
            yield f"{path} = {name!r}: {type(optimizer).__name__} has no number of that name; {choices(name[:100], options)}"


def _made_before(item: Mapping[Any, Any], path: str) -> Iterator[str]:
    """Yield what a scheduler that exists already cannot do any more."""
    begin = item.get("begin")
    if type(begin) is int and begin > 0:
        yield f"{path}.begin = {begin}: {_MADE_BEFORE}; expected 0, or dict(type=...) instead"
    if item.get("param_name", "lr") != "lr":
        yield f"{path}.param_name = {shown(item['param_name'])}: {_MADE_BEFORE}; expected 'lr', or dict(type=...) instead"


def _name_problems(item: Mapping[Any, Any], path: str) -> list[str]:
    """Return what to write instead of a name that says which parameter it is for."""
    named = item.get("type")
    if not isinstance(named, str) or named in PARAM_SCHEDULERS:
        return []
    for ending, rest in _FAMILIES.items():
        base = named.removesuffix(ending)
        close = _OTHER_NAMES.get(base) or (nearest(f"{base}LR", PARAM_SCHEDULERS.names()) if ending != "LR" else None)
        if base != named and close is not None:
            known = f"no param scheduler is registered as {named!r}"
            return [f"{path}.type = {named!r}: {known}; did you mean dict(type={close!r}{rest})?"]
    return []


def _class_problems(entry: Entry) -> list[str]:
    item, path, kind = entry.item, entry.path, scheduler_class(entry.item)
    if not issubclass(kind, LRScheduler):
        return [f"{path}.type = {kind.__name__}: expected a subclass of torch's LRScheduler"]
    problems = list(_monitor_problems(item, kind, path))
    held = _held(item)
    if held:
        problems += [*_foreign(entry, held[0], path), *_made_before(item, path)]
    drives_momentum = "cycle_momentum" in inspect.signature(kind).parameters and item.get("cycle_momentum") is not False
    if drives_momentum and item.get("param_name", "lr") != "lr":
        problems.append(
            f"{path}.cycle_momentum = {shown(item.get('cycle_momentum', True))}: {kind.__name__} would drive the momentum "
            f"beside {shown(item['param_name'])}; expected False"
        )
    return problems


def _monitor_problems(item: Mapping[Any, Any], kind: type, path: str) -> Iterator[str]:
    monitor = item.get("monitor")
    if isinstance(monitor, str) and not issubclass(kind, ReduceLROnPlateau):
        yield f"{path}.monitor = {monitor!r}: {kind.__name__} follows no metric; expected ReduceLROnPlateau, or no monitor"


def _trial_problems(entry: Entry) -> Iterator[str]:
    """Yield what torch says about the options, so that it is known now and not when the schedule begins."""
    if _held(entry.item):
        return  # it can be built once only, and on the optimizer of its parts
    for optimizer in entry.targets.values():
        try:
            _try(entry, stand_in_for(optimizer))
        except ConfigError as error:
            yield str(error)
        except Exception as error:  # noqa: BLE001  whatever it is, it would come up in the middle of the run
            yield f"{entry.path}: {scheduler_class(entry.item).__name__} fails with these options: {describe_error(error)}"


def _try(entry: Entry, optimizer: Optimizer) -> None:
    name = entry.item.get("param_name", "lr")
    target = optimizer if name == "lr" else ParameterView(optimizer, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a schedule that steps before its optimizer, as this one does on purpose
        scheduler = build_torch_scheduler(entry.item, entry.path, target)
        if not isinstance(scheduler, ReduceLROnPlateau):
            scheduler.step()
