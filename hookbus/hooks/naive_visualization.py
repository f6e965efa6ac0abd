"""Draws some images of each validation and test, with what they show and what was predicted."""

from __future__ import annotations

__all__ = ("NaiveVisualizationHook",)

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch

from hookbus._config import refuse, shown
from hookbus.distributed import is_main_process
from hookbus.errors import ConfigError, choices, describe_error
from hookbus.events import ImagesDrawn
from hookbus.hooks.base import Hook
from hookbus.pictures import Normalization, check_pillow, has_image_shape, labelled, pixels

Draw: TypeAlias = Callable[[Any, Any], Iterable[tuple[Any, str]]]
"""Gets a batch and what the step gave for it; returns images with their captions."""

EvaluationMode = Literal["val", "test"]

_MODES: tuple[EvaluationMode, ...] = ("val", "test")
_OF_CLASSES = ("class_names", "mean", "std")
"""Options about what is drawn where no `draw` is given."""


class _Picture(NamedTuple):
    """An image as it came, and what is to stand below it."""

    image: Any
    caption: str
    is_right: bool | None = None


class NaiveVisualizationHook(Hook):
    """Draws images of validation and test batches as PNG files, with the true and the predicted class below each.

    They go to `images/` in the directory of the logs, named `<mode>_<iter>_<number>.png`; `ImagesDrawn` tells of them when the
    validation or test is over. Only the main process draws, and only what is drawn is copied from the device. Batches that
    are no `(images, labels)` need a `draw` function; without one the log says once that nothing is drawn.

    Args:
        interval: batches between two that are drawn from, the first one after as many.
        draw_gt: whether the caption tells the true class.
        draw_pred: whether the caption tells the predicted class; green where it is the true one, else red.
        max_images: how many images to draw in one validation or test.
        modes: what to draw in, `"val"`, `"test"` or both.
        class_names: names to show in place of the numbers of the classes.
        mean: what was subtracted from images of 0 to 1, one number or one per channel; undone before drawing.
        std: what they were divided by after that.
        draw: gets a batch and the outputs of its step, and returns images with their captions; for any other task.

    Raises:
        ConfigError: an option makes no sense, or Pillow is not installed.
    """

    priority: ClassVar[int | str] = "LOWEST"

    def __init__(
        self,
        interval: int = 1,
        draw_gt: bool = True,
        draw_pred: bool = True,
        max_images: int = 16,
        modes: Sequence[EvaluationMode] = _MODES,
        class_names: Sequence[str] | None = None,
        mean: float | Sequence[float] | None = None,
        std: float | Sequence[float] | None = None,
        draw: Draw | None = None,
    ) -> None:
        refuse(list(_problems({name: value for name, value in locals().items() if name != "self"})))
        check_pillow("NaiveVisualizationHook")
        self.interval = interval
        self.draw_gt = draw_gt
        self.draw_pred = draw_pred
        self.max_images = max_images
        self.modes = tuple(modes)
        self.class_names = class_names
        self.normalization = None if mean is None or std is None else Normalization(_numbers(mean), _numbers(std))
        self.draw: Draw | None = draw
        self._drawn: list[tuple[str, str]] = []
        """Path and caption of the images of the running validation or test."""
        self._complaints: set[str] = set()
        self._is_given_up = False

    def uses(self, mount_point: str) -> bool:
        """Leave alone the mode that is not drawn in."""
        return mount_point == "before_run" or any(mode in mount_point.split("_") for mode in self.modes)

    def before_run(self) -> None:
        """Try again what failed in an earlier run."""
        self._complaints, self._is_given_up = set(), False

    def before_val(self) -> None:
        """Begin to count."""
        self._drawn = []

    def before_test(self) -> None:
        """Begin to count."""
        self._drawn = []

    def after_val_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        """Draw a batch where it is due."""
        self._draw_batch(runner, "val", batch_idx, data_batch, outputs)

    def after_test_iter(self, runner: Any, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        """Draw a batch where it is due."""
        self._draw_batch(runner, "test", batch_idx, data_batch, outputs)

    def after_val(self, runner: Any) -> None:
        """Tell of what was drawn."""
        self._tell(runner, "val")

    def after_test(self, runner: Any) -> None:
        """Tell of what was drawn."""
        self._tell(runner, "test")

    def _draw_batch(self, runner: Any, mode: EvaluationMode, batch_idx: int, data_batch: Any, outputs: Any) -> None:
        """Draw as much of a batch as there is room for.

        Raises:
            ConfigError: the `draw` function gave something else than images with their captions.
        """
        room = self.max_images - len(self._drawn)
        if room < 1 or self._is_given_up or not self.every_n_inner_iters(batch_idx, self.interval) or not is_main_process():
            return
        given = (
            self._classified(runner, data_batch, outputs, room) if self.draw is None else _given(self.draw(data_batch, outputs))
        )
        try:
            for picture in islice(given, room):
                self._save(runner, mode, picture)
        except OSError as error:  # a full disk is no reason to end a training
            self._is_given_up = True
            runner.logger.warning("no more images are drawn in this run: %s", describe_error(error))

    def _save(self, runner: Any, mode: EvaluationMode, picture: _Picture) -> None:
        drawn, is_in_range = pixels(picture.image, self.normalization)
        if not is_in_range:
            self._complain(runner, "images have values outside of 0 to 1, which are cut off; give their mean and std")
        directory = runner.log_dir / "images"
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / f"{mode}_{runner.iter}_{len(self._drawn)}.png"
        labelled(drawn, picture.caption, picture.is_right).save(path)
        self._drawn.append((str(path), picture.caption))

    def _tell(self, runner: Any, mode: EvaluationMode) -> None:
        drawn, self._drawn = self._drawn, []
        if drawn:
            paths, captions = map(list, zip(*drawn, strict=True))
            event = ImagesDrawn(mode=mode, epoch=runner.epoch, iter=runner.iter, paths=paths, captions=captions)
            runner.bus.emit(event, {"runner": runner})

    def _classified(self, runner: Any, data_batch: Any, outputs: Any, room: int) -> Iterator[_Picture]:
        """Yield the images of a batch with their classes."""
        if not _is_labelled_images(data_batch):
            self._complain(runner, "batches are no (images, labels), so nothing is drawn; give it a draw function")
            return
        images, targets = data_batch
        true = _classes(targets, room) if self.draw_gt else None
        predicted = _classes(outputs, room) if self.draw_pred else None
        if (self.draw_gt and true is None) or (self.draw_pred and predicted is None):
            self._complain(runner, "what is true or predicted is no class per image; give it a draw function")
        for index, image in enumerate(images[:room].detach().cpu()):
            yield self._picture(image, true[index] if true else None, predicted[index] if predicted else None)

    def _picture(self, image: Any, true: int | None, predicted: int | None) -> _Picture:
        said = {"true": true, "predicted": predicted}
        caption = "\n".join(f"{what}: {self._name(number)}" for what, number in said.items() if number is not None)
        return _Picture(image, caption, None if None in said.values() else true == predicted)

    def _name(self, number: int) -> str:
        names = self.class_names
        return names[number] if names is not None and 0 <= number < len(names) else str(number)

    def _complain(self, runner: Any, complaint: str) -> None:
        if complaint not in self._complaints:
            self._complaints.add(complaint)
            runner.logger.warning("NaiveVisualizationHook: %s", complaint)


def _given(pictures: Any) -> Iterator[_Picture]:
    """Yield what a `draw` function gave."""
    if not isinstance(pictures, Iterable):
        msg = f"draw must return images with their captions, got {shown(pictures)}"
        raise ConfigError(msg)
    for pair in pictures:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or not isinstance(pair[1], str):
            msg = f"draw must return pairs of an image and a caption, got {shown(pair)}"
            raise ConfigError(msg)
        yield _Picture(*pair)


def _is_labelled_images(batch: Any) -> bool:
    """Return whether a batch is a pair, and its first part a tensor of images."""
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        return False
    images = batch[0]
    return isinstance(images, torch.Tensor) and images.ndim > 2 and has_image_shape(images.shape[1:])


def _classes(values: Any, room: int) -> list[int] | None:
    """Return the first classes that labels, scores or probabilities tell, on the host; None where they tell none."""
    if not isinstance(values, torch.Tensor) or values.ndim not in (1, 2):
        return None
    values = values[:room].detach()
    if values.ndim == 2 and values.shape[1] > 1:
        values = values.argmax(dim=1)
    host = values.reshape(-1).cpu()
    if host.is_floating_point():  # of two classes: probabilities, or scores where they cannot be that
        are_probabilities = bool(((host >= 0) & (host <= 1)).all())
        host = host > (0.5 if are_probabilities else 0.0)
    classes: list[int] = host.long().tolist()
    return classes


# --- what the options may be ------------------------------------------------------------------------------------------


def _numbers(value: float | Sequence[float]) -> tuple[float, ...]:
    return tuple(value) if isinstance(value, list | tuple) else (value,)  # type: ignore[return-value]


def _problems(options: Mapping[str, Any]) -> Iterator[str]:
    for name in ("interval", "max_images"):
        if type(options[name]) is not int or options[name] < 1:
            yield _problem(name, options[name], "a whole number of at least 1")
    for name in ("draw_gt", "draw_pred"):
        if not isinstance(options[name], bool):
            yield _problem(name, options[name], "True or False")
    modes = options["modes"]
    if not isinstance(modes, list | tuple) or not modes:
        yield _problem("modes", modes, f"a list of at least one of {', '.join(_MODES)}")
    else:
        yield from (f"NaiveVisualizationHook.modes = {shown(m)}: {choices(str(m), _MODES)}" for m in modes if m not in _MODES)
    names = options["class_names"]
    if names is not None and not (isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)):
        yield _problem("class_names", names, "a list of texts, or None")
    yield from _normalization_problems(options["mean"], options["std"])
    if options["draw"] is not None and not callable(options["draw"]):
        yield _problem("draw", options["draw"], "a function draw(batch, outputs), or None")
    elif options["draw"] is not None:
        beside = [name for name in _OF_CLASSES if options[name] is not None]
        yield from (
            _problem(name, options[name], "None beside draw, which gives images and captions as they are") for name in beside
        )


def _normalization_problems(mean: Any, std: Any) -> Iterator[str]:
    if (mean is None) != (std is None):
        yield _problem("mean" if mean is None else "std", None, "both mean and std, or neither")
        return
    if mean is None:
        return
    expected = "a number from 0 to 1, or one for each of 3 channels, as images of 0 to 1 are normalised"
    if not all(_is_number(number) and 0 <= number <= 1 for number in _numbers(mean)) or len(_numbers(mean)) not in (1, 3):
        yield _problem("mean", mean, expected)
    if not all(_is_number(number) and 0 < number <= 1 for number in _numbers(std)) or len(_numbers(std)) not in (1, 3):
        yield _problem("std", std, f"{expected}, and not 0")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _problem(name: str, value: object, expectation: str) -> str:
    return f"NaiveVisualizationHook.{name} = {shown(value)}: expected {expectation}"
