"""Drill 19: losses and metrics that are NaN, infinite, huge, missing, tensors, None or texts."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import torch

from hookbus import best_metric
from hookbus.checkpoint import CheckpointStore, load_checkpoint
from hookbus.errors import HookbusError, InvalidLoss
from hookbus.hooks import Hook, InvalidLossHook
from tests.checkpoint.builders import make_store
from tests.drills.children import in_child
from tests.drills.drill import Drill, Spec
from tests.drills.runs import warm_up
from tests.hooks.test_checkpoint_best import FixedMetrics
from tests.runner.builders import make_runner

NAN, INF = math.nan, math.inf


class Metrics(NamedTuple):
    """What the validations give, and what comes of it."""

    values: Sequence[Any]
    best: int | None
    """The epoch of the best checkpoint."""
    error: str = ""
    """The error that ends the run."""


METRICS = {
    "NaN first": Metrics((NAN, 0.5, 0.4), 2),
    "NaN in the middle": Metrics((0.5, NAN, 0.4), 1),
    "NaN last": Metrics((0.4, 0.5, NAN), 2),
    "nothing but NaN": Metrics((NAN, NAN), None),
    "NaN as a tensor": Metrics((torch.tensor(NAN), torch.tensor(0.5), torch.tensor([NAN])), 2),
    "infinite": Metrics((0.5, -INF, NAN, INF, 0.6), 4),
    "huge": Metrics((1e308, NAN, -1e308), 1),
    "None": Metrics((None, 0.5, None), 2),
    "a text": Metrics((0.5, "high"), 1, "ConfigError"),
    "several numbers": Metrics((0.5, torch.tensor([0.1, 0.9])), 1, "ConfigError"),
    "missing": Metrics((0.5, ...), 1, "MetricNotFound"),
}

LOSSES = (NAN, INF, -INF, 1e38, 3e38)
POLICIES = ("raise", "skip", "rollback")
ITERATIONS = 10


class Spoiling:
    """A loss function that is spoilt in one iteration."""

    def __init__(self, at: int, value: float) -> None:
        self._at, self._value, self._calls = at, value, 0

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss, or one that is of no use."""
        self._calls += 1
        loss = torch.nn.functional.cross_entropy(outputs, targets)
        return loss * self._value if self._calls == self._at else loss


def run(drill: Drill) -> None:
    """Train with bad metrics, then with bad losses."""
    warm_up()
    for title, metrics in drill.within(drill.shuffled(METRICS.items()), 0.5):
        _check_metrics(drill, title, metrics)
    if drill.is_broken:
        return
    cases = [(at, policy, value) for at in range(1, ITERATIONS + 1) for policy in POLICIES for value in (NAN,)]
    cases += [(4, policy, value) for policy in POLICIES for value in LOSSES[1:]]
    for at, policy, value in drill.within(drill.shuffled(cases)):
        _check_loss(drill, at, policy, value)


# --- metrics ----------------------------------------------------------------------------------------------------------


def _check_metrics(drill: Drill, title: str, metrics: Metrics) -> None:
    work_dir = drill.fresh()
    ended = in_child(lambda: _validate(work_dir, metrics.values, is_broken=drill.is_broken))
    best = [info.name for info in make_store(work_dir).list() if info.role == "best"]
    expected = [f"best_acc_epoch_{metrics.best}"] if metrics.best else []
    drill.check(ended.code == 0 and ended.value == metrics.error, f"{title}: {ended}")
    drill.check(best == expected, f"{title}: the best is {best}, expected {expected}")
    _check_files(drill, title, work_dir)
    drill.drop(work_dir)


def _validate(work_dir: Path, values: Sequence[Any], *, is_broken: bool) -> str:
    """Train for as many epochs, and return the name of the error that ended it."""
    if is_broken:
        best_metric.is_better = lambda score, best, rule, min_delta=0.0: best is None or not score <= best
    runner = make_runner(
        work_dir,
        train_cfg=dict(max_epochs=len(values)),
        default_hooks=dict(checkpoint=dict(interval=1, save_best="acc")),
        val_evaluator=FixedMetrics(*({} if value is ... else {"acc": value} for value in values)),
    )
    try:
        runner.train()
    except HookbusError as error:
        return type(error).__name__
    return ""


# --- losses -----------------------------------------------------------------------------------------------------------


def _check_loss(drill: Drill, at: int, policy: str, value: float) -> None:
    title = f"a loss times {value} in iteration {at}, policy {policy}"
    work_dir = drill.fresh()
    ended = in_child(lambda: _train(work_dir, at, policy, value))
    found = ended.value or {}
    is_refused = not math.isfinite(value) and policy == "raise"
    drill.check(found.get("error") == ("InvalidLoss" if is_refused else ""), f"{title}: {ended}")
    if not is_refused:
        drill.check(found.get("iter") == ITERATIONS, f"{title}: {ended}")
    for info in make_store(work_dir).list():
        weights = load_checkpoint(info.path)["state_dict"].values()
        drill.check(all(bool(each.isfinite().all()) for each in weights), f"{title}: {info.name} holds NaN")
    _check_files(drill, title, work_dir)
    drill.drop(work_dir)


def _train(work_dir: Path, at: int, policy: str, value: float) -> dict[str, Any]:
    hooks: list[Hook] = [InvalidLossHook(policy=policy)]  # type: ignore[arg-type]
    runner = make_runner(
        work_dir,
        loss_fn=Spoiling(at, value),
        train_cfg=dict(by_epoch=False, max_iters=ITERATIONS),
        default_hooks=dict(checkpoint=dict(by_epoch=False, interval=1)),
        val_dataloader=None,
        custom_hooks=hooks,
    )
    runner.save_checkpoint("start")  # there has to be one to go back to
    try:
        runner.train()
    except InvalidLoss as error:
        return {"error": type(error).__name__, "iter": runner.iter}
    return {"error": "", "iter": runner.iter}


# --- what is on disk --------------------------------------------------------------------------------------------------


def _check_files(drill: Drill, title: str, work_dir: Path) -> None:
    """Every file that says it is JSON is, as every program reads it; every checkpoint is sound."""
    for path in [*work_dir.rglob("*.json"), *work_dir.rglob("*.jsonl")]:
        texts = path.read_text(encoding="utf-8").splitlines() if path.suffix == ".jsonl" else [path.read_text(encoding="utf-8")]
        drill.check(all(_is_json(text) for text in texts), f"{title}: {path.name} is not JSON")
    store = CheckpointStore(work_dir / "checkpoints")
    for info in store.list():
        drill.check(load_checkpoint(info.path), f"{title}: {info.name} is damaged")
    drill.check(not store.damaged(), f"{title}: {store.damaged()}")


def _is_json(text: str) -> bool:
    try:
        json.loads(text, parse_constant=_refuse)
    except ValueError:
        return False
    return True


def _refuse(name: str) -> NoReturn:
    msg = f"{name} is not JSON"
    raise ValueError(msg)


SPEC = Spec(
    number=19,
    name="numbers that are none",
    promise="P22",
    expected="NaN is never the best, a policy acts on the loss, no checkpoint holds NaN, every JSON file is JSON",
    twin="takes whatever is not worse for better",
    run=run,
    weight=2,
)
