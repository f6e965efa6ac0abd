"""Turns what the message hub holds into log records: which values, over which window, in which words.

```text
Epoch(train)  [3][ 20/113]  lr: 1.0000e-03  eta: 0:00:12  time: 0.0042  data_time: 0.0003  loss: 0.2137
Epoch(val)  [3][27/27]  accuracy: 0.9704  loss: 0.1021  time: 0.0021  data_time: 0.0002
```
"""

from __future__ import annotations

__all__ = ("LogProcessor",)

import datetime
import re
from collections.abc import Mapping
from typing import Any

from hookbus.errors import ConfigError
from hookbus.history import HistoryBuffer
from hookbus.types import Mode
from hookbus.writers.base import Record

_TIMES = ("time", "data_time")


class LogProcessor:
    """Chooses and words the values of a log line.

    Args:
        window_size: how many of the newest values a mean is taken over.
        num_digits: digits behind the point.
        mean_pattern: keys that match are averaged over the window, the others are shown as they are.

    Raises:
        ConfigError: `window_size` or `num_digits` is not at least 1.
    """

    def __init__(
        self, window_size: int = 10, num_digits: int = 4, mean_pattern: str = r".*(loss|time|data_time|grad_norm).*"
    ) -> None:
        for name, value in {"window_size": window_size, "num_digits": num_digits}.items():
            if value < 1:
                msg = f"log_processor.{name} must be at least 1, got {value}"
                raise ConfigError(msg)
        self.window_size = window_size
        self.num_digits = num_digits
        self._mean_pattern = re.compile(mean_pattern)

    def after_iter(self, runner: Any, batch_idx: int, mode: Mode) -> Record:
        """Return the record of a moment inside a pass."""
        scalars = _of_mode(runner.message_hub.log_scalars, mode)
        values = {key: self._value(key, buffer) for key, buffer in scalars.items() if mode == "train" or key in _TIMES}
        if mode == "train":
            values = {"lr": values.pop("lr", None), "eta": runner.message_hub.get_info("eta")} | values
            values = {key: value for key, value in values.items() if value is not None}
        return self._record(runner, batch_idx, mode, values, completed=int(mode == "train"))

    def after_epoch(self, runner: Any, metrics: Mapping[str, Any], num_batches: int, mode: Mode) -> Record:
        """Return the record of a finished validation or test: its metrics, then the mean times of the pass."""
        scalars = _of_mode(runner.message_hub.log_scalars, mode)
        times = {key: scalars[key].mean(num_batches) for key in _TIMES if key in scalars}
        return self._record(runner, num_batches - 1, mode, dict(metrics) | times, completed=0)

    def _value(self, key: str, buffer: HistoryBuffer) -> float:
        return buffer.mean(self.window_size) if self._mean_pattern.match(key) else buffer.current()

    def _record(self, runner: Any, batch_idx: int, mode: Mode, values: dict[str, Any], *, completed: int) -> Record:
        epoch = runner.epoch + completed
        place = f"Epoch({mode})  {self._place(runner, epoch, batch_idx, mode)}"
        text = "  ".join([place, *(f"{key}: {self._word(key, value)}" for key, value in values.items())])
        return Record(mode=mode, epoch=epoch, iter=runner.iter + completed, values=values, text=text)

    def _place(self, runner: Any, epoch: int, batch_idx: int, mode: Mode) -> str:
        length = str(getattr(runner, f"{mode}_loop").num_batches or "?")
        batch = f"[{batch_idx + 1:>{len(length)}}/{length}]"
        widest = len(str(runner.max_epochs or 1))
        return f"[{epoch:>{widest}}]{batch}" if mode == "train" or runner.is_training else batch

    def _word(self, key: str, value: Any) -> str:
        if key == "eta":
            return str(datetime.timedelta(seconds=int(value)))
        if key == "lr" or key.endswith(".lr"):
            return f"{value:.{self.num_digits}e}"
        return f"{value:.{self.num_digits}f}" if isinstance(value, float) else str(value)


def _of_mode(scalars: Mapping[str, HistoryBuffer], mode: Mode) -> dict[str, HistoryBuffer]:
    """Return the scalars of one mode under their bare names, times last."""
    prefix = f"{mode}/"
    named = {key.removeprefix(prefix): buffer for key, buffer in scalars.items() if key.startswith(prefix)}
    return {k: b for k, b in named.items() if k in _TIMES} | {k: b for k, b in named.items() if k not in _TIMES}
