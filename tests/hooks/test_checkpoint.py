"""CheckpointHook: what is saved when, under which name, and what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hookbus.checkpoint import CheckpointStore
from hookbus.errors import ConfigError, Skip
from hookbus.events import AfterTrainEpoch, AfterTrainIter, BeforeSaveCheckpoint
from hookbus.hooks import CheckpointHook
from hookbus.runner import Runner
from tests.runner.builders import at_iter, checkpoints, make_loader, make_runner


def make(tmp_path: Path, epochs: int, checkpoint: dict[str, Any] | None, **changes: Any) -> Runner:
    """Return a runner with these options of its CheckpointHook."""
    return make_runner(tmp_path, train_cfg=dict(max_epochs=epochs), default_hooks=dict(checkpoint=checkpoint), **changes)


def asked_for(runner: Runner) -> list[str]:
    """Return a list that fills with the names that are asked for; nothing is written."""
    names: list[str] = []

    def note(name: str) -> None:
        names.append(name)
        raise Skip("only noted")

    runner.bus.subscribe(BeforeSaveCheckpoint, note)
    return names


def named(template: str, *numbers: int) -> list[str]:
    """Return the names of checkpoints."""
    return [template.format(number) for number in numbers]


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        (dict(interval=1), ["epoch_1", "epoch_2", "epoch_3", "epoch_4", "epoch_5"]),
        (dict(interval=2), ["epoch_2", "epoch_4", "epoch_5"]),
        (dict(interval=2, save_last=False), ["epoch_2", "epoch_4"]),
        (dict(interval=-1), ["epoch_5"]),
        (dict(interval=-1, save_last=False), []),
        (dict(interval=10), ["epoch_5"]),
        (dict(interval=1, max_keep_ckpts=2), ["epoch_4", "epoch_5"]),
        (dict(interval=2, max_keep_ckpts=1), ["epoch_5"]),
        (dict(interval=6, by_epoch=False), ["iter_12", "iter_15", "iter_6"]),
        (dict(interval=5, by_epoch=False, save_last=False), ["iter_10", "iter_15", "iter_5"]),
        (dict(interval=4, by_epoch=False, max_keep_ckpts=2), ["iter_12", "iter_15"]),
    ],
)
def test_checkpoints_are_saved_at_intervals_and_at_the_end(options: dict[str, Any], saved: list[str], tmp_path: Path) -> None:
    """Five epochs of three iterations."""
    runner = make(tmp_path, 5, options)
    runner.train()
    assert checkpoints(tmp_path) == saved
    newest = max(saved, key=lambda name: int(name.rpartition("_")[2]), default=None)
    last = tmp_path / "last_checkpoint"
    assert (last.read_text() if last.exists() else None) == newest


def test_the_options_of_the_tutorial(tmp_path: Path) -> None:
    """Twenty epochs, every fifth, the newest two: at each moment no more and no fewer."""
    runner = make(tmp_path, 20, dict(interval=5, max_keep_ckpts=2), val_dataloader=None)
    kept: list[list[str]] = []
    runner.bus.subscribe(BeforeSaveCheckpoint, lambda: kept.append(checkpoints(tmp_path)))
    runner.train()
    assert kept == [[], ["epoch_5"], ["epoch_10", "epoch_5"], ["epoch_10", "epoch_15"]]
    assert checkpoints(tmp_path) == ["epoch_15", "epoch_20"]


def test_an_interval_is_inherited_where_it_is_not_set(tmp_path: Path) -> None:
    """The entry of `default_hooks` only changes what it names."""
    make(tmp_path, 3, dict(type="CheckpointHook", max_keep_ckpts=2)).train()
    assert checkpoints(tmp_path) == ["epoch_2", "epoch_3"]


@pytest.mark.parametrize(
    ("epochs", "options", "saved"),
    [
        (11, dict(interval=4, save_begin=2), [2, 6, 10, 11]),
        (11, dict(interval=4, save_begin=2, save_last=False), [2, 6, 10]),
        (20, dict(interval=5), [5, 10, 15, 20]),
        (20, dict(interval=5, save_begin=5), [5, 10, 15, 20]),
        (5, dict(interval=1, save_begin=3), [3, 4, 5]),
        (4, dict(interval=3, save_begin=5), [4]),
        (4, dict(interval=3, save_begin=5, save_last=False), []),
        (4, dict(interval=-1, save_begin=2), [4]),
        (4, dict(interval=2, save_begin=1), [1, 3, 4]),
    ],
)
@pytest.mark.parametrize("by_epoch", [True, False])
def test_saving_begins_when_it_should(
    by_epoch: bool, epochs: int, options: dict[str, Any], saved: list[int], tmp_path: Path
) -> None:
    """Epochs of one iteration each, so that both units give the same numbers."""
    runner = make(tmp_path, epochs, options | dict(by_epoch=by_epoch), val_dataloader=None, train_dataloader=make_loader(4))
    names = asked_for(runner)
    runner.train()
    assert names == named("epoch_{}" if by_epoch else "iter_{}", *saved)


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        (dict(interval=1), ["epoch_1"]),
        (dict(interval=-1), ["epoch_1"]),
        (dict(interval=-1, save_last=False), []),
        (dict(interval=2, by_epoch=False), ["iter_2", "iter_4", "iter_5"]),
        (dict(interval=2, by_epoch=False, save_last=False), ["iter_2", "iter_4"]),
        (dict(interval=2, by_epoch=False, save_begin=3), ["iter_3", "iter_5"]),
    ],
)
def test_a_run_that_counts_iterations_is_one_epoch(options: dict[str, Any], saved: list[str], tmp_path: Path) -> None:
    """Which ends with the run."""
    cfg = dict(by_epoch=False, max_iters=5)
    runner = make_runner(tmp_path, train_cfg=cfg, default_hooks=dict(checkpoint=options), val_dataloader=None)
    names = asked_for(runner)
    runner.train()
    assert names == saved


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        (dict(interval=2, filename_tmpl="mine-{}.v1"), ["mine-2.v1", "mine-3.v1"]),
        (dict(interval=4, by_epoch=False, filename_tmpl="{}_steps"), ["4_steps", "8_steps", "9_steps"]),
    ],
)
def test_a_template_names_the_checkpoints(options: dict[str, Any], saved: list[str], tmp_path: Path) -> None:
    """Three epochs of three iterations."""
    runner = make(tmp_path, 3, options, val_dataloader=None)
    names = asked_for(runner)
    runner.train()
    assert names == saved


# --- the end ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        (dict(interval=3), ["epoch_2"]),
        (dict(interval=2), ["epoch_2"]),
        (dict(interval=3, filename_tmpl="mine_{}"), ["mine_2"]),
        (dict(interval=3, save_last=False), []),
        (dict(interval=5, by_epoch=False), ["iter_5", "iter_6"]),
        (dict(interval=3, by_epoch=False), ["iter_3", "iter_6"]),
    ],
)
def test_the_last_one_is_saved_when_a_hook_ends_training_early(options: dict[str, Any], saved: list[str], tmp_path: Path) -> None:
    """After the second of five epochs, and not twice where it is there already."""
    runner = make(tmp_path, 5, options, val_dataloader=None)

    def end(epoch: int) -> None:
        runner.train_loop.stop_training = epoch == 1

    runner.bus.subscribe(AfterTrainEpoch, end)
    names = asked_for(runner)
    runner.train()
    assert names == saved


@pytest.mark.parametrize(
    ("iteration", "options", "saved"),
    [
        (3, dict(interval=5), ["iter_4"]),
        (3, dict(interval=1, filename_tmpl="mine_{}"), ["mine_1", "iter_4"]),
        (3, dict(interval=5, by_epoch=False, filename_tmpl="mine_{}"), ["mine_4"]),
        (3, dict(interval=4, by_epoch=False), ["iter_4"]),
        (3, dict(interval=5, save_last=False), []),
        (5, dict(interval=5), ["epoch_2"]),
        (5, dict(interval=2), ["epoch_2"]),
    ],
)
def test_the_last_one_is_saved_when_somebody_stops_the_run(
    iteration: int, options: dict[str, Any], saved: list[str], tmp_path: Path
) -> None:
    """In the middle of the second epoch, or at its end."""
    runner = make(tmp_path, 5, options, val_dataloader=None)
    runner.bus.subscribe(AfterTrainIter, at_iter(iteration, runner.stop))
    names = asked_for(runner)
    runner.train()
    assert names == saved


def test_a_stopped_run_that_counts_iterations_saves_the_iteration(tmp_path: Path) -> None:
    """Its one epoch is not over."""
    runner = make_runner(tmp_path, train_cfg=dict(by_epoch=False, max_iters=9), val_dataloader=None)
    runner.bus.subscribe(AfterTrainIter, at_iter(3, runner.stop))
    runner.train()
    assert checkpoints(tmp_path) == ["iter_4"]


def test_going_on_after_a_stop_saves_nothing_twice(tmp_path: Path) -> None:
    """What was saved at the stop is not asked for again, and the rest follows."""
    runner = make(tmp_path, 2, dict(interval=1), val_dataloader=None)
    stop = runner.bus.subscribe(AfterTrainIter, at_iter(1, runner.stop))
    names = asked_for(runner)
    runner.train()
    stop.cancel()
    runner.train()
    runner.train()
    assert names == ["iter_2", "epoch_1", "epoch_2"]


# --- options ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(interval=0), ["interval = 0", "at least 1"]),
        (dict(interval=True), ["interval = True"]),
        (dict(interval="5"), ["interval = '5'"]),
        (dict(max_keep_ckpts=-2), ["max_keep_ckpts = -2", "-1 to keep all"]),
        (dict(save_begin=-1), ["save_begin = -1", "at least 0"]),
        (dict(by_epoch=1), ["by_epoch = 1", "True or False"]),
        (dict(out_dir=""), ["out_dir = ''", "a path"]),
        (dict(save_best=[]), ["save_best = []", "a list of texts"]),
        (dict(save_best=["auto", "acc"]), ["save_best = ['auto', 'acc']", "alone"]),
        (dict(save_best=["acc", "acc"]), ["save_best = ['acc', 'acc']", "once"]),
        (dict(save_best=["a/acc", "a_acc"]), ["save_best = ['a/acc', 'a_acc']", "still differ"]),
        (dict(save_best="acc" * 33), ["save_best = 'accacc", "100 letters"]),
        (dict(save_best="fluff"), ["save_best = 'fluff'", "rule='greater'"]),
        (dict(save_best=["acc", "loss"], rule=["less"] * 3), ["rule = ['less', 'less', 'less']", "each of the 2 metrics"]),
        (dict(save_best="acc", rule="lesser"), ["rule = 'lesser'", "did you mean 'less'"]),
        (dict(greater_keys=["acc"]), ["greater_keys=['acc']", "save_best"]),
        (dict(save_best="acc", less_keys=[1]), ["less_keys = [1]", "texts"]),
        (dict(filename_tmpl="epoch"), ["filename_tmpl = 'epoch'", "one {}"]),
        (dict(filename_tmpl="{}_{}"), ["filename_tmpl = '{}_{}'", "one {}"]),
        (dict(filename_tmpl="../{}"), ["filename_tmpl = '../{}'", "a name of letters"]),
        (dict(filename_tmpl="{0}"), ["filename_tmpl = '{0}'"]),
        (dict(published_keys=["meta"]), ["published_keys = 'meta'", "state_dict, averaged"]),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, Any], words: list[str]) -> None:
    """With its value and what was expected."""
    with pytest.raises(ConfigError) as caught:
        CheckpointHook(**options)
    assert [word for word in ["CheckpointHook.", *words] if word not in str(caught.value)] == [], str(caught.value)


def test_all_wrong_options_are_named_at_once() -> None:
    """So that one run of the script is enough to mend them."""
    with pytest.raises(ConfigError, match=r"(?s)2 problems.*interval = 0.*save_begin = -1"):
        CheckpointHook(interval=0, save_begin=-1)


# --- several hooks in one run -----------------------------------------------------------------------------------------


def second(**options: Any) -> dict[str, Any]:
    """Return the config of one more hook."""
    return dict(type="CheckpointHook", save_last=False) | options


@pytest.mark.parametrize(
    ("first", "other", "kept"),
    [
        (dict(interval=1, max_keep_ckpts=2), second(interval=3), [3, 6, 7, 8]),
        (dict(interval=1, max_keep_ckpts=2), second(interval=3, max_keep_ckpts=1), [6, 7, 8]),
        (dict(interval=3, save_last=False), second(interval=1, max_keep_ckpts=2), [3, 6, 7, 8]),
        (dict(interval=2, max_keep_ckpts=1), second(interval=3, max_keep_ckpts=1), [6, 8]),
    ],
)
def test_two_hooks_never_delete_what_the_other_keeps(
    first: dict[str, Any], other: dict[str, Any], kept: list[int], tmp_path: Path
) -> None:
    """Each counts its own; what both asked for stays while one of them keeps it. Eight epochs."""
    runner = make(tmp_path, 8, first, custom_hooks=[other], val_dataloader=None, train_dataloader=make_loader(4))
    runner.train()
    assert checkpoints(tmp_path) == named("epoch_{}", *kept)


def test_what_somebody_saved_by_hand_is_not_counted(tmp_path: Path) -> None:
    """It stays until it is removed by hand."""
    runner = make(tmp_path, 3, dict(interval=1, max_keep_ckpts=1), val_dataloader=None)
    runner.bus.subscribe(AfterTrainIter, at_iter(1, lambda: runner.save_checkpoint("mine")))
    runner.train()
    assert checkpoints(tmp_path) == ["epoch_3", "mine"]


def test_a_hook_that_was_put_on_the_bus_by_hand_counts_its_own_as_well(tmp_path: Path) -> None:
    """Neither those of the runner's hook nor those saved by hand."""
    runner = make(tmp_path, 3, dict(interval=2, save_last=False), val_dataloader=None)
    runner.bus.add_hook(CheckpointHook(interval=1, max_keep_ckpts=1))
    runner.bus.subscribe(AfterTrainIter, at_iter(1, lambda: runner.save_checkpoint("mine")))
    runner.train()
    assert checkpoints(tmp_path) == ["epoch_2", "epoch_3", "mine"]


def test_a_limit_that_shrank_takes_effect_with_the_next_save(tmp_path: Path) -> None:
    """After a restart with another option."""
    make(tmp_path, 4, dict(interval=1), val_dataloader=None).train()
    runner = make(tmp_path, 5, dict(interval=1, max_keep_ckpts=2), val_dataloader=None, resume=True)
    runner.train()
    assert checkpoints(tmp_path) == ["epoch_4", "epoch_5"]
    assert [info.role for info in CheckpointStore(tmp_path / "checkpoints").list()] == ["periodic", "periodic"]
