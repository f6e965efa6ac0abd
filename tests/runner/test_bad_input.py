"""Bad input gets a clear error that names the thing, its value, what was expected and what is nearest; nothing is lost."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hookbus.bus import EventBus, on
from hookbus.errors import (
    ConfigError,
    EmptyDataLoader,
    HandlerSignatureError,
    InvalidName,
    LossError,
    MetricNotFound,
    RunAlreadyLive,
    SubscriptionError,
    UnknownMountPoint,
)
from hookbus.events import AfterTrainIter, AfterValEpoch, RunFailed
from hookbus.hooks import CheckpointHook, Hook, LoggerHook
from hookbus.hub import MessageHub
from hookbus.registry import HOOKS
from tests.runner.builders import make_data, make_loader, make_runner, names, record, unique_name


@HOOKS.register_module()
class PatientHook(Hook):
    """A hook with an option of its own."""

    def __init__(self, interval: int = 50) -> None:
        self.interval = interval


class Misspelt(Hook):
    """One letter is in the wrong place."""

    def after_trian_iter(self) -> None: ...


class Greedy(Hook):
    """Asks for what its event does not offer."""

    def after_val_epoch(self, metric: dict[str, Any]) -> None: ...


class Overeager(Hook):
    """Its priority is no priority."""

    priority = "HIHGEST"

    def after_train_iter(self) -> None: ...


class OvereagerMethod(Hook):
    """One of its methods has a priority that is none."""

    @on(AfterTrainIter, priority=101)
    def look(self) -> None: ...


class NotAHook:
    """Has nothing that could be called."""


REFUSED: list[tuple[str, dict[str, Any], type[Exception], list[str]]] = [
    (
        "unknown hook type",
        dict(custom_hooks=[dict(type="PatientHok")]),
        ConfigError,
        ["custom_hooks[0].type", "'PatientHok'", "did you mean 'PatientHook'", "CheckpointHook"],
    ),
    (
        "unknown hook type among the default hooks",
        dict(default_hooks=dict(logger=dict(type="LogerHook"))),
        ConfigError,
        ["default_hooks.logger.type", "'LogerHook'", "'LoggerHook'"],
    ),
    (
        "unknown option",
        dict(custom_hooks=[dict(type="PatientHook", intervall=5)]),
        ConfigError,
        ["custom_hooks[0].intervall = 5", "PatientHook", "did you mean 'interval'"],
    ),
    (
        "ill-typed option",
        dict(default_hooks=dict(logger=dict(interval="10"))),
        ConfigError,
        ["default_hooks.logger.interval = '10'", "expected int"],
    ),
    (
        "truth value as a number",
        dict(train_cfg=dict(max_epochs=True)),
        ConfigError,
        ["train_cfg.max_epochs = True", "expected int"],
    ),
    ("option out of range", dict(default_hooks=dict(logger=dict(interval=0))), ConfigError, ["interval", "at least 1", "0"]),
    ("no epochs", dict(train_cfg=dict(max_epochs=0)), ConfigError, ["train_cfg.max_epochs must be at least 1, got 0"]),
    ("unknown loop option", dict(train_cfg=dict(max_epoch=3)), ConfigError, ["train_cfg.max_epoch = 3", "'max_epochs'"]),
    ("train_cfg is no dict", dict(train_cfg=3), ConfigError, ["train_cfg = 3", "dict"]),
    ("val_cfg is no dict", dict(val_cfg=["x"]), ConfigError, ["val_cfg = ['x']", "dict"]),
    ("randomness is no dict", dict(randomness=7), ConfigError, ["randomness = 7", "dict"]),
    ("unknown randomness", dict(randomness=dict(sead=7)), ConfigError, ["randomness.sead = 7", "'seed'"]),
    ("log level", dict(log_level="WARNIN"), ConfigError, ["log_level = 'WARNIN'", "'WARNING'", "DEBUG"]),
    ("model as a config", dict(model=dict(type="Net"), optimizer=dict(type="SGD")), ConfigError, ["model = ", "torch.nn.Module"]),
    (
        "nearly-right mount point",
        dict(custom_hooks=[Misspelt()]),
        ConfigError,
        ["custom_hooks[0]", "Misspelt.after_trian_iter", "did you mean 'after_train_iter'", "before_run"],
    ),
    (
        "argument that an event does not offer",
        dict(custom_hooks=[Greedy()]),
        HandlerSignatureError,
        ["Greedy.after_val_epoch", "'metric'", "AfterValEpoch", "did you mean 'metrics'", "runner"],
    ),
    (
        "bad priority in a config",
        dict(custom_hooks=[dict(type="PatientHook", priority="HIHG")]),
        ConfigError,
        ["'HIHG'", "did you mean 'HIGH'", "VERY_LOW"],
    ),
    ("bad priority on a class", dict(custom_hooks=[Overeager()]), ConfigError, ["'HIHGEST'", "'HIGHEST'", "LOWEST"]),
    ("priority out of range", dict(custom_hooks=[OvereagerMethod()]), ConfigError, ["priority", "0", "100", "101"]),
    (
        "priority that is no priority",
        dict(custom_hooks=[dict(type="PatientHook", priority=[1])]),
        ConfigError,
        ["priority", "[1]", "name"],
    ),
    ("custom_hooks as a text", dict(custom_hooks="PatientHook"), ConfigError, ["custom_hooks", "'PatientHook'", "list"]),
    (
        "custom hook as a text",
        dict(custom_hooks=["PatientHook"]),
        ConfigError,
        ["custom_hooks[0] = 'PatientHook'", "dict(type=...)"],
    ),
    ("custom hook as None", dict(custom_hooks=[None]), ConfigError, ["custom_hooks[0] = None"]),
    ("custom hook as a class", dict(custom_hooks=[PatientHook]), ConfigError, ["custom_hooks[0]", "PatientHook", "instance"]),
    ("custom hook that is none", dict(custom_hooks=[NotAHook()]), ConfigError, ["custom_hooks[0]", "NotAHook", "before_run"]),
    ("config without a type", dict(custom_hooks=[dict(typ="PatientHook")]), ConfigError, ["custom_hooks[0].type", "'typ'"]),
    (
        "default hook that is unknown",
        dict(default_hooks=dict(chekpoint=None)),
        ConfigError,
        ["'chekpoint'", "did you mean 'checkpoint'", "runtime_info"],
    ),
    ("default_hooks as a list", dict(default_hooks=[dict(type="LoggerHook")]), ConfigError, ["default_hooks", "dict", "logger"]),
    ("val_cfg without dataloader", dict(val_cfg={}, val_dataloader=None), ConfigError, ["val_cfg", "{}", "val_dataloader"]),
    (
        "evaluator without dataloader",
        dict(test_evaluator=object(), test_dataloader=None),
        ConfigError,
        ["test_evaluator", "test_dataloader"],
    ),
    ("half of a training", dict(train_cfg=None), ConfigError, ["train_dataloader", "no train_cfg"]),
    ("no way to train", dict(loss_fn=None), ConfigError, ["Linear", "loss_fn", "val_step"]),
    ("evaluator that is none", dict(val_evaluator=dict), ConfigError, ["evaluator", "update", "compute", "reset"]),
    ("optimizer that is none", dict(optimizer="SGD"), ConfigError, ["optimizer = 'SGD'", "torch optimizer"]),
    ("unknown optimizer", dict(optimizer=dict(type="SDG", lr=1.0)), ConfigError, ["optimizer.type", "'SDG'", "'SGD'"]),
    (
        "optimizer of another model",
        dict(optimizer=torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)),
        ConfigError,
        ["optimizer", "SGD", "Linear"],
    ),
    (
        "unknown scheduler",
        dict(param_scheduler=dict(type="StepLr", step_size=1)),
        ConfigError,
        ["param_scheduler.type", "'StepLr'", "'StepLR'"],
    ),
    ("dataloader that is none", dict(train_dataloader=5), ConfigError, ["train_dataloader = 5", "dataloader"]),
    (
        "unknown option of a dataloader",
        dict(train_dataloader=dict(dataset=make_data(4), batchsize=2)),
        ConfigError,
        ["train_dataloader.batchsize = 2", "'batch_size'"],
    ),
    (
        "unknown metric",
        dict(val_evaluator=dict(type="MulticlassAcuracy")),
        ConfigError,
        ["val_evaluator.type", "'MulticlassAccuracy'"],
    ),
    ("bad name", dict(experiment_name="my run"), InvalidName, ["experiment_name", "'my run'", "letters"]),
    (
        "save_best whose direction is unknown",
        dict(default_hooks=dict(checkpoint=dict(save_best="fluffiness"))),
        ConfigError,
        ["'fluffiness'", "rule='greater'", "rule='less'"],
    ),
    (
        "rule that is none",
        dict(default_hooks=dict(checkpoint=dict(save_best="loss", rule="lesser"))),
        ConfigError,
        ["default_hooks.checkpoint.rule = 'lesser'", "'less'"],
    ),
    (
        "unknown writer",
        dict(default_hooks=dict(logger=dict(writers=["jsonll"]))),
        ConfigError,
        ["writers[0].type", "'jsonll'", "'jsonl'", "terminal"],
    ),
    ("unknown log option", dict(log_processor=dict(window=5)), ConfigError, ["log_processor.window = 5", "'window_size'"]),
    ("log window out of range", dict(log_processor=dict(window_size=0)), ConfigError, ["log_processor.window_size", "got 0"]),
    ("resume that is none", dict(resume=3), ConfigError, ["resume = 3", "'auto'", "path"]),
    (
        "resuming from two places",
        dict(resume="y", load_from="x"),
        ConfigError,
        ["load_from = 'x'", "resume = 'y'", "leave one of them out"],
    ),
    (
        "two ways to say what a loop counts",
        dict(train_cfg=dict(type="IterBasedTrainLoop", by_epoch=False, max_iters=1)),
        ConfigError,
        ["train_cfg.by_epoch = False", "type"],
    ),
    ("by_epoch that is none", dict(train_cfg=dict(by_epoch=1, max_epochs=1)), ConfigError, ["train_cfg.by_epoch = 1", "bool"]),
    (
        "epochs for a loop that counts iterations",
        dict(train_cfg=dict(by_epoch=False, max_epochs=1)),
        ConfigError,
        ["train_cfg.max_epochs = 1", "max_iters", "train_cfg.max_iters is missing"],
    ),
    (
        "milestones that fall",
        dict(train_cfg=dict(max_epochs=9, dynamic_intervals=[(5, 2), (3, 1)])),
        ConfigError,
        ["train_cfg.dynamic_intervals", "(5, 2)", "rising"],
    ),
    ("a device that is none", dict(device="cdua"), ConfigError, ["device = 'cdua'", "available: cpu"]),
    ("a seed out of range", dict(randomness=dict(seed=2**70)), ConfigError, ["randomness.seed", "2**63"]),
    ("compile that is none", dict(compile="yes"), ConfigError, ["compile = 'yes'", "bool", "torch.compile"]),
    ("unknown option of the compiler", dict(compile=dict(backnd="eager")), ConfigError, ["compile.backnd", "'backend'"]),
    ("precision of a validation", dict(val_cfg=dict(dtype="bf16")), ConfigError, ["val_cfg.dtype = 'bf16'", "bfloat16"]),
]


@pytest.mark.parametrize(("changes", "error", "words"), [case[1:] for case in REFUSED], ids=[case[0] for case in REFUSED])
def test_the_constructor_refuses(changes: dict[str, Any], error: type[Exception], words: list[str], tmp_path: Path) -> None:
    """The text says what is wrong with what, and nothing is made on disk."""
    with pytest.raises(error) as caught:
        make_runner(tmp_path / "work", **changes)
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text
    assert list(tmp_path.iterdir()) == []


def test_several_problems_are_reported_in_one_error(tmp_path: Path) -> None:
    """Who has made three mistakes does not have to start three times."""
    hooks = [dict(type="PatientHok"), dict(type="PatientHook", intervall=5)]
    with pytest.raises(ConfigError) as caught:
        make_runner(tmp_path, custom_hooks=hooks, default_hooks=dict(logger=dict(interval="10")))
    text = str(caught.value)
    assert all(word in text for word in ("3 problems", "custom_hooks[0].type", "custom_hooks[1].intervall", "logger.interval"))


def test_problems_of_different_parts_are_reported_in_one_error(tmp_path: Path) -> None:
    """Loop, optimizer, schedule, evaluator, log and hooks are all looked at before anything is built."""
    with pytest.raises(ConfigError) as caught:
        make_runner(
            tmp_path,
            optimizer=dict(type="SGD", lr="0.1"),
            param_scheduler=dict(type="StepLR", stepsize=1),
            train_cfg=dict(max_epoch=1),
            val_evaluator=dict(type="Accurasy"),
            log_processor=dict(window=1),
            custom_hooks=[dict(type="PatientHok")],
        )
    places = (
        "optimizer.lr",
        "param_scheduler.stepsize",
        "train_cfg.max_epoch",
        "val_evaluator",
        "log_processor.window",
        "custom_hooks[0]",
    )
    assert [place for place in places if place not in str(caught.value)] == []


def test_a_config_is_not_changed_by_the_runner(tmp_path: Path) -> None:
    """The same dict builds a second runner."""
    hooks = [dict(type="PatientHook", interval=3, priority="LOW")]
    train_cfg = dict(by_epoch=True, max_epochs=1)
    for _ in range(2):
        make_runner(tmp_path, custom_hooks=hooks, train_cfg=train_cfg)
    assert hooks == [dict(type="PatientHook", interval=3, priority="LOW")]
    assert train_cfg == dict(by_epoch=True, max_epochs=1)


@pytest.mark.parametrize(
    "changes",
    [
        dict(train_cfg=dict(max_epochs=0)),
        dict(train_cfg=dict(max_epoch=1)),
        dict(custom_hooks=[Greedy()]),
        dict(custom_hooks=[Overeager()]),
        dict(custom_hooks=[dict(type="PatientHok")]),
        dict(loss_fn=None),
    ],
)
def test_a_refused_runner_takes_nothing_that_was_prepared_for_its_run(changes: dict[str, Any], tmp_path: Path) -> None:
    """Subscriptions and values made for a run wait for the corrected one, and no hook of the refused one stays."""
    name = unique_name()
    heard: list[int] = []
    EventBus.get_instance(name).subscribe(AfterTrainIter, lambda iter: heard.append(iter))
    MessageHub.get_instance(name).update_info("asked_by", "somebody")
    with pytest.raises((ConfigError, SubscriptionError)):
        make_runner(tmp_path, experiment_name=name, **changes)
    gc.collect()
    runner = make_runner(tmp_path, experiment_name=name, default_hooks=dict(logger={}))
    saves = [entry.name for entry in runner.bus.plan(AfterTrainIter) if entry.name == "LoggerHook.after_train_iter"]
    runner.train()
    assert heard == list(range(6))
    assert runner.message_hub.get_info("asked_by") == "somebody"
    assert len(saves) == 1


def test_calls_whose_parts_were_not_given_say_what_they_need(tmp_path: Path) -> None:
    """A runner for training alone has nothing to test with."""
    runner = make_runner(tmp_path / "work", val_dataloader=None, test_dataloader=None)
    with pytest.raises(ConfigError, match=r"val\(\) needs val_dataloader"):
        runner.val()
    with pytest.raises(ConfigError, match=r"test\(\) needs test_dataloader"):
        runner.test()
    only_test = make_runner(tmp_path / "work", train_dataloader=None, train_cfg=None, optimizer=None)
    with pytest.raises(ConfigError, match=r"train\(\) needs train_dataloader, train_cfg and optimizer"):
        only_test.train()
    assert list(tmp_path.iterdir()) == []


def test_a_hook_registered_later_is_checked_as_well(tmp_path: Path) -> None:
    """Nothing of a refused hook stays on the bus."""
    runner = make_runner(tmp_path)
    before = runner.bus.describe()
    with pytest.raises((ConfigError, UnknownMountPoint), match="after_train_iter"):
        runner.register_hook(Misspelt())
    with pytest.raises(HandlerSignatureError, match="metrics"):
        runner.register_hook(Greedy())
    with pytest.raises(ConfigError, match="VERY_HIGH"):
        runner.register_hook(PatientHook(), priority="VERY HIGH")
    assert runner.bus.describe() == before


# --- what only shows in the first steps -------------------------------------------------------------------------------


def scalar(model: torch.nn.Module) -> torch.Tensor:
    """Return a loss that can be minimised."""
    return torch.cat([parameter.flatten() for parameter in model.parameters()]).square().sum()


LOSSES: list[tuple[str, Callable[[torch.nn.Module], Any], list[str]]] = [
    ("not a tensor", lambda model: 0.5, ["train_step", "0.5", "float", "tensor of one element"]),
    ("nothing at all", lambda model: None, ["train_step", "None", "NoneType", "tensor"]),
    ("a tuple", lambda model: (scalar(model), 1), ["train_step", "tuple", "tensor of one element"]),
    ("no scalar", lambda model: scalar(model) * torch.ones(4), ["train_step", "(4,)", "one element", "mean"]),
    ("without gradient", lambda model: scalar(model).detach(), ["train_step", "without gradient", "detached"]),
    ("dict without loss", lambda model: {"los": scalar(model)}, ["train_step", "'loss'", "valid choices: los"]),
    ("empty dict", lambda model: {}, ["train_step", "'loss'"]),
    ("dict with a number", lambda model: {"loss": 1.5}, ["train_step", "1.5", "float"]),
    ("dict with a vector", lambda model: {"loss": scalar(model) * torch.ones(2)}, ["train_step", "(2,)"]),
]


@pytest.mark.parametrize(("step", "words"), [case[1:] for case in LOSSES], ids=[case[0] for case in LOSSES])
def test_a_loss_that_cannot_be_minimised_is_refused(
    step: Callable[[torch.nn.Module], Any], words: list[str], tmp_path: Path
) -> None:
    """The first iteration ends the run, before any weight has moved, and the failure is published."""
    runner = make_runner(
        tmp_path, loss_fn=None, val_dataloader=None, test_dataloader=None, train_step=lambda model, batch: step(model)
    )
    seen = record(runner.bus)
    before = {name: tensor.clone() for name, tensor in runner.model.state_dict().items()}
    with pytest.raises(LossError) as caught:
        runner.train()
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
    assert names(seen)[-2:] == ["RunFailed", "AfterRun"]
    assert all(torch.equal(before[name], tensor) for name, tensor in runner.model.state_dict().items())


def test_a_loss_function_that_does_not_reduce_is_refused(tmp_path: Path) -> None:
    """The most common slip: `reduction="none"`."""
    runner = make_runner(tmp_path, loss_fn=torch.nn.CrossEntropyLoss(reduction="none"))
    with pytest.raises(LossError, match=r"loss_fn returned a tensor of shape \(4,\).*mean"):
        runner.train()


def test_a_loss_that_has_no_gradient_says_why_it_might(tmp_path: Path) -> None:
    """Every parameter is frozen."""
    runner = make_runner(tmp_path)
    runner.model.requires_grad_(False)
    with pytest.raises(LossError, match="loss_fn returned a tensor without gradient"):
        runner.train()


def test_a_model_whose_train_step_returns_no_dict_is_told_so(tmp_path: Path) -> None:
    """The method has minimised the loss itself; what it returns is recorded."""

    class Net(torch.nn.Linear):
        def train_step(self, batch: Any, optim_wrapper: Any) -> Any:
            return scalar(self)

    runner = make_runner(tmp_path, model=Net(4, 3), loss_fn=torch.nn.functional.cross_entropy)
    with pytest.raises(LossError, match=r"must return a dict.*Tensor"):
        runner.train()


@pytest.mark.parametrize(
    ("changes", "call", "words"),
    [
        (dict(train_dataloader=make_loader(3, drop_last=True)), "train", ["training dataloader", "3", "drop_last"]),
        (dict(train_dataloader=[]), "train", ["training dataloader"]),
        (dict(val_dataloader=make_loader(2, drop_last=True)), "train", ["validation dataloader", "2"]),
        (dict(val_dataloader=[]), "val", ["validation dataloader"]),
        (dict(test_dataloader=[]), "test", ["test dataloader"]),
    ],
)
def test_a_dataloader_that_yields_nothing_is_refused(
    changes: dict[str, Any], call: str, words: list[str], tmp_path: Path
) -> None:
    """The error says which of them, and what is the likely reason."""
    runner = make_runner(tmp_path, **changes)
    with pytest.raises(EmptyDataLoader) as caught:
        getattr(runner, call)()
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_an_empty_dataset_names_its_size(tmp_path: Path) -> None:
    """Zero samples, for instance after a filter that let nothing through."""
    empty = TensorDataset(torch.zeros(0, 4), torch.zeros(0))
    runner = make_runner(tmp_path, train_dataloader=DataLoader(empty, batch_size=4))
    with pytest.raises(EmptyDataLoader, match="size of its dataset: 0"):
        runner.train()


@pytest.mark.parametrize("batch", [torch.zeros(4, 4), (torch.zeros(4, 4),), {"x": torch.zeros(4, 4)}, (1, 2, 3)])
def test_a_batch_that_is_no_pair_is_explained_to_users_of_loss_fn(batch: Any, tmp_path: Path) -> None:
    """The error says what came, and what to give the runner instead."""
    runner = make_runner(tmp_path, train_dataloader=[batch])
    with pytest.raises(ConfigError, match=rf"loss_fn needs batches.*{type(batch).__name__}.*train_step"):
        runner.train()


@pytest.mark.parametrize("result", [None, 3.0, (1, 2, 3), torch.zeros(3)])
def test_a_validation_step_that_returns_neither_form_is_refused(result: Any, tmp_path: Path) -> None:
    """The error names both forms and what came."""
    runner = make_runner(tmp_path, val_step=lambda model, batch: result)
    with pytest.raises(ConfigError, match=rf"\(predictions, targets\) or a dict.*{type(result).__name__}"):
        runner.val()


def test_a_metric_that_is_missing_for_save_best_is_named(tmp_path: Path) -> None:
    """The first validation ends the run and says what was computed, and nothing that was saved is lost."""
    runner = make_runner(tmp_path, default_hooks=dict(checkpoint=dict(save_best="val_loss")))
    seen = record(runner.bus, RunFailed)
    with pytest.raises(MetricNotFound) as caught:
        runner.train()
    assert all(word in str(caught.value) for word in ("save_best='val_loss'", "did you mean 'loss'", "valid choices: loss"))
    assert len(seen) == 1
    assert (tmp_path / "checkpoints" / "epoch_1" / "manifest.json").exists()


def test_save_best_without_a_validation_is_refused_before_the_first_step(tmp_path: Path) -> None:
    """Otherwise one would learn of it when training is over."""
    runner = make_runner(tmp_path, val_dataloader=None, default_hooks=dict(checkpoint=dict(save_best="loss")))
    with pytest.raises(ConfigError, match=r"save_best='loss' needs a validation.*val_dataloader"):
        runner.train()
    assert runner.iter == 0


@pytest.mark.parametrize("value", [[0.1, 0.9], "good"])
def test_a_metric_that_is_no_number_cannot_be_the_best(value: Any, tmp_path: Path) -> None:
    """A confusion matrix, for instance."""

    class Matrix:
        def reset(self) -> None: ...
        def update(self, predictions: Any, targets: Any) -> None: ...
        def compute(self) -> dict[str, Any]:
            return {"matrix": value}

    hooks = dict(checkpoint=dict(save_best="matrix", rule="greater"))
    runner = make_runner(tmp_path, val_evaluator=Matrix(), default_hooks=hooks)
    with pytest.raises(ConfigError, match=r"save_best='matrix'.*expected one number"):
        runner.train()


def test_a_plateau_without_a_validation_is_refused_before_the_first_step(tmp_path: Path) -> None:
    """It would wait for a metric for ever."""
    runner = make_runner(tmp_path, val_dataloader=None, param_scheduler=dict(type="ReduceLROnPlateau"))
    with pytest.raises(ConfigError, match=r"ReduceLROnPlateau.*val_dataloader"):
        runner.train()
    assert runner.iter == 0


def test_a_plateau_that_misses_its_metric_names_it(tmp_path: Path) -> None:
    """The metric that it follows and those that were computed."""
    runner = make_runner(tmp_path, param_scheduler=dict(type="ReduceLROnPlateau", monitor="acuracy"))
    with pytest.raises(MetricNotFound, match=r"'acuracy'.*valid choices: loss"):
        runner.train()


def test_two_live_runs_of_one_name_are_refused(tmp_path: Path) -> None:
    """The second one is told to take another name; the first goes on, and is still the one that is found by the name."""
    name = unique_name()
    runner = make_runner(tmp_path / "first", experiment_name=name)
    errors: list[BaseException] = []

    def start_another() -> None:
        try:
            make_runner(tmp_path / "second", experiment_name=name).train()
        except RunAlreadyLive as error:
            errors.append(error)

    runner.bus.subscribe(AfterTrainIter, start_another, once=True)
    runner.train()
    (error,) = errors
    assert name in str(error)
    assert "experiment_name" in str(error)
    assert runner.epoch == 2
    assert not (tmp_path / "second").exists()


def test_a_run_inside_its_own_run_is_refused(tmp_path: Path) -> None:
    """A hook may not call `val` while its runner trains."""
    runner = make_runner(tmp_path)
    runner.bus.subscribe(AfterTrainIter, lambda runner: runner.val())
    with pytest.raises(RunAlreadyLive, match=runner.experiment_name):
        runner.train()
    assert not runner.is_training


@pytest.fixture
def no_default_registrations_lost() -> Iterator[None]:
    """Check that what is registered stays registered."""
    before = set(HOOKS.names())
    yield
    assert before <= set(HOOKS.names())


@pytest.mark.usefixtures("no_default_registrations_lost")
@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: CheckpointHook(interval=0), ["CheckpointHook.interval", "at least 1", "0"]),
        (lambda: CheckpointHook(interval=-2), ["CheckpointHook.interval", "-2"]),
        (lambda: CheckpointHook(max_keep_ckpts=0), ["CheckpointHook.max_keep_ckpts", "0"]),
        (lambda: CheckpointHook(rule="less"), ["rule='less'", "save_best"]),
        (lambda: LoggerHook(interval=0), ["LoggerHook.interval", "0"]),
        (lambda: LoggerHook(writers=[dict(type="jsonl", path="x")]), ["writers[0].path", "'x'"]),
    ],
)
def test_hooks_refuse_options_that_make_no_sense(build: Callable[[], object], words: list[str]) -> None:
    """Also when they are built by hand."""
    with pytest.raises(ConfigError) as caught:
        build()
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_the_event_of_a_typing_slip_in_on_is_named() -> None:
    """`on` with something that is no event."""
    bus = EventBus()
    with pytest.raises(TypeError, match="AfterValEpoch"):
        bus.subscribe("AfterValEpoc", lambda: None)  # type: ignore[arg-type]
    assert bus.plan(AfterValEpoch) == ()
