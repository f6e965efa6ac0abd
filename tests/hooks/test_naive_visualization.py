"""NaiveVisualizationHook: which images it draws, what stands below them, and that no picture ends a training."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from hookbus.errors import ConfigError
from hookbus.events import AfterValIter, ImagesDrawn
from hookbus.hooks import NaiveVisualizationHook
from hookbus.runner import Runner
from hookbus.wire import decode_event, encode_event
from tests.runner.builders import at_iter, make_runner, record

pytest.importorskip("PIL.Image", reason="pip install 'hookbus[images]'")

LOOPS: dict[str, dict[str, Any]] = {
    "by epoch": dict(max_epochs=2),
    "by iteration": dict(by_epoch=False, max_iters=4, val_interval=2),
}
"""Four iterations, validated after two and after four."""


def make_images(size: int = 8, *, channels: int = 3, batch_size: int = 4) -> DataLoader[Any]:
    """Return batches of images of 4 by 5 pixels, whose class is the channel that is brightest."""
    generator = torch.Generator().manual_seed(size)
    images = torch.rand(size, channels, 4, 5, generator=generator)
    return DataLoader(TensorDataset(images, torch.arange(size) % 3), batch_size=batch_size)


def make_model(channels: int = 3) -> torch.nn.Module:
    """Return a classifier of such images."""
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(channels * 20, 3))


def make(work_dir: Path, loop: str = "by epoch", *, changes: dict[str, Any] | None = None, **options: Any) -> Runner:
    """Return a runner with the hook: two batches of four images in each epoch, validation and test."""
    hook = dict(type="NaiveVisualizationHook") | options
    parts: dict[str, Any] = dict(
        model=make_model(),
        train_dataloader=make_images(),
        val_dataloader=make_images(),
        test_dataloader=make_images(),
        train_cfg=LOOPS[loop],
        default_hooks=dict(logger=None, checkpoint=None),
        custom_hooks=[hook],
    )
    return make_runner(work_dir, **parts | (changes or {}))


def images_of(runner: Runner) -> list[str]:
    """Return the names of the files."""
    return sorted(path.name for path in (runner.log_dir / "images").glob("*"))


def log_of(runner: Runner) -> str:
    """Return what was logged."""
    return (runner.log_dir / "train.log").read_text(encoding="utf-8")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize(
    ("options", "counts"),
    [
        ({}, {"val_2": 8, "val_4": 8, "test_4": 8}),
        (dict(max_images=3), {"val_2": 3, "val_4": 3, "test_4": 3}),
        (dict(max_images=5), {"val_2": 5, "val_4": 5, "test_4": 5}),
        (dict(interval=2), {"val_2": 4, "val_4": 4, "test_4": 4}),
        (dict(interval=3), {}),
        (dict(modes=["test"], max_images=1), {"test_4": 1}),
        (dict(modes=["val"], max_images=1), {"val_2": 1, "val_4": 1}),
    ],
)
def test_some_images_of_each_validation_and_test_are_drawn(
    options: dict[str, Any], counts: dict[str, int], loop: str, tmp_path: Path
) -> None:
    """One file each, and one event for all of one pass, which says where they are."""
    runner = make(tmp_path, loop, **options)
    events: list[Any] = record(runner.bus, ImagesDrawn)
    runner.train()
    runner.test()
    assert images_of(runner) == sorted(f"{place}_{n}.png" for place, number in counts.items() for n in range(number))
    assert [f"{event.mode}_{event.iter}" for event in events] == list(counts)
    for event in events:
        assert [Path(path).exists() for path in event.paths] == [True] * counts[f"{event.mode}_{event.iter}"]
        assert len(event.captions) == len(event.paths)
        assert decode_event(encode_event(event)) == event


def read(path: str | Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return the pixels of a file."""
    from PIL import Image

    return np.asarray(Image.open(path))


def test_a_file_shows_the_image_and_both_classes(tmp_path: Path) -> None:
    """Pixel by pixel, magnified; below it what is true and what was predicted."""
    runner = make(tmp_path, max_images=8, class_names=["zero", "one", "two"])
    seen: list[Any] = record(runner.bus, ImagesDrawn)
    predicted: list[int] = []
    runner.bus.subscribe(AfterValIter, lambda outputs: predicted.extend(outputs.argmax(1).tolist()))
    runner.val()
    (event,) = seen
    names = ["zero", "one", "two"]
    assert event.captions == [f"true: {names[n % 3]}\npredicted: {names[p]}" for n, p in enumerate(predicted)]
    images, _ = make_images().dataset.tensors  # type: ignore[attr-defined]
    for path, image in zip(event.paths, images, strict=True):
        expected = (image.permute(1, 2, 0).numpy() * 255).round()
        np.testing.assert_array_equal(read(path)[16:128:32, 16:160:32], expected)


