"""The numbers that readers of the tutorial expect: which calls a hook gets, with which counters, and what comes of them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any

import pytest

from hookbus.events import BeforeVal
from hookbus.hooks import Hook
from hookbus.hub import MessageHub
from hookbus.runner import Runner
from hookbus.testing import make_runner
from tests.runner.builders import checkpoints, make_loader, read_records, record
from tests.tutorial.hooks import CLASSIC, FixedMetrics, TracingHook

QUIET = dict(logger=None, checkpoint=None)
"""Default hooks where nothing that is written matters."""

# --- mount points and what they give ----------------------------------------------------------------------------------

PHASE = {"runner": "Runner"}
BEFORE_ITER = PHASE | {"batch_idx": "int", "data_batch": "list"}
TRAINED, PREDICTED = {"outputs": "dict"}, {"outputs": "Tensor"}
METRICS = {"metrics": "dict"}
CHECKPOINT = PHASE | {"checkpoint": "dict"}
GIVEN: dict[str, dict[str, str]] = {
    "before_run": PHASE,
    "after_load_checkpoint": CHECKPOINT,
    "before_train": PHASE,
    "before_train_epoch": PHASE,
    "before_train_iter": BEFORE_ITER,
    "after_train_iter": BEFORE_ITER | TRAINED,
    "after_train_epoch": PHASE,
    "before_val": PHASE,
    "before_val_epoch": PHASE,
    "before_val_iter": BEFORE_ITER,
    "after_val_iter": BEFORE_ITER | PREDICTED,
    "after_val_epoch": PHASE | METRICS,
    "after_val": PHASE,
    "before_save_checkpoint": CHECKPOINT,
    "after_train": PHASE,
    "before_test": PHASE,
    "before_test_epoch": PHASE,
    "before_test_iter": BEFORE_ITER,
    "after_test_iter": BEFORE_ITER | PREDICTED,
    "after_test_epoch": PHASE | METRICS,
    "after_test": PHASE,
    "after_run": PHASE,
}
"""What each mount point hands over, by name, and of which kind it is."""


def make_short_runner(work_dir: Path, *hooks: Any, **changes: Any) -> Runner:
    """Return a runner with two batches to train on, one to validate on and one for the test."""
    loaders = dict(train_dataloader=make_loader(8), val_dataloader=make_loader(4), test_dataloader=make_loader(4))
    return make_runner(work_dir, **loaders | changes, custom_hooks=list(hooks))


def make_weights(work_dir: Path) -> Path:
    """Train a little, and return the checkpoint."""
    make_short_runner(work_dir, train_cfg=dict(max_epochs=1)).train()
    return work_dir / "checkpoints" / "epoch_1"


def receiving(mount_point: str, names: dict[str, str], received: dict[str, dict[str, str]]) -> Callable[..., None]:
    """Return a method for a mount point that asks for these names, and has to be given all of them."""

    def method(*given: Any) -> None:
        received[mount_point] = kinds_of(dict(zip(names, given, strict=True)))

    method.__signature__ = Signature([Parameter(name, Parameter.POSITIONAL_OR_KEYWORD) for name in names])  # type: ignore[attr-defined]
    return method


def kinds_of(given: dict[str, Any]) -> dict[str, str]:
    """Return the names of the types of values."""
    return {name: type(value).__name__ for name, value in given.items()}


def test_each_mount_point_hands_over_its_arguments(tmp_path: Path) -> None:
    """All 22, in the order of the loop map, under the names that classic hooks use."""
    received: dict[str, dict[str, str]] = {}
    hook = Hook()
    for mount_point, names in GIVEN.items():
        setattr(hook, mount_point, receiving(mount_point, names, received))
    runner = make_short_runner(tmp_path / "new", hook, load_from=make_weights(tmp_path / "old"))
    runner.train()
    runner.test()
    assert received == GIVEN
    assert tuple(GIVEN) == CLASSIC
    assert len(GIVEN) == 22


class SharedHook(Hook):
    """Has the methods that stand for training, validation and test alike, and one of training's own."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()

    def _before_epoch(self, runner: Runner, mode: str = "?") -> None:
        self.calls[f"_before_epoch {mode}"] += 1

    def _after_epoch(self, runner: Runner, mode: str = "?") -> None:
        self.calls[f"_after_epoch {mode}"] += 1

    def _before_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, mode: str = "?") -> None:
        self.calls[f"_before_iter {mode}"] += 1

    def _after_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None, mode: str = "?") -> None:
        self.calls[f"_after_iter {mode}"] += 1

    def after_train_iter(self) -> None:
        """Take the place of the shared method in training."""
        self.calls["after_train_iter"] += 1


