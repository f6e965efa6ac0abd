"""What is checked of every hook in real runs; each check raises an AssertionError that says what is wrong."""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from hookbus.events import MOUNT_POINTS, AfterRun, AfterTrainIter, Event
from hookbus.hooks import Hook
from hookbus.runner import Runner
from hookbus.runner.defaults import DEFAULT_HOOKS
from hookbus.testing import make_runner
from tests.conformance.comparing import looks, public
from tests.conformance.footprint import leaves_nothing_behind
from tests.conformance.subjects import Subject
from tests.runner.builders import at_iter, weights

NO_HOOKS: Mapping[str, None] = dict.fromkeys(DEFAULT_HOOKS)
LOOPS: Mapping[str, Mapping[str, Any]] = {
    "epochs": dict(max_epochs=2),
    "iterations": dict(by_epoch=False, max_iters=6, val_interval=2),
}
"""Both train for six iterations and validate in between."""

CUT = 4
"""Iterations after which a run is cut in two: in the middle of the second epoch, and where a validation is due."""


class Deliberate(Exception):
    """What somebody else's hook raises."""


class ImageModel(torch.nn.Sequential):
    """Classifies images of four by four pixels; it has buffers, too."""

    def __init__(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            super().__init__(torch.nn.Flatten(), torch.nn.BatchNorm1d(16), torch.nn.Linear(16, 3))


def image_loader(batches: int) -> torch.utils.data.DataLoader[Any]:
    """Return batches of four images with their classes."""
    generator = torch.Generator().manual_seed(batches)
    images = torch.rand(4 * batches, 1, 4, 4, generator=generator)
    labels = images.flatten(1)[:, :3].argmax(dim=1)
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, labels), batch_size=4)


def make_run(work_dir: Path, hooks: list[Any], **changes: Any) -> Runner:
    """Return a runner with these hooks and no others."""
    model = ImageModel()
    parts: dict[str, Any] = {
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        "train_dataloader": image_loader(3),
        "val_dataloader": image_loader(2),
        "test_dataloader": image_loader(1),
        "default_hooks": NO_HOOKS,
        "custom_hooks": hooks,
    }
    return make_runner(work_dir, **parts | changes)


def hook_of(runner: Runner, subject: Subject) -> Hook:
    """Return the hook of a runner that is looked at."""
    (found,) = (hook for hook in runner.hooks if type(hook) is subject.cls)
    assert isinstance(found, Hook)
    return found


@cache
def undisturbed(loop: str) -> dict[str, torch.Tensor]:
    """Return the weights that a training without any hook comes to."""
    with tempfile.TemporaryDirectory() as work_dir:
        runner = make_run(Path(work_dir), [], train_cfg=LOOPS[loop])
        runner.train()
        return weights(runner.model)


# --- the checks -------------------------------------------------------------------------------------------------------


def check_training_and_test(subject: Subject, work_dir: Path, loop: str) -> None:
    """It lives through a training and a test behind it, leaves what is trained alone, and nothing behind."""
    before = looks(of_the_class(subject.cls))
    runner = make_run(work_dir, [subject.config()], train_cfg=LOOPS[loop])
    with leaves_nothing_behind():
        runner.train()
        assert runner.iter == 6, f"training ended after {runner.iter} iterations"
        check_same_weights(runner, undisturbed(loop))
        assert "loss" in runner.test()
    check_same_weights(runner, undisturbed(loop))
    assert looks(of_the_class(subject.cls)) == before, "a run changes the class"
    check_bus_is_clean(runner)


def of_the_class(cls: type) -> dict[str, Any]:
    """Return what a class holds for all of its instances, but for methods."""
    return {name: value for name, value in vars(cls).items() if not name.startswith("__") and not callable(value)}


def check_among_default_hooks(subject: Subject, work_dir: Path, loop: str) -> None:
    """It gets along with all default hooks; one of them makes room for itself."""
    room = {name: None for name, config in DEFAULT_HOOKS.items() if config["type"] == subject.kind}
    runner = make_run(work_dir, [subject.config()], train_cfg=LOOPS[loop], default_hooks=room)
    with leaves_nothing_behind():
        runner.train()
        runner.test()
    check_same_weights(runner, undisturbed(loop))


