"""The options of a config against the constructor they are meant for.

Strict about scalars: a text is no number and a truth value is no whole number, though a whole number may stand for a float.
Lenient about what a text file cannot spell: a list may stand for a tuple or a set, a text for a path or for a member of an
enumeration. Other classes are checked with `isinstance`; what an annotation leaves open, or cannot say, is let through.
"""

from __future__ import annotations

import collections.abc as abc
import enum
import functools
import inspect
import itertools
import os
import pathlib
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from reprlib import Repr
from typing import TYPE_CHECKING, Annotated, Any

from hookbus.errors import ConfigError, choices, nearest

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

MAX_DEPTH = 32

_SCALARS = (bool, int, float, complex, str, bytes, type(None))
_LISTS = (list, tuple, set, frozenset)
_IN_ORDER = (abc.Sequence, abc.MutableSequence, abc.Reversible)
_IN_ANY_ORDER = (abc.Iterable, abc.Collection, abc.Container)

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def shown(value: object) -> str:
    """Return a value as an error message shows it: on one line and never long."""
    if isinstance(value, type):
        return value.__qualname__
    try:
        return " ".join(_SHORT.repr(value).split())
    except Exception:  # noqa: BLE001  a value that cannot be shown must not hide what is wrong with it
        return f"<{type(value).__name__}>"


def place(path: str, key: str) -> str:
    """Return the path of an option, in quotes where its name is not a plain word."""
    return f"{path}.{key}" if key.isidentifier() else f"{path}[{shown(key)}]"


def refuse(problems: list[str]) -> None:
    """Raise one `ConfigError` about all the problems, if there are any."""
    if len(problems) == 1:
        raise ConfigError(problems[0])
    if problems:
        raise ConfigError("\n  - ".join([f"{len(problems)} problems in the config:", *problems]))