def test_shared_methods_are_called_with_the_mode(tmp_path: Path) -> None:
    """A method of the mount point itself takes the place of the shared one in its mode alone."""
    hook = SharedHook()
    runner = make_short_runner(tmp_path, hook)
    runner.train()
    runner.test()
    epochs = {
        f"_{side}_epoch {mode}": number
        for side in ("before", "after")
        for mode, number in (("train", 2), ("val", 2), ("test", 1))
    }
    iters = {"_before_iter train": 4, "after_train_iter": 4, "_before_iter val": 2, "_after_iter val": 2}
    assert hook.calls == epochs | iters | {"_before_iter test": 1, "_after_iter test": 1}


# --- the order --------------------------------------------------------------------------------------------------------

VAL = "before_val before_val_epoch before_val_iter after_val_iter after_val_epoch after_val"
TEST = VAL.replace("val", "test")
ITERS = "before_train_iter after_train_iter before_train_iter after_train_iter"
EPOCH = f"before_train_epoch {ITERS} after_train_epoch before_save_checkpoint {VAL}"
ORDERS: dict[str, tuple[str, dict[str, Any], str]] = {
    "training by epochs": (
        "train",
        dict(max_epochs=2),
        f"before_run LOAD before_train {EPOCH} {EPOCH} after_train after_run",
    ),
    "training by iterations": (
        "train",
        dict(by_epoch=False, max_iters=4, val_interval=2),
        f"before_run LOAD before_train before_train_epoch {ITERS} {VAL} {ITERS} {VAL} after_train_epoch before_save_checkpoint"
        " after_train after_run",
    ),
    "validation": ("val", dict(max_epochs=2), f"before_run LOAD {VAL} after_run"),
    "test": ("test", dict(max_epochs=2), f"before_run LOAD {TEST} after_run"),
}


@pytest.mark.parametrize("loads", [False, True], ids=["fresh", "load_from"])
@pytest.mark.parametrize("kind", ORDERS)
def test_the_firing_order(kind: str, loads: bool, tmp_path: Path) -> None:
    """With weights from elsewhere one call more, before anything that belongs to the phase.

    Better than a save amid the hooks of `after_train_epoch`: it comes behind all of them.
    """
    call, train_cfg, order = ORDERS[kind]
    weights = make_weights(tmp_path / "old") if loads else None
    hook = TracingHook()
    runner = make_short_runner(tmp_path / "new", hook, train_cfg=train_cfg, load_from=weights)
    getattr(runner, call)()
    assert hook.order == order.replace("LOAD", "after_load_checkpoint" if loads else "").split()


def test_hooks_see_the_counters_of_a_resumed_run_from_before_train_on(tmp_path: Path) -> None:
    """A checkpoint is announced before anything of it is taken over: counters, weights or hub."""
    make_weights(tmp_path)
    hook = TracingHook()
    runner = make_short_runner(tmp_path, hook, resume=True)
    runner.train()
    begin = [(call.mount_point, call.epoch, call.iter, call.hub_iter) for call in hook.calls[:3]]
    assert begin == [("before_run", 0, 0, None), ("after_load_checkpoint", 0, 0, None), ("before_train", 1, 2, 2)]


# --- the counters -----------------------------------------------------------------------------------------------------

Seen = tuple[str, int, int, int | None]


def val_at(epoch: int, iteration: int) -> list[Seen]:
    """Return the rows of a validation of one batch."""
    batches = {"before_val_iter": 0, "after_val_iter": 0}
    return [(name, epoch, iteration, batches.get(name)) for name in VAL.split()]


def iters_at(epoch: int, first: int, batches: tuple[int, ...]) -> list[Seen]:
    """Return the rows of some iterations."""
    names = ("before_train_iter", "after_train_iter")
    return [(name, epoch, first + place, batch) for place, batch in enumerate(batches) for name in names]


