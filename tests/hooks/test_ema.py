"""EMAHook: what is averaged when, what validation and test see, and what the model has in it afterwards, however they end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import torch
from torch.nn.parallel import DistributedDataParallel

from hookbus.checkpoint import load_checkpoint
from hookbus.errors import CheckpointError, ConfigError, Skip, WouldDeadlock
from hookbus.events import (
    AfterTrain,
    AfterTrainIter,
    AfterValEpoch,
    AfterValIter,
    BeforeOptimizerStep,
    BeforeTestIter,
    BeforeValEpoch,
    BeforeValIter,
    RunFailed,
)
from hookbus.hooks import EMAHook
from hookbus.hooks.invalid_loss import InvalidLossHook
from hookbus.runner import Runner
from tests.runner.builders import TRAIN_BATCHES, make_loader, make_model, make_runner, same, weights

MOMENTUM = 0.1
Weights = dict[str, torch.Tensor]


def make(work_dir: Path, hook: EMAHook | None = None, **changes: Any) -> Runner:
    """Return a runner of two epochs that averages."""
    return make_runner(work_dir, custom_hooks=[hook or EMAHook(momentum=MOMENTUM)], **changes)


def averager_of(runner: Runner) -> Any:
    """Return the hook of a runner that averages."""
    return next(hook for hook in runner.hooks if isinstance(hook, EMAHook))


class Reference:
    """Averages by hand behind each update, one tensor after the other."""

    def __init__(self, runner: Runner, momentum: float = MOMENTUM) -> None:
        self.average: Weights = {}
        self._momentum = momentum
        runner.bus.subscribe(AfterTrainIter, self._update, priority="HIGHEST")

    def _update(self, runner: Runner) -> None:
        own = weights(runner.model)
        before = self.average or own
        self.average = {name: before[name].lerp(value, self._momentum) for name, value in own.items()}


def watch(runner: Runner, event_type: Any) -> list[Weights]:
    """Return a list that fills with the weights of the model at an event."""
    seen: list[Weights] = []
    runner.bus.subscribe(event_type, lambda runner: seen.append(weights(runner.model)))
    return seen


# --- what is evaluated, and how well ----------------------------------------------------------------------------------


@pytest.mark.parametrize("loop", [dict(max_epochs=2), dict(by_epoch=False, max_iters=6, val_interval=2)], ids=str)
def test_validation_sees_the_average_and_training_does_not(loop: dict[str, Any], tmp_path: Path) -> None:
    """The weights are those of a run without the hook, bit for bit."""
    plain = make_runner(tmp_path / "plain", train_cfg=loop)
    trained = watch(plain, AfterTrainIter)
    plain.train()
    runner = make(tmp_path / "averaging", train_cfg=loop)
    reference, seen, averages = Reference(runner), watch(runner, AfterValIter), []
    runner.bus.subscribe(BeforeValEpoch, lambda: averages.append(reference.average))
    own = watch(runner, AfterTrainIter)
    runner.train()
    assert len(own) == len(trained)
    assert all(map(same, own, trained))
    for batch, found in enumerate(seen):
        torch.testing.assert_close(found, averages[batch // 2])
    assert same(weights(runner.model), weights(plain.model))


@pytest.mark.parametrize("call", ["val", "test"])
def test_a_call_of_its_own_sees_the_average_of_the_training_before(call: str, tmp_path: Path) -> None:
    """Each call begins with `BeforeRun`, which is no reason to forget."""
    runner = make(tmp_path)
    reference = Reference(runner)
    runner.train()
    own = weights(runner.model)
    seen = watch(runner, {"val": BeforeValIter, "test": BeforeTestIter}[call])
    getattr(runner, call)()
    getattr(runner, call)()
    for found in seen:
        torch.testing.assert_close(found, reference.average)
    assert same(weights(runner.model), own)


def test_the_metrics_are_those_of_the_average(tmp_path: Path) -> None:
    """The best checkpoint, too, is the one with the best average."""
    runner = make(tmp_path, default_hooks=dict(checkpoint=dict(save_best="loss")))
    metrics = runner.train()
    model = make_model()
    model.load_state_dict(load_checkpoint(tmp_path / "checkpoints" / "best_loss_epoch_2")["averaged"])
    losses = [torch.nn.functional.cross_entropy(model(inputs), targets).item() for inputs, targets in make_loader(8)]
    assert metrics["loss"] == pytest.approx(sum(losses) / 2)
    assert runner.message_hub.get_info("best_score") == metrics["loss"]


def test_without_any_training_the_model_is_evaluated_as_it_is(tmp_path: Path) -> None:
    """There is no average yet."""
    assert make(tmp_path / "a").val() == make_runner(tmp_path / "b").val()


# --- when it averages -------------------------------------------------------------------------------------------------


def steps_of(runner: Runner) -> int:
    """Return how many updates the average was told of."""
    return int(averager_of(runner).state_dict()["steps"])


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({}, 6),
        (dict(begin_iter=1), 6),
        (dict(begin_iter=3), 4),
        (dict(begin_iter=6), 1),
        (dict(begin_epoch=1), 6),
        (dict(begin_epoch=2), 3),
        (dict(interval=4), 6),
    ],
    ids=str,
)
def test_averaging_begins_when_it_should(options: dict[str, Any], steps: int, tmp_path: Path) -> None:
    """Counted from 1; `interval` counts updates, whichever of them are taken in."""
    runner = make(tmp_path, EMAHook(**options))
    runner.train()
    assert steps_of(runner) == steps


def test_until_averaging_begins_the_average_is_what_the_model_is(tmp_path: Path) -> None:
    """Validations and checkpoints of that time are those of the model; then it begins with a copy."""
    runner = make(tmp_path, EMAHook(momentum=MOMENTUM, begin_epoch=2))
    trained, evaluated = watch(runner, AfterTrainIter), watch(runner, AfterValIter)
    runner.train()
    assert same(evaluated[0], trained[2])
    early, late = (load_checkpoint(tmp_path / "checkpoints" / name) for name in ("epoch_1", "epoch_2"))
    assert same(early["averaged"], early["state_dict"])
    expected = trained[3]
    for after in trained[4:]:
        expected = {name: expected[name].lerp(after[name], MOMENTUM) for name in expected}
    torch.testing.assert_close(late["averaged"], expected)


@pytest.mark.parametrize(
    ("max_epochs", "counts", "steps"),
    [(2, 2, 3), (2, 4, 2), (2, 6, 1), (2, 5, 2)],
    ids=["whole groups", "a group over the end of an epoch", "one group", "a last group of one"],
)
@pytest.mark.parametrize("by_epoch", [True, False], ids=["by epochs", "by iterations"])
def test_a_group_of_micro_batches_counts_once(max_epochs: int, counts: int, steps: int, by_epoch: bool, tmp_path: Path) -> None:
    """The last one, too, although it may end behind the last iteration; what is saved and validated there has it."""
    length = max_epochs * TRAIN_BATCHES
    loop = dict(max_epochs=max_epochs) if by_epoch else dict(by_epoch=False, max_iters=length)
    runner = make(
        tmp_path,
        EMAHook("StochasticWeightAverage"),
        train_dataloader=Endless([*make_loader(4 * TRAIN_BATCHES)]),
        optim_wrapper=dict(accumulative_counts=counts),
        train_cfg=loop,
        default_hooks=dict(checkpoint=dict(by_epoch=by_epoch, interval=max_epochs if by_epoch else length)),
    )
    seen = watch(runner, AfterValIter)
    runner.train()
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / ("epoch_2" if by_epoch else f"iter_{length}"))
    assert (steps_of(runner), checkpoint["hooks"]["EMAHook"]["steps"]) == (steps, steps)
    assert same(checkpoint["averaged"], seen[-1])


class Endless:
    """Batches of which nobody knows how many there are, so that the last group is a surprise."""

    def __init__(self, batches: list[Any]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self._batches)


def test_an_update_that_is_left_out_does_not_count(tmp_path: Path) -> None:
    """The weights are those of the update before."""
    runner = make(tmp_path)

    def veto(iter: int) -> None:
        if iter % 2:
            raise Skip("every other one")

    runner.bus.subscribe(BeforeOptimizerStep, veto)
    runner.train()
    assert steps_of(runner) == 3


def test_training_in_two_calls_is_training_in_one(tmp_path: Path) -> None:
    """A stop in between changes nothing."""
    whole, parts = make(tmp_path / "whole"), make(tmp_path / "parts")
    whole.train()
    with parts.bus.subscribe(AfterTrainIter, lambda runner: runner.stop(), when=lambda event: event.iter == 1):
        parts.train()
    parts.train()
    paths = [tmp_path / part / "checkpoints" / "epoch_2" for part in ("whole", "parts")]
    assert same(*[load_checkpoint(path)["averaged"] for path in paths])


# --- however an evaluation ends ---------------------------------------------------------------------------------------


def fail() -> None:
    """Fail."""
    raise ValueError("broken")


ENDS: dict[str, tuple[Any, Callable[..., Any], str]] = {
    "an error in a batch": (BeforeValIter, fail, "NORMAL"),
    "an error before its first batch": (BeforeValEpoch, fail, "LOWEST"),
    "an error behind its last batch": (AfterValEpoch, fail, "HIGHEST"),
    "a stop": (AfterValIter, lambda runner: runner.stop(), "NORMAL"),
    "a keyboard interrupt": (AfterValIter, lambda: (_ for _ in ()).throw(KeyboardInterrupt), "NORMAL"),
}


@pytest.mark.parametrize("end", ENDS)
def test_the_model_has_its_own_weights_back(end: str, tmp_path: Path) -> None:
    """Whatever ends a validation; whoever hears of a failure, or of the end of training, already sees them."""
    runner = make(tmp_path, val_dataloader=make_loader(12))
    own, after = watch(runner, AfterTrainIter), []
    averaged = watch(runner, BeforeValIter)
    event_type, action, priority = ENDS[end]
    runner.bus.subscribe(event_type, action, priority=priority)
    runner.bus.subscribe(RunFailed, lambda runner: after.append(weights(runner.model)), priority="VERY_HIGH")
    runner.bus.subscribe(AfterTrain, lambda runner: after.append(weights(runner.model)), priority="HIGHEST")
    try:
        runner.train()
    except (ValueError, KeyboardInterrupt):
        assert end != "a stop"
    assert same(after[0], own[-1])
    assert same(weights(runner.model), own[-1])
    assert not any(same(found, own[-1]) for found in averaged)


@pytest.mark.parametrize("call", ["val", "test"])
def test_the_model_has_its_own_weights_back_behind_a_call_that_fails(call: str, tmp_path: Path) -> None:
    """Also where that call stands alone, and the next one works."""
    runner = make(tmp_path)
    runner.train()
    own = weights(runner.model)
    with (
        runner.bus.subscribe({"val": AfterValIter, "test": BeforeTestIter}[call], fail),
        pytest.raises(ValueError, match="broken"),
    ):
        getattr(runner, call)()
    assert same(weights(runner.model), own)
    getattr(runner, call)()
    assert same(weights(runner.model), own)


async def test_the_model_has_its_own_weights_back_when_it_is_cancelled(tmp_path: Path) -> None:
    """In the middle of a validation that waits for a coroutine."""
    runner = make(tmp_path)
    own, averaged = watch(runner, AfterTrainIter), watch(runner, BeforeValIter)
    with anyio.CancelScope() as scope:

        async def cancel() -> None:
            scope.cancel()
            await anyio.sleep_forever()

        runner.bus.subscribe(AfterValIter, cancel)
        await runner.train_async()
    assert not same(averaged[-1], own[-1])
    assert same(weights(runner.model), own[-1])


def test_a_save_in_the_middle_of_a_validation_is_of_the_weights(tmp_path: Path) -> None:
    """It waits for the step boundary, where the model has them back."""
    runner = make(tmp_path)
    runner.bus.subscribe(AfterValIter, lambda runner: runner.save_checkpoint("middle"), once=True)
    own = watch(runner, AfterTrainIter)
    runner.train()
    assert same(load_checkpoint(tmp_path / "checkpoints" / "middle")["state_dict"], own[2])


def test_a_pause_in_a_validation_saves_nothing(tmp_path: Path) -> None:
    """The model has the average in it while it waits."""
    runner = make(tmp_path)
    answers: dict[str, Any] = {}

    def unpause() -> None:
        answers["pause"].result(30)
        with pytest.raises(WouldDeadlock, match="paused between two step boundaries"):
            runner.request_save("paused").result(30)
        answers["unpause"] = runner.unpause()

    thread = threading.Thread(target=unpause)

    def pause(runner: Runner) -> None:
        answers["pause"] = runner.pause()
        thread.start()

    runner.bus.subscribe(AfterValIter, pause, once=True)
    own = watch(runner, AfterTrainIter)
    runner.train()
    thread.join()
    assert same(weights(runner.model), own[-1])
    assert not (tmp_path / "checkpoints" / "paused").exists()


def test_what_would_be_saved_with_the_average_in_the_model_is_refused(tmp_path: Path) -> None:
    """The last line of defence, for whoever goes around the runner."""
    runner = make(tmp_path)
    hook = averager_of(runner)
    seen: list[str] = []

    def save(runner: Runner) -> None:
        try:
            hook.before_save_checkpoint(runner, {"hooks": {}})
        except CheckpointError as error:
            seen.append(str(error))

    runner.bus.subscribe(AfterValIter, save)
    runner.train()
    assert len(seen) == 4
    assert "for which the model has the averaged weights in it" in seen[0]


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_checkpoint_has_both_under_the_same_names(tmp_path: Path) -> None:
    """The weights are those of training, the average is in a file of its own."""
    runner = make(tmp_path)
    reference, own = Reference(runner), watch(runner, AfterTrainIter)
    runner.train()
    checkpoint = load_checkpoint(tmp_path / "checkpoints" / "epoch_2")
    assert same(checkpoint["state_dict"], own[-1])
    torch.testing.assert_close(checkpoint["averaged"], reference.average)
    assert list(checkpoint["averaged"]) == list(checkpoint["state_dict"])
    assert (tmp_path / "checkpoints" / "epoch_2" / "averaged.safetensors").exists()


@pytest.mark.parametrize("with_average", [True, False])
def test_a_test_of_a_loaded_checkpoint_is_one_of_its_average(with_average: bool, tmp_path: Path) -> None:
    """Where it has one; else of its weights, and the log says so."""
    trained = make(tmp_path / "trained") if with_average else make_runner(tmp_path / "trained")
    trained.train()
    path = tmp_path / "trained" / "checkpoints" / "epoch_2"
    runner = make(tmp_path, model=make_model(5), load_from=path)
    seen = watch(runner, BeforeTestIter)
    assert runner.test() == trained.test()
    checkpoint = load_checkpoint(path)
    assert same(seen[0], checkpoint["averaged" if with_average else "state_dict"])
    assert same(weights(runner.model), checkpoint["state_dict"])
    log = (runner.log_dir / "train.log").read_text(encoding="utf-8")
    assert ("epoch_2 holds no averaged weights" in log) is not with_average


@pytest.mark.parametrize("with_average", [True, False])
def test_training_from_loaded_weights_begins_a_new_average(with_average: bool, tmp_path: Path) -> None:
    """The first update copies, as in any training."""
    trained = make(tmp_path / "trained") if with_average else make_runner(tmp_path / "trained")
    trained.train()
    runner = make(tmp_path, load_from=tmp_path / "trained" / "checkpoints" / "epoch_2")
    reference = Reference(runner)
    runner.train()
    torch.testing.assert_close(load_checkpoint(tmp_path / "checkpoints" / "epoch_2")["averaged"], reference.average)


def test_resuming_a_run_that_did_not_average_begins_with_its_weights(tmp_path: Path) -> None:
    """And the log says so."""
    make_runner(tmp_path, train_cfg=dict(max_epochs=1)).train()
    runner = make(tmp_path, resume=True)
    reference = Reference(runner)
    runner.train()
    torch.testing.assert_close(load_checkpoint(tmp_path / "checkpoints" / "epoch_2")["averaged"], reference.average)
    assert "epoch_1 holds no averaged weights" in (runner.log_dir / "train.log").read_text(encoding="utf-8")


def test_resuming_without_the_hook_says_what_is_left_out(tmp_path: Path) -> None:
    """Nothing is dropped in silence."""
    make(tmp_path, train_cfg=dict(max_epochs=1)).train()
    runner = make_runner(tmp_path, resume=True)
    runner.train()
    assert "EMAHook, which this run does not have" in (runner.log_dir / "train.log").read_text(encoding="utf-8")


def drop_bias(checkpoint: dict[str, Any]) -> None:
    """Leave one averaged weight out."""
    del checkpoint["averaged"]["bias"]


def add_scale(checkpoint: dict[str, Any]) -> None:
    """Add an averaged weight."""
    checkpoint["averaged"]["scale"] = torch.ones(1)


@pytest.mark.parametrize(("edit", "words"), [(drop_bias, "epoch_2 lack bias"), (add_scale, "epoch_2 also hold scale")])
@pytest.mark.parametrize("strict", [True, False])
def test_averaged_weights_that_differ_are_named(
    edit: Any, words: str, strict: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An error if loading is strict, else a warning, and what lacks begins with the weights."""
    make(tmp_path / "trained").train()
    path = tmp_path / "trained" / "checkpoints" / "epoch_2"
    runner = make(tmp_path, EMAHook(momentum=MOMENTUM, strict_load=strict))

    class Edit:
        priority = "HIGHEST"

        def after_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            edit(checkpoint)

    runner.register_hook(Edit())
    if strict:
        with pytest.raises(CheckpointError, match=words):
            runner.load_checkpoint(path)
        return
    runner.load_checkpoint(path)
    seen = watch(runner, BeforeTestIter)
    runner.test()
    checkpoint = load_checkpoint(path)
    assert torch.equal(seen[0]["weight"], checkpoint["averaged"]["weight"])
    assert torch.equal(seen[0]["bias"], checkpoint["averaged" if edit is add_scale else "state_dict"]["bias"])
    assert words in capsys.readouterr().err