def copied(value: Any, path: str, depth: int = 2) -> Any:
    """Return an option with dicts, lists and tuples of its own, so that what is built from it cannot change the caller's.

    Options stand on the second level of a config.

    Raises:
        ConfigError: it contains itself, or is nested deeper than a config may be.
    """
    if depth > MAX_DEPTH and type(value) in (dict, list, tuple):
        raise ConfigError(f"{path} is nested too deep: a config has at most {MAX_DEPTH} levels")
    if type(value) is dict:
        return {key: copied(item, path, depth + 1) for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(copied(item, path, depth + 1) for item in value)
    return value


@dataclass(frozen=True)
class Constructor:
    """What a class can be given by name when it is created."""

    name: str
    parameters: Mapping[str, inspect.Parameter] = field(default_factory=dict)
    takes_any: bool = False
    namespace: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, built: type) -> Constructor:
        """Read the signature of a class; one that cannot be read takes anything, and the class itself will complain."""
        function = _constructing_function(built)
        if function is None:
            return cls(built.__qualname__)
        try:
            _, *parameters = inspect.signature(function).parameters.values()
        except (NameError, TypeError, ValueError):
            return cls(built.__qualname__, takes_any=True)
        by_name = {p.name: p for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
        return cls(built.__qualname__, by_name, takes_any, _namespace(built, function))

    def fit(
        self, options: Mapping[str, Any], path: str, *, given: Mapping[str, object], extra_keys: Collection[str]
    ) -> tuple[dict[str, Any], list[str]]:
        """Return the arguments for the constructor, and everything that is wrong with the options."""
        arguments: dict[str, Any] = {}
        problems: list[str] = []
        for key, value in options.items():
            if key in given:
                problems.append(f"{place(path, key)} = {shown(value)}: {self.name} gets its {key!r} elsewhere; leave it out here")
            elif key in self.parameters:
                arguments[key], wrong = self._fit_option(value, self.parameters[key], place(path, key))
                problems += wrong
            elif key not in extra_keys:
                arguments[key] = value
                problems += self._unknown(key, value, path, given, extra_keys)
        problems += self._missing({*options, *given}, path)
        problems += [f"{path}: {self.name} cannot be used here, its constructor takes no {key!r}" for key in self._surplus(given)]
        return {**arguments, **given}, problems

    def _fit_option(self, value: object, parameter: inspect.Parameter, path: str) -> tuple[object, list[str]]:
        if value is None and parameter.default is None:
            return value, []
        return _fit_value(value, self._hint(parameter), path)

    def _unknown(self, key: str, value: object, path: str, given: Collection[str], extra_keys: Collection[str]) -> Iterator[str]:
        if not self.takes_any:
            valid = dict.fromkeys([*(name for name in self.parameters if name not in given), *extra_keys])
            yield f"{place(path, key)} = {shown(value)}: {self.name} has no such option; {choices(key[:100], valid)}"

    def _missing(self, present: Collection[str], path: str) -> Iterator[str]:
        for name, parameter in self.parameters.items():
            if parameter.default is parameter.empty and name not in present:
                hint = self._hint(parameter)
                expected = "" if hint is Any else f"; expected {_written(hint)}"
                yield f"{place(path, name)} is missing: {self.name} needs it{expected}"

    def _surplus(self, given: Collection[str]) -> list[str]:
        return [] if self.takes_any else [key for key in given if key not in self.parameters]

    def _hint(self, parameter: inspect.Parameter) -> Any:
        """Return the annotation of a parameter with its names looked up; `Any` without one, or where that fails."""
        if parameter.annotation is parameter.empty:
            return Any
        holder = types.SimpleNamespace(__annotations__={"hint": parameter.annotation})
        try:
            return typing.get_type_hints(holder, globalns=self.namespace, include_extras=True)["hint"]
        except Exception:  # noqa: BLE001  an annotation that cannot be read must not refuse a good value
            return Any


def _constructing_function(built: type) -> Callable[..., Any] | None:
    """Return the `__init__` or `__new__` that a call of the class ends up in; None if that is `object`'s."""
    for owner in built.__mro__[:-1]:
        for name in ("__init__", "__new__"):
            if name in vars(owner):
                function = vars(owner)[name]
                return typing.cast(Callable[..., Any], function.__func__ if isinstance(function, staticmethod) else function)
    return None


def _namespace(built: type, function: Callable[..., Any]) -> dict[str, Any]:
    """Return the names an annotation may use; modules may import those of `typing` and `collections.abc` for checkers only."""
    modules = [typing, abc, *(sys.modules.get(owner.__module__) for owner in reversed(built.__mro__))]
    tables = [*(vars(module) for module in modules if module), getattr(inspect.unwrap(function), "__globals__", {})]
    return {name: value for table in tables for name, value in table.items()}


def _fit_value(value: object, hint: Any, path: str) -> tuple[object, list[str]]:
    """Return the value in the form that the annotation asks for, and what is wrong with it."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    if hint is Any:
        return value, []
    try:
        adapter = TypeAdapter[Any](_strict_form(hint), config=ConfigDict(strict=True))
    except Exception:  # noqa: BLE001  an annotation that means nothing to pydantic must not refuse a good value
        return value, []
    try:
        return adapter.validate_python(value), []
    except ValidationError as error:
        return value, list(_mismatches(error, value, hint, path))


def _strict_form(hint: Any) -> Any:
    """Return the annotation with which pydantic applies the rules of this module."""
    kind, args = typing.get_origin(hint) or hint, typing.get_args(hint)
    if kind is Annotated:
        return Annotated[_strict_form(args[0]), *hint.__metadata__]
    if kind in (typing.Union, types.UnionType):
        return typing.Union[tuple(map(_strict_form, args))]  # noqa: UP007  the members are known only now
    if kind in (dict, abc.Mapping, *_LISTS, *_IN_ORDER, *_IN_ANY_ORDER):
        return _container_form(kind, tuple(map(_strict_form, args)))
    if isinstance(hint, typing.NewType):
        return _strict_form(hint.__supertype__)
    if kind in (..., type, typing.Literal):
        return hint
    return _class_form(kind) if isinstance(kind, type) else Any


def _container_form(kind: Any, args: tuple[Any, ...]) -> Any:
    from pydantic import Strict

    if kind in _LISTS:
        return Annotated[kind[args] if args else kind, Strict(False)]
    if kind in (dict, abc.Mapping):
        return kind[args] if args else kind
    (item,) = args or (Any,)
    forms = [
        types.GenericAlias(built_in, args)
        for built_in, args in ((list, item), (tuple, (item, ...)), (set, item), (frozenset, item))
    ]
    lenient = [Annotated[form, Strict(False)] for form in (forms[:2] if kind in _IN_ORDER else forms)]
    return typing.Union[*lenient, _instance_form(kind, but_not=(str, bytes, dict, *_LISTS))]


def _class_form(kind: type) -> Any:
    from pydantic import BeforeValidator, Strict

    if kind in _SCALARS:
        return kind
    if issubclass(kind, enum.Enum):
        return Annotated[Any, BeforeValidator(functools.partial(_member, kind))]
    if issubclass(kind, pathlib.PurePath):
        return Annotated[kind, Strict(False)]
    if kind is os.PathLike:
        return Annotated[pathlib.Path, Strict(False)] | _instance_form(kind)
    try:
        isinstance(None, kind)
    except TypeError:
        return Any  # such as a protocol that has no checks at run time
    return _instance_form(kind)


def _instance_form(kind: type, but_not: tuple[type, ...] = ()) -> Any:
    from pydantic import AfterValidator, GetPydanticSchema
    from pydantic_core import PydanticCustomError, core_schema

    def allowed(value: object) -> object:
        if isinstance(value, but_not):
            raise PydanticCustomError("instance_type", "another {name}", {"name": kind.__qualname__})
        return value

    schema = core_schema.is_instance_schema(kind)
    return Annotated[Any, GetPydanticSchema(lambda _source, _handler: schema), AfterValidator(allowed)]


def _member(kind: type[enum.Enum], value: object) -> enum.Enum:
    """Return the member that a value or a name stands for."""
    from pydantic_core import PydanticCustomError

    for member in kind:
        if value is member or (type(value) is type(member.value) and value == member.value):
            return member
    if isinstance(value, str) and value in kind.__members__:
        return kind[value]
    raise PydanticCustomError("enum", "one of {members}", {"members": ", ".join(_words(kind))})


def _mismatches(error: ValidationError, value: object, hint: Any, path: str) -> Iterator[str]:
    """Yield one sentence for each element that does not fit, whatever number of alternatives it was compared with."""
    by_place: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for problem in error.errors(include_url=False):
        where = problem["loc"][:-1] if problem["type"] == "missing" else problem["loc"]
        by_place.setdefault(tuple(itertools.takewhile(lambda step: isinstance(step, int), where)), []).append(problem)
    for steps, problems in by_place.items():
        got = problems[0]["input"] if steps else value
        close = nearest(got[:100], _words(hint)) if isinstance(got, str) else None
        remedy = f"; did you mean {close!r}?" if close else ""
        where_text = path + "".join(f"[{step}]" for step in steps)
        yield f"{where_text} = {shown(got)}: expected {_expected(hint, bool(steps), problems)}{remedy}"


def _expected(hint: Any, is_element: bool, problems: list[ErrorDetails]) -> str:
    kind, message = problems[0]["type"], problems[0]["msg"]
    whole = f"an element of {_written(hint)}" if is_element else _written(hint)
    if len(problems) > 1 or kind in ("missing", "is_instance_of") or (kind.endswith("_type") and not is_element):
        return whole
    phrase = message.removeprefix("Input should be ")
    return phrase if phrase != message or kind == "enum" else f"{whole} ({message})"


def _written(hint: Any) -> str:
    """Return an annotation as its author would write it, without what `Annotated` adds."""
    plain = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", inspect.formatannotation(plain))


def _words(hint: Any) -> list[str]:
    """Return the texts that an annotation lists as its choices."""
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return [member.value if isinstance(member.value, str) else member.name for member in hint]
    if typing.get_origin(hint) is typing.Literal:
        return [word for word in typing.get_args(hint) if isinstance(word, str)]
    return [word for part in typing.get_args(hint) for word in _words(part)]