COUNTERS: dict[str, tuple[dict[str, Any], list[Seen]]] = {
    "by epochs": (
        dict(max_epochs=3, val_interval=3),
        [
            ("before_train", 0, 0, None),
            ("before_train_epoch", 0, 0, None),
            *iters_at(0, 0, (0, 1)),
            ("after_train_epoch", 0, 2, None),
            ("before_train_epoch", 1, 2, None),
            *iters_at(1, 2, (0, 1)),
            ("after_train_epoch", 1, 4, None),
            ("before_train_epoch", 2, 4, None),
            *iters_at(2, 4, (0, 1)),
            ("after_train_epoch", 2, 6, None),
            *val_at(3, 6),
            ("after_train", 3, 6, None),
            ("after_run", 3, 6, None),
        ],
    ),
    "by iterations": (
        dict(by_epoch=False, max_iters=3, val_interval=2),
        [
            ("before_train", 0, 0, None),
            ("before_train_epoch", 0, 0, None),
            *iters_at(0, 0, (0, 1)),
            *val_at(0, 2),
            *iters_at(0, 2, (2,)),
            *val_at(0, 3),
            ("after_train_epoch", 0, 3, None),
            ("after_train", 0, 3, None),
            ("after_run", 0, 3, None),
        ],
    ),
}
"""Mount point, `runner.epoch`, `runner.iter`, `batch_idx`."""


@pytest.mark.parametrize("kind", COUNTERS)
def test_the_counters_at_each_mount_point(kind: str, tmp_path: Path) -> None:
    """What is running does not count yet, nor does an epoch in `after_train_epoch`; a validation sees what is completed.

    Better than a hub that is an iteration late in validations and at the end: it says what the runner says.
    """
    train_cfg, expected = COUNTERS[kind]
    hook = TracingHook()
    make_short_runner(tmp_path, hook, train_cfg=train_cfg, default_hooks=QUIET).train()
    calls = hook.calls[1:]  # before_run comes before the hub knows any
    assert [call[:4] for call in calls] == expected
    assert [(call.hub_epoch, call.hub_iter) for call in calls] == [(call.epoch, call.iter) for call in calls]


@pytest.mark.parametrize("call", ["val", "test"])
@pytest.mark.parametrize("trains", [False, True])
def test_the_counters_without_training(call: str, trains: bool, tmp_path: Path) -> None:
    """Nothing is completed; how much there would be is known where the runner could train."""
    parts = {} if trains else dict(train_dataloader=None, train_cfg=None, optimizer=None)
    hook = TracingHook()
    runner = make_short_runner(tmp_path, hook, **parts)
    getattr(runner, call)()
    assert {call[1:3] for call in hook.calls} == {(0, 0)}
    assert (runner.max_epochs, runner.max_iters) == ((2, 4) if trains else (None, None))


# --- the helpers ------------------------------------------------------------------------------------------------------

EVERY_N: list[tuple[int, int, list[int]]] = [
    (1, 0, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]),
    (5, 0, [5, 10]),
    (5, 5, [5, 10]),
    (5, 1, [1, 6, 11]),
    (4, 2, [2, 6, 10]),
    (3, 7, [7, 10]),
    (1, 9, [9, 10, 11]),
    (11, 0, [11]),
    (12, 0, []),
    (2, 12, []),
    (0, 3, []),
    (-4, 0, []),
]
"""`n`, `start`, and at which of eleven the answer is yes."""


class AskingHook(Hook):
    """Asks the helpers at the mount points they are made for."""

    def __init__(self) -> None:
        self.yes: dict[str, list[int]] = {}

    def ask(self, question: str, number: int, answer: bool) -> None:
        """Note the number where the answer is yes."""
        noted = self.yes.setdefault(question, [])
        if answer:
            noted.append(number)

    def after_train_iter(self, runner: Runner, batch_idx: int) -> None:
        """Ask about iterations, and about batches."""
        number = runner.iter + 1
        for n, start, _ in EVERY_N:
            self.ask(f"iters {n} {start}", number, self.every_n_train_iters(runner, n, start))
        self.ask("inner 2", number, self.every_n_inner_iters(batch_idx, 2))
        self.ask("end of epoch", number, self.end_of_epoch(runner.train_dataloader, batch_idx))
        self.ask("last iter", number, self.is_last_train_iter(runner))

    def after_train_epoch(self, runner: Runner) -> None:
        """Ask about epochs."""
        number = runner.epoch + 1
        for n, start, _ in EVERY_N:
            self.ask(f"epochs {n} {start}", number, self.every_n_epochs(runner, n, start))
        self.ask("last epoch", number, self.is_last_train_epoch(runner))


