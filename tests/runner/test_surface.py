"""What hooks and programs rely on beside the loops: stages of one's own, compiled models, determinism, several runners."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hookbus.errors import RunEnded
from hookbus.events import AfterTrainIter, BeforeTrain
from hookbus.hub import MessageHub
from hookbus.runner import Runner
from hookbus.testing import make_runner
from tests.runner.builders import make_loader, same, weights

# --- stages of one's own ----------------------------------------------------------------------------------------------


class Staged:
    """Hears a stage of the user's own."""

    def __init__(self, label: str, priority: str, heard: list[str]) -> None:
        self.label = label
        self.priority = priority
        self._heard = heard

    def after_generation(self, runner: Runner, score: float) -> None:
        """Note who was called with what."""
        self._heard.append(f"{self.label} {score} {runner.iter}")


class StagedAsync(Staged):
    """The same as a coroutine function."""

    async def after_generation(self, runner: Runner, score: float) -> None:  # type: ignore[override]
        """Note who was called with what."""
        self._heard.append(f"{self.label} {score} {runner.iter}")


def test_a_stage_of_ones_own_is_called_in_the_order_of_priority(tmp_path: Path) -> None:
    """Hooks without such a method are passed over, coroutines are waited for."""
    heard: list[str] = []
    hooks = [Staged("late", "LOW", heard), StagedAsync("async", "NORMAL", heard), Staged("early", "HIGH", heard)]
    runner = make_runner(tmp_path, custom_hooks=hooks)
    runner.bus.subscribe(AfterTrainIter, lambda runner: runner.call_hook("after_generation", score=0.5), once=True)
    runner.train()
    assert heard == ["early 0.5 0", "async 0.5 0", "late 0.5 0"]


def test_a_coroutine_for_a_stage_needs_a_run(tmp_path: Path) -> None:
    """There is no loop to run it on otherwise; who is meant is named."""
    runner = make_runner(tmp_path, custom_hooks=[StagedAsync("async", "NORMAL", [])])
    with pytest.raises(RunEnded, match=r"StagedAsync\.after_generation cannot take effect"):
        runner.call_hook("after_generation", score=0.5)


# --- compiled models --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [dict(backend="eager"), dict(backend="eager", dynamic=True)])
def test_a_compiled_model_trains_like_the_plain_one(options: dict[str, Any], tmp_path: Path) -> None:
    """Its weights keep their names, so that checkpoints of both fit each other."""
    plain = make_runner(tmp_path / "plain")
    compiled = make_runner(tmp_path / "compiled", compile=options)
    assert plain.train() == pytest.approx(compiled.train())
    assert weights(plain.model).keys() == weights(compiled.model).keys()
    assert all(torch.allclose(weights(plain.model)[name], tensor) for name, tensor in weights(compiled.model).items())
    assert compiled.model._compiled_call_impl is not None


# --- determinism ------------------------------------------------------------------------------------------------------


def test_deterministic_algorithms_are_in_force_during_the_run_alone(tmp_path: Path) -> None:
    """Other code of the process is not concerned."""
    runner = make_runner(tmp_path, randomness=dict(seed=0, deterministic=True))
    seen: list[bool] = []
    runner.bus.subscribe(AfterTrainIter, lambda: seen.append(torch.are_deterministic_algorithms_enabled()))
    runner.train()
    assert set(seen) == {True}
    assert not torch.are_deterministic_algorithms_enabled()


async def test_deterministic_algorithms_are_in_force_on_the_thread_of_an_awaited_run(tmp_path: Path) -> None:
    """And put back when it fails."""
    runner = make_runner(tmp_path, randomness=dict(deterministic=True))

    def fail() -> None:
        assert torch.are_deterministic_algorithms_enabled()
        raise KeyError("on purpose")

    runner.bus.subscribe(BeforeTrain, fail)
    with pytest.raises(KeyError, match="on purpose"):
        await runner.train_async()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("randomness", [None, dict(seed=4), dict(seed=4, diff_rank_seed=True)])
