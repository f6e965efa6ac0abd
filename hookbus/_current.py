"""Which run's code is executing, and which hub it may write to."""

from __future__ import annotations

__all__ = ("Writing", "current_hub", "current_writing")

from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hookbus.hub import MessageHub


class Writing:
    """The right to write to a hub while the training thread waits; given to one awaited handler at a time."""

    def __init__(self, hub: MessageHub) -> None:
        self.hub: MessageHub | None = hub
        """The hub, or None when the handler is done: tasks that it started have inherited this object."""


current_hub: ContextVar[MessageHub | None] = ContextVar("hookbus_current_hub", default=None)
"""The hub of the run whose code is executing."""
current_writing: ContextVar[Writing | None] = ContextVar("hookbus_current_writing", default=None)
"""The right to write that the executing awaited handler holds."""