def answers(work_dir: Path, batches: int, **train_cfg: Any) -> dict[str, list[int]]:
    """Return what the helpers say in a run."""
    hook = AskingHook()
    loader = make_loader(4 * batches)
    changes: dict[str, Any] = dict(train_dataloader=loader, val_dataloader=None, train_cfg=train_cfg, default_hooks=QUIET)
    make_runner(work_dir, custom_hooks=[hook], **changes).train()
    return hook.yes


def test_every_n_from_a_start(tmp_path: Path) -> None:
    """Counted from the start, which is one of them; `n` below one is never, and no error."""
    yes = answers(tmp_path, 1, max_epochs=11)
    expected = {f"{n} {start}": hits for n, start, hits in EVERY_N}
    assert {key: yes[f"epochs {key}"] for key in expected} == expected
    assert {key: yes[f"iters {key}"] for key in expected} == expected


@pytest.mark.parametrize(
    ("batches", "train_cfg", "expected"),
    [
        (3, dict(max_epochs=3), {"inner 2": [2, 5, 8], "end of epoch": [3, 6, 9], "last iter": [9], "last epoch": [3]}),
        (2, dict(max_epochs=2), {"inner 2": [2, 4], "end of epoch": [2, 4], "last iter": [4], "last epoch": [2]}),
        # Where iterations count, batches never begin anew, and the one epoch is the last.
        (3, dict(by_epoch=False, max_iters=7), {"inner 2": [2, 4, 6], "end of epoch": [3], "last iter": [7], "last epoch": [1]}),
        (8, dict(by_epoch=False, max_iters=5), {"inner 2": [2, 4], "end of epoch": [], "last iter": [5], "last epoch": [1]}),
    ],
)
def test_ends_and_inner_batches(batches: int, train_cfg: dict[str, Any], expected: dict[str, list[int]], tmp_path: Path) -> None:
    """By the number of the iteration, or of the epoch, in which the answer is yes."""
    yes = answers(tmp_path, batches, **train_cfg)
    assert {question: yes[question] for question in expected} == expected


# --- validations ------------------------------------------------------------------------------------------------------


def is_validated(count: int, maximum: int, begin: int, interval: int) -> bool:
    """Return whether a validation follows, as users know the rule."""
    return count >= begin and (count % interval == 0 or count == maximum)


def interval_at(count: int, interval: int, milestones: list[tuple[int, int]]) -> int:
    """Return the interval of the greatest milestone up to the coming one."""
    return max([(0, interval), *(pair for pair in milestones if pair[0] <= count + 1)])[1]


@pytest.mark.parametrize("by_epoch", [True, False])
@pytest.mark.parametrize(
    ("maximum", "begin", "interval", "milestones"),
    [
        (9, 1, 1, []),
        (9, 1, 4, []),
        (9, 5, 4, []),
        (9, 9, 2, []),
        (9, 10, 1, []),
        (9, 1, 100, []),
        (12, 1, 6, [(7, 2)]),
        (12, 4, 3, [(4, 5), (10, 1)]),
        (12, 1, 1, [(1, 12)]),
        (12, 8, 2, [(6, 3), (12, 100)]),
    ],
)
def test_which_epochs_and_iterations_are_validated(
    by_epoch: bool, maximum: int, begin: int, interval: int, milestones: list[tuple[int, int]], tmp_path: Path
) -> None:
    """From `val_begin` on, every interval that is in force then, and after the last one. Epochs of one iteration each."""
    counted = dict(max_epochs=maximum) if by_epoch else dict(by_epoch=False, max_iters=maximum)
    cfg = dict(**counted, val_begin=begin, val_interval=interval, dynamic_intervals=milestones)
    loaders: dict[str, Any] = dict(train_dataloader=make_loader(4), val_dataloader=make_loader(4))
    runner = make_runner(tmp_path, train_cfg=cfg, default_hooks=QUIET, **loaders)
    seen = record(runner.bus, BeforeVal)
    runner.train()
    numbers = range(1, maximum + 1)
    expected = [n for n in numbers if is_validated(n, maximum, begin, interval_at(n, interval, milestones))]
    assert [event.iter for event in seen if isinstance(event, BeforeVal)] == expected