def test_rolling_back_takes_the_average_back_too(tmp_path: Path) -> None:
    """With its count of updates; it goes on as if nothing had come in between."""
    runner = make(tmp_path, EMAHook("StochasticWeightAverage"))
    found: list[Any] = []

    def roll_back(runner: Runner, iter: int) -> None:
        if iter == 4:
            runner.request_rollback("for a test")

    runner.bus.subscribe(AfterTrainIter, roll_back)
    runner.bus.subscribe(AfterTrainIter, lambda runner: found.append(steps_of(runner)), priority="LOWEST")
    runner.train()
    assert found == [1, 2, 3, 4, 5, 4]


def test_batches_that_are_left_out_because_of_their_loss_do_not_count(tmp_path: Path) -> None:
    """Another hook vetoes their update."""
    batches = [*make_loader(12)]
    batches[1] = [batches[1][0] * float("nan"), batches[1][1]]
    runner = make(tmp_path, train_dataloader=batches)
    runner.register_hook(InvalidLossHook("skip"))
    runner.train()
    assert steps_of(runner) == 4


# --- models in wrappings, and what does not fit -----------------------------------------------------------------------


def test_a_compiled_model_is_averaged_under_its_own_names(tmp_path: Path) -> None:
    """As checkpoints have them."""
    model = torch.compile(make_model(), backend="eager")
    assert isinstance(model, torch.nn.Module)
    runner = make(tmp_path, model=model)
    plain = make(tmp_path / "plain")
    assert runner.train() == plain.train()
    assert list(load_checkpoint(tmp_path / "checkpoints" / "epoch_2")["averaged"]) == ["weight", "bias"]


