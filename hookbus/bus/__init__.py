"""The event bus: subscribes handlers and hooks, and hands each event to them in the order of their priorities."""

from __future__ import annotations

__all__ = (
    "EventBus",
    "HookSubscriptions",
    "Lane",
    "Plan",
    "PlanEntry",
    "Subscription",
    "SubscriptionStats",
    "every",
    "on",
)

from hookbus.bus.event_bus import EventBus
from hookbus.bus.explain import PlanEntry
from hookbus.bus.hook_methods import every, on
from hookbus.bus.hook_subscriptions import HookSubscriptions
from hookbus.bus.plan import Plan
from hookbus.bus.subscription import Lane, Subscription, SubscriptionStats