# --- what the hub is told ---------------------------------------------------------------------------------------------


def test_when_the_hub_learns_what(tmp_path: Path) -> None:
    """Which keys are new behind RuntimeInfoHook, at the first mount point that has them."""
    known: set[str] = set()
    learnt: dict[str, set[str]] = {}

    class Reader(Hook):
        priority = "VERY_HIGH"

        def look(self, mount_point: str, hub: MessageHub) -> None:
            keys = {*hub.runtime_info, *hub.log_scalars}
            if keys - known:
                learnt[mount_point] = keys - known
                known.update(keys)

    reader = Reader()
    for name in CLASSIC:
        setattr(reader, name, lambda hub, name=name: reader.look(name, hub))
    matrix = {"accuracy": 0.5, "matrix": [[1, 2], [3, 4]]}
    runner = make_short_runner(
        tmp_path, reader, default_hooks=QUIET | dict(timer=None), val_evaluator=FixedMetrics(matrix, matrix, matrix)
    )
    runner.train()
    runner.test()
    assert learnt == {
        "before_run": {"experiment_name", "seed", "hookbus_version"},
        "before_train": {"loop_stage", "epoch", "iter", "max_epochs", "max_iters"},
        "after_train_iter": {"train/lr", "train/loss"},
        "after_val_epoch": {"val/accuracy", "val/matrix", "val/loss"},
        "after_test_epoch": {"test/accuracy", "test/matrix", "test/loss"},
    }
    assert "val/matrix" in runner.message_hub.runtime_info
    assert "val/accuracy" in runner.message_hub.log_scalars


# --- checkpoints ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "options", "saved"),
    [
        (11, dict(interval=4, save_begin=2), [2, 6, 10, 11]),
        (7, dict(interval=3), [3, 6, 7]),
        (7, dict(interval=3, save_begin=4), [4, 7]),
        (7, dict(interval=2, max_keep_ckpts=2), [6, 7]),
        (7, dict(interval=3, save_begin=4, save_last=False, max_keep_ckpts=1), [7]),
    ],
)
@pytest.mark.parametrize("by_epoch", [True, False])
def test_which_checkpoints_are_there_in_the_end(
    by_epoch: bool, epochs: int, options: dict[str, Any], saved: list[int], tmp_path: Path
) -> None:
    """On disk, and the newest one by name. Epochs of one iteration each."""
    changes: dict[str, Any] = dict(train_dataloader=make_loader(4), val_dataloader=None, train_cfg=dict(max_epochs=epochs))
    checkpoint = options | dict(by_epoch=by_epoch)
    make_runner(tmp_path, default_hooks=dict(checkpoint=checkpoint, logger=None), **changes).train()
    unit = "epoch" if by_epoch else "iter"
    assert set(checkpoints(tmp_path)) == {f"{unit}_{number}" for number in saved}
    assert (tmp_path / "last_checkpoint").read_text() == f"{unit}_{saved[-1]}"


@pytest.mark.parametrize(
    ("interval", "accuracies", "asked"),
    [
        (3, (0.1, 0.2, 0.1, 0.4, 0.3), ["best 1", "best 2", "3", "best 4", "5"]),
        (1, (0.1, 0.2, 0.1), ["1", "best 1", "2", "best 2", "3"]),
        (-1, (0.3, 0.2, 0.4), ["best 1", "3", "best 3"]),  # the last one comes with its epoch, before the validation
    ],
)
def test_how_often_a_better_metric_is_saved(
    interval: int, accuracies: tuple[float, ...], asked: list[str], tmp_path: Path
) -> None:
    """One save each; it does not shift the intervals.

    Better than a full checkpoint beside each best one: with `interval=3` there is no `epoch_4`, with 1 no third file.
    """
    names: list[str] = []

    class Watcher(Hook):
        def before_save_checkpoint(self, name: str) -> None:
            names.append(re.sub(r"_acc_epoch_|epoch_", " ", name).strip())

    checkpoint = dict(interval=interval, save_best="acc")
    metrics = FixedMetrics(*({"acc": accuracy} for accuracy in accuracies))
    changes: dict[str, Any] = dict(train_cfg=dict(max_epochs=len(accuracies)), val_evaluator=metrics)
    runner = make_short_runner(tmp_path, Watcher(), default_hooks=dict(checkpoint=checkpoint, logger=None), **changes)
    runner.train()
    assert names == asked


