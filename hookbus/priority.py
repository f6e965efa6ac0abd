"""The order of handlers: names for the numbers 0 to 100, lower runs first."""

from __future__ import annotations

__all__ = ("Priority", "get_priority")

from enum import Enum, IntEnum

from hookbus.errors import ConfigError, choices


class Priority(IntEnum):
    """Named places in the order in which handlers run; lower runs earlier, at every event."""

    HIGHEST = 0
    VERY_HIGH = 10
    HIGH = 30
    ABOVE_NORMAL = 40
    NORMAL = 50
    BELOW_NORMAL = 60
    LOW = 70
    VERY_LOW = 90
    LOWEST = 100


def get_priority(priority: int | str | Enum) -> int:
    """Return the number of a priority given as a name, a number or a `Priority`.

    Raises:
        ConfigError: the name is unknown, the number lies outside 0 to 100, or it is neither.
    """
    if isinstance(priority, Enum) and not isinstance(priority, int):
        priority = priority.value  # one of another library
    if isinstance(priority, bool) or not isinstance(priority, (int, str)):
        msg = f"priority must be a name, a Priority or a whole number from 0 to 100, got {priority!r}"
        raise ConfigError(msg)
    if isinstance(priority, str):
        return _priority_of_name(priority)
    if not 0 <= priority <= 100:
        msg = f"priority must lie between 0 (first) and 100 (last), got {int(priority)}"
        raise ConfigError(msg)
    return int(priority)


def _priority_of_name(name: str) -> int:
    try:
        return int(Priority[name.upper()])
    except KeyError:
        msg = f"unknown priority {name!r}; {choices(name, Priority.__members__)}"
        raise ConfigError(msg) from None
