"""The event bus: subscribes handlers and hooks, and hands each event to them in the order of their priorities."""

from __future__ import annotations

__all__ = (
    "Background",
    "EventBus",
    "EventStream",
    "HandlerCost",
    "HookSubscriptions",
    "Lane",
    "Plan",
    "PlanEntry",
    "Subscription",
    "SubscriptionStats",
    "background",
    "every",
    "on",
)

from hookbus.bus.background import Background
from hookbus.bus.event_bus import EventBus
from hookbus.bus.explain import PlanEntry
from hookbus.bus.hook_methods import background, every, on
from hookbus.bus.hook_subscriptions import HookSubscriptions
from hookbus.bus.looking import HandlerCost
from hookbus.bus.plan import Plan
from hookbus.bus.stream import EventStream
from hookbus.bus.subscription import Lane, Subscription, SubscriptionStats