# --- log lines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("batches", "options", "logged"),
    [
        (7, dict(interval=3), [3, 6, 10, 13]),
        (7, dict(interval=3, ignore_last=False), [3, 6, 7, 10, 13, 14]),
        (7, dict(interval=7), [7, 14]),
        (7, dict(interval=8), [7, 14]),
        (12, {}, [10, 22]),
        (12, dict(ignore_last=False), [10, 12, 22, 24]),
        (3, {}, [3, 6]),
    ],
)
def test_which_iterations_are_logged(batches: int, options: dict[str, Any], logged: list[int], tmp_path: Path) -> None:
    """Every `interval` batches of an epoch, 10 where it is not said, and the end of one that is no longer than that."""
    changes: dict[str, Any] = dict(train_dataloader=make_loader(4 * batches), val_dataloader=None)
    runner = make_runner(tmp_path, default_hooks=dict(logger=options, checkpoint=None), **changes)
    runner.train()
    assert [line["iter"] for line in read_records(runner)] == logged


TIMES = r"time: \d+\.\d{4}  data_time: \d+\.\d{4}"
TRAINED_LINE = rf"lr: 1\.0000e-01  eta: \d+:\d\d:\d\d  {TIMES}  loss: \d+\.\d{{4}}"
PROGRESS = rf"eta: \d+:\d\d:\d\d  {TIMES}"
RESULT = rf"loss: \d+\.\d{{4}}  {TIMES}"
LINES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "by epochs": (
        dict(max_epochs=10),
        [
            rf"Epoch\(train\)  \[ 1\]\[2/2\]  {TRAINED_LINE}",
            rf"Epoch\(val\)  \[ 1\]\[2/3\]  {PROGRESS}",
            rf"Epoch\(val\)  \[ 1\]\[3/3\]  {RESULT}",
            rf"Epoch\(train\)  \[ 2\]\[2/2\]  {TRAINED_LINE}",
        ],
    ),
    "by iterations": (
        dict(by_epoch=False, max_iters=12, val_interval=4),
        [
            rf"Iter\(train\)  \[ 2/12\]  {TRAINED_LINE}",
            rf"Iter\(train\)  \[ 4/12\]  {TRAINED_LINE}",
            rf"Iter\(val\)  \[2/3\]  {PROGRESS}",
            rf"Iter\(val\)  \[3/3\]  {RESULT}",
        ],
    ),
}


@pytest.mark.parametrize("kind", LINES)
def test_the_lines_of_a_log(kind: str, tmp_path: Path) -> None:
    """In the order in which people see them, numbers as wide as their maxima, two spaces between the parts."""
    train_cfg, expected = LINES[kind]
    changes: dict[str, Any] = dict(train_dataloader=make_loader(8), val_dataloader=make_loader(12), train_cfg=train_cfg)
    runner = make_runner(tmp_path, default_hooks=dict(logger=dict(interval=2), checkpoint=None), **changes)
    runner.train()
    written = (runner.log_dir / "train.log").read_text().splitlines()
    lines = [line.partition(" - INFO - ")[2] for line in written if re.search(r"(Epoch|Iter)\(", line)]
    for line, pattern in zip(lines[: len(expected)], expected, strict=True):
        assert re.fullmatch(pattern, line)


@pytest.mark.parametrize(
    ("train_cfg", "steps"),
    [
        (dict(max_epochs=2), [("train", 1, 2), ("val", 1, 2), ("train", 2, 4), ("val", 2, 4)]),
        (dict(by_epoch=False, max_iters=4, val_interval=2), [("train", 1, 2), ("val", 0, 2), ("train", 1, 4), ("val", 0, 4)]),
    ],
)
def test_the_steps_of_records(train_cfg: dict[str, Any], steps: list[tuple[str, int, int]], tmp_path: Path) -> None:
    """Training counts from one, a validation what is completed.

    Better than a step alone, which is 0 for every validation where iterations count: mode, epoch and iteration are in each.
    """
    runner = make_short_runner(tmp_path, train_cfg=train_cfg, default_hooks=dict(logger=dict(interval=2), checkpoint=None))
    runner.train()
    assert [(line["mode"], line["epoch"], line["iter"]) for line in read_records(runner)] == steps
