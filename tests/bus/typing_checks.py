"""What type checkers infer; they check this module, and a test runs it."""

from __future__ import annotations

from typing import assert_type

from hookbus.bus import EventBus, HookSubscriptions, PlanEntry, Subscription, SubscriptionStats
from hookbus.errors import Skip
from hookbus.events import AfterTrainIter, AfterValEpoch
from hookbus.mailbox import Acknowledgement
from hookbus.priority import Priority
from tests.bus.ticks import Tick


def on_iter(event: AfterTrainIter) -> None:
    """Take the event."""


class Mine:
    """A hook."""

    def before_run(self) -> None:
        """Do nothing."""


def check_subscribing(bus: EventBus) -> None:
    """The event type goes from the first argument into the subscription and its condition."""
    assert_type(bus.subscribe(AfterTrainIter, on_iter), Subscription[AfterTrainIter])
    assert_type(bus.subscribe(AfterTrainIter, on_iter, when=lambda event: event.batch_idx > 3), Subscription[AfterTrainIter])
    assert_type(
        bus.subscribe(AfterValEpoch, lambda metrics: None, when=lambda event: "acc" in event.metrics), Subscription[AfterValEpoch]
    )
    with bus.subscribe(Tick, print, priority=Priority.LOW) as subscription:
        assert_type(subscription, Subscription[Tick])
        assert_type(subscription.event_type, type[Tick])
        assert_type(subscription.stats(), SubscriptionStats)
    assert_type(bus.on(AfterTrainIter)(on_iter)(AfterTrainIter(epoch=0, iter=0, batch_idx=0)), None)
    assert_type(bus.add_hook(Mine()), HookSubscriptions)
    assert_type(bus.plan(Tick), tuple[PlanEntry, ...])


def check_refusals(bus: EventBus) -> None:
    """What the checker has to refuse; an ignore that is not needed would be an error itself."""
    if bus.has_subscribers(Tick):
        bus.subscribe(Tick, on_iter, when=lambda event: event.batch_idx)  # type: ignore[attr-defined]
        bus.subscribe("Tick", on_iter)  # type: ignore[arg-type]
        bus.emit(Tick)  # type: ignore[arg-type]
        Tick(3)  # type: ignore[call-arg]
        Tick(n=3).n = 4  # type: ignore[misc]


async def check_publishing(bus: EventBus) -> None:
    """A publish returns the veto, if there was one."""
    assert_type(bus.emit(Tick()), Skip | None)
    assert_type(await bus.publish(Tick()), Skip | None)
    async with bus:
        assert_type(bus.post(Tick()), Acknowledgement[Skip | None])
