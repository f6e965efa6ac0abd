"""What a checkpoint of a run holds, where it goes, and what is handed out in the end."""

from __future__ import annotations

import copy
import errno
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from hookbus.checkpoint import CheckpointStore, load_checkpoint, verify_checkpoint
from hookbus.errors import CheckpointWriteError, ConfigError, Skip
from hookbus.events import AfterTrainIter, BeforeSaveCheckpoint, CheckpointCommitted
from hookbus.hooks import CheckpointHook, Hook
from hookbus.runner import Runner
from tests.checkpoint.builders import FaultyFiles
from tests.runner.builders import at_iter, checkpoints, make_runner, same, weights


def make(work_dir: Path, epochs: int, checkpoint: dict[str, Any] | None, **changes: Any) -> Runner:
    """Return a runner with these options of its CheckpointHook."""
    return make_runner(work_dir, train_cfg=dict(max_epochs=epochs), default_hooks=dict(checkpoint=checkpoint), **changes)


def listed(directory: Path) -> list[str]:
    """Return the names in a directory."""
    return sorted(path.name for path in directory.iterdir())


# --- what is inside ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_holds_the_whole_state(tmp_path: Path) -> None:
    """Model, optimizer, schedules, hub, hooks, random generators and counters, exactly."""

    class Counting(Hook):
        def __init__(self) -> None:
            self.seen = 0

        def after_train_iter(self) -> None:
            self.seen += 1

        def state_dict(self) -> dict[str, Any]:
            return {"seen": self.seen}

    scheduler = dict(type="StepLR", step_size=1, gamma=0.5)
    runner = make(tmp_path, 2, dict(save_best="loss"), param_scheduler=scheduler, custom_hooks=[Counting(), Counting()])
    expected: dict[str, Any] = {}

    def keep(name: str, checkpoint: dict[str, Any], runner: Runner) -> None:
        if name == "epoch_2":
            momentum = checkpoint["optimizer"]["state"][0]["momentum_buffer"].clone()
            expected.update(weights=weights(runner.model), momentum=momentum, torch=checkpoint["rng"]["torch"].clone())

    runner.bus.subscribe(BeforeSaveCheckpoint, keep, priority="LOWEST")
    runner.train()
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "epoch_2")
    assert same(dict(checkpoint["state_dict"]), expected["weights"])
    assert torch.equal(checkpoint["optimizer"]["state"][0]["momentum_buffer"], expected["momentum"])
    assert checkpoint["optimizer"]["param_groups"][0]["lr"] == 0.025
    assert checkpoint["param_schedulers"] == [runner.param_schedulers[0].state_dict()]
    assert checkpoint["progress"] == {"epoch": 2, "iter": 6, "batch_idx": 0, "validation_due": True}
    assert (checkpoint["meta"]["epoch"], checkpoint["meta"]["iter"], checkpoint["meta"]["seed"]) == (2, 6, 0)
    assert checkpoint["hooks"]["Counting"] == {"seen": 6}
    assert checkpoint["hooks"]["Counting_2"] == {"seen": 6}
    assert checkpoint["hooks"]["CheckpointHook"]["best_names"] == {"loss": ["best_loss_epoch_1"]}
    assert torch.equal(checkpoint["rng"]["torch"], expected["torch"])
    assert set(checkpoint["rng"]) >= {"python", "numpy", "torch"}
    assert len(checkpoint["message_hub"]["log_scalars"]["train/loss"][0]) == 6


def test_the_weights_load_with_safetensors_alone(tmp_path: Path) -> None:
    """No hookbus is needed to use a trained model."""
    runner = make(tmp_path, 2, {})
    runner.train()
    loaded = load_file(tmp_path / "checkpoints" / "epoch_2" / "model.safetensors")
    assert same(loaded, weights(runner.model))


def test_a_checkpoint_saved_in_mid_epoch_knows_its_place(tmp_path: Path) -> None:
    """Completed batches of the running epoch are part of the progress."""
    runner = make(tmp_path, 2, dict(interval=4, by_epoch=False, save_last=False))
    runner.train()
    progress = load_checkpoint(tmp_path / "checkpoints" / "iter_4")["progress"]
    assert progress == {"epoch": 1, "iter": 4, "batch_idx": 1, "validation_due": False}