def test_the_seed_is_known_and_repeats_the_run(randomness: Any, tmp_path: Path) -> None:
    """Also the one that was drawn where none was given."""
    first = make_runner(tmp_path / "first", randomness=randomness, train_dataloader=make_loader(12, shuffle=True))
    first.train()
    second = make_runner(tmp_path / "second", randomness=dict(seed=first.seed), train_dataloader=make_loader(12, shuffle=True))
    second.train()
    assert same(weights(first.model), weights(second.model))


# --- several runners --------------------------------------------------------------------------------------------------


def train_both(runners: list[Runner]) -> None:
    """Train two runners at once, each on a thread of its own, in steps that wait for each other."""
    barrier = threading.Barrier(len(runners))
    for runner in runners:
        runner.bus.subscribe(AfterTrainIter, lambda: barrier.wait(30))
    threads = [threading.Thread(target=runner.train) for runner in runners]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def test_runners_of_one_process_do_not_see_each_other(tmp_path: Path) -> None:
    """Each has its own values, log file, directory and hub; what one records never lands in the other."""
    runners = [make_runner(tmp_path / name, optim_wrapper=dict(clip_grad=dict(max_norm=9.0))) for name in ("a", "b")]
    hubs: dict[str, set[str]] = {runner.experiment_name: set() for runner in runners}

    def note(runner: Runner) -> None:
        hubs[runner.experiment_name].add(MessageHub.get_current_instance().name)

    for runner in runners:
        runner.bus.subscribe(AfterTrainIter, note)
    train_both(runners)
    assert hubs == {runner.experiment_name: {runner.experiment_name} for runner in runners}
    for runner in runners:
        assert len(runner.message_hub.get_scalar("train/grad_norm")) == 6
        log = (runner.log_dir / "train.log").read_text(encoding="utf-8")
        assert log.count("Epoch(val)") == 2


def test_runners_built_in_the_same_second_log_to_directories_of_their_own(tmp_path: Path) -> None:
    """Also while none of them has run; and what the second one finds of the first is set aside as always."""
    runners = [make_runner(tmp_path / "run") for _ in range(3)]
    assert len({runner.log_dir for runner in runners}) == 3
    for runner in runners:
        runner.train()
    assert all((runner.log_dir / "run.json").exists() for runner in runners)


def test_a_second_live_run_says_that_randomness_is_shared(tmp_path: Path) -> None:
    """Nothing repeats exactly where two runs draw from the same generators; a run alone says nothing of the kind."""
    runners = [make_runner(tmp_path / name) for name in ("a", "b")]
    inner: list[Callable[[], object]] = [runners[1].train]
    runners[0].bus.subscribe(BeforeTrain, lambda: inner.pop()())
    runners[0].train()
    first, second = ((runner.log_dir / "train.log").read_text(encoding="utf-8") for runner in runners)
    assert f"other runs are live in this process: {runners[0].experiment_name}" in second
    assert "other runs" not in first


def test_the_start_names_the_hooks_in_their_order(tmp_path: Path) -> None:
    """With the priority of each."""
    runner = make_runner(tmp_path, custom_hooks=[dict(type="IterTimerHook", priority="HIGHEST")])
    runner.train()
    log = (runner.log_dir / "train.log").read_text(encoding="utf-8")
    expected = "IterTimerHook 0, RuntimeInfoHook 10, IterTimerHook 50, DistSamplerSeedHook 50, LoggerHook 60"
    assert f"hooks in order: {expected}, ParamSchedulerHook 70, CheckpointHook 90" in log


def test_the_root_logger_is_left_alone(tmp_path: Path) -> None:
    """Its handlers, its level and its children are what they were."""
    root = logging.getLogger()
    before = (list(root.handlers), root.level, set(logging.Logger.manager.loggerDict))
    runner = make_runner(tmp_path)
    runner.train()
    after = (list(root.handlers), root.level, set(logging.Logger.manager.loggerDict))
    assert before[:2] == after[:2]
    assert not {name for name in after[2] - before[2] if runner.experiment_name in name}
