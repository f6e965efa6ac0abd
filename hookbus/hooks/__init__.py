"""The hooks that ship with hookbus, one per file."""

from __future__ import annotations

__all__ = (
    "CheckpointHook",
    "DistSamplerSeedHook",
    "EMAHook",
    "EarlyStoppingHook",
    "EmptyCacheHook",
    "Hook",
    "InvalidLossHook",
    "IterTimerHook",
    "LoggerHook",
    "NaiveVisualizationHook",
    "ParamSchedulerHook",
    "ProfilerHook",
    "RuntimeInfoHook",
    "SyncBuffersHook",
)

from hookbus.hooks.base import Hook
from hookbus.hooks.checkpoint import CheckpointHook
from hookbus.hooks.dist_sampler_seed import DistSamplerSeedHook
from hookbus.hooks.early_stopping import EarlyStoppingHook
from hookbus.hooks.ema import EMAHook
from hookbus.hooks.empty_cache import EmptyCacheHook
from hookbus.hooks.invalid_loss import InvalidLossHook
from hookbus.hooks.iter_timer import IterTimerHook
from hookbus.hooks.logger import LoggerHook
from hookbus.hooks.naive_visualization import NaiveVisualizationHook
from hookbus.hooks.param_scheduler import ParamSchedulerHook
from hookbus.hooks.profiler import ProfilerHook
from hookbus.hooks.runtime_info import RuntimeInfoHook
from hookbus.hooks.sync_buffers import SyncBuffersHook
