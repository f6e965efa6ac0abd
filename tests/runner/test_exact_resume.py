"""A resumed run is the run that was never interrupted, bit for bit, from every point it may be cut at."""

from __future__ import annotations

import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler

from hookbus.events import AfterLoadCheckpoint
from hookbus.runner import Runner
from tests.checkpoint.builders import assert_same
from tests.parameters import slow_unless
from tests.runner.builders import make_data, make_loader, make_runner, same, weights
from tests.runner.learners import ITERATIONS, Augmented, final_state, make_learner, train_until

LAST = {True: "epoch_3", False: f"iter_{ITERATIONS}"}


@pytest.fixture(scope="session")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that gives the final state of a run that was never interrupted, made once for each kind."""

    @cache
    def state_of(by_epoch: bool, workers: int, persistent: bool) -> dict[str, Any]:
        work_dir = tmp_path_factory.mktemp("straight")
        make_learner(work_dir, by_epoch=by_epoch, workers=workers, persistent=persistent).train()
        return final_state(work_dir, LAST[by_epoch])

    return state_of


@pytest.mark.parametrize("by_epoch", [True, False], ids=["by epochs", "by iterations"])
@pytest.mark.parametrize("cut", slow_unless(lambda cut: cut in (2, 5, 8), range(1, ITERATIONS)))
def test_a_run_cut_anywhere_goes_on_exactly(cut: int, by_epoch: bool, straight: Any, tmp_path: Path) -> None:
    """In the middle of an epoch, at its end, during accumulation, before a validation: the whole state is compared."""
    train_until(make_learner(tmp_path, by_epoch=by_epoch), cut)
    torch.manual_seed(99)  # whatever another process would have drawn
    make_learner(tmp_path, by_epoch=by_epoch, resume=True).train()
    assert_same(final_state(tmp_path, LAST[by_epoch]), straight(by_epoch, 0, False))


@pytest.mark.parametrize("by_epoch", [True, False], ids=["by epochs", "by iterations"])
def test_a_run_cut_three_times_goes_on_exactly(by_epoch: bool, straight: Any, tmp_path: Path) -> None:
    """Twice within one epoch."""
    for cut in (2, 3, 7, None):
        train_until(make_learner(tmp_path, by_epoch=by_epoch, resume="auto"), cut)
    assert_same(final_state(tmp_path, LAST[by_epoch]), straight(by_epoch, 0, False))


@pytest.mark.parametrize("by_epoch", [True, False], ids=["by epochs", "by iterations"])
@pytest.mark.parametrize("cut", [2, 6])
def test_training_again_after_a_stop_is_exact_without_resuming(cut: int, by_epoch: bool, straight: Any, tmp_path: Path) -> None:
    """In the same process the same runner goes on at the very next batch."""
    runner = make_learner(tmp_path, by_epoch=by_epoch)
    train_until(runner, cut)
    assert (runner.iter, runner.progress.batch_idx) == (cut, cut % 4 if by_epoch else cut)
    runner.train()
    assert runner.iter == ITERATIONS
    assert_same(final_state(tmp_path, LAST[by_epoch]), straight(by_epoch, 0, False))


@pytest.mark.slow
@pytest.mark.parametrize("persistent", [False, True], ids=["new workers", "persistent workers"])
@pytest.mark.parametrize("cut", [2, 4, 6])
def test_a_run_with_workers_goes_on_exactly(cut: int, persistent: bool, straight: Any, tmp_path: Path) -> None:
    """What workers draw follows from the seed, the pass and the batch."""
    train_until(make_learner(tmp_path, workers=2, persistent=persistent), cut)
    torch.manual_seed(99)
    make_learner(tmp_path, workers=2, persistent=persistent, resume=True).train()
    assert_same(final_state(tmp_path, "epoch_3"), straight(True, 2, persistent))
    assert_same(straight(True, 2, persistent), straight(True, 2, not persistent))


PROGRAM = """
import sys, pathlib
import torch
from tests.runner.learners import make_learner, train_until
if __name__ == "__main__":
    torch.set_num_threads(1)
    work_dir, cut = pathlib.Path(sys.argv[1]), int(sys.argv[2])
    train_until(make_learner(work_dir, resume="auto"), cut or None)
