"""The hooks that ship with hookbus, one per file."""

from __future__ import annotations

__all__ = (
    "CheckpointHook",
    "DistSamplerSeedHook",
    "Hook",
    "InvalidLossHook",
    "IterTimerHook",
    "LoggerHook",
    "ParamSchedulerHook",
    "RuntimeInfoHook",
)

from hookbus.hooks.base import Hook
from hookbus.hooks.checkpoint import CheckpointHook
from hookbus.hooks.dist_sampler_seed import DistSamplerSeedHook
from hookbus.hooks.invalid_loss import InvalidLossHook
from hookbus.hooks.iter_timer import IterTimerHook
from hookbus.hooks.logger import LoggerHook
from hookbus.hooks.param_scheduler import ParamSchedulerHook
from hookbus.hooks.runtime_info import RuntimeInfoHook
