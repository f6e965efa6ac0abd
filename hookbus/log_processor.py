"""Turns what the message hub holds into log records: which values, over which window, in which words.

```text
Epoch(train)  [3][ 20/113]  lr: 1.0000e-03  eta: 0:00:12  time: 0.0042  data_time: 0.0003  loss: 0.2137
Epoch(val)  [3][27/27]  accuracy: 0.9704  loss: 0.1021  time: 0.0021  data_time: 0.0002
Iter(train)  [ 20/400]  lr: 1.0000e-03  eta: 0:00:01  time: 0.0042  data_time: 0.0003  loss: 0.2137
Iter(val)  [27/27]  accuracy: 0.9704  loss: 0.1021  time: 0.0021  data_time: 0.0002
```
"""

from __future__ import annotations

__all__ = ("LogProcessor",)

import datetime
import re
from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any

from hookbus._config import refuse, shown
from hookbus._custom_statistics import read_statistics, recorded_since
from hookbus._plain import plain
from hookbus.history import HistoryBuffer
from hookbus.types import Mode
from hookbus.writers.base import Record

_TIMES = ("time", "data_time")
_LONGEST = 10.0**9
"""Seconds that are still written as a duration."""


class LogProcessor:
    """Chooses and words the values of a log line.

    Args:
        window_size: how many of the newest values a mean is taken over.
        by_epoch: whether lines count epochs or iterations; by default what the training loop counts.
        custom_cfg: further statistics, dicts of `data_src`, `method_name`, `log_name`, `window_size` and its other options.
        num_digits: digits behind the point.
        log_with_hierarchy: keep `train/`, `val/` and `test/` before the names in the records.
        mean_pattern: keys that match are averaged over the window, the others are shown as they are.

    Raises:
        ConfigError: an option or an entry of `custom_cfg` does not fit; names all of them.
    """

    def __init__(
        self,
        window_size: int = 10,
        by_epoch: bool | None = None,
        custom_cfg: Sequence[Mapping[str, Any]] | None = None,
        num_digits: int = 4,
        log_with_hierarchy: bool = False,
        mean_pattern: str = r".*(loss|time|data_time|grad_norm).*",
    ) -> None:
        counts = {"window_size": window_size, "num_digits": num_digits}
        problems = [f"log_processor.{name} must be at least 1, got {value}" for name, value in counts.items() if value < 1]
        self._statistics, wrong = read_statistics(custom_cfg, by_epoch=by_epoch, path="log_processor.custom_cfg")
        try:
            self._mean_pattern = re.compile(mean_pattern)
        except (re.error, TypeError) as error:
            wrong.append(f"log_processor.mean_pattern = {shown(mean_pattern)}: not a regular expression: {error}")
        refuse(problems + wrong)
        self.window_size = window_size
        self.by_epoch = by_epoch
        self.num_digits = num_digits
        self.log_with_hierarchy = log_with_hierarchy

    def after_iter(self, runner: Any, batch_idx: int, mode: Mode) -> Record:
        """Return the record of a moment inside a pass; in validation and test only times are known there."""
        scalars = _of_mode(runner.message_hub.log_scalars, mode)
        if mode != "train":
            scalars = {key: scalars[key] for key in _TIMES if key in scalars}
        values = {key: self._value(key, buffer) for key, buffer in scalars.items()}
        values |= self._further(runner, scalars, batch_idx, mode)
        eta = runner.message_hub.get_info("eta") if mode == "train" else _eta_of_pass(runner, scalars, batch_idx, mode)
        first = {key: value for key, value in values.items() if _is_rate(key)} | {"eta": eta}
        first |= {key: values[key] for key in _TIMES if key in values} | {"memory": _peak_memory(runner.device)}
        values = {key: value for key, value in first.items() if value is not None} | values
        is_line = mode == "train"
        return self._record(runner, batch_idx, mode, values, completed=int(is_line), is_progress=not is_line)

    def after_epoch(self, runner: Any, metrics: Mapping[str, Any], num_batches: int, mode: Mode) -> Record:
        """Return the record of a finished validation or test.

        It has the metrics, what else was recorded in this pass, and the mean times of the pass. Metrics stay what they are,
        whatever `custom_cfg` says about values of their name.
        """
        scalars = _of_mode(runner.message_hub.log_scalars, mode)
        step, last_batch = runner.message_hub.step, max(0, num_batches - 1)
        recorded = {key: buffer for key, buffer in scalars.items() if key not in _TIMES and buffer.newest(1)[2] == [step]}
        others = {key: self._value_of_pass(key, buffer, num_batches, step) for key, buffer in recorded.items()}
        times = {key: scalars[key].mean(last_batch + 1) for key in _TIMES if key in scalars}
        known = dict(metrics) | {key: value for key, value in others.items() if key not in metrics}
        further = {k: v for k, v in self._further(runner, scalars, last_batch, mode).items() if k not in (known | times)}
        return self._record(runner, last_batch, mode, known | further | times, completed=0)

    def _value(self, key: str, buffer: HistoryBuffer) -> float:
        return buffer.mean(self.window_size) if self._mean_pattern.match(key) else buffer.current()

    def _value_of_pass(self, key: str, buffer: HistoryBuffer, num_batches: int, step: int) -> float:
        return buffer.mean(recorded_since(step, buffer, num_batches)) if self._mean_pattern.match(key) else buffer.current()

    def _further(self, runner: Any, scalars: Mapping[str, HistoryBuffer], batch_idx: int, mode: Mode) -> dict[str, Any]:
        """Return the statistics of `custom_cfg` about values that are known by now."""
        first_step = runner.message_hub.step - (batch_idx if mode == "train" else 0)
        return {
            statistic.name: statistic.of(buffer, first_step, batch_idx + 1)
            for statistic in self._statistics
            if (buffer := scalars.get(statistic.source)) is not None
        }

    def _record(
        self, runner: Any, batch_idx: int, mode: Mode, values: dict[str, Any], *, completed: int, is_progress: bool = False
    ) -> Record:
        epoch, iteration = runner.epoch + completed, runner.iter + completed
        place = self._place(runner, epoch, iteration, batch_idx, mode)
        text = "  ".join([place, *(f"{key}: {self._word(key, value)}" for key, value in values.items())])
        prefix = f"{mode}/" if self.log_with_hierarchy else ""
        values = {f"{prefix}{key}": plain(value) for key, value in values.items()}
        return Record(mode=mode, epoch=epoch, iter=iteration, values=values, text=text, is_progress=is_progress)

    def _place(self, runner: Any, epoch: int, iteration: int, batch_idx: int, mode: Mode) -> str:
        loop = getattr(runner, f"{mode}_loop")
        by_epoch = getattr(runner.train_loop, "by_epoch", True) if self.by_epoch is None else self.by_epoch
        if mode == "train":
            batch = _fraction(batch_idx + 1, loop.epoch_length) if by_epoch else _fraction(iteration, runner.max_iters)
        else:
            batch = _fraction(batch_idx + 1, loop.num_batches)
        if not by_epoch:
            return f"Iter({mode})  {batch}"
        widest = len(str(runner.max_epochs or 1))
        number = f"[{epoch:>{widest}}]" if mode == "train" or runner.is_training else ""
        return f"Epoch({mode})  {number}{batch}"

    def _word(self, key: str, value: Any) -> str:
        if key == "eta":
            return str(datetime.timedelta(seconds=int(value))) if 0 <= value < _LONGEST else str(value)
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{name}: {self._word(str(name), item)}" for name, item in value.items()) + "}"
        if isinstance(value, list | tuple):
            return "[" + ", ".join(self._word("", item) for item in value) + "]"
        if isinstance(value, Real) and not isinstance(value, Integral):
            return f"{float(value):.{self.num_digits}{'e' if _is_rate(key) else 'f'}}"
        return str(value)