def test_what_hooks_put_into_a_checkpoint_is_there_when_it_is_loaded(tmp_path: Path) -> None:
    """And may be edited before it is taken over."""

    class Marking(Hook):
        def before_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["mark"] = {"shape": (1, 2), "tensor": torch.arange(3)}

        def after_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            assert checkpoint["mark"]["shape"] == (1, 2)
            checkpoint["state_dict"]["bias"] = torch.full((3,), 7.0)

    make(tmp_path / "a", 1, {}, custom_hooks=[Marking()]).train()
    runner = make(tmp_path / "b", 1, {}, custom_hooks=[Marking()], load_from=tmp_path / "a" / "checkpoints" / "epoch_1")
    runner.test()
    assert runner.model.state_dict()["bias"].tolist() == [7.0] * 3
    assert runner.epoch == 0


def test_saving_between_runs_happens_at_once(tmp_path: Path) -> None:
    """There is no boundary to wait for."""
    runner = make(tmp_path, 1, None)
    runner.train()
    path = runner.save_checkpoint("mine")
    assert path == tmp_path / "checkpoints" / "mine"
    assert checkpoints(tmp_path) == ["mine"]


@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        (dict(save_optimizer=False), {"optimizer"}),
        (dict(save_param_scheduler=False), {"param_schedulers"}),
        (dict(save_optimizer=False, save_param_scheduler=False), {"optimizer", "param_schedulers"}),
    ],
)
def test_a_checkpoint_may_leave_out_what_only_resuming_needs(options: dict[str, Any], left_out: set[str], tmp_path: Path) -> None:
    """The best one, too; hooks see it as it will be written. One saved by hand is whole."""
    seen: list[set[str]] = []
    runner = make(tmp_path, 1, dict(save_best="loss") | options)
    runner.bus.subscribe(BeforeSaveCheckpoint, lambda checkpoint: seen.append(set(checkpoint)))
    runner.train()
    whole = load_checkpoint(str(runner.save_checkpoint("mine")))
    names = ("epoch_1", "best_loss_epoch_1")
    found = [set(load_checkpoint(tmp_path / "checkpoints" / name)) for name in names]
    assert found == seen[:2] == [set(whole) - left_out] * 2
    assert left_out < set(whole)


def test_saving_leaves_the_run_as_it_is(tmp_path: Path) -> None:
    """Weights come out the same, however often it saves."""
    often = make(tmp_path / "often", 2, dict(interval=1, by_epoch=False))
    never = make(tmp_path / "never", 2, None)
    often.train()
    never.train()
    assert same(weights(often.model), weights(never.model))


# --- where it goes ----------------------------------------------------------------------------------------------------


def test_checkpoints_may_go_to_another_directory(tmp_path: Path) -> None:
    """Into a folder named after the work directory, which goes on naming the newest one."""
    work_dir, out_dir = tmp_path / "digits", tmp_path / "far"
    runner = make(work_dir, 2, dict(interval=1, max_keep_ckpts=1, save_best="loss", out_dir=str(out_dir)))
    runner.train()
    assert listed(out_dir) == ["digits"]
    assert listed(out_dir / "digits") == ["best_loss_epoch_2", "epoch_2"]
    assert not (work_dir / "checkpoints").exists()
    assert (work_dir / "last_checkpoint").read_text() == "epoch_2"
    assert runner.message_hub.get_info("last_ckpt") == str(out_dir / "digits" / "epoch_2")


def test_a_second_run_goes_to_the_same_place(tmp_path: Path) -> None:
    """Of one runner, and of one that resumes."""
    work_dir, out_dir = tmp_path / "digits", tmp_path / "far"
    runner = make(work_dir, 1, dict(out_dir=out_dir))
    runner.train()
    runner.train_loop.max_epochs = 2
    runner.train()
    runner.val()
    resumed = make(work_dir, 3, dict(out_dir=out_dir), resume=True)
    resumed.train()
    assert listed(out_dir) == ["digits"]
    assert listed(out_dir / "digits") == ["epoch_1", "epoch_2", "epoch_3"]


def test_every_place_is_known_to_the_run(tmp_path: Path) -> None:
    """That of the work directory first, each once."""
    hooks = [CheckpointHook(out_dir=tmp_path / "far"), CheckpointHook(out_dir=tmp_path / "." / "far"), CheckpointHook()]
    runner = make(tmp_path / "digits", 1, None, custom_hooks=hooks)
    directories = [store.directory for store in runner._saver.stores()]
    assert [directory.relative_to(tmp_path) for directory in directories] == [Path("digits/checkpoints"), Path("far/digits")]
    assert {store.last_checkpoint_path for store in runner._saver.stores()} == {tmp_path / "digits" / "last_checkpoint"}


