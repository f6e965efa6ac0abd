"""Schedules of learning rates and other parameters: torch's own schedulers, each with its unit and its part of the run."""

from __future__ import annotations

__all__ = ("ParamScheduler", "build_param_schedulers", "param_scheduler_problems")

from hookbus.schedulers.building import build_param_schedulers, param_scheduler_problems
from hookbus.schedulers.schedule import ParamScheduler
