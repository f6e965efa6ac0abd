"""Event files for TensorBoard: curves, images, histograms and hyper-parameters."""

from __future__ import annotations

__all__ = ("TensorboardWriter",)

import importlib.util
import struct
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

from hookbus._config import refuse, shown
from hookbus.events import Histogram, HistogramsTaken, ImagesDrawn
from hookbus.types import HookLike, Mode
from hookbus.writers._event_file import EventFile
from hookbus.writers.base import Record, RunPlace, Writer


class TensorboardWriter(Writer):
    """Writes the scalars of each record as one summary into `tensorboard/` of the log directory.

    Tags are `train/loss`, `val/loss` and the like, so training and validation are different curves; the step is the number
    of completed iterations for all of them. Values that are not one number are left to other writers. Images that were drawn
    are `<mode>/images/<number>`, and what the run was started with stands in the table of hyper-parameters.

    Args:
        histograms: iterations between two histograms of every weight and its gradient; None for no histograms.
        graph: whether to write the graph of the model, traced with the first batch; needs the extra `tensorboard`.

    Raises:
        ConfigError: `histograms` is not at least 1, or the package for the graph is missing.
    """

    def __init__(self, histograms: int | None = None, graph: bool = False) -> None:
        problems = []
        if histograms is not None and (not isinstance(histograms, int) or histograms < 1):
            problems.append(f"TensorboardWriter.histograms must be at least 1 or None, got {shown(histograms)}")
        if graph and importlib.util.find_spec("tensorboard") is None:
            problems.append("TensorboardWriter.graph = True needs tensorboard: pip install 'hookbus[tensorboard]'")
        refuse(problems)
        self._interval = histograms
        self._with_graph = graph
        self._directory: Path | None = None
        self._first_iter: int | None = None
        self._hyperparameters: dict[str, Any] = {}
        self._file: EventFile | None = None
        self._tags: dict[tuple[Mode, str], str] = {}

    def open(self, place: RunPlace) -> None:
        """Write below the directory of this start; an event file is made with the first record."""
        self.close()
        self._directory = place.log_dir / "tensorboard"
        self._first_iter = place.first_iter
        self._hyperparameters = dict(place.hyperparameters)

    def hooks(self) -> Sequence[HookLike]:
        """Return what takes histograms, and what traces the graph, where that is wanted."""
        hooks: list[HookLike] = []
        if self._interval is not None:
            from hookbus.writers._histograms import HistogramTaker  # needs torch, which writers otherwise do without

            hooks.append(HistogramTaker(self._interval))
        if self._with_graph:
            from hookbus.writers._graph import GraphTracer

            hooks.append(GraphTracer(lambda: self._directory))
        return hooks

    def write(self, record: Record) -> None:
        """Append one event."""
        file = self._ready()
        event = file.event(step=record.iter)
        add, tags, mode = event.summary.value.add, self._tags, record.mode
        for key, value in record.values.items():
            if type(value) is float or isinstance(value, Real):  # asking the abstract class is slow, and most are floats
                add(tag=tags.get((mode, key)) or self._tag(mode, key), simple_value=value)
        file.append(event)

    def write_images(self, images: ImagesDrawn) -> None:
        """Append one event with all images."""
        file = self._ready()
        event = file.event(step=images.iter)
        for number, (path, caption) in enumerate(zip(images.paths, images.captions, strict=True)):
            data = Path(path).read_bytes()
            width, height = struct.unpack(">II", data[16:24])  # a PNG file says so right behind its signature
            value = event.summary.value.add(tag=f"{images.mode}/images/{number}")
            value.image.CopyFrom(type(value.image)(width=width, height=height, colorspace=3, encoded_image_string=data))
            value.metadata.summary_description = _spelt(caption)
        file.append(event)

    def write_histograms(self, histograms: HistogramsTaken) -> None:
        """Append one event with all histograms."""
        file = self._ready()
        event = file.event(step=histograms.iter)
        for name, histogram in histograms.histograms.items():
            if not histogram.counts:
                continue  # not one of its values is a number
            value = event.summary.value.add(tag=_spelt(name))
            value.histo.CopyFrom(_message(type(value.histo), histogram))
        file.append(event)

    def close(self) -> None:
        """Close the event file; a later record begins another one."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _ready(self) -> EventFile:
        """Return the event file; the first one of a run says from which iteration on older values are out of date."""
        if self._file is None or self._file.is_deleted:
            assert self._directory is not None
            self.close()
            self._file = EventFile(self._directory)
        if self._first_iter is not None:
            self._begin(self._file, self._first_iter)
            self._first_iter = None
        return self._file

    def _begin(self, file: EventFile, first_iter: int) -> None:
        restart = file.event(step=first_iter)
        restart.session_log.status = restart.session_log.START
        file.append(restart)
        if self._hyperparameters:
            file.append(file.event(summary=_session_start(self._hyperparameters)))

    def _tag(self, mode: Mode, key: str) -> str:
        """Return `<mode>/<key>`, made once; the key may have its mode already, and any text that UTF-8 cannot spell."""
        tag = key if key.startswith(f"{mode}/") else f"{mode}/{key}"
        return self._tags.setdefault((mode, key), _spelt(tag))


def _session_start(hyperparameters: dict[str, Any]) -> Any:
    """Return what begins a session of the plugin for hyper-parameters, which finds the metrics among the curves by itself."""
    from tensorboardX.summary import hparams

    _, start, _ = hparams({_spelt(name): value for name, value in hyperparameters.items()}, {})
    return start


def _message(kind: Any, histogram: Histogram) -> Any:
    return kind(
        min=histogram.min,
        max=histogram.max,
        num=sum(histogram.counts),
        sum=histogram.total,
        sum_squares=histogram.total_of_squares,
        bucket_limit=histogram.limits,
        bucket=histogram.counts,
    )


def _spelt(text: str) -> str:
    """Return a text that UTF-8 can spell, which half a surrogate pair is not."""
    return text.encode("utf-8", "backslashreplace").decode()