def _of_mode(scalars: Mapping[str, HistoryBuffer], mode: Mode) -> dict[str, HistoryBuffer]:
    """Return the scalars of one mode under their bare names."""
    prefix = f"{mode}/"
    return {key.removeprefix(prefix): buffer for key, buffer in scalars.items() if key.startswith(prefix)}


def _eta_of_pass(runner: Any, scalars: Mapping[str, HistoryBuffer], batch_idx: int, mode: Mode) -> float | None:
    """Return the seconds that the rest of a validation or test will take at its pace so far."""
    length = getattr(runner, f"{mode}_loop").num_batches
    if length is None or "time" not in scalars:
        return None
    seconds_left: float = scalars["time"].mean(batch_idx + 1) * (length - batch_idx - 1)
    return seconds_left


def _peak_memory(device: Any) -> int | None:
    """Return the most memory, in MB, that tensors of this process ever took on a CUDA device; asks no device, resets nothing."""
    if device.type != "cuda":
        return None
    import torch

    return torch.cuda.max_memory_allocated(device) // 2**20


def _is_rate(key: str) -> bool:
    return key in ("lr", "base_lr") or key.endswith(".lr")


def _fraction(done: int, length: int | None) -> str:
    whole = str(length or "?")
    return f"[{done:>{len(whole)}}/{whole}]"
