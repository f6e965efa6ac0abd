"""A live run and a small model of it, asked for the same things in any order: they agree, and nothing hangs."""

from __future__ import annotations

import queue
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from hookbus.errors import RunEnded
from hookbus.events import BeforeTrain, ControlApplied
from tests.runner.builders import make_runner

PATIENCE = 30
MANY = 10**9


class Steering(RuleBasedStateMachine):
    """A run that trains on a thread, steered from this one; its model is a flag, a rate and the controls so far."""

    @initialize()
    def begin(self) -> None:
        """Start the run, paused from its first iteration on."""
        self.paused, self.stopped, self.rate, self.asked = True, False, 0.1, ["pause"]
        self.directory = tempfile.TemporaryDirectory()
        loop = dict(by_epoch=False, max_iters=MANY, val_interval=MANY)
        hooks = dict(logger=None, checkpoint=None)
        self.runner = make_runner(Path(self.directory.name), train_cfg=loop, default_hooks=hooks, log_level="ERROR")
        self.heard: list[str] = []
        self.runner.bus.subscribe(ControlApplied, lambda event: self.heard.append(event.control))
        asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.runner.bus.subscribe(BeforeTrain, lambda: asked.put(self.runner.pause()))
        self.thread = threading.Thread(target=self.runner.train)
        self.thread.start()
        assert asked.get(timeout=PATIENCE).result(PATIENCE).iter == 1
        self.iter = 1

    def _ask(self, control: str, *arguments: Any) -> Any:
        answer = getattr(self.runner, control)(*arguments).result(PATIENCE)
        self.asked.append(control)
        assert answer.iter >= self.iter
        if self.paused:
            assert answer.iter == self.iter, "it trained in a pause"
        self.iter = answer.iter
        return answer

    def _alive(self) -> bool:
        if self.stopped:
            self.thread.join(PATIENCE)
            with pytest.raises(RunEnded):
                self.runner.stop()
        return not self.stopped

    @rule()
    def pause(self) -> None:
        """Once or again."""
        if self._alive():
            self._ask("pause")
            self.paused = True

    @rule()
    def unpause(self) -> None:
        """Once or again."""
        if self._alive():
            self._ask("unpause")
            self.paused = False

    @rule(rate=st.floats(0.0, 1.0))
    def set_lr(self, rate: float) -> None:
        """It holds from then on."""
        if self._alive():
            self._ask("set_lr", rate)
            self.rate = rate

    @rule()
    def validate(self) -> None:
        """There are metrics."""
        if self._alive():
            assert "loss" in self._ask("validate").metrics

    @rule()
    def save(self) -> None:
        """There is a path."""
        if self._alive():
            assert self._ask("save", f"at_{len(self.asked)}").path.is_dir()

    @rule()
    def look(self) -> None:
        """What runs on the training thread sees what the model says."""
        if self._alive():
            seen = self.runner.run_on_main_stream(self._state).result(PATIENCE)
            assert seen == (self.paused, self.rate)

    def _state(self) -> tuple[bool, float]:
        thread = self.runner._thread
        assert thread is not None
        wrapper: Any = self.runner.optim_wrapper
        return thread.is_paused, wrapper.optimizer.param_groups[0]["lr"]

    @rule(chance=st.integers(0, 5))
    def stop(self, chance: int) -> None:
        """Seldom, because nothing comes after it."""
        if chance == 0 and self._alive():
            self._ask("stop")
            self.stopped = True

    def teardown(self) -> None:
        """The run ends, and has published every control in the order of asking."""
        if not hasattr(self, "thread"):
            return
        if not self.stopped:
            self._ask("stop")
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive()
        assert self.heard == self.asked
        self.directory.cleanup()


def test_a_run_does_what_its_model_says() -> None:
    """Whatever is asked for, in any order."""
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    options = settings(max_examples=8, stateful_step_count=12, deadline=None, suppress_health_check=checks)
    run_state_machine_as_test(Steering, settings=options)