@pytest.mark.parametrize(
    ("options", "caption"),
    [
        (dict(draw_gt=False), r"predicted: \d"),
        (dict(draw_pred=False), "true: 0"),
        (dict(draw_gt=False, draw_pred=False), ""),
        (dict(class_names=["only one"]), "true: only one\npredicted: .*"),
    ],
)
def test_the_caption_tells_what_was_asked_for(options: dict[str, Any], caption: str, tmp_path: Path) -> None:
    """Classes without a name have their number."""
    runner = make(tmp_path, **options)
    seen: list[Any] = record(runner.bus, ImagesDrawn)
    runner.test()
    assert re.fullmatch(caption, seen[0].captions[0])


def test_grey_images_without_a_dimension_for_channels_are_drawn(tmp_path: Path) -> None:
    """And two classes may be told by one score or probability."""
    images, targets = torch.rand(4, 8, 8), torch.tensor([0.0, 1.0, 0.0, 1.0])
    loader: DataLoader[Any] = DataLoader(TensorDataset(images, targets), batch_size=4)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1), torch.nn.Flatten(0))
    changes = dict(model=model, val_dataloader=loader, loss_fn=torch.nn.functional.binary_cross_entropy_with_logits)
    runner = make(tmp_path, changes=changes)
    seen: list[Any] = record(runner.bus, ImagesDrawn)
    scores: list[float] = []
    runner.bus.subscribe(AfterValIter, lambda outputs: scores.extend(outputs.tolist()))
    runner.val()
    threshold = 0.5 if all(0 <= score <= 1 for score in scores) else 0
    expected = [f"true: {n % 2}\npredicted: {int(score > threshold)}" for n, score in enumerate(scores)]
    assert seen[0].captions == expected


def test_a_normalization_is_undone_and_one_that_was_forgotten_is_told(tmp_path: Path) -> None:
    """Once in each run."""
    images = torch.rand(4, 3, 8, 8)
    loader: DataLoader[Any] = DataLoader(TensorDataset((images - 0.5) / 0.25, torch.zeros(4, dtype=torch.long)), batch_size=4)
    changes = dict(
        model=torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3)), val_dataloader=loader, test_dataloader=loader
    )
    undone = make(tmp_path / "undone", changes=changes, mean=0.5, std=[0.25])
    undone.val()
    assert "cut off" not in log_of(undone)
    expected = (images[0].permute(1, 2, 0).numpy() * 255).round()
    np.testing.assert_allclose(read(undone.log_dir / "images" / "val_0_0.png")[8:128:16, 8:128:16], expected, atol=1)
    forgotten = make(tmp_path / "forgotten", changes=changes)
    forgotten.val()
    assert log_of(forgotten).count("have values outside of 0 to 1, which are cut off; give their mean and std") == 1


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        (dict(), None),
        (
            dict(model=torch.nn.Linear(4, 3), val_dataloader=DataLoader(TensorDataset(torch.randn(8, 4), torch.arange(8) % 3))),
            "batches are no (images, labels), so nothing is drawn; give it a draw function",
        ),
        (
            dict(val_step=lambda model, batch: {"loss": torch.zeros(())}),
            "what is true or predicted is no class per image; give it a draw function",
        ),
    ],
)
def test_what_cannot_be_drawn_is_said_once_and_ends_nothing(
    changes: dict[str, Any], complaint: str | None, tmp_path: Path
) -> None:
    """Numbers without an image, or images without a class."""
    runner = make(tmp_path, changes=changes)
    runner.val()
    assert complaint is None or log_of(runner).count(complaint) == 1
    assert ("NaiveVisualizationHook:" in log_of(runner)) == (complaint is not None)


def test_a_function_draws_whatever_it_wants(tmp_path: Path) -> None:
    """It gets the batch and the outputs; no more is taken from it than there is room for."""
    taken: list[int] = []

    def draw(batch: Any, outputs: Any) -> Iterator[tuple[Any, str]]:
        for number, (image, output) in enumerate(zip(batch[0], outputs, strict=True)):
            taken.append(number)
            yield image, f"scores {output.tolist()!r:.10}"

    runner = make(tmp_path, draw=draw, max_images=5, modes=["val"])
    seen: list[Any] = record(runner.bus, ImagesDrawn)
    runner.train()
    assert taken == [0, 1, 2, 3, 0] * 2
    assert len(images_of(runner)) == 10
    assert all(caption.startswith("scores [") for event in seen for caption in event.captions)