def check_evaluation_alone(subject: Subject, work_dir: Path) -> None:
    """It lives through a validation and a test without any training, which leave the weights as they are."""
    runner = make_run(work_dir, [subject.config()])
    before = weights(runner.model)
    with leaves_nothing_behind():
        metrics = [runner.val(), runner.test()]
    assert all("loss" in each for each in metrics)
    check_same_weights(runner, before)
    check_bus_is_clean(runner)


def check_state(subject: Subject, work_dir: Path, loop: str) -> None:
    """A real checkpoint keeps its state; a run that was cut and resumed ends with that of one that was not."""
    straight = make_run(work_dir / "straight", [subject.config()], train_cfg=LOOPS[loop])
    straight.train()
    cut = make_run(work_dir / "cut", [subject.config()], train_cfg=LOOPS[loop])
    cut.bus.subscribe(AfterTrainIter, at_iter(CUT - 1, cut.stop))
    cut.train()
    path, state = cut.save_checkpoint("cut"), looks(hook_of(cut, subject).state_dict())
    assert isinstance(path, Path)
    kept = cut.load_checkpoint(path)["hooks"].get(subject.cls.__name__, {})
    assert looks(kept) == state, f"the checkpoint holds {looks(kept)}, not {state}"
    resumed = make_run(work_dir / "resumed", [subject.config()], train_cfg=LOOPS[loop], resume=path)
    resumed.train()
    for what in (public, lambda hook: looks(hook.state_dict())):
        found, expected = (what(hook_of(run, subject)) for run in (resumed, straight))
        assert found == expected, f"a resumed run ends with {found}, not with {expected}"
    check_same_weights(resumed, weights(straight.model))


def check_closing_twice(subject: Subject, work_dir: Path, loop: str) -> None:
    """`AfterRun` may come twice, and a run may be taken up again, with nothing done twice or left behind."""
    runner = make_run(work_dir, [subject.config()], train_cfg=LOOPS[loop])

    def again(event: AfterRun) -> None:
        closing.cancel()
        runner.bus.emit(event, {"runner": runner})

    closing = runner.bus.subscribe(AfterRun, again, priority="LOWEST")
    with leaves_nothing_behind():
        runner.train()
        runner.train()
        runner.test()
    check_bus_is_clean(runner)


def check_error_in_the_middle(subject: Subject, work_dir: Path, loop: str, event_type: type[Event], priority: str) -> None:
    """The error of somebody else comes out as itself, with nothing added by this hook, which cleans up and can go on."""
    error, outcomes = Deliberate("on purpose"), []
    for hooks in ([], [subject.config()]):
        runner = make_run(work_dir / str(len(hooks)), hooks, train_cfg=LOOPS[loop])
        with leaves_nothing_behind(), runner.bus.subscribe(event_type, second_call_raises(error), priority=priority):
            assert failure_of(runner) is error
        outcomes.append(weights(runner.model))
    troubles = [note for note in error.__notes__ if note.startswith("and at ")]
    assert not troubles, f"it fails while the run is closed: {troubles}"
    check_same_weights(runner, outcomes[0])
    with leaves_nothing_behind():
        runner.train()
    assert runner.iter == 6, "the run cannot be taken up again"
    check_bus_is_clean(runner)


def second_call_raises(error: Exception) -> Callable[[], None]:
    """Return a handler that raises an error when it is called for the second time."""
    calls = itertools.count(1)

    def handler() -> None:
        if next(calls) == 2:
            raise error

    return handler


def failure_of(runner: Runner) -> BaseException | None:
    """Return what a training ended with."""
    try:
        runner.train()
    except Exception as error:  # noqa: BLE001  what it is, is the question
        return error
    return None


def check_bus_is_clean(runner: Runner) -> None:
    """Fail if a handler is left that is not on the bus between two runs."""
    heard = {name: runner.bus.plan(event_type) for name, event_type in MOUNT_POINTS.items()}
    left = [f"{entry.name} on {name}" for name, entries in heard.items() for entry in entries]
    assert not left, f"handlers are left on the bus: {', '.join(left)}"
    assert runner.bus.around is None, "somebody is still around the handlers"


def check_same_weights(runner: Runner, expected: Mapping[str, torch.Tensor]) -> None:
    """Fail if the model of a runner has other weights or buffers than these."""
    found = weights(runner.model)
    others = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not others, f"the model is another one: {', '.join(others)}"
