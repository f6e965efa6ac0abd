"""Weights & Biases, behind the extra `wandb`."""

from __future__ import annotations

__all__ = ("WandbWriter",)

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hookbus.errors import ConfigError
from hookbus.events import ImagesDrawn
from hookbus.types import Mode
from hookbus.writers.base import Record, RunPlace, Writer

STEP = "iter"


class WandbWriter(Writer):
    """Logs each record to a run of Weights & Biases, `train/loss`, `val/loss` and the like, over the completed iterations.

    The run begins with the first record. Its steps are a metric of their own, so a late record stands at its own place.

    Args:
        project: the project; `hookbus` where left out.
        name: the name of the run; that of the experiment where left out.
        options: further options of `wandb.init`, `dict(mode="offline")` for instance.

    Raises:
        ConfigError: the package is missing.
    """

    def __init__(self, project: str = "hookbus", name: str | None = None, options: Mapping[str, Any] | None = None) -> None:
        if importlib.util.find_spec("wandb") is None:
            msg = "WandbWriter needs wandb: pip install 'hookbus[wandb]'"
            raise ConfigError(msg)
        self._project = project
        self._name = name
        self._options = dict(options or {})
        self._place: RunPlace | None = None
        self._run: Any = None

    def open(self, place: RunPlace) -> None:
        """Learn what the run is called; it begins with the first record."""
        self.close()
        self._place = place

    def write(self, record: Record) -> None:
        """Log the values, also those that are no numbers."""
        named = {_named(record.mode, key): value for key, value in record.values.items() if value is not None}
        self._started().log(named | {STEP: record.iter, "epoch": record.epoch})

    def write_images(self, images: ImagesDrawn) -> None:
        """Log the images with their captions."""
        import wandb

        shown = [wandb.Image(path, caption=caption) for path, caption in zip(images.paths, images.captions, strict=True)]
        self._started().log({f"{images.mode}/images": shown, STEP: images.iter, "epoch": images.epoch})

    def close(self) -> None:
        """Finish the run, which brings everything to its destination."""
        if self._run is not None:
            run, self._run = self._run, None
            run.finish()

    def _started(self) -> Any:
        if self._run is None:
            import wandb

            place = self._place
            assert place is not None
            options = {"dir": _directory(place.log_dir), "name": self._name or place.experiment_name} | self._options
            run = wandb.init(project=self._project, config=dict(place.hyperparameters), **options)
            run.define_metric("*", step_metric=STEP)
            self._run = run
        return self._run


def _named(mode: Mode, key: str) -> str:
    """Return `<mode>/<key>`, with what UTF-8 cannot spell written out; half a surrogate pair would cost the whole record."""
    name = key if key.startswith(f"{mode}/") else f"{mode}/{key}"
    return name.encode("utf-8", "backslashreplace").decode()


def _directory(log_dir: Path) -> str:
    """Return the log directory; wandb makes a `wandb/` in it, or writes elsewhere where it is missing."""
    log_dir.mkdir(parents=True, exist_ok=True)
    return str(log_dir)