@pytest.mark.parametrize(
    ("result", "problem"),
    [
        (None, "draw must return images with their captions, got None"),
        ([torch.zeros(3, 4, 4)], "draw must return pairs of an image and a caption, got tensor"),
        ([(torch.zeros(3, 4, 4), 7)], "draw must return pairs of an image and a caption, got (tensor"),
        ([(torch.zeros(5), "five")], "an image has height and width, and 1 or 3 channels before or behind them; got shape (5,)"),
    ],
)
def test_a_function_that_gives_something_else_is_told(result: Any, problem: str, tmp_path: Path) -> None:
    """It is a user's own, so the run ends."""
    with pytest.raises(ConfigError, match=re.escape(problem)):
        make(tmp_path, draw=lambda batch, outputs: result).val()


def test_a_file_that_cannot_be_written_ends_no_training(tmp_path: Path) -> None:
    """The log says so once, and the next run tries again."""
    runner = make(tmp_path)
    seen: list[Any] = record(runner.bus, ImagesDrawn)
    runner.log_dir.mkdir(parents=True)
    (runner.log_dir / "images").write_text("no directory")
    runner.train()
    assert runner.epoch == 2
    assert log_of(runner).count("no more images are drawn in this run: FileExistsError") == 1
    assert seen == []
    (runner.log_dir / "images").unlink()
    runner.val()
    assert len(images_of(runner)) == 8


def test_after_an_error_in_mid_validation_the_next_one_begins_anew(tmp_path: Path) -> None:
    """What was drawn until then lies there, and is not told twice."""
    runner = make(tmp_path)

    def fail() -> None:
        raise ArithmeticError

    failing = runner.bus.subscribe(AfterValIter, at_iter(0, fail), priority="LOWEST")
    seen: list[Any] = record(runner.bus, ImagesDrawn)
    with pytest.raises(ArithmeticError):
        runner.val()
    failing.cancel()
    assert (seen, len(images_of(runner))) == ([], 4)
    runner.val()
    assert [len(event.paths) for event in seen] == [8]


def test_only_what_is_drawn_is_taken_from_the_device() -> None:
    """Nothing of a batch that is not drawn, and of the others no more than there is room for."""
    hook = NaiveVisualizationHook(interval=2, max_images=3)
    batch = (torch.rand(4, 3, 4, 4, device="meta"), torch.zeros(4, device="meta"))
    hook.after_val_iter(None, 0, batch, torch.zeros(4, 3, device="meta"))  # to read it would be an error
    with pytest.raises(NotImplementedError, match="meta"):
        hook.after_val_iter(None, 1, batch, torch.zeros(4, 3, device="meta"))


def test_without_pillow_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before training begins."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"NaiveVisualizationHook needs pillow: pip install 'hookbus\[images\]'"):
        NaiveVisualizationHook()


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (dict(interval=0), "NaiveVisualizationHook.interval = 0: expected a whole number of at least 1"),
        (dict(max_images=True), "NaiveVisualizationHook.max_images = True: expected a whole number of at least 1"),
        (dict(draw_gt="no"), "NaiveVisualizationHook.draw_gt = 'no': expected True or False"),
        (dict(modes="val"), "NaiveVisualizationHook.modes = 'val': expected a list of at least one of val, test"),
        (dict(modes=[]), "NaiveVisualizationHook.modes = []: expected a list of at least one of val, test"),
        (dict(modes=["tets"]), "NaiveVisualizationHook.modes = 'tets': did you mean 'test'? valid choices: val, test"),
        (dict(class_names="ab"), "NaiveVisualizationHook.class_names = 'ab': expected a list of texts, or None"),
        (dict(mean=0.5), "NaiveVisualizationHook.std = None: expected both mean and std, or neither"),
        (dict(std=0.5), "NaiveVisualizationHook.mean = None: expected both mean and std, or neither"),
        (dict(mean=123.7, std=0.5), "NaiveVisualizationHook.mean = 123.7: expected a number from 0 to 1, or one for each of 3"),
        (dict(mean=[0.5, 0.5], std=0.5), "NaiveVisualizationHook.mean = [0.5, 0.5]: expected a number from 0 to 1, or one for"),
        (dict(mean=0.5, std=0), "NaiveVisualizationHook.std = 0: expected a number from 0 to 1, or one for each of 3 channels"),
        (dict(draw=3), "NaiveVisualizationHook.draw = 3: expected a function draw(batch, outputs), or None"),
        (
            dict(draw=print, class_names=["a"]),
            "NaiveVisualizationHook.class_names = ['a']: expected None beside draw, which gives images and captions as they are",
        ),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], problem: str) -> None:
    """Each is named, with what was expected."""
    with pytest.raises(ConfigError, match=f"^{re.escape(problem)}"):
        NaiveVisualizationHook(**options)
