"""What type checkers are told is also true when it runs."""

from __future__ import annotations

from hookbus.bus import EventBus
from tests.bus import typing_checks


async def test_what_the_type_checker_infers_also_runs() -> None:
    """The module that the checker reads is no dead letter."""
    typing_checks.check_subscribing(EventBus())
    typing_checks.check_refusals(EventBus())
    await typing_checks.check_publishing(EventBus())
