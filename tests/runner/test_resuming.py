"""Going on from a checkpoint: which one is taken, what comes back, and that it is the run that was never interrupted."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from hookbus.errors import CheckpointCorrupt, CheckpointError
from hookbus.events import AfterLoadCheckpoint, AfterTrainEpoch, AfterValIter
from hookbus.hooks import Hook
from hookbus.runner import Runner
from tests.checkpoint.builders import assert_same
from tests.runner.builders import checkpoints, make_data, make_loader, make_model, make_runner, names, record, same, weights

CHECKPOINTS = "checkpoints"


def make_learner(work_dir: Path, **changes: Any) -> Runner:
    """Return a runner that draws on every random generator: shuffled data, dropout, momentum, a schedule."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 3))
    options: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.AdamW(model.parameters(), lr=0.05),
        "param_scheduler": [dict(type="CosineAnnealingLR", T_max=4), dict(type="LinearLR", by_epoch=False, total_iters=9)],
        "train_dataloader": make_loader(12, shuffle=True),
        "train_cfg": dict(max_epochs=4),
        "default_hooks": dict(checkpoint=dict(save_best="loss")),
    }
    return make_runner(work_dir, **options | changes)


def stop_after(runner: Runner, epochs: int) -> None:
    """Have the run stop behind an epoch, before the validation that is due there."""
    runner.bus.subscribe(AfterTrainEpoch, lambda runner: runner.stop(), when=lambda event: event.epoch + 1 == epochs)


def results(runner: Runner) -> dict[str, list[float]]:
    """Return every recorded value that is no time."""
    return {key: buffer.data[0] for key, buffer in runner.message_hub.log_scalars.items() if "time" not in key}


@pytest.mark.parametrize("cut", [1, 2, 3])
def test_a_resumed_run_is_the_run_that_was_never_interrupted(cut: int, tmp_path: Path) -> None:
    """Weights, optimizer, schedules, histories and the best score, bit for bit, cut after any epoch."""
    whole = make_learner(tmp_path / "whole")
    expected = whole.train()
    first = make_learner(tmp_path / "parts")
    stop_after(first, cut)
    first.train()
    del first
    gc.collect()
    torch.manual_seed(99)
    second = make_learner(tmp_path / "parts", resume=True)
    assert second.train() == expected
    assert same(weights(second.model), weights(whole.model))
    assert second.optim_wrapper is not None
    assert whole.optim_wrapper is not None
    assert_same(second.optim_wrapper.state_dict(), whole.optim_wrapper.state_dict())
    assert [s.state_dict() for s in second.param_schedulers] == [s.state_dict() for s in whole.param_schedulers]
    assert results(second) == results(whole)
    assert second.message_hub.get_info("best_score") == whole.message_hub.get_info("best_score")
    assert checkpoints(tmp_path / "parts") == checkpoints(tmp_path / "whole")


def test_resuming_twice_in_a_row_is_exact_too(tmp_path: Path) -> None:
    """After one epoch, and again after the third."""
    whole = make_learner(tmp_path / "whole")
    whole.train()
    for cut in (1, 3, None):
        runner = make_learner(tmp_path / "parts", resume="auto")
        if cut is not None:
            stop_after(runner, cut)
        runner.train()
    assert same(weights(runner.model), weights(whole.model))
    assert results(runner) == results(whole)


def test_a_validation_that_was_due_runs_first(tmp_path: Path) -> None:
    """The checkpoint of an epoch is older than the validation after it."""
    first = make_learner(tmp_path)
    first.bus.subscribe(AfterValIter, lambda runner: runner.stop(), once=True)
    first.train()
    second = make_learner(tmp_path, resume=True)
    seen = record(second.bus)
    second.train()
    assert names(seen)[:4] == ["BeforeRun", "AfterLoadCheckpoint", "BeforeTrain", "BeforeVal"]