"""


@pytest.mark.slow
@pytest.mark.parametrize("cut", [2, 4, 7])
def test_a_new_process_goes_on_exactly(cut: int, straight: Any, tmp_path: Path) -> None:
    """Nothing but the checkpoint connects the two."""
    script = tmp_path / "train.py"
    script.write_text(PROGRAM, encoding="utf-8")
    for stop in (cut, 0):
        command = [sys.executable, str(script), str(tmp_path / "work"), str(stop)]
        subprocess.run(command, check=True, cwd=Path(__file__).parents[2], env={"PYTHONPATH": "."}, timeout=120)
    assert_same(final_state(tmp_path / "work", "epoch_3"), straight(True, 0, False))


# --- the test can fail ------------------------------------------------------------------------------------------------


def leave_out(part: str, checkpoint: dict[str, Any], fresh: dict[str, Any]) -> None:
    """Put what a fresh run would have in the place of one part."""
    *way, last = part.split(".")
    target, source = checkpoint, fresh
    for key in way:
        target, source = target[key], source[key]
    target[last] = source[last]


PARTS = [
    *("state_dict", "optimizer", "param_schedulers", "message_hub", "progress", "loader"),
    *("rng.python", "rng.numpy", "rng.torch", "hooks.Fickle", "hooks.CheckpointHook", "optimizer.accumulation"),
]


@pytest.mark.parametrize("part", slow_unless(lambda part: part in ("optimizer", "loader", "rng.torch"), PARTS))
def test_leaving_out_any_one_part_shows(part: str, straight: Any, tmp_path: Path) -> None:
    """The comparison above is worth something: each part of the state is missed."""
    train_until(make_learner(tmp_path, default_hooks=dict(checkpoint=dict(save_best="loss"))), 6)
    fresh = make_learner(tmp_path / "fresh", default_hooks=dict(checkpoint=dict(save_best="loss")))
    runner = make_learner(tmp_path, resume=True)

    def forget(checkpoint: dict[str, Any]) -> None:
        if part == "optimizer.accumulation":
            del checkpoint["optimizer"]["accumulation"]
        else:
            leave_out(part, checkpoint, fresh._saver.assemble() | {"hooks": default_states(fresh)})

    runner.bus.subscribe(AfterLoadCheckpoint, forget)
    try:
        runner.train()
    except Exception:  # noqa: BLE001  a refusal shows it, too
        return
    with pytest.raises(AssertionError):
        assert_same(final_state(tmp_path, "epoch_3"), straight(True, 0, False))


def default_states(runner: Runner) -> dict[str, Any]:
    """Return the states that hooks begin with."""
    return {type(hook).__name__: hook.state_dict() for hook in runner.hooks if hasattr(hook, "state_dict")}


# --- other loaders ----------------------------------------------------------------------------------------------------


class Stateful:
    """Batches that say where they stand, as torchdata's loaders do."""

    def __init__(self) -> None:
        self._batches = list(make_loader(16))
        self._next = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Any:
        while self._next < len(self._batches):
            self._next += 1
            yield self._batches[self._next - 1]
        self._next = 0

    def state_dict(self) -> dict[str, Any]:
        """Return the number of the next batch."""
        return {"next": self._next}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on there."""
        self._next = state_dict["next"]


def own_generator() -> DataLoader[Any]:
    """Return a loader that shuffles by a generator of its own."""
    return DataLoader(Augmented(16), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(5))


def weighted() -> DataLoader[Any]:
    """Return a loader that draws its samples with replacement."""
    return DataLoader(Augmented(16), batch_size=4, sampler=torch.utils.data.WeightedRandomSampler([1.0] * 16, 16))


def one_by_one() -> DataLoader[Any]:
    """Return a loader without automatic batches."""
    return DataLoader(make_data(16), batch_size=None, sampler=torch.utils.data.BatchSampler(range(16), 4, drop_last=False))


@pytest.mark.parametrize(
    "make",
    [Stateful, own_generator, weighted, one_by_one, lambda: list(make_loader(16))],
    ids=["a state", "its own generator", "replacement", "no batches", "a list"],
)
@pytest.mark.parametrize("cut", slow_unless(lambda cut: cut == 5, [2, 4, 5]))
def test_other_loaders_go_on_exactly_too(make: Any, cut: int, tmp_path: Path) -> None:
    """With a state, with a generator of their own, with replacement, without batches, and a plain list."""
    make_learner(tmp_path / "straight", train_dataloader=make()).train()
    train_until(make_learner(tmp_path, train_dataloader=make()), cut)
    resumed = make_learner(tmp_path, train_dataloader=make(), resume=True)
    resumed.train()
    assert_same(final_state(tmp_path, "epoch_3"), final_state(tmp_path / "straight", "epoch_3"))
    assert "uninterrupted" not in (resumed.log_dir / "train.log").read_text(encoding="utf-8")


class Lazy(Sampler[int]):
    """Draws from the global generator for every sample."""

    def __iter__(self) -> Any:
        for _ in range(16):
            yield int(torch.randint(16, ()))

    def __len__(self) -> int:
        return 16


class Endless(IterableDataset[Any]):
    """Samples in order."""

    def __iter__(self) -> Any:
        return iter([make_data(16)[index] for index in range(16)])


@pytest.mark.parametrize(
    ("loader", "words"),
    [
        (lambda: DataLoader(make_data(16), batch_size=4, sampler=Lazy()), "Lazy may draw from the global random generators"),
        (lambda: DataLoader(Endless(), batch_size=4), "Endless is iterable and has no state_dict: its first 2 batches"),
        (lambda: iter_of(list(make_loader(16))), "Reiterable has no state_dict: its first 2 batches"),
    ],
    ids=["a lazy sampler", "an iterable dataset", "anything that can be iterated"],
)
def test_what_may_not_be_exact_is_named_when_resuming(loader: Any, words: str, tmp_path: Path) -> None:
    """Training goes on all the same."""
    train_until(make_runner(tmp_path, train_dataloader=loader()), 2)
    runner = make_runner(tmp_path, train_dataloader=loader(), resume=True)
    runner.train()
    assert runner.epoch == 2
    assert words in (runner.log_dir / "train.log").read_text(encoding="utf-8")


class Reiterable:
    """Batches without a length."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Any:
        return iter(self._batches)


def iter_of(batches: list[Any]) -> Reiterable:
    """Return something that can be iterated, and no more."""
    return Reiterable(batches)


def test_batches_that_are_passed_over_are_not_loaded(tmp_path: Path) -> None:
    """Only their indices are drawn again."""
    loaded: list[int] = []

    class Counted(Augmented):
        def __getitem__(self, index: int) -> Any:
            loaded.append(index)
            return super().__getitem__(index)

    loader = DataLoader(Counted(16), batch_size=4, shuffle=True)
    first = train_until(make_runner(tmp_path, train_dataloader=loader, train_cfg=dict(max_epochs=1)), 3)
    del loaded[:]
    second = make_runner(tmp_path, train_dataloader=loader, train_cfg=dict(max_epochs=1), resume=True)
    second.train()
    assert len(loaded) == 4
    assert not same(weights(first.model), weights(second.model))
