"""What the handlers cost: named at the end of a training, kept in a file, and readable afterwards."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from hookbus.events import AfterTrainIter
from hookbus.testing import make_runner

STEPS = 400


def costs(runner: Any) -> dict[str, dict[str, Any]]:
    """Return what the file says, by handler."""
    entries = json.loads((runner.log_dir / "handler_costs.json").read_bytes())
    return {f"{entry['handler']} on {entry['event']}": entry for entry in entries}


def busy(seconds: float) -> None:
    """Take that long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


@pytest.mark.parametrize("interval", [16, 50, 64])
def test_a_handler_that_works_now_and_then_is_not_taken_for_a_hundred_times_dearer(interval: int, tmp_path: Path) -> None:
    """Steps are timed in step with no interval, so the estimate is of the right size."""
    runner = make_runner(tmp_path, train_cfg=dict(by_epoch=False, max_iters=STEPS), val_dataloader=None, val_cfg=None)
    spent: list[float] = []

    def now_and_then(iter: int) -> None:
        if (iter + 1) % interval == 0:
            began = time.perf_counter()
            busy(0.004)
            spent.append(time.perf_counter() - began)

    runner.bus.subscribe(AfterTrainIter, now_and_then, name="now_and_then")
    runner.train()
    estimated = costs(runner)["now_and_then on AfterTrainIter"]["seconds"]
    assert estimated < 8 * sum(spent)


def test_the_costs_of_a_run_can_be_asked_for_when_it_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also for hooks, which have left the bus by then."""
    runner = make_runner(tmp_path)
    runner.train()
    assert any(cost.handler.startswith("RuntimeInfoHook") for cost in runner.bus.costs())
    runner.bus.explain(costs=True)
    assert "RuntimeInfoHook" in capsys.readouterr().out


def test_a_second_training_adds_to_the_costs_of_the_first(tmp_path: Path) -> None:
    """And one that has nothing left to do leaves them alone."""
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=2))
    runner.bus.subscribe(AfterTrainIter, lambda runner: runner.stop(), when=lambda event: event.iter == 3, name="stopping")
    runner.train()
    first = costs(runner)["RuntimeInfoHook.after_train_iter on AfterTrainIter"]["calls"]
    runner.train()
    both = costs(runner)
    assert (first, both["RuntimeInfoHook.after_train_iter on AfterTrainIter"]["calls"]) == (4, 6)
    assert all(0 <= entry["share"] <= 1 for entry in both.values())
    runner.train()
    runner.test()
    assert costs(runner) == both