def test_a_training_by_iterations_goes_on_counting(tmp_path: Path) -> None:
    """From the newest checkpoint."""
    cfg = dict(by_epoch=False, max_iters=8)
    hooks = dict(checkpoint=dict(by_epoch=False, interval=3))
    first = make_runner(tmp_path, train_cfg=dict(by_epoch=False, max_iters=4), default_hooks=hooks)
    first.train()
    assert checkpoints(tmp_path) == ["iter_3", "iter_4"]
    second = make_runner(tmp_path, train_cfg=cfg, default_hooks=hooks, resume=True)
    second.train()
    assert second.iter == 8
    assert checkpoints(tmp_path) == ["iter_3", "iter_4", "iter_6", "iter_8"]
    assert second.message_hub.get_scalar("train/loss").steps == list(range(1, 9))


# --- which checkpoint -------------------------------------------------------------------------------------------------


def train(work_dir: Path, epochs: int, **changes: Any) -> Runner:
    """Return a runner that has trained."""
    runner = make_runner(work_dir, train_cfg=dict(max_epochs=epochs), **changes)
    runner.train()
    return runner


def test_true_and_auto_take_the_newest(tmp_path: Path) -> None:
    """The highest step wins, whatever a text file says."""
    train(tmp_path, 3)
    (tmp_path / "last_checkpoint").write_text("epoch_1", encoding="utf-8")
    for resume in (True, "auto"):
        runner = make_runner(tmp_path, train_cfg=dict(max_epochs=3), resume=resume)
        runner.train()
        assert runner.epoch == 3
        assert checkpoints(tmp_path) == ["epoch_1", "epoch_2", "epoch_3"]


def test_true_must_find_one(tmp_path: Path) -> None:
    """It says where it looked, and what to write instead."""
    with pytest.raises(CheckpointError, match=r"resume=True.*checkpoints.*resume='auto'"):
        make_runner(tmp_path, resume=True).train()


def test_auto_starts_fresh_where_there_is_none(tmp_path: Path) -> None:
    """With one line in the log."""
    runner = make_runner(tmp_path, resume="auto")
    runner.train()
    assert runner.epoch == 2
    assert "starting fresh" in (runner.log_dir / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "options",
    [lambda path: dict(resume=path), lambda path: dict(resume=True, load_from=str(path))],
    ids=["resume", "load_from"],
)
def test_a_path_names_the_checkpoint(options: Any, tmp_path: Path) -> None:
    """What lies ahead of it belongs to another past, and is set aside for the one that begins now."""
    train(tmp_path, 3)
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=2), **options(tmp_path / CHECKPOINTS / "epoch_1"))
    runner.train()
    assert runner.epoch == 2
    assert checkpoints(tmp_path) == ["epoch_1", "epoch_2"]
    (aside,) = tmp_path.glob("checkpoints_before_*")
    assert sorted(path.name for path in aside.iterdir()) == ["epoch_2", "epoch_3"]


def test_a_path_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    """Which names the nearest one."""
    train(tmp_path, 1)
    with pytest.raises(CheckpointError, match="did you mean 'epoch_1'"):
        make_runner(tmp_path, resume=tmp_path / CHECKPOINTS / "epoch_2").train()


def damage(path: Path) -> None:
    """Change one byte in the middle of the weights."""
    data = bytearray((path / "model.safetensors").read_bytes())
    data[len(data) // 2] ^= 1
    (path / "model.safetensors").write_bytes(data)


@pytest.mark.parametrize("resume", [True, "auto"])
@pytest.mark.parametrize("broken", ["weights", "manifest"])
def test_a_damaged_checkpoint_is_passed_over_loudly(resume: Any, broken: str, tmp_path: Path) -> None:
    """The next older one is taken, and the damaged one is kept aside for whoever wants to look at it."""
    train(tmp_path, 3)
    newest = tmp_path / CHECKPOINTS / "epoch_3"
    damage(newest) if broken == "weights" else (newest / "manifest.json").write_text("{}", encoding="utf-8")
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=3), resume=resume)
    runner.train()
    log = (runner.log_dir / "train.log").read_text(encoding="utf-8")
    assert "WARNING" in log
    assert "epoch_3 is damaged" in log
    assert "resumed from" in log
    assert "2 epochs and 6 iterations" in log
    assert [path.name for aside in tmp_path.glob("checkpoints_before_*") for path in aside.iterdir()] == ["epoch_3"]
    assert checkpoints(tmp_path) == ["epoch_1", "epoch_2", "epoch_3"]


