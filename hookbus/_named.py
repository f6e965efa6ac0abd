"""Instances found by name: held while they wait for a run, and for as long as somebody uses them."""

from __future__ import annotations

__all__ = ("NamedInstances", "check_name")

import re
import threading
from collections.abc import Callable
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from hookbus.errors import InvalidName

T = TypeVar("T")

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_name(name: object, what: str) -> str:
    """Return `name` if it may name a run, a bus or a hub.

    Raises:
        InvalidName: it is not a text of 1 to 100 letters, digits, dots, dashes and underscores.
    """
    if isinstance(name, str) and _NAME.fullmatch(name):
        return name
    msg = f"{what} must be 1 to 100 letters, digits, '.', '_' or '-' and begin with a letter or digit, got {name!r}"
    raise InvalidName(msg)


class NamedInstances(Generic[T]):
    """The instances of one class by name; safe to use from any thread.

    One that was asked for before its run exists is held, so that nothing prepared on it is lost. From the moment a
    run adopts it, it lives as long as somebody holds it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: WeakValueDictionary[str, T] = WeakValueDictionary()
        self._waiting: dict[str, T] = {}

    def get(self, name: str, make: Callable[[], T]) -> T:
        """Return the instance of that name; make and hold one where there is none."""
        with self._lock:
            found = self._known.get(name)
            if found is None:
                found = self._known[name] = self._waiting[name] = make()
            return found

    def adopt(self, name: str, make: Callable[[], T], *, is_free: Callable[[T], bool], is_live: Callable[[T], bool]) -> T:
        """Return the instance that a new run is to use; it is no longer held here.

        A live one stays the one that is found by the name until the new run begins.
        """
        with self._lock:
            known = self._known.get(name)
            self._waiting.pop(name, None)
            if known is not None and is_free(known):
                return known
            made = make()
            if known is None or not is_live(known):
                self._known[name] = made
            return made

    def register(self, name: str, instance: T) -> None:
        """Make `instance`, which a run uses, the one that is found by that name; nothing of that name is held here any more."""
        with self._lock:
            self._waiting.pop(name, None)
            self._known[name] = instance

    def known(self) -> list[T]:
        """Return every instance that can be found by its name."""
        with self._lock:
            return list(self._known.values())

    def renew_lock(self) -> None:
        """Forget who holds the lock: in a forked child, where the thread that did does not exist."""
        self._lock = threading.Lock()
