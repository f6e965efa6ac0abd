"""Events on the wire: JSON or MessagePack, tagged by `module:qualname`, exact also for NaN and infinities.

Decoding looks the tag up among the event classes that are defined at that time; nothing it names is imported.
"""

from __future__ import annotations

__all__ = ("WireFormat", "decode_event", "encode_event")

import math
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias, get_args

import msgspec

from hookbus.errors import ConfigError, choices
from hookbus.events import Event

WireFormat: TypeAlias = Literal["json", "msgpack"]

_FLOAT = "$float"
"""Stands in JSON for a number that JSON does not have: `{"$float": "nan"}`."""
_NOT_IN_JSON = ("nan", "inf", "-inf")
_ESCAPED = "$escaped"
"""Wraps a mapping of the user's own that would look like one of these two."""


def encode_event(event: Event, format: WireFormat = "json") -> bytes:
    """Return an event as bytes.

    Raises:
        ConfigError: a field holds something that has no wire form, or the format is unknown.
    """
    _check_format(format)
    try:
        if format == "msgpack":
            return msgspec.msgpack.encode(event)
        return msgspec.json.encode(_to_json(msgspec.to_builtins(event, str_keys=True)))
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        msg = f"{type(event).__name__} has no wire form: {error}; events hold numbers, text and plain containers"
        raise ConfigError(msg) from error


def decode_event(data: bytes, format: WireFormat = "json") -> Event:
    """Return the event that `encode_event` made these bytes of.

    Raises:
        ConfigError: they are not an event, or one whose class is not defined here.
    """
    _check_format(format)
    try:
        plain = _from_json(msgspec.json.decode(data)) if format == "json" else msgspec.msgpack.decode(data)
        if not isinstance(plain, dict) or "event" not in plain:
            msg = "the bytes are not an event: a mapping with the key 'event' was expected"
            raise ConfigError(msg)
        return msgspec.convert(plain, _class_of(plain["event"]), str_keys=format == "json")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        msg = f"the bytes are not an event: {error}"
        raise ConfigError(msg) from error


def _check_format(format: str) -> None:
    if format not in get_args(WireFormat):
        msg = f"unknown wire format {format!r}; {choices(format, get_args(WireFormat))}"
        raise ConfigError(msg)


def _class_of(tag: object) -> type[Event]:
    known = {str(cls.__struct_config__.tag): cls for cls in _subclasses(Event)}
    if not isinstance(tag, str) or tag not in known:
        msg = f"unknown event {tag!r}; {choices(str(tag), known)}"
        raise ConfigError(msg)
    return known[tag]


def _subclasses(base: type[Event]) -> Iterator[type[Event]]:
    for cls in base.__subclasses__():
        yield cls
        yield from _subclasses(cls)


def _to_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return {_FLOAT: repr(value)}
    if isinstance(value, list | tuple):
        return [_to_json(item) for item in value]
    if isinstance(value, dict):
        plain = {key: _to_json(item) for key, item in value.items()}
        return {_ESCAPED: plain} if plain.keys() in ({_FLOAT}, {_ESCAPED}) else plain
    return value


def _from_json(value: Any) -> Any:
    if isinstance(value, list):
        return [_from_json(item) for item in value]
    if not isinstance(value, dict):
        return value
    if value.keys() == {_FLOAT} and value[_FLOAT] in _NOT_IN_JSON:
        return float(value[_FLOAT])
    if value.keys() == {_ESCAPED} and isinstance(value[_ESCAPED], dict):
        value = value[_ESCAPED]
    return {key: _from_json(item) for key, item in value.items()}
