"""How a background subscriber is served: how many events may wait for it, and what happens when it falls behind."""

from __future__ import annotations

__all__ = ("Background", "Overflow", "background_options")

from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, get_args

from hookbus.errors import SubscriptionError, choices

Overflow: TypeAlias = Literal["drop_oldest", "block", "latest"]
"""What happens when more events come than may wait."""


@dataclass(frozen=True)
class Background:
    """Options of the background lane; `background=True` means the defaults.

    Args:
        maxsize: how many events may wait.
        overflow: `"drop_oldest"` lets the oldest one go; `"latest"` keeps nothing but the newest; `"block"` has the
            publisher wait for room.
        block_timeout: seconds that the publisher waits at most; from then on events are dropped until none waits.

    Raises:
        SubscriptionError: an option does not fit.
    """

    maxsize: int = 1024
    overflow: Overflow = "drop_oldest"
    block_timeout: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what does not fit."""
        if type(self.maxsize) is not int or self.maxsize < 1:
            msg = f"Background.maxsize must be a whole number of at least 1, got {self.maxsize!r}"
            raise SubscriptionError(msg)
        if self.overflow not in get_args(Overflow):
            msg = f"Background.overflow = {self.overflow!r}; {choices(str(self.overflow), get_args(Overflow))}"
            raise SubscriptionError(msg)
        if type(self.block_timeout) not in (int, float) or not self.block_timeout > 0:
            msg = f"Background.block_timeout must be a positive number of seconds, got {self.block_timeout!r}"
            raise SubscriptionError(msg)


def background_options(given: Any, name: str) -> Background | None:
    """Return the options that `background=` stands for; None where the publisher calls or awaits the handler.

    Raises:
        SubscriptionError: it is neither a truth value nor `Background(...)`.
    """
    if given is None or given is False:
        return None
    if given is True:
        return Background()
    if isinstance(given, Background):
        return given
    msg = f"{name}: background must be True, False or Background(...), got {given!r}"
    raise SubscriptionError(msg)
