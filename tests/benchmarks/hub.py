"""What recording costs: one value into histories of any length, an iteration of several, ten logged values beside one."""

from __future__ import annotations

import contextlib
import gc
import io
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch

from hookbus import AfterTrainEpoch, BeforeTrainEpoch, Runner
from hookbus.hub import FOLD_AFTER, MessageHub
from tests.benchmarks.loop import Batches
from tests.benchmarks.measure import Row, compare

LENGTHS = (1_000, 10_000, 100_000, 1_000_000)
KEYS = ("train/loss", "train/lr", "train/time", "train/data_time")
REPETITIONS = 8 * FOLD_AFTER
"""A multiple of what is folded at once, so that each round pays for its own share."""
ROUNDS = 25
LOGGED = 10
LOGGED_ROUNDS = 11
ITERATIONS = 1_000


class Cost(NamedTuple):
    """Microseconds per repetition: the median over the rounds, and the best round."""

    median: float
    best: float

    def __str__(self) -> str:
        return f"{self.median:.2f} us ({self.best:.2f} at best)"


def rows() -> Iterator[Row]:
    """Measure recording."""
    with contextlib.ExitStack() as hubs:
        grown = {length: hubs.enter_context(_grown_hub(length)) for length in LENGTHS}
        candidates: dict[str, Callable[[], float]] = {"bare": lambda: _busy(_append_bare)}
        for length, hub in grown.items():
            candidates[f"one {length}"] = lambda hub=hub: _busy(lambda: _record(hub))  # type: ignore[misc]
            candidates[f"four {length}"] = lambda hub=hub: _busy(lambda: _iterate(hub))  # type: ignore[misc]
        costs = _in_turns(candidates, repetitions=REPETITIONS, rounds=ROUNDS)
    bare = costs["bare"]
    yield Row("appending a tuple to a list, to compare with", str(bare), "for information", True)
    for length in LENGTHS:
        yield _row(f"recording a float, history of {length:,}", costs[f"one {length}"], bare, "0.5 us", 0.5)
    for length in LENGTHS:
        what = f"an iteration of 4 floats, a piece of information and a version, histories of {length:,}"
        yield _row(what, costs[f"four {length}"], bare, "6 x 0.5 us", 3.0)
    yield from _logged_values()


def _row(what: str, cost: Cost, bare: Cost, limit: str, microseconds: float) -> Row:
    measured = f"{cost}, {cost.median / bare.median:.1f}x of an append"
    return Row(what, measured, limit, cost.median <= microseconds)


def _busy(function: Callable[[], object]) -> float:
    """Return the seconds for which one call keeps this thread busy; what other processes take is not in them."""
    gc.collect()
    started = time.thread_time()
    function()
    return time.thread_time() - started


def _in_turns(candidates: Mapping[str, Callable[[], float]], *, repetitions: int, rounds: int) -> dict[str, Cost]:
    """Let candidates, each returning its own seconds, take turns, after one round in which they warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, candidate in candidates.items():
            took = candidate()
            if number:
                seconds[name].append(took)
    per_repetition = 1e6 / repetitions
    return {name: Cost(statistics.median(all_) * per_repetition, min(all_) * per_repetition) for name, all_ in seconds.items()}


@contextmanager
def _grown_hub(length: int) -> Iterator[MessageHub]:
    """Give the hub of a live run of this thread, with histories of that length."""
    columns = ([0.5] * length, [1] * length, list(range(length)))
    hub = MessageHub(f"benchmark_{length}")
    hub.begin_run(threading.get_ident())
    hub.load_state_dict({"log_scalars": dict.fromkeys(KEYS, columns), "runtime_info": {}})
    hub.step = length
    try:
        yield hub
    finally:
        hub.end_run()


def _append_bare() -> None:
    log: list[tuple[str, float, int, int]] = []
    for i in range(REPETITIONS):
        log.append(("train/loss", 0.5, 1, i))
        if len(log) == FOLD_AFTER:
            log.clear()


def _record(hub: MessageHub) -> None:
    """Record one value again and again; the commits are those that fold."""
    for _ in range(REPETITIONS // FOLD_AFTER):
        for _ in range(FOLD_AFTER):
            hub.update_scalar("train/loss", 0.5)
        hub.commit()


def _iterate(hub: MessageHub) -> None:
    for i in range(REPETITIONS):
        hub.step += 1
        hub.update_info("iter", i)
        hub.update_scalar("train/loss", 0.5)
        hub.update_scalar("train/lr", 0.1)
        hub.update_scalars({"train/time": 0.2, "train/data_time": 0.1})
        hub.commit()


class Logging(torch.nn.Module):
    """A model whose training step returns its loss and so many further values."""

    def __init__(self, extra: Mapping[str, Any]) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(10, 3)
        self.extra = dict(extra)

    def train_step(self, batch: Any, optim_wrapper: Any) -> dict[str, Any]:
        """Train on one batch."""
        inputs, targets = batch
        loss = torch.nn.functional.cross_entropy(self.linear(inputs), targets)
        optim_wrapper.update_params(loss)
        return {"loss": loss, **self.extra}


def _logged_values() -> Iterator[Row]:
    torch.set_num_threads(1)
    names = [f"loss_{number}" for number in range(1, LOGGED)]
    kinds: dict[str, dict[str, Any]] = {
        "floats": dict.fromkeys(names, 0.5),
        "CPU tensors": {name: torch.tensor(0.5) for name in names},
    }
    for kind, extra in kinds.items():
        pair = compare(lambda: _train(extra), lambda: _train({}), repetitions=ITERATIONS, rounds=LOGGED_ROUNDS)  # noqa: B023
        added = pair.difference * 1e6
        measured = f"+{added:.1f} us ({pair.ratio:.3f}x of the {pair.other * 1e6:.0f} us with one)"
        yield Row(f"{LOGGED} logged values beside 1, {kind}", measured, "+10 us", added <= 10)


def _train(extra: Mapping[str, Any]) -> float:
    """Train with the default hooks and return the seconds of the epoch."""
    torch.manual_seed(0)
    model = Logging(extra)
    times: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as work_dir, contextlib.redirect_stderr(io.StringIO()):
        runner = Runner(
            model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.01),
            train_dataloader=Batches(ITERATIONS),
            train_cfg=dict(max_epochs=1),
            work_dir=work_dir,
            experiment_name="benchmark",
            device="cpu",
        )
        runner.bus.subscribe(BeforeTrainEpoch, lambda: times.update(began=time.perf_counter()), priority="LOWEST")
        runner.bus.subscribe(AfterTrainEpoch, lambda: times.update(ended=time.perf_counter()), priority="HIGHEST")
        runner.train()
    return times["ended"] - times["began"]
