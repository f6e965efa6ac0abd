"""What a run says of itself: in its first log lines, and in `run.json` for those who look at its directory later."""

from __future__ import annotations

__all__ = ("describe_end", "describe_start")

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from hookbus._version import __version__
from hookbus.bridge import CrossingCancelled
from hookbus.distributed import is_main_process
from hookbus.errors import describe_error
from hookbus.hub import MessageHub
from hookbus.runner.defaults import HookEntry

if TYPE_CHECKING:
    from hookbus.runner.runner import Runner

FILE = "run.json"


def describe_start(runner: Runner, call: str, hooks: Sequence[HookEntry]) -> None:
    """Say which run begins, with which hooks, and beside which others."""
    facts = {
        "experiment_name": runner.experiment_name,
        "call": call,
        "seed": runner.seed,
        "device": str(runner.device),
        "hookbus_version": __version__,
        "torch_version": torch.__version__,
        "world_size": runner.world_size,
    }
    _write(runner, facts)
    place = f"on {runner.device}, seed {runner.seed}, logs in {runner.log_dir}"
    runner.logger.info("%s of %r %s", call, runner.experiment_name, place)
    runner.logger.info("hooks in order: %s", ", ".join(map(str, hooks)))
    others = [other for other in MessageHub.live_names() if other != runner.experiment_name]
    if others:
        shared = "the runs of one process share its random generators, so none of them repeats exactly"
        runner.logger.warning("other runs are live in this process: %s; %s", ", ".join(others), shared)


def describe_end(runner: Runner, failure: BaseException | None) -> None:
    """Add what became of the run."""
    if is_main_process() and (runner.log_dir / FILE).is_file():
        facts = json.loads((runner.log_dir / FILE).read_text(encoding="utf-8"))
        _write(runner, facts | _outcome(failure))


def _outcome(failure: BaseException | None) -> dict[str, str]:
    if failure is None:
        return {"state": "finished"}
    if isinstance(failure, CrossingCancelled):
        return {"state": "stopped"}
    return {"state": "failed", "error": describe_error(failure)}


def _write(runner: Runner, facts: dict[str, Any]) -> None:
    (runner.log_dir / FILE).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
