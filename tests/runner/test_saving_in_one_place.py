"""Two live runs in one work directory: the second one is refused before it touches anything."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from hookbus.checkpoint.locking import LOCK_FILE, DirectoryLocks
from hookbus.errors import CheckpointsInUse, RunEnded
from hookbus.events import AfterRun, AfterTrainIter
from hookbus.runner import Runner
from tests.runner.builders import at_iter, checkpoints, make_runner

TRAIN = """
import sys
from pathlib import Path
from hookbus.events import AfterTrainIter
from tests.runner.builders import at_iter, make_runner

def hold():
    print("training", flush=True)
    sys.stdin.read()

runner = make_runner(Path(sys.argv[1]), default_hooks=dict(checkpoint=dict(interval=1, by_epoch=False)), log_level="ERROR")
runner.bus.subscribe(AfterTrainIter, at_iter(2, hold))
runner.train()
"""


def make(work_dir: Path, **options: Any) -> Runner:
    """Return a runner of six iterations that saves after each epoch."""
    return make_runner(work_dir, **options)


def during(runner: Runner, action: Callable[[], object]) -> None:
    """Have something done in the middle of a training, after its first checkpoint."""
    runner.bus.subscribe(AfterTrainIter, at_iter(4, action))


@pytest.mark.slow
@pytest.mark.parametrize("resume", [False, "auto"])
def test_a_second_process_is_refused_until_the_first_is_dead(resume: bool | str, tmp_path: Path) -> None:
    """It is named, with its number; nothing of it is moved or cleaned away; after `kill -9` the run goes on from there."""
    command = [sys.executable, "-c", TRAIN, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "training\n"
        before = sorted((tmp_path / "checkpoints").rglob("*"))
        with pytest.raises(CheckpointsInUse, match=rf"{tmp_path / 'checkpoints'} is in use: process {process.pid} ") as refused:
            make(tmp_path, resume=resume).train()
        assert "work_dir" in str(refused.value)
        assert sorted((tmp_path / "checkpoints").rglob("*")) == before
        assert not list(tmp_path.glob("checkpoints_before_*"))
        process.kill()
        process.wait()
    assert (tmp_path / "checkpoints" / LOCK_FILE).exists()
    runner = make(tmp_path, resume="auto")
    runner.train()
    assert runner.iter == 6
    assert not (tmp_path / "checkpoints" / LOCK_FILE).exists()


def test_a_second_runner_of_this_process_is_refused(tmp_path: Path) -> None:
    """On another thread, while the first one trains; then the first one goes on, and the second may begin."""
    first, refused = make(tmp_path), list[BaseException]()

    def second() -> None:
        try:
            make(tmp_path, resume="auto").train()
        except CheckpointsInUse as error:
            refused.append(error)

    def try_it() -> None:
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()

    during(first, try_it)
    first.train()
    assert "another run of this process" in str(refused[0])
    assert checkpoints(tmp_path) == ["epoch_1", "epoch_2"]
    after = make(tmp_path, resume=True, train_cfg=dict(max_epochs=3))
    after.train()
    assert after.iter == 9


async def test_of_two_tasks_one_is_refused(tmp_path: Path) -> None:
    """Two trainings of one service."""
    first, second = (make(tmp_path, train_cfg=dict(max_epochs=100_000), val_dataloader=None) for _ in range(2))
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(first.train_async)
        with anyio.fail_after(20):
            while first.iter < 3:  # noqa: ASYNC110  it is counted on another thread
                await anyio.sleep(0.001)
        with pytest.raises(CheckpointsInUse):
            await second.train_async()
        tasks.cancel_scope.cancel()


def test_a_place_that_hooks_name_is_locked_as_well(tmp_path: Path) -> None:
    """Where two runs of one name share `out_dir`, their checkpoints would mix."""
    hooks = dict(checkpoint=dict(out_dir=tmp_path / "elsewhere"))
    first, second = (make(tmp_path / part / "digits", default_hooks=hooks) for part in "ab")

    def try_it() -> None:
        with pytest.raises(CheckpointsInUse, match="elsewhere"):
            second._saver.prepare(0)

    during(first, try_it)
    first.train()
    second.train()


def test_saving_by_hand_outside_of_a_run_respects_it(tmp_path: Path) -> None:
    """Making room would set the checkpoints of the live run aside; reading, validating and testing are free."""
    first, other, reader = make(tmp_path), make(tmp_path), make(tmp_path)

    def try_it() -> None:
        with pytest.raises(CheckpointsInUse):
            other.save_checkpoint("mine")
        reader.load_checkpoint(tmp_path / "checkpoints" / "epoch_1")

    during(first, try_it)
    first.train()
    assert checkpoints(tmp_path) == ["epoch_1", "epoch_2"]
    reader.val()
    reader.test()
    reader.save_checkpoint("mine")
    assert not (tmp_path / "checkpoints" / LOCK_FILE).exists()


@pytest.mark.parametrize("ending", ["good", "failed", "refused"])
def test_the_end_of_a_run_gives_it_back(ending: str, tmp_path: Path) -> None:
    """However it ends; and handlers of its last event still have it."""
    runner, held = make(tmp_path), list[bool]()
    runner.bus.subscribe(AfterRun, lambda: held.append((tmp_path / "checkpoints" / LOCK_FILE).exists()))

    def fail() -> None:
        raise ZeroDivisionError

    if ending == "failed":
        during(runner, fail)
    if ending == "refused":
        holder = DirectoryLocks(print)
        holder.take([tmp_path / "checkpoints"], runner._saver.store.files)
        with pytest.raises(CheckpointsInUse):
            runner.train()
        holder.release()
    elif ending == "failed":
        with pytest.raises(ZeroDivisionError):
            runner.train()
    else:
        runner.train()
    assert held == [True]
    assert not (tmp_path / "checkpoints" / LOCK_FILE).exists()
    with pytest.raises(RunEnded):
        runner.stop()


def test_a_twin_without_a_lock_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fresh run would set the checkpoints of the live one aside."""
    monkeypatch.setattr(DirectoryLocks, "take", lambda *arguments: None)
    first = make(tmp_path)
    during(first, lambda: make(tmp_path)._saver.prepare(0))
    first.train()
    assert checkpoints(tmp_path) == ["epoch_2"]
    assert list(tmp_path.glob("checkpoints_before_*"))