@pytest.mark.parametrize("out_dir", [None, "far", "."])
def test_the_checkpoints_of_an_earlier_run_are_set_aside(out_dir: str | None, tmp_path: Path) -> None:
    """A fresh run in the same directory neither mixes with them nor deletes them, and touches nothing else there."""
    work_dir = tmp_path / "digits"
    options = {} if out_dir is None else dict(out_dir=tmp_path / out_dir)
    place = work_dir / "checkpoints" if out_dir is None else tmp_path / out_dir / "digits"
    make(work_dir, 2, dict(interval=1) | options).train()
    (place / "notes.txt").write_text("mine")
    runner = make(work_dir, 1, dict(max_keep_ckpts=1) | options)
    runner.train()
    assert [name for name in listed(place) if name.startswith("epoch_")] == ["epoch_1"]
    assert (place / "notes.txt").read_text() == "mine"
    (aside,) = place.parent.glob(f"{place.name}_before_*")
    assert listed(aside) == ["epoch_1", "epoch_2"]
    assert "were moved to" in (runner.log_dir / "train.log").read_text()


def test_hooks_with_places_of_their_own_do_not_meet(tmp_path: Path) -> None:
    """One keeps few near, another one many far away."""
    near = dict(interval=1, max_keep_ckpts=1)
    far = dict(type="CheckpointHook", interval=2, save_last=False, out_dir=tmp_path / "far")
    make(tmp_path / "digits", 4, near, custom_hooks=[far]).train()
    assert checkpoints(tmp_path / "digits") == ["epoch_4"]
    assert listed(tmp_path / "far" / "digits") == ["epoch_2", "epoch_4"]


# --- what is handed out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_at", [None, 3])
def test_the_last_and_the_best_weights_are_published(stop_at: int | None, tmp_path: Path) -> None:
    """As plain files beside the checkpoints, each named after its content; once, and not by a test that follows."""
    runner = make(tmp_path, 2, dict(interval=1, save_best="loss", published_keys="state_dict"))
    if stop_at is not None:
        runner.bus.subscribe(AfterTrainIter, at_iter(stop_at, runner.stop))
    runner.train()
    files = sorted((tmp_path / "checkpoints").glob("*.safetensors"))
    last = "epoch_2" if stop_at is None else "iter_4"
    best = str(runner.message_hub.get_info("best_ckpt"))
    names = zip(sorted([last, best]), files, strict=True)
    assert [file.name for file in files] == [f"{name}-{digits(file)}.safetensors" for name, file in names]
    published = next(file for file in files if file.name.startswith(last))
    assert same(load_file(published), weights(runner.model))
    published.unlink()
    runner.test()
    assert not published.exists()