def test_a_damaged_checkpoint_that_was_named_is_an_error(tmp_path: Path) -> None:
    """Nothing else is taken in its place."""
    train(tmp_path, 2)
    damage(tmp_path / CHECKPOINTS / "epoch_2")
    with pytest.raises(CheckpointCorrupt, match=r"model\.safetensors"):
        make_runner(tmp_path, resume=tmp_path / CHECKPOINTS / "epoch_2").train()


@pytest.mark.parametrize("resume", [True, "auto"])
def test_nothing_but_damaged_checkpoints_is_an_error(resume: Any, tmp_path: Path) -> None:
    """Whoever wants to start fresh over them says so."""
    train(tmp_path, 1)
    damage(tmp_path / CHECKPOINTS / "epoch_1")
    with pytest.raises(CheckpointCorrupt, match=r"every checkpoint.*epoch_1"):
        make_runner(tmp_path, resume=resume).train()
    assert checkpoints(tmp_path) == ["epoch_1"]


# --- what comes back --------------------------------------------------------------------------------------------------


class Counting(Hook):
    """Counts epochs, and hands its count on."""

    def __init__(self) -> None:
        self.epochs = 0

    def after_train_epoch(self) -> None:
        """Count."""
        self.epochs += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the count."""
        return {"epochs": self.epochs}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self.epochs = state_dict["epochs"]


def test_hooks_get_their_state_back(tmp_path: Path) -> None:
    """Each of several of one class its own; a state that nobody wants any more is named in the log."""
    first = train(tmp_path, 2, custom_hooks=[Counting(), Counting()])
    hooks = [hook for hook in first.hooks if isinstance(hook, Counting)]
    assert [hook.epochs for hook in hooks] == [2, 2]
    counting = Counting()
    runner = train(tmp_path, 3, custom_hooks=[counting], resume=True)
    assert counting.epochs == 3
    assert "Counting_2" in (runner.log_dir / "train.log").read_text(encoding="utf-8")


def test_a_hook_may_edit_the_checkpoint_before_it_is_taken_over(tmp_path: Path) -> None:
    """`after_load_checkpoint` comes first, once, and knows its name."""
    train(tmp_path, 1)
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=2), resume=True)
    heard: list[str] = []

    def edit(checkpoint: dict[str, Any], name: str) -> None:
        heard.append(name)
        checkpoint["progress"]["epoch"] = 2

    runner.bus.subscribe(AfterLoadCheckpoint, edit)
    runner.train()
    assert heard == ["epoch_1"]
    assert runner.iter == 3


def test_the_facts_of_the_new_start_are_its_own(tmp_path: Path) -> None:
    """What the old run said about itself does not come back, but the seed does, loudly where another one was asked for."""
    train(tmp_path, 1, randomness=dict(seed=5))
    runner = make_runner(tmp_path, randomness=dict(seed=6), experiment_name="renamed", train_cfg=dict(max_epochs=2), resume=True)
    runner.train()
    assert runner.seed == 5
    assert runner.message_hub.get_info("experiment_name") == "renamed"
    assert runner.message_hub.get_info("seed") == 5
    assert "the seed is 5, that of the checkpoint, and not 6" in (runner.log_dir / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("call", ["val", "test"])
def test_an_evaluation_alone_takes_the_trained_weights(call: str, tmp_path: Path) -> None:
    """Without optimizer and training data."""
    trained = train(tmp_path, 2)
    expected = getattr(trained, call)()
    only = make_runner(tmp_path, model=make_model(7), train_dataloader=None, train_cfg=None, optimizer=None, resume=True)
    assert getattr(only, call)() == expected
    assert checkpoints(tmp_path) == ["epoch_1", "epoch_2"]


def test_a_checkpoint_without_its_optimizer_is_for_load_from(tmp_path: Path) -> None:
    """The error says so."""
    train(tmp_path, 1, default_hooks=dict(checkpoint=dict(save_optimizer=False)))
    with pytest.raises(CheckpointError, match=r"epoch_1 cannot be resumed: it lacks optimizer; load_from"):
        make_runner(tmp_path, resume=True).train()


def test_a_run_with_another_number_of_schedulers_is_refused(tmp_path: Path) -> None:
    """Which would otherwise lose one silently."""
    train(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"param_scheduler.*was not there and is 'StepLR'"):
        make_runner(tmp_path, param_scheduler=dict(type="StepLR", step_size=1), resume=True).train()


# --- weights alone ----------------------------------------------------------------------------------------------------


def test_load_from_takes_the_weights_and_nothing_else(tmp_path: Path) -> None:
    """Counters, histories and the optimizer begin anew."""
    old = train(tmp_path / "old", 2)
    new = make_runner(tmp_path / "new", model=make_model(9), load_from=tmp_path / "old" / CHECKPOINTS / "epoch_2")
    loaded: list[bool] = []
    new.register_hook(_Checking(loaded, weights(old.model)))
    new.train()
    assert loaded == [True]
    assert new.iter == 6


class _Checking:
    def __init__(self, loaded: list[bool], expected: dict[str, torch.Tensor]) -> None:
        self._loaded = loaded
        self._expected = expected

    def before_train(self, runner: Runner) -> None:
        """Compare the weights that training begins with."""
        self._loaded.append(same(weights(runner.model), self._expected) and runner.iter == 0)


def test_weights_that_fit_in_part_are_taken_and_the_rest_is_named(tmp_path: Path) -> None:
    """As when a head is exchanged for another task."""
    torch.manual_seed(0)
    train(tmp_path / "old", 1, model=torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Identity()))
    wider = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 3))
    runner = make_runner(tmp_path / "new", model=wider, load_from=tmp_path / "old" / CHECKPOINTS / "epoch_1")
    runner.train()
    log = (runner.log_dir / "train.log").read_text(encoding="utf-8")
    assert "lacks 1.weight, 1.bias: they stay as they are" in log


def test_weights_of_quite_another_model_are_an_error(tmp_path: Path) -> None:
    """Nothing would be loaded at all."""
    train(tmp_path / "old", 1)
    other = torch.nn.Sequential(torch.nn.Linear(4, 3))
    with pytest.raises(CheckpointError, match=r"holds no weight of Sequential"):
        make_runner(tmp_path / "new", model=other, load_from=tmp_path / "old" / CHECKPOINTS / "epoch_1").train()


def test_weights_from_inside_a_wrapper_are_recognised(tmp_path: Path) -> None:
    """Distributed training saves them with a prefix."""

    class Wrapper(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = make_model(3)

        def forward(self, inputs: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.module(inputs)
            return result

    wrapped = train(tmp_path / "old", 1, model=Wrapper())
    runner = make_runner(tmp_path / "new")
    runner.load_checkpoint(tmp_path / "old" / CHECKPOINTS / "epoch_1")
    inputs = make_data(4).tensors[0]
    assert torch.equal(runner.model(inputs), wrapped.model(inputs))


# --- mistakes that people make ----------------------------------------------------------------------------------------


def test_the_directory_of_all_checkpoints_is_not_one(tmp_path: Path) -> None:
    """The error lists those in it."""
    train(tmp_path, 2)
    for path in (tmp_path, tmp_path / CHECKPOINTS):
        with pytest.raises(CheckpointError, match=r"is a directory with checkpoints and not one itself.*epoch_1.*epoch_2"):
            make_runner(tmp_path, resume=path).train()


@pytest.mark.parametrize("option", ["load_from", "resume"])
def test_a_file_is_no_checkpoint_and_the_error_says_what_to_give(option: str, tmp_path: Path) -> None:
    """The directory that it lies in, or another function for a file of somebody else."""
    train(tmp_path, 1)
    foreign = tmp_path / "weights.pth"
    foreign.write_bytes(b"weights")
    for path, hint in (
        (tmp_path / "checkpoints" / "epoch_1" / "model.safetensors", "is a file.*give the directory .*epoch_1"),
        (foreign, r"is a file.*read it with hookbus\.import_weights"),
    ):
        options: dict[str, Any] = {option: path}
        with pytest.raises(CheckpointError, match=hint):
            make_learner(tmp_path, **options).train()


def test_weights_are_not_loaded_from_the_directory_of_all_checkpoints(tmp_path: Path) -> None:
    """It is not damaged; the ones in it are named."""
    train(tmp_path, 1)
    with pytest.raises(CheckpointError, match=r"a directory with checkpoints and not one itself.*epoch_1") as caught:
        make_learner(tmp_path / "new", load_from=tmp_path).train()
    assert not isinstance(caught.value, CheckpointCorrupt)


def test_a_name_alone_is_looked_for_among_the_checkpoints_of_the_run(tmp_path: Path) -> None:
    """And one that is not there is answered with those that are."""
    train(tmp_path, 2)
    runner = make_runner(tmp_path, resume="epoch_1")
    runner.train()
    assert "resumed from" in (runner.log_dir / "train.log").read_text(encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"resume='latest'.*valid choices: auto, epoch_1, epoch_2"):
        make_runner(tmp_path, resume="latest").train()


def test_weights_to_begin_with_and_auto_go_together(tmp_path: Path) -> None:
    """The first start takes the weights, every later one goes on; what a job that may be stopped at any time needs."""
    train(tmp_path / "pretrained", 1)
    options = dict(load_from=tmp_path / "pretrained" / CHECKPOINTS / "epoch_1", resume="auto")
    first = make_runner(tmp_path / "work", train_cfg=dict(max_epochs=1), **options)
    first.train()
    second = make_runner(tmp_path / "work", train_cfg=dict(max_epochs=2), **options)
    second.train()
    logs = [(runner.log_dir / "train.log").read_text(encoding="utf-8") for runner in (first, second)]
    assert ["loaded the weights of" in log for log in logs] == [True, False]
    assert ["resumed from" in log for log in logs] == [False, True]


def test_saving_by_hand_first_does_not_mix_two_runs(tmp_path: Path) -> None:
    """What lies there of an earlier run goes aside before anything is written."""
    train(tmp_path, 3)
    runner = make_runner(tmp_path, train_cfg=dict(max_epochs=1))
    runner.save_checkpoint("zero")
    runner.train()
    assert checkpoints(tmp_path) == ["epoch_1", "zero"]
    (aside,) = tmp_path.glob("checkpoints_before_*")
    assert sorted(path.name for path in aside.iterdir()) == ["epoch_1", "epoch_2", "epoch_3"]


def test_a_model_wrapped_by_the_compiler_saves_the_names_of_its_weights(tmp_path: Path) -> None:
    """So that it resumes with and without."""
    model = make_model()
    train(tmp_path, 1, model=torch.compile(model, backend="eager"), optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
    runner = make_runner(tmp_path, optimizer=dict(type="SGD", lr=0.1), resume=True)
    runner.train()
    assert runner.epoch == 2


def test_weights_of_another_shape_are_named(tmp_path: Path) -> None:
    """And not left to a message of torch's own."""
    train(tmp_path / "old", 1)
    other = torch.nn.Linear(4, 5)
    with pytest.raises(CheckpointError, match=r"weights of another shape than Linear: weight \(3, 4\) -> \(5, 4\)"):
        make_runner(tmp_path / "new", model=other, load_from=tmp_path / "old" / CHECKPOINTS / "epoch_1").train()


def test_a_checkpoint_without_schedules_resumes_a_run_without_them(tmp_path: Path) -> None:
    """Nothing that this run needs was left out of it."""
    hooks = dict(checkpoint=dict(save_param_scheduler=False))
    train(tmp_path, 1, default_hooks=hooks)
    runner = train(tmp_path, 2, default_hooks=hooks, resume=True)
    assert (runner.epoch, runner.iter) == (2, 6)


def test_a_model_wrapped_by_the_compiler_rolls_back(tmp_path: Path) -> None:
    """Its checkpoints hold the names of the model inside."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    runner = make_runner(tmp_path, model=torch.compile(model, backend="eager"), optimizer=optimizer)
    answers: list[Any] = []
    runner.bus.subscribe(AfterTrainEpoch, lambda runner: answers.append(runner.request_rollback()), when=lambda e: e.epoch == 1)
    runner.train()
    assert answers[0].result(0).name == "epoch_1"