def test_a_distributed_model_is_averaged(tmp_path: Path) -> None:
    """Under the names that its own state has; it loads into a model that is not distributed."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        runner = make(tmp_path / "run", model=DistributedDataParallel(make_model()))
        metrics = runner.train()
    finally:
        torch.distributed.destroy_process_group()
    assert metrics == pytest.approx(make(tmp_path / "plain").train())
    path = tmp_path / "run" / "checkpoints" / "epoch_2"
    assert list(load_checkpoint(path)["averaged"]) == ["module.weight", "module.bias"]
    assert make(tmp_path / "loading", load_from=path).val() == pytest.approx(metrics)


def test_weights_that_are_replaced_begin_a_new_average(tmp_path: Path) -> None:
    """And the log says so: the old average belongs to nothing any more."""
    model = torch.nn.Sequential(make_model())
    runner = make(tmp_path, model=model)
    runner.train()
    model[0] = make_model(3)
    plain = make_runner(tmp_path / "plain", model=make_model(3))
    assert runner.val() == plain.val()
    assert "their average begins anew" in (runner.log_dir / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("options", "changes", "words"),
    [
        (dict(begin_iter=7), {}, "begin_iter = 7: averaging would never begin, training ends with 6"),
        (dict(begin_epoch=3), {}, "begin_epoch = 3: averaging would never begin, training ends with 2"),
        (dict(begin_epoch=1), dict(train_cfg=dict(by_epoch=False, max_iters=3)), "counts iterations; give begin_iter"),
    ],
)
def test_what_does_not_fit_the_run_is_refused(options: Any, changes: Any, words: str, tmp_path: Path) -> None:
    """Before anything is trained."""
    runner = make(tmp_path, EMAHook(**options), **changes)
    with pytest.raises(ConfigError, match=words):
        runner.train()
    assert runner.iter == 0


def test_two_averages_in_one_run_are_refused(tmp_path: Path) -> None:
    """A checkpoint has one place, and a validation one model."""
    runner = make(tmp_path)
    runner.register_hook(EMAHook())
    with pytest.raises(ConfigError, match="EMAHook and EMAHook: a run can have one average"):
        runner.train()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            dict(momentun=0.1),
            ["EMAHook.momentun = 0.1", "ExponentialMovingAverage has no such option", "did you mean 'momentum'"],
        ),
        (dict(begin_itr=1), ["EMAHook.begin_itr = 1", "did you mean 'begin_iter'"]),
        (dict(ema_type="ExponentialAverage"), ["ema_type = 'ExponentialAverage'", "did you mean 'ExponentialMovingAverage'"]),
        (dict(ema_type=dict), ["ema_type = dict"]),
        (
            dict(ema_type="StochasticWeightAverage", momentum=0.1),
            ["momentum = 0.1", "StochasticWeightAverage has no such option"],
        ),
        (dict(begin_iter=-1, strict_load=1, gama=3), ["3 problems", "begin_iter = -1", "strict_load = 1", "gama = 3"]),
        (dict(begin_iter=1, begin_epoch=1), ["expected one of the two"]),
    ],
)
def test_an_option_that_makes_no_sense_is_refused(options: dict[str, Any], words: list[str]) -> None:
    """All at once, each with its value and the nearest name."""
    with pytest.raises(ConfigError) as raised:
        EMAHook(**options)
    assert [word for word in words if word not in str(raised.value)] == []


def test_a_config_describes_it(tmp_path: Path) -> None:
    """The options of the averager stand beside those of the hook."""
    config = dict(type="EMAHook", ema_type="MomentumAnnealingEMA", gamma=3, momentum=0.2, interval=2, priority="LOW")
    runner = make_runner(tmp_path, custom_hooks=config)
    described = "MomentumAnnealingEMA(interval=2, update_buffers=False, momentum=0.2, gamma=3.0)"
    assert repr(averager_of(runner).averager) == described