def digits(file: Path) -> str:
    """Return the first digits of the SHA-256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()[:8]


def test_what_was_not_saved_is_not_published(tmp_path: Path) -> None:
    """A hook left it out, and the log says so."""
    runner = make(tmp_path, 1, dict(published_keys=["state_dict"]))

    def skip() -> None:
        raise Skip("no room")

    runner.bus.subscribe(BeforeSaveCheckpoint, skip)
    runner.train()
    assert checkpoints(tmp_path) == []
    assert "epoch_1 was not published" in (runner.log_dir / "train.log").read_text()


def test_weights_that_no_hook_averages_cannot_be_published(tmp_path: Path) -> None:
    """That is said before the first step, with the hook that would."""
    runner = make(tmp_path, 1, dict(published_keys="averaged"))
    with pytest.raises(ConfigError, match="'averaged', but no hook of this run averages weights; add an EMAHook"):
        runner.train()
    assert runner.iter == 0


# --- a best checkpoint right after a periodic one ---------------------------------------------------------------------

SHARED = ("model.safetensors", "optimizer.safetensors")


def are_linked(work_dir: Path, *checkpoints: str) -> list[bool]:
    """Return of each of the large files whether checkpoints share it."""
    paths = [[work_dir / "checkpoints" / name / file for name in checkpoints] for file in SHARED]
    return [len({path.stat().st_ino for path in same_file}) == 1 for same_file in paths]


@pytest.mark.parametrize("async_save", [False, True])
def test_a_best_checkpoint_costs_no_second_full_save(async_save: bool, tmp_path: Path) -> None:
    """It shares the large files with the periodic one of the same step, has its own score, and outlives it."""
    runner = make(tmp_path, 2, dict(interval=1, save_best="loss", max_keep_ckpts=1, async_save=async_save))
    linked: list[list[bool]] = []
    runner.bus.subscribe(
        CheckpointCommitted, lambda name: linked.append(are_linked(tmp_path, name.removeprefix("best_loss_"), name)), when=is_best
    )
    runner.train()
    assert linked == [[True, True]] * 2
    for name in ("epoch_2", "best_loss_epoch_2"):
        found = load_checkpoint(tmp_path / "checkpoints" / name)
        assert same(dict(found["state_dict"]), weights(runner.model))
    runner._saver.store.remove("epoch_2")
    best = verify_checkpoint(tmp_path / "checkpoints" / "best_loss_epoch_2")
    assert best.facts["score"] == runner.message_hub.get_info("best_score")
    make(tmp_path, 3, {}, resume=tmp_path / "checkpoints" / "best_loss_epoch_2").train()


def is_best(event: CheckpointCommitted) -> bool:
    """Return whether a best checkpoint was committed."""
    return event.name.startswith("best")


def change_weights(runner: Runner, checkpoint: dict[str, Any]) -> None:
    """Change the weights themselves."""
    with torch.no_grad():
        next(runner.model.parameters()).add_(1)


def put_other_weights(runner: Runner, checkpoint: dict[str, Any]) -> None:
    """Put other weights into the checkpoint."""
    checkpoint["state_dict"]["weight"] = torch.zeros(3, 4)


def swap_data(runner: Runner, checkpoint: dict[str, Any]) -> None:
    """Give a parameter other memory, as hooks that average weights do."""
    next(runner.model.parameters()).data = torch.ones(3, 4)
    checkpoint["state_dict"] = runner.model.state_dict()


def change_momentum(runner: Runner, checkpoint: dict[str, Any]) -> None:
    """Change the state of the optimizer in place."""
    checkpoint["optimizer"]["state"][0]["momentum_buffer"].zero_()


def average(runner: Runner, checkpoint: dict[str, Any]) -> None:
    """Keep weights that were computed for the checkpoint."""
    checkpoint["averaged"] = {"weight": torch.full((3, 4), float(checkpoint["progress"]["validation_due"]))}


@pytest.mark.parametrize("change", [change_weights, put_other_weights, swap_data, change_momentum, average])
def test_what_has_changed_since_is_written_anew(change: Callable[[Runner, dict[str, Any]], None], tmp_path: Path) -> None:
    """Between the periodic checkpoint and the best one, in whatever way."""
    runner = make(tmp_path, 1, dict(interval=1, save_best="loss"))
    expected: dict[str, Any] = {}

    def edit(name: str, checkpoint: dict[str, Any], runner: Runner) -> None:
        if name.startswith("best") or change is average:
            change(runner, checkpoint)
        expected[name] = copy.deepcopy({key: checkpoint.get(key) for key in ("state_dict", "optimizer", "averaged")})

    runner.bus.subscribe(BeforeSaveCheckpoint, edit)
    runner.train()
    for name in ("epoch_1", "best_loss_epoch_1"):
        found = load_checkpoint(tmp_path / "checkpoints" / name)
        assert str({key: found.get(key) for key in expected[name]}) == str(expected[name])
    assert str(expected["epoch_1"]) != str(expected["best_loss_epoch_1"])


def test_a_checkpoint_of_another_step_shares_nothing(tmp_path: Path) -> None:
    """Even where nothing was trained in between."""
    runner = make(tmp_path, 2, dict(interval=1), optimizer=dict(type="SGD", lr=0.0))
    runner.train()
    assert not (tmp_path / "checkpoints" / "epoch_1" / "optimizer.safetensors").exists()
    files = [tmp_path / "checkpoints" / name / "model.safetensors" for name in ("epoch_1", "epoch_2")]
    assert files[0].stat().st_ino != files[1].stat().st_ino


# --- before anything is trained ---------------------------------------------------------------------------------------


def test_a_place_that_cannot_be_written_is_found_before_training_begins(tmp_path: Path) -> None:
    """Not hours later at the first save."""
    files = FaultyFiles(fail_at=1, code=errno.EROFS, for_ever=True)
    runner = make(tmp_path, 1, {})
    runner._saver.store = CheckpointStore(tmp_path / "checkpoints", tmp_path / "last_checkpoint", files=files)
    trained: list[int] = []
    runner.bus.subscribe(AfterTrainIter, lambda iter: trained.append(iter))
    with pytest.raises(CheckpointWriteError, match="as a trial shows") as raised:
        runner.train()
    assert raised.value.errno == errno.EROFS
    assert trained == []
